"""MuJoCo's Reacher with an unseen target; without mujoco only what is said of its absence."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from ad.rollout import rollout
from pipelines.config import RunConfig
from pipelines.opening import open_tasks
from tasks.family import FamilyError, controller_of, load_family
from training.config import load_config

ROOT = Path(__file__).parents[2]
TARGET = "tasks.reacher:ReacherFamily"
needs_mujoco = pytest.mark.skipif(
    importlib.util.find_spec("mujoco") is None, reason="mujoco is not installed"
)


def test_without_mujoco_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    for name in [*sys.modules]:
        if name == "tasks.reacher" or name.startswith("gymnasium.envs.mujoco"):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(FamilyError, match=r"pip install '\.\[mujoco\]'"):
        load_family(TARGET)


class _Steers:
    """The controller as a policy."""

    def __init__(self, family, tasks):
        self.controller = controller_of(family, tasks)
        self.act, self.observe = self.controller.act, self.controller.observe

    def reset(self, n, seed):
        self.controller.reset()


@needs_mujoco
def test_the_controller_reaches_targets_and_random_play_earns_what_is_said():
    family = load_family(TARGET, {"n_tasks": 12})
    streams = [task for task in family.tasks() for _ in range(2)]
    returns = rollout(_Steers(family, streams), family, streams, n_episodes=2, seed=0).returns
    away = np.array([np.linalg.norm(np.array(t.params["target"]) - [0.21, 0]) for t in streams])
    assert (returns > -16 * away[:, None]).all()  # staying where it begins would cost 50 times that
    env = family.make_vector_env(streams)
    env.reset(seed=1)
    space, total = family.action_space, np.zeros(24)
    space.seed(0)
    for _ in range(50):
        total += env.step(np.stack([space.sample() for _ in streams]))[1]
    stated = np.array([family.random_return(task) for task in streams])
    error = (total - stated).std() / 24**0.5
    assert abs((total - stated).mean()) < 4 * error
    assert family.optimal_return(streams[0]) is None


@needs_mujoco
def test_the_target_is_not_observed_and_differs_by_task():
    family = load_family(TARGET, {"n_tasks": 3})
    tasks = family.tasks()
    shown, pays = [], []
    for task in tasks:
        env = family.make_env(task)
        first, _ = env.reset(seed=4)
        observation, reward, *_ = env.step(np.array([0.5, -0.5], np.float32))
        shown.append(np.concatenate([first, observation]))
        pays.append(reward)
        tip = observation[6:]
        assert reward == pytest.approx(-np.linalg.norm(tip - task.params["target"]), abs=1e-6)
    assert (np.array(shown) == shown[0]).all()
    assert len(set(pays)) == 3


@needs_mujoco
def test_the_shipped_file_makes_its_tasks():
    config = load_config(RunConfig, ROOT / "configs/families/reacher.yaml")
    family, split = open_tasks(config)
    assert len(family.tasks()) == sum(
        len(getattr(split, p)) for p in ("train", "validation", "test")
    )
