"""Any gymnasium id as a family: grids, draws, attributes, wrappers, processes, what is refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from histories.collection import CollectSettings, collect, one_after_another
from histories.store import open_histories
from pipelines.config import RunConfig
from pipelines.opening import open_run
from pipelines.stage import StageError
from tasks.family import FamilyError
from tasks.gymnasium_family import GymnasiumFamily
from tasks.wrappers import PermutedActions, permutation
from teacher.sources import make_sources
from tests.faults.configs import TINY
from training.config import load_config

FORCES = {"unwrapped.force_mag": {"choice": [-20.0, -10.0, 10.0, 20.0]}}


class Resetting(gymnasium.Env):
    """`reset` draws its attribute; the size of the observation is an argument."""

    action_space = Discrete(2)

    def __init__(self, size: int = 1):
        self.observation_space = Box(0, 1, (size,))
        self.speed = 1.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.speed = float(self.np_random.random())
        return np.zeros(self.observation_space.shape or (), np.float32), {}

    def step(self, action: Any) -> Any:
        return np.ones(self.observation_space.shape or (), np.float32), 0.0, False, False, {}


gymnasium.register("Resetting-v0", Resetting, max_episode_steps=3)


def values(family: GymnasiumFamily, name: str) -> list[Any]:
    return [task.params[name] for task in family.tasks()]


def test_drawn_tasks_lie_where_they_should_and_fewer_are_the_first():
    draw = {
        "unwrapped.gravity": {"uniform": [5, 15]},
        "unwrapped.force_mag": {"log_uniform": [1, 100]},
        "unwrapped.length": {"integers": [1, 3]},
    }
    family = GymnasiumFamily("CartPole-v1", draw=draw, n_tasks=300, draw_seed=1)
    gravity, force, length = (np.array(values(family, name)) for name in draw)
    assert 5 <= gravity.min() < 5.5
    assert 14.5 < gravity.max() <= 15
    assert np.median(force) == pytest.approx(10, rel=0.4)
    assert set(length.tolist()) == {1, 2, 3}
    assert len({task.key() for task in family.tasks()}) == 300
    fewer = GymnasiumFamily("CartPole-v1", draw=draw, n_tasks=7, draw_seed=1)
    assert fewer.tasks() == family.tasks()[:7]
    other = GymnasiumFamily("CartPole-v1", draw=draw, n_tasks=7, draw_seed=2)
    assert other.tasks() != fewer.tasks()
    assert len(family.tasks()[0].name) < 50


def test_draws_take_the_combinations_of_the_grid_in_turn():
    grid = {"sutton_barto_reward": [False, True]}
    draw = {"unwrapped.gravity": {"uniform": [5, 15]}}
    family = GymnasiumFamily("CartPole-v1", grid, draw=draw, n_tasks=5)
    assert values(family, "sutton_barto_reward") == [False, True, False, True, False]


def test_an_attribute_is_what_the_environment_steps_by():
    family = GymnasiumFamily("CartPole-v1", draw=FORCES, n_tasks=4)
    assert sorted(values(family, "unwrapped.force_mag")) == [-20, -10, 10, 20]
    tasks = sorted(family.tasks(), key=lambda task: task.params["unwrapped.force_mag"])
    env = family.make_vector_env(tasks)
    env.reset(seed=[0] * 4)
    speeds = env.step(np.ones(4, dtype=np.int64))[0][:, 1]
    assert (np.diff(speeds) > 0.05).all()
    assert tasks[0].name == "force_mag=-20.0"


def test_a_function_of_a_seed_draws_maps():
    kwargs = {"size": 4, "p": 0.8}
    path = "gymnasium.envs.toy_text.frozen_lake:generate_random_map"
    draw = {"desc": {"call": path, "kwargs": kwargs}}
    family = GymnasiumFamily("FrozenLake-v1", draw=draw, n_tasks=20, is_slippery=False)
    maps = values(family, "desc")
    assert {len(rows) for rows in maps} == {4}
    assert len({"".join(rows) for rows in maps}) == 20
    again = GymnasiumFamily("FrozenLake-v1", draw=draw, n_tasks=20, is_slippery=False)
    assert again.tasks() == family.tasks()
    made = family.make_env(family.tasks()[3]).unwrapped
    assert [b"".join(row).decode() for row in made.desc] == maps[3]  # type: ignore[attr-defined]


def test_a_long_value_is_named_by_number():
    maps = [["SFFF", "FFFF", "FFFF", "FFFG"], ["SFFF", "FHFF", "FFFF", "FFFG"]]
    family = GymnasiumFamily("FrozenLake-v1", {"desc": maps, "is_slippery": [False]})
    names = [task.name for task in family.tasks()]
    assert names == ["desc 0,is_slippery=False", "desc 1,is_slippery=False"]


def test_wrappers_wrap_and_belong_to_the_task():
    wrappers = [
        "gymnasium.wrappers:NormalizeReward",
        {
            "target": "gymnasium.wrappers:RescaleAction",
            "kwargs": {"min_action": -1.0, "max_action": 1.0},
        },
    ]
    family = GymnasiumFamily("Pendulum-v1", wrappers=wrappers)
    assert isinstance(family.action_space, Box)
    assert family.action_space.high.tolist() == [1.0]
    plain = GymnasiumFamily("Pendulum-v1")
    assert family.tasks()[0].key() != plain.tasks()[0].key()
    json.dumps(family.tasks()[0].params)


def test_processes_step_as_one_process_does():
    played = []
    for vector in ("sync", "async"):
        family = GymnasiumFamily(
            "CartPole-v1", draw=FORCES, n_tasks=3, episode_len=6, vector=vector
        )
        env = family.make_vector_env(family.tasks())
        rng, steps = np.random.default_rng(0), [env.reset(seed=0)[0].copy()]
        for _ in range(20):
            observations, rewards, terminated, truncated, infos = env.step(rng.integers(2, size=3))
            steps += [observations.copy(), rewards, terminated, truncated]
            steps += [np.stack(list(infos["final_obs"]))] if truncated.all() else []
        played.append(steps)
        env.close()
    assert len(played[0]) == len(played[1]) > 81
    for one, other in zip(*played, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"draw": FORCES}, "n_tasks"),
        ({"draw": FORCES, "n_tasks": 5}, "hardly more than 4"),
        ({"n_tasks": 5}, "nothing is drawn"),
        ({"draw": {"a": {"normal": [0, 1]}}, "n_tasks": 2}, "uniform"),
        ({"draw": {"a": {"uniform": [1, 0]}}, "n_tasks": 2}, "low, high"),
        ({"draw": {"a": {"log_uniform": [0, 1]}}, "n_tasks": 2}, "above 0"),
        ({"draw": {"a": {"integers": [0, 1.5]}}, "n_tasks": 2}, "integers"),
        ({"draw": {"a": {"choice": []}}, "n_tasks": 2}, "choice"),
        ({"draw": {"a": [0, 1]}, "n_tasks": 2}, "draw of 'a'"),
        ({"draw": {"a": {"call": "json:nothing"}}, "n_tasks": 2}, "no 'nothing'"),
        ({"draw": {"a": {"call": "json:loads"}}, "n_tasks": 2}, "must return a JSON value"),
        ({"grid": {"a": {"uniform": [0, 1]}}}, "distributions stand in draw"),
        ({"grid": {"a": []}}, "no value"),
        ({"grid": {"a": [1]}, "draw": {"a": {"uniform": [0, 1]}}, "n_tasks": 2}, "both"),
        ({"grid": {"unwrapped.force": [1]}}, "did you mean force_mag"),
        ({"grid": {"unwrapped.nothing.at_all": [1]}}, "no attribute"),
        ({"wrappers": ["gymnasium.wrappers:No"]}, "has no 'No'"),
        ({"wrappers": [{"kwargs": {}}]}, "a wrapper must be"),
        ({"wrappers": ["gymnasium.wrappers:TimeAwareObservation", 3]}, "a wrapper must be"),
        ({"wrappers": ["gymnasium.wrappers:RescaleAction"]}, "refuses"),
        ({"vector": "threads"}, "sync or async"),
    ],
    ids=str,
)
def test_what_is_refused(kwargs: dict[str, Any], message: str):
    with pytest.raises(FamilyError, match=message):
        GymnasiumFamily("CartPole-v1", **kwargs)


def test_what_reset_draws_cannot_be_varied():
    with pytest.raises(FamilyError, match=r"reset\(\) makes it"):
        GymnasiumFamily("Resetting-v0", {"unwrapped.speed": [0.5, 2.0]})


def test_tasks_of_other_observation_spaces_are_refused():
    family = GymnasiumFamily("Resetting-v0", {"size": [1, 2]})
    with pytest.raises(FamilyError, match="tasks of a family share it"):
        family.make_env(family.tasks()[1])


def test_so_many_processes_are_refused():
    family = GymnasiumFamily("CartPole-v1", vector="async")
    with pytest.raises(FamilyError, match="600 copies"):
        family.make_vector_env([family.tasks()[0]] * 600)


CARTPOLE = """
family:
  target: tasks.gymnasium_family:GymnasiumFamily
  kwargs:
    env_id: CartPole-v1
    episode_len: 10
    random_episodes: 5
    n_tasks: 6
    draw: {unwrapped.force_mag: {uniform: [-20, 20]}}
source: {batch_size: 40, n_epochs: 1, net_arch: [4]}
evaluate: {n_episodes: 4, n_seeds: 2, final_episodes: 2, normalise: source}
"""


def written(folder: Path, style: str) -> RunConfig:
    text = TINY.format(run_dir=folder / "run").replace(
        "family: {kwargs: {size: 3, horizon: 5}}", ""
    )
    (folder / "cartpole.yaml").write_text(text.replace("[random]", f"[{style}]") + CARTPOLE)
    return load_config(RunConfig, folder / "cartpole.yaml", ["method=random"])


@pytest.mark.parametrize("style", ["ppo", "random"])
def test_sources_stand_for_an_unknown_optimum(style: str, tmp_path: Path):
    config = written(tmp_path, style)
    run = open_run(config, "collect")
    settings = CollectSettings(**vars(config.collect), region_len=config.region_len)
    sources = make_sources([style], {"source": config.source}, {})
    out = run.folder("collect")
    summary = collect(
        run.family, run.split, settings, out, sources, run=one_after_another, family_settings={}
    )
    with open_histories(summary.path) as reader:
        reached = {i: reader.source_return(i) for i in reader.task_indices()}
    if style == "random":
        assert set(reached.values()) == {None}
        with pytest.raises(StageError, match="random histories alone"):
            run.sources()
        return
    best = {c.task: float(np.nanmax(c.returns)) for c in summary.curves}
    assert reached == pytest.approx(best)
    assert run.sources() == reached
    tasks = run.tasks("test")
    returns = np.array([[reached[t.index], run.family.random_return(t)] for t in tasks])
    better = returns[:, 0] > returns[:, 1]
    assert run.normalized(returns, tasks)[better] == pytest.approx(
        np.array([[1.0, 0.0]] * int(better.sum()))
    )


def test_arguments_of_wrappers_are_varied_by_their_place():
    family = GymnasiumFamily(
        "CartPole-v1",
        grid={"wrappers.1.order": [0, 1]},
        wrappers=["gymnasium.wrappers:FlattenObservation", "tasks.wrappers:PermutedActions"],
    )
    assert [task.name for task in family.tasks()] == ["order=0", "order=1"]
    plain, swapped = (family.make_env(task) for task in family.tasks())
    assert (plain.reset(seed=0)[0] == swapped.reset(seed=0)[0]).all()
    assert (plain.step(0)[0] == swapped.step(1)[0]).all()
    assert (plain.step(0)[0] != swapped.step(0)[0]).any()


@pytest.mark.parametrize("name", ["wrappers.1.order", "wrappers.order", "wrappers.x.order"])
def test_a_wrapper_that_is_not_there_is_refused(name):
    with pytest.raises(FamilyError, match=r"must be wrappers.PLACE.ARGUMENT.* the 1 wrappers"):
        GymnasiumFamily(
            "CartPole-v1", grid={name: [0, 1]}, wrappers=["tasks.wrappers:PermutedActions"]
        )


def test_every_order_of_actions_is_another_and_too_many_are_refused():
    orders = [permutation(order, 4) for order in range(24)]
    assert orders == [list(each) for each in itertools.permutations(range(4))]
    with pytest.raises(FamilyError, match=r"expected a whole number of 0 ... 23"):
        permutation(24, 4)
    with pytest.raises(FamilyError, match="PermutedActions needs Discrete actions"):
        GymnasiumFamily(
            "Pendulum-v1",
            grid={"wrappers.0.order": [0]},
            wrappers=["tasks.wrappers:PermutedActions"],
        )


def test_permuted_actions_keep_what_actions_are_counted_from():
    class FromTen(gymnasium.Env):
        observation_space, action_space = Discrete(3), Discrete(3, start=10)

        def step(self, action):
            return 0, float(action), False, False, {}

    env = PermutedActions(FromTen(), order=5)
    assert [env.step(a)[1] for a in (10, 11, 12)] == [12.0, 11.0, 10.0]
