"""Families that draw: agent and goal are where they are, for every family with a place to be."""

import importlib.util

import numpy as np
import pytest

from pipelines.demonstration import film
from probes.traces import PICTURES, play, render_modes
from tasks.darkroom import DarkRoomFamily
from tasks.drawing import AGENT, CELL, GOAL, WIDTH, plane_picture
from tasks.family import load_family
from tasks.key_to_door import KeyToDoorFamily
from tasks.mixture import MixtureFamily
from tasks.noise import NoisyExpert
from tasks.permuted_room import PermutedRoomFamily
from tasks.point_mass import PointMassFamily

ROOMS = {
    "image": DarkRoomFamily(size=4, horizon=5, observation="image"),
    "permuted": PermutedRoomFamily(1, size=4, horizon=5, n_tasks=30),
    "key_to_door": KeyToDoorFamily(2, size=4, horizon=8, n_tasks=30),
    "mixture": MixtureFamily(
        [
            {"target": "tasks.key_to_door:KeyToDoorFamily", "kwargs": {"size": 4, "n_tasks": 9}},
            {"target": "tasks.permuted_room:PermutedRoomFamily", "kwargs": {"size": 4}},
        ]
    ),
}


def cells(picture, colour):
    """Cells (x, y) that are wholly of a colour."""
    blocks = picture.reshape(4, CELL, 4, CELL, 3)
    rows, columns = np.nonzero((blocks == colour).all((1, 3, 4)))
    return {(int(x), 3 - int(row)) for row, x in zip(rows, columns, strict=True)}


@pytest.mark.parametrize("family", ROOMS.values(), ids=ROOMS)
def test_rooms_show_the_agent_and_every_goal(family):
    task = family.tasks()[5]
    assert render_modes(family, task) == [PICTURES]
    policy = NoisyExpert(family, [task], np.zeros(1))
    (episode,) = play(policy, family, task, n_episodes=1, seed=0, shown=[1])
    assert len(episode.frames) == len(episode.observations)
    goals = {tuple(goal) for goal in task.params.get("goals", [task.params.get("goal")])}
    for observation, picture in zip(episode.observations, episode.frames, strict=True):
        if observation.ndim == 3:
            observation = np.argwhere(observation[..., 0])[0]
        place = tuple(observation.tolist())
        assert cells(picture, AGENT) == {place}
        assert cells(picture, GOAL) == goals - {place}
    assert len(film([episode])) >= len(episode.frames)


def place_of(picture, colour, extent):
    rows, columns = np.nonzero((picture == colour).all(-1))
    half = WIDTH / 2
    x, y = (columns.mean() + 0.5 - half) / half, (half - rows.mean() - 0.5) / half
    return np.array([x, y]) * extent


def test_a_plane_has_its_dots_where_they_are():
    picture = plane_picture(2.0, (0.5, -1.0), (-1.2, 0.8), arm=[(0, 0), (0.5, -1.0)])
    assert picture.shape == (WIDTH, WIDTH, 3)
    assert place_of(picture, AGENT, 2.0) == pytest.approx([0.5, -1.0], abs=0.02)
    assert place_of(picture, GOAL, 2.0) == pytest.approx([-1.2, 0.8], abs=0.02)
    large = plane_picture(2.0, (0.5, -1.0), (-1.2, 0.8), goal_radius=0.5)
    share = (large == GOAL).all(-1).mean()
    assert share == pytest.approx(np.pi * 0.25 / 16, rel=0.05)


def test_a_point_mass_draws_where_it_is():
    family = PointMassFamily(horizon=4, reward="sparse", radius=0.2, n_tasks=3)
    task = family.tasks()[1]
    env = family.make_env(task, PICTURES)
    env.reset(seed=0)
    observation, *_ = env.step(np.array([1.0, -0.5], np.float32))
    assert place_of(env.render(), AGENT, 1.0) == pytest.approx(observation, abs=0.02)
    assert render_modes(family, task) == [PICTURES]
    assert family.make_env(task).render() is None


@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="mujoco is not installed")
def test_the_reacher_draws_without_opengl():
    family = load_family("tasks.reacher:ReacherFamily", {"n_tasks": 2})
    task = family.tasks()[1]
    env = family.make_env(task, PICTURES)
    env.reset(seed=0)
    for _ in range(5):
        observation, *_ = env.step(np.array([1.0, -1.0], np.float32))
    picture = env.render()
    assert place_of(picture, AGENT, 0.23) == pytest.approx(observation[6:], abs=0.004)
    assert place_of(picture, GOAL, 0.23) == pytest.approx(task.params["target"], abs=0.004)
