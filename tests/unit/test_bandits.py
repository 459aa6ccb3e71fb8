"""Bandit families: rules, references, posteriors against brute force, searchers and sources."""

import itertools
import json

import numpy as np
import pytest

from ad.policy import OptimalPolicy, RandomPolicy
from ad.rollout import rollout
from histories.regions import MarkerRule
from histories.schema import check_history
from histories.sources import SourceJob
from tasks.bandit_search import UCBPolicy
from tasks.bandits import BernoulliBanditFamily, KeyedBanditFamily
from tasks.darkroom import DarkRoomFamily
from tasks.family import FamilyError, TaskFamily, load_family
from tasks.search import PosteriorSamplingPolicy, search_policies
from tasks.splits import make_split
from tasks.vector import final_observations
from teacher.sources import make_sources

KEYED = KeyedBanditFamily(n_contexts=3, n_actions=3, n_tasks=20)
SAMPLED = KeyedBanditFamily(n_contexts=3, n_actions=3, n_tasks=20, order="sampled")
BERNOULLI = BernoulliBanditFamily(n_arms=3, horizon=7, n_tasks=4)


@pytest.mark.parametrize("family", [KEYED, SAMPLED, BERNOULLI])
def test_a_vector_of_bandits_keeps_the_rules(family):
    assert isinstance(family, TaskFamily)
    tasks = [family.tasks()[index] for index in (0, 3, 3, 1)]
    env, horizon = family.make_vector_env(tasks), family.episode_len
    shown, _ = env.reset(seed=0)
    seen = []
    for time in range(3 * horizon):
        seen.append(shown)
        following, rewards, terminated, truncated, infos = env.step(np.full(4, time % 3))
        assert (truncated == ((time + 1) % horizon == 0)).all()
        assert not terminated.any()
        if family is not BERNOULLI:
            keys = [task.params["keys"] for task in tasks]
            paying = [key[context] for key, context in zip(keys, shown, strict=True)]
            assert (rewards == (np.array(paying) == time % 3)).all()
        if truncated.all():
            assert (final_observations(following, infos) == shown).all()
        shown = following
    episodes = np.array(seen).reshape(3, horizon, 4).transpose(0, 2, 1).reshape(12, horizon)
    shuffled = (np.sort(episodes) == np.arange(horizon)).all(-1)
    assert shuffled.all() == (family is KEYED)
    again, _ = family.make_vector_env(tasks).reset(seed=0)
    assert (again == seen[0]).all()


@pytest.mark.parametrize("family", [KEYED, BERNOULLI])
def test_one_bandit_is_a_vector_of_one(family):
    task = family.tasks()[1]
    single, vector = family.make_env(task), family.make_vector_env([task])
    assert single.reset(seed=3)[0] == vector.reset(seed=3)[0][0]
    for time in range(family.episode_len):
        observation, reward, terminated, truncated, _ = single.step(time % 3)
        following, rewards, *_, infos = vector.step(np.array([time % 3]))
        assert observation == final_observations(following, infos)[0]
        assert (reward, terminated) == (rewards[0], False)
        assert truncated == (time + 1 == family.episode_len)


@pytest.mark.parametrize("family", [KEYED, SAMPLED, BERNOULLI])
def test_references_agree_with_rollouts(family):
    for task in family.tasks()[:3]:
        streams = [task] * 4000
        policies = {
            family.random_return(task): RandomPolicy(family),
            family.optimal_return(task): OptimalPolicy(family, streams),
        }
        for expected, policy in policies.items():
            returns = rollout(policy, family, streams, n_episodes=1, seed=0).returns
            assert returns.mean() == pytest.approx(expected, abs=0.12)
    indices, shown = np.array([0, 2, 2]), np.zeros(3, dtype=int)
    tasks = [family.tasks()[index] for index in indices]
    by_index = family.optimal_actions_by_index(indices, shown)
    assert (by_index == family.optimal_actions(tasks, shown)).all()


def test_tasks_are_distinct_and_drawn_by_seed():
    few, many = (KeyedBanditFamily(4, 2, n_tasks=n).tasks() for n in (9, 16))
    assert [task.key() for task in few] == [task.key() for task in many][:9]
    assert len({task.key() for task in many}) == 16
    assert [task.index for task in many] == list(range(16))
    assert KeyedBanditFamily(seed=1).tasks()[0].key() != KeyedBanditFamily().tasks()[0].key()
    assert all(json.loads(task.key())["keys"] == task.params["keys"] for task in few)
    with pytest.raises(FamilyError, match="only 16 can differ"):
        KeyedBanditFamily(4, 2, n_tasks=17)
    with pytest.raises(FamilyError, match="order must be"):
        load_family("tasks.bandits:KeyedBanditFamily", {"order": "backwards"})
    with pytest.raises(FamilyError, match="n_arms must be at least 1"):
        BernoulliBanditFamily(n_arms=0)


def test_thousands_of_tasks_are_split():
    family = KeyedBanditFamily(n_tasks=5000)
    split = make_split(family.tasks(), seed=0, n_validation=16, n_test=64)
    assert [len(split.train), len(split.validation), len(split.test)] == [4920, 16, 64]


def test_the_lever_posterior_is_what_enumeration_allows():
    """Every table of levers, those that disagree with what was seen left out."""
    tables = np.array(list(itertools.product(range(3), repeat=3)))  # (27, N)
    task, n = SAMPLED.tasks()[5], 30
    posterior = SAMPLED.posterior([], n)
    env, rng = SAMPLED.make_vector_env([task] * n), np.random.default_rng(0)
    shown, _ = env.reset(seed=0)
    agreeing = np.ones((n, 27), dtype=bool)
    for _ in range(8):
        actions = rng.integers(3, size=n)
        following, rewards, _, ended, _ = env.step(actions)
        posterior.update(shown, actions, rewards, following, ended)
        agreeing &= (actions[:, None] == tables[:, shown].T) == (rewards[:, None] > 0)
        for place, table in enumerate(tables):
            assert (posterior.possible(np.tile(table, (n, 1))) == agreeing[:, place]).all()
        shown = following
    drawn = np.stack([posterior.sample(rng, np.ones(n, bool)) for _ in range(3000)])
    for stream in range(3):
        own = tables[agreeing[stream]]
        shares = (drawn[:, stream, None] == own).all(-1).mean(0)
        assert shares == pytest.approx(np.full(len(own), 1 / len(own)), abs=0.05)


def test_the_beta_posterior_counts():
    posterior = BERNOULLI.posterior([], 2)
    for reward in (1.0, 1.0, 0.0):
        zeros = np.zeros(2, dtype=int)
        posterior.update(zeros, np.array([0, 2]), np.array([reward, 0.0]), zeros, zeros > 0)
    draws = [posterior.sample(np.random.default_rng(i), np.ones(2, bool)) for i in range(4000)]
    expected = [[3 / 5, 1 / 2, 1 / 2], [1 / 2, 1 / 2, 1 / 5]]
    assert np.mean(draws, axis=0) == pytest.approx(np.array(expected), abs=0.02)


def test_posterior_sampling_searches_levers_without_repeating_itself():
    """In the j-th visit of a context min(j, A) of its A levers have been tried."""
    family = KeyedBanditFamily(n_contexts=8, n_actions=4, n_tasks=50)
    policy = PosteriorSamplingPolicy(family, [])
    streams = [task for task in family.tasks() for _ in range(20)]
    returns = rollout(policy, family, streams, n_episodes=5, seed=0).returns / 8
    assert returns.mean(0) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0], abs=0.02)
    assert (returns[:, 3:] == 1).all()


def test_ucb_and_thompson_find_the_best_arm():
    family = BernoulliBanditFamily(n_arms=5, horizon=200, n_tasks=40)
    streams = [task for task in family.tasks() for _ in range(5)]
    best = np.array([family.optimal_return(task) for task in streams])
    random = np.array([family.random_return(task) for task in streams])
    policies = {name: make() for name, make in search_policies(family, []).items()}
    assert set(policies) == {"posterior_sampling", "ucb"}
    policies["thompson"] = PosteriorSamplingPolicy(family, [], every_step=True)
    regret = {}
    for name, policy in policies.items():
        returns = rollout(policy, family, streams, n_episodes=2, seed=0).returns
        regret[name] = (best[:, None] - returns).mean(0) / (best - random).mean()
    assert regret["thompson"][0] < regret["ucb"][0] < 0.5 < regret["posterior_sampling"][0]
    assert regret["thompson"][1] < 0.1
    assert regret["ucb"][1] < regret["ucb"][0]


def test_ucb_is_for_discrete_spaces():
    with pytest.raises(FamilyError, match="UCB needs Discrete"):
        UCBPolicy(DarkRoomFamily())


@pytest.mark.parametrize("family", [KEYED, BERNOULLI])
@pytest.mark.parametrize("style", ["ucb", "thompson", "posterior_sampling", "noise_expert"])
def test_sources_of_bandits(family, style):
    from teacher.noise_expert import NoiseConfig
    from teacher.posterior_sampling import PosteriorConfig

    sections = {"noise": NoiseConfig(), "posterior": PosteriorConfig()}
    job = SourceJob(family, family.tasks()[:3], (0, 1), style, 0, 5, 6, MarkerRule("rollout", 4))
    for history in make_sources([style], sections, {})[style](job):
        check_history(history, family.observation_space, family.action_space)
        assert history.rewards.shape == (5, 24)
    late = history.rewards[:, 12:].mean()
    assert late > family.random_return(family.tasks()[2]) / family.episode_len
