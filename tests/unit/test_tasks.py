"""Dark room, families and references: the environment's rules and the numbers known of it."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tasks.darkroom import DarkRoomEnv, DarkRoomFamily, tabular_room
from tasks.family import FamilyError, TaskFamily, load_family
from tasks.gymnasium_family import GymnasiumFamily
from tasks.references import TabularMDP, optimal_return, random_return
from tasks.sb3_vec_env import SB3VecEnv
from tasks.vector import final_observations


@pytest.mark.parametrize("render_mode", ["ansi", "rgb_array"])
def test_dark_room_passes_gymnasiums_checker(render_mode):
    env = gymnasium.make("DarkRoom-v0", render_mode=render_mode)
    check_env(env.unwrapped)


def test_render_shows_agent_and_goal():
    env = DarkRoomEnv(size=3, goal=(2, 2), render_mode="ansi")
    env.reset()
    assert env.render() == "..G\n.A.\n...\n"
    env.render_mode = "rgb_array"
    image = env.render()
    assert image.shape == (48, 48, 3)
    assert (image[0, -1] == (70, 190, 110)).all()


def test_actions_walls_reward_and_truncation():
    env = DarkRoomEnv(size=3, horizon=6, start=(1, 1), goal=(2, 1))
    env.reset()
    steps = [env.step(action) for action in (0, 0, 4, 2, 2, 3)]
    positions = [step[0].tolist() for step in steps]
    assert positions == [[2, 1], [2, 1], [2, 1], [2, 2], [2, 2], [2, 1]]
    assert [step[1] for step in steps] == [1, 1, 1, 0, 0, 1]
    assert [step[3] for step in steps] == [False] * 5 + [True]
    assert not any(step[2] for step in steps)


def test_once_pays_the_first_arrival_only():
    env = DarkRoomEnv(size=3, horizon=6, goal=(2, 1), reward="once")
    for _ in range(2):
        env.reset()
        assert [env.step(action)[1] for action in (0, 4, 1, 0, 4, 4)] == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("size", "horizon", "start", "random", "optimal"),
    [
        (9, 20, None, 20 / 81, 16.5432),
        (5, 10, None, 0.400, 8.560),
        (7, 20, None, 20 / 49, 17.551),
        (10, 100, (0, 0), 1.000, 91.99),
    ],
)
def test_known_mean_references(size, horizon, start, random, optimal):
    family = DarkRoomFamily(size, horizon, start)
    randoms = [family.random_return(task) for task in family.tasks()]
    optimals = [family.optimal_return(task) for task in family.tasks()]
    assert np.mean(randoms) == pytest.approx(random, abs=5e-5)
    assert np.mean(optimals) == pytest.approx(optimal, abs=5e-4)


@pytest.mark.parametrize("reward", ["every_step", "once"])
def test_closed_form_equals_backward_induction(reward):
    family = DarkRoomFamily(size=5, horizon=3, start=(0, 1), reward=reward)
    for task in family.tasks():
        slow = optimal_return(tabular_room(task.params))
        assert family.optimal_return(task) == pytest.approx(slow)


@pytest.mark.parametrize("reward", ["every_step", "once"])
def test_random_return_agrees_with_rollouts(reward):
    family = DarkRoomFamily(size=3, horizon=6, reward=reward)
    task = family.tasks()[1]
    env = family.make_vector_env([task] * 4000)
    env.reset()
    rng = np.random.default_rng(0)
    returns = sum(env.step(rng.integers(5, size=4000))[1] for _ in range(6))
    assert family.random_return(task) == pytest.approx(returns.mean(), abs=4 * 2 / 4000**0.5)


def test_references_of_a_stochastic_mdp_by_hand():
    transitions = np.zeros((2, 2, 2))
    transitions[0, 0], transitions[0, 1] = [0.5, 0.5], [1, 0]
    transitions[1] = [0, 1]
    rewards = np.array([[0.0, 0.1], [1.0, 1.0]])
    mdp = TabularMDP(transitions, rewards, np.array([1.0, 0.0]), horizon=2)
    # a=0 then the best: 0 + 0.5 * 1 + 0.5 * 0.1; random: 0.05 then 0.75 * 0.05 + 0.25 * 1
    assert optimal_return(mdp) == pytest.approx(0.55)
    assert random_return(mdp) == pytest.approx(0.05 + 0.0375 + 0.25)
    with pytest.raises(ValueError, match="sum to one"):
        TabularMDP(transitions * 2, rewards, np.array([1.0, 0.0]), horizon=2)


@pytest.mark.parametrize("reward", ["every_step", "once"])
def test_vector_env_equals_single_envs_step_for_step(reward):
    family = DarkRoomFamily(size=4, horizon=5, reward=reward)
    tasks = [family.tasks()[index] for index in (0, 5, 5, 10, 15)]
    singles = [family.make_env(task) for task in tasks]
    vector = family.make_vector_env(tasks)
    observations, _ = vector.reset()
    assert observations.tolist() == [env.reset()[0].tolist() for env in singles]
    rng = np.random.default_rng(0)
    for _ in range(13):
        actions = rng.integers(5, size=5)
        observations, rewards, terminated, truncated, infos = vector.step(actions)
        true_next = final_observations(observations, infos)
        for index, env in enumerate(singles):
            step = env.step(actions[index])
            assert true_next[index].tolist() == step[0].tolist()
            single = (rewards[index], terminated[index], truncated[index])
            assert single == tuple(step[1:4])
            expected = env.reset()[0] if step[3] else step[0]
            assert observations[index].tolist() == expected.tolist()


@pytest.mark.parametrize("reward", ["every_step", "once"])
@pytest.mark.parametrize("rng", [None, np.random.default_rng(0)])
def test_expert_reaches_the_optimal_return(reward, rng):
    family = DarkRoomFamily(size=5, horizon=6, start=(1, 0), reward=reward)
    tasks = family.tasks()
    env = family.make_vector_env(tasks)
    observations, _ = env.reset()
    returns = np.zeros(len(tasks))
    for _ in range(6):
        observations, rewards, *_ = env.step(family.optimal_actions(tasks, observations, rng))
        returns += rewards
    assert returns.tolist() == [family.optimal_return(task) for task in tasks]


def test_expert_chooses_evenly_among_shortest_paths():
    family = DarkRoomFamily()
    tasks, observations = [family.tasks()[80]] * 2000, np.full((2000, 2), 4)
    actions = family.optimal_actions(tasks, observations, np.random.default_rng(0))
    assert set(actions) == {0, 2}
    assert np.mean(actions == 0) == pytest.approx(0.5, abs=0.05)
    assert set(family.optimal_actions(tasks, observations)) == {0}


def test_final_observations_from_object_arrays():
    next_observations = np.array([[0, 0], [1, 1], [2, 2]])
    objects = np.array([None, None, None], dtype=object)
    objects[1] = np.array([7, 8])
    infos = {"final_obs": objects, "_final_obs": np.array([False, True, False])}
    true_next = final_observations(next_observations, infos)
    assert true_next.tolist() == [[0, 0], [7, 8], [2, 2]]
    assert next_observations[1].tolist() == [1, 1]
    assert final_observations(next_observations, {}) is next_observations


def test_sb3_adapter_reports_true_ends():
    family = DarkRoomFamily(size=3, horizon=2)
    env = SB3VecEnv(family.make_vector_env([family.tasks()[0]] * 2))
    env.reset()
    env.step(np.array([0, 1]))
    observations, _, dones, infos = env.step(np.array([4, 4]))
    assert dones.all()
    assert observations.tolist() == [[1, 1], [1, 1]]
    assert [info["terminal_observation"].tolist() for info in infos] == [[2, 1], [0, 1]]
    assert all(info["TimeLimit.truncated"] for info in infos)


def test_sb3_adapter_refuses_another_autoreset_mode():
    env = gymnasium.make_vec("CartPole-v1", num_envs=1, vectorization_mode="sync")
    with pytest.raises(FamilyError, match="SAME_STEP"):
        SB3VecEnv(env)


def test_gymnasium_family_needs_no_code():
    grid = {"goal": [[0, 0], [1, 2]]}
    family = GymnasiumFamily("tasks.darkroom:DarkRoom-v0", grid, episode_len=4, size=3, horizon=4)
    assert family.name == "DarkRoom-v0"
    assert [task.name for task in family.tasks()] == ["goal=[0, 0]", "goal=[1, 2]"]
    assert isinstance(family, TaskFamily)


def test_gymnasium_family_of_a_library_environment():
    family = GymnasiumFamily("CartPole-v1", {"sutton_barto_reward": [False, True]}, episode_len=7)
    tasks = family.tasks()
    assert [task.params["sutton_barto_reward"] for task in tasks] == [False, True]
    assert family.episode_len == 7
    assert family.random_return(tasks[0]) == family.random_return(tasks[0]) > 5
    assert family.optimal_return(tasks[0]) is None
    with pytest.raises(FamilyError, match="optimal actions"):
        family.optimal_actions(tasks, np.zeros((2, 4)))
    env = family.make_vector_env([tasks[0]] * 2)
    env.reset(seed=0)
    for _ in range(7):
        observations, _, terminated, truncated, infos = env.step(np.array([0, 1]))
        if (terminated | truncated).any():
            assert np.any(final_observations(observations, infos) != observations)
            return
    pytest.fail("an episode of 7 steps did not end")


@pytest.mark.parametrize(
    ("target", "kwargs", "message"),
    [
        ("tasks.darkroom", {}, "import path"),
        ("tasks.nowhere:Family", {}, "cannot be imported"),
        ("tasks.darkroom:Nothing", {}, "has no"),
        ("tasks.darkroom:DarkRoomFamily", {"sise": 9}, "sise"),
        ("tasks.darkroom:DarkRoomFamily", {"size": 0}, "at least 1"),
        ("tasks.darkroom:DarkRoomFamily", {"start": [9, 0]}, "within 0..8"),
        ("tasks.darkroom:DarkRoomFamily", {"reward": "never"}, "every_step"),
        ("tasks.darkroom:DarkRoomEnv", {}, "lacks name"),
        ("tasks.gymnasium_family:GymnasiumFamily", {"env_id": "No-v0"}, "cannot make"),
    ],
)
def test_load_family_says_what_is_wrong(target, kwargs, message):
    with pytest.raises(FamilyError, match=message):
        load_family(target, kwargs)


def test_load_family_builds_by_import_path():
    family = load_family("tasks.darkroom:DarkRoomFamily", {"size": 5, "horizon": 10})
    assert isinstance(family, TaskFamily)
    assert len(family.tasks()) == 25
    assert len({task.key() for task in family.tasks()}) == 25
