"""Bandits of Gaussian rewards: posterior, searchers, and references by brute force."""

import math

import numpy as np
import pytest
from test_sources import job_of

from ad.policy import OptimalPolicy, RandomPolicy
from ad.rollout import rollout
from histories.schema import check_history
from tasks.bandit_search import LinearPosterior, LinUCBPolicy, UCBPolicy
from tasks.bandits import BernoulliBanditFamily
from tasks.family import FamilyError, TaskFamily
from tasks.gaussian_bandits import GaussianBanditFamily, LinearBanditFamily
from tasks.search import PosteriorSamplingPolicy, search_policies
from teacher.sources import make_sources

LINEAR = LinearBanditFamily(n_arms=6, dimension=2, noise=0.3, horizon=15, n_tasks=40)
GAUSSIAN = GaussianBanditFamily(n_arms=4, noise=0.5, horizon=15, n_tasks=40)
CASES = pytest.mark.parametrize("family", [LINEAR, GAUSSIAN], ids=lambda family: family.name)


@CASES
def test_references_agree_with_play(family):
    assert isinstance(family, TaskFamily)
    streams = [task for task in family.tasks()[:10] for _ in range(400)]
    for policy, reference in (
        (RandomPolicy(family), family.random_return),
        (OptimalPolicy(family, streams), family.optimal_return),
    ):
        returns = rollout(policy, family, streams, n_episodes=1, seed=0).returns[:, 0]
        error = returns - [reference(task) for task in streams]
        assert abs(error.reshape(10, 400).mean(1)).max() < 5 * returns.std() / 20


@CASES
def test_rewards_are_a_mean_and_noise(family):
    task, n = family.tasks()[3], 4000
    env = family.make_vector_env([task] * n)
    env.reset(seed=1)
    for arm in range(int(family.action_space.n)):
        _, rewards, *_ = env.step(np.full(n, arm))
        mean = float(family.features[arm] @ task.params["theta"])
        assert rewards.mean() == pytest.approx(mean, abs=5 * family.noise / n**0.5)
        assert rewards.std() == pytest.approx(family.noise, rel=0.06)


def test_features_are_equal_in_all_tasks_and_means_vary_as_they_should():
    family = LinearBanditFamily(n_tasks=4000, dimension=5)
    assert np.linalg.norm(family.features, axis=-1) == pytest.approx(5**0.5)
    means = family._pays[:, 0]
    assert means.std() == pytest.approx(1, abs=0.05)
    other = LinearBanditFamily(n_tasks=5, dimension=5, feature_seed=1)
    assert (other.features != family.features).any()
    assert other.tasks()[2].key() != family.tasks()[2].key()
    few = LinearBanditFamily(n_tasks=7, dimension=5)
    assert [task.params for task in few.tasks()] == [task.params for task in family.tasks()[:7]]
    assert family.information_bits == pytest.approx(
        5 * (0.5 * math.log2(2 * math.pi * math.e / 5) + 3 * math.log2(10))
    )


def test_the_posterior_is_that_of_a_grid():
    """Against Bayes' rule on a fine grid of thetas."""
    rng = np.random.default_rng(0)
    features, noise, prior = rng.standard_normal((3, 2)), 0.7, 0.8
    posterior = LinearPosterior(features, prior, noise, 1)
    line = np.linspace(-4, 4, 401)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    log = -0.5 * (grid**2).sum(-1) / prior**2
    nothing = np.zeros(1)
    for arm, reward in ((0, 1.0), (2, -0.4), (1, 0.3), (0, 1.4)):
        posterior.update(nothing, np.array([arm]), np.array([reward]), nothing, nothing)
        log = log - 0.5 * (reward - grid @ features[arm]) ** 2 / noise**2
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    mean = weights @ grid
    covariance = (weights[:, None] * (grid - mean)).T @ (grid - mean)
    assert posterior.mean[0] == pytest.approx(mean, abs=1e-3)
    assert np.linalg.inv(posterior.precision[0]) == pytest.approx(covariance, abs=1e-3)
    many = LinearPosterior(features, prior, noise, 20000)
    many.precision[:], many.weighted[:] = posterior.precision, posterior.weighted
    drawn = many.sample(rng, np.ones(20000, dtype=bool))
    assert drawn.mean(0) == pytest.approx(mean, abs=0.03)
    assert np.cov(drawn.T) == pytest.approx(covariance, abs=0.03)


def test_linucb_by_hand():
    policy = LinUCBPolicy(LINEAR, exploration=1.5)
    policy.reset(1, seed=0)
    thetas = np.zeros(2)
    for step in range(6):
        precision = policy.posterior.precision[0]
        covariance = np.linalg.inv(precision)
        mean = covariance @ policy.posterior.weighted[0]
        index = [f @ mean + 1.5 * math.sqrt(f @ covariance @ f) for f in LINEAR.features]
        (action,) = policy.act(np.zeros(1, dtype=int))
        assert index[action] == pytest.approx(max(index))
        no = np.zeros(1, dtype=bool)
        policy.observe(np.array([LINEAR.features[action] @ thetas + step]), no, no, no)


@CASES
def test_searchers_come_close_to_the_best(family):
    tasks = list(family.tasks())
    streams = [task for task in tasks for _ in range(20)]
    best = np.mean([family.optimal_return(task) for task in tasks])
    floor = np.mean([family.random_return(task) for task in tasks])
    policies = {
        name: make for name, make in search_policies(family, tasks).items() if "ucb" in name
    }
    policies["thompson"] = lambda: PosteriorSamplingPolicy(family, tasks, every_step=True)
    reached = {}
    for name, make in policies.items():
        returns = rollout(make(), family, streams, n_episodes=6, seed=0).returns.mean(0)
        reached[name] = (returns - floor) / (best - floor)
        assert reached[name][-1] > 0.9, name
        assert reached[name][-1] > reached[name][0]
    if family is LINEAR:  # what features tell of one arm they tell of others
        assert reached["linucb"][0] > reached["ucb"][0] + 0.1


def test_the_bonus_of_ucb_is_as_large_as_rewards_vary():
    assert UCBPolicy(GAUSSIAN, 2.0).exploration == pytest.approx(2 * 0.5**2)
    assert UCBPolicy(BernoulliBanditFamily(), 2.0).exploration == 2.0


@pytest.mark.parametrize("style", ["ucb", "linucb", "thompson"])
def test_sources_record_it(style):
    source = make_sources([style], {}, {})[style]
    for history in source(job_of(LINEAR, (0, 5), 15)):
        check_history(history, LINEAR.observation_space, LINEAR.action_space, 15)
        assert len(np.unique(history.rewards)) > 50


def test_linucb_needs_features():
    with pytest.raises(FamilyError, match="known features"):
        LinUCBPolicy(BernoulliBanditFamily())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"noise": 0.0}, "noise must be above 0"), ({"n_tasks": 0}, "n_tasks must be at least 1")],
)
def test_impossible_bandits(kwargs, message):
    for family in (LinearBanditFamily, GaussianBanditFamily):
        with pytest.raises(FamilyError, match=message):
            family(**kwargs)
    with pytest.raises(FamilyError, match="not all different"):
        LinearBanditFamily(dimension=1, n_tasks=20000)
