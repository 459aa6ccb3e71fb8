"""The point mass: its moves by hand, its references by brute force, its sources."""

import itertools

import numpy as np
import pytest
from test_sources import job_of

from ad.evaluate import evaluate_policy
from ad.policy import OptimalPolicy, RandomPolicy
from ad.rollout import rollout
from histories.schema import check_history
from tasks.family import FamilyError, TaskFamily, load_family
from tasks.point_mass import PointMassFamily
from teacher.noise_expert import NoiseConfig, noise_expert

FAMILIES = {
    reward: PointMassFamily(horizon=6, step=0.3, reward=reward, radius=0.25, n_tasks=50)
    for reward in ("dense", "sparse")
}
CASES = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@CASES
def test_moves_and_rewards_by_hand(family):
    assert isinstance(family, TaskFamily)
    task = family.tasks()[3]
    goal, env = np.array(task.params["goal"]), family.make_env(task)
    position, rng = np.zeros(2), np.random.default_rng(0)
    assert env.reset(seed=0)[0].tolist() == [0, 0]
    for time in range(6):
        action = rng.uniform(-2, 2, size=2)  # beyond the space too
        shown, reward, terminated, truncated, _ = env.step(action)
        for axis in (0, 1):
            ahead = position[axis] + 0.3 * min(max(action[axis], -1), 1)
            position[axis] = min(max(ahead, -1), 1)
        assert shown == pytest.approx(position, abs=1e-6)
        away = np.hypot(*(position - goal))
        expected = -away if family is FAMILIES["dense"] else float(away <= 0.25)
        assert reward == pytest.approx(expected)
        assert (terminated, truncated) == (False, time == 5)
    assert env.reset()[0].tolist() == [0, 0]


@CASES
def test_no_sequence_of_actions_earns_more_than_the_optimal_return(family):
    """Every path of three steps on a grid of actions, then the expert's best from there."""
    short = PointMassFamily(**{**family._room, "horizon": 3}, n_tasks=50)
    moves = np.array(list(itertools.product(np.linspace(-1, 1, 5), repeat=2)))
    paths = np.array(list(itertools.product(range(len(moves)), repeat=3)))  # (25³, 3)
    for task in short.tasks()[:12]:
        env = short.make_vector_env([task] * len(paths))
        env.reset(seed=0)
        total = sum(env.step(moves[paths[:, time]])[1] for time in range(3))
        assert short.optimal_return(task) >= total.max() - 1e-9
        assert short.optimal_return(task) <= total.max() + 0.5


@CASES
def test_the_expert_earns_the_optimal_return(family):
    streams = list(family.tasks())
    returns = rollout(OptimalPolicy(family, streams), family, streams, n_episodes=2, seed=0).returns
    best = np.array([family.optimal_return(task) for task in streams])
    assert returns == pytest.approx(np.tile(best[:, None], 2), abs=1e-4)
    shown = np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)
    by_index = family.optimal_actions_by_index(np.arange(50), shown)
    assert (by_index == family.optimal_actions(streams, shown)).all()
    assert all(family.action_space.contains(action) for action in by_index)


@CASES
def test_random_returns_agree_with_play(family):
    tasks, n = family.tasks()[:4], 3000
    streams = [task for task in tasks for _ in range(n)]
    returns = rollout(RandomPolicy(family), family, streams, n_episodes=1, seed=0).returns
    error = returns[:, 0].reshape(4, n).mean(1) - [family.random_return(task) for task in tasks]
    assert abs(error).max() < 5 * returns.std() / n**0.5 + 0.02


def test_goals_fill_the_disc_evenly_and_fewer_are_the_first():
    family = PointMassFamily(n_tasks=4000, disc=0.8)
    goals = np.array([task.params["goal"] for task in family.tasks()])
    far = np.linalg.norm(goals, axis=-1)
    assert far.max() <= 0.801
    assert (far < 0.8 * 0.5**0.5).mean() == pytest.approx(0.5, abs=0.03)
    few = PointMassFamily(n_tasks=9, disc=0.8)
    assert [task.params for task in few.tasks()] == [task.params for task in family.tasks()[:9]]


def test_histories_of_the_noisy_expert_improve():
    family = FAMILIES["dense"]
    for history in noise_expert(job_of(family, (0, 7), 12, 6, 30), NoiseConfig(0.5, 2)):
        check_history(history, family.observation_space, family.action_space, 6)
        curve = history.rewards.reshape(30, 12, 6).sum(-1).mean(0)
        assert curve[-1] > curve[0] + 1
        assert (history.truncated.sum(1) == 12).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"step": 0}, "step must be above 0"),
        ({"disc": 1.5}, "disc must be above 0 and at most 1"),
        ({"reward": "none"}, "reward must be one of dense, sparse"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"disc": 0.001, "n_tasks": 50}, "not all different"),
    ],
)
def test_impossible_points(kwargs, message):
    with pytest.raises(FamilyError, match=message):
        load_family("tasks.point_mass:PointMassFamily", kwargs)


def test_no_share_of_optimal_actions_is_told_where_actions_are_real_numbers():
    """Two real numbers are never equal: the share was 0.0, of an expert too."""
    family = PointMassFamily(horizon=6, n_tasks=4)
    counts = {"n_seeds": 2, "n_episodes": 2, "final_episodes": 1, "seed": 0}
    result = evaluate_policy(
        lambda streams: OptimalPolicy(family, streams), family, family.tasks(), **counts
    )
    assert result.action_accuracy_optimal is None
