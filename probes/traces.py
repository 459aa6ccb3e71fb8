"""Acting, recorded step by step: many streams for a number of steps, or one stream with pictures.

`ad.rollout` keeps returns only; here is what shows where an agent goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ad.policy import Policy
from nets.spaces import FieldSpec
from tasks.family import Task, TaskFamily
from tasks.vector import final_observations

PICTURES = "rgb_array"


@dataclass
class Trace:
    """What n streams saw in T steps.

    Attributes:
        next_observations: (T, n, ...), true ones at an episode's end.
        rewards: (T, n).
    """

    next_observations: np.ndarray
    rewards: np.ndarray


def trace(
    policy: Policy, family: TaskFamily, tasks: Sequence[Task], *, n_steps: int, seed: int
) -> Trace:
    """Let a policy act for `n_steps` steps in one stream per task, and keep every step."""
    env = family.make_vector_env(tasks)
    observations, _ = env.reset(seed=seed)
    policy.reset(len(tasks), seed)
    seen, paid = [], []
    for _ in range(n_steps):
        actions = policy.act(observations)
        observations, rewards, terminated, truncated, infos = env.step(actions)
        true_next = final_observations(observations, infos)
        policy.observe(rewards, terminated, truncated, true_next)
        seen.append(true_next.copy())
        paid.append(rewards)
    env.close()
    return Trace(np.stack(seen), np.stack(paid))


@dataclass
class Episode:
    """One episode of one stream.

    Attributes:
        number: Counted from 1.
        observations: (T + 1, ...), from the first to the true last one.
        rewards: (T,).
        frames: Pictures (H, W, 3) uint8 of the same T + 1 moments; empty where not asked for.
    """

    number: int
    observations: np.ndarray
    rewards: np.ndarray
    frames: list[np.ndarray] = field(default_factory=list)

    @property
    def total(self) -> float:
        """The undiscounted return."""
        return float(self.rewards.sum())


def play(
    policy: Policy,
    family: TaskFamily,
    task: Task,
    *,
    n_episodes: int,
    seed: int,
    shown: Collection[int] = (),
) -> Iterator[Episode]:
    """Act in one environment and yield every episode as it ends; the context crosses episodes.

    Args:
        policy: Acts.
        family: Makes the environment.
        task: Its task.
        n_episodes: How many.
        seed: Of environment and sampling.
        shown: Numbers of the episodes whose frames are kept; the environment must draw `rgb_array`.
    """
    env = family.make_env(task, PICTURES if shown else None)
    policy.reset(1, seed)
    for number in range(1, n_episodes + 1):
        observation, _ = env.reset(seed=seed if number == 1 else None)
        episode = Episode(number, np.empty(0), np.empty(0))
        observations, rewards, ended = [observation], [], False
        _picture(env, episode, shown)
        while not ended:
            action = policy.act(observations[-1][None])[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            ends = (np.array([terminated]), np.array([truncated]))
            policy.observe(np.array([reward]), *ends, np.asarray(observation)[None])
            observations.append(observation)
            rewards.append(float(reward))
            _picture(env, episode, shown)
            ended = bool(terminated or truncated)
        episode.observations, episode.rewards = np.stack(observations), np.array(rewards)
        yield episode
    env.close()


def draws_pictures(family: TaskFamily) -> bool:
    """Whether a family's environments can be asked for pictures."""
    env = family.make_env(family.tasks()[0])
    modes = env.metadata.get("render_modes") or ()
    env.close()
    return PICTURES in modes


def shown_episodes(n_episodes: int) -> list[int]:
    """The episodes that tell the story: 1, 5, 20 and the last, as far as there are so many."""
    return sorted({number for number in (1, 5, 20) if number < n_episodes} | {n_episodes})


def cells_of(observations: np.ndarray, spec: FieldSpec) -> np.ndarray | None:
    """Return the index of the joint cell (...) of observations of classes (..., axes).

    None where observations are not of classes.
    """
    if spec.kind != "classes":
        return None
    axes = np.asarray(observations, dtype=np.int64)
    axes = axes.reshape(*axes.shape[: axes.ndim - len(spec.shape)], len(spec.n_classes))
    return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(axes, -1, 0)), spec.n_classes))


def goal_cells(tasks: Sequence[Task], spec: FieldSpec) -> dict[int, int] | None:
    """Return the goal of each task, by its index, as the cell index of `cells_of`.

    A goal is the one parameter that differs between tasks and is an observation: `goal` of a Dark
    Room. None where no parameter, or more than one, is such.
    """
    if spec.kind != "classes":
        return None
    names = [
        name
        for name in tasks[0].params
        if all(_is_cell(task.params.get(name), spec) for task in tasks)
        and len({str(task.params[name]) for task in tasks}) > 1
    ]
    if len(names) != 1:
        return None
    goals = np.array([task.params[names[0]] for task in tasks])
    cells = cells_of(goals.reshape(len(tasks), *spec.shape), spec)
    assert cells is not None
    return {task.index: int(cell) for task, cell in zip(tasks, cells, strict=True)}


def _is_cell(value: object, spec: FieldSpec) -> bool:
    axes = value if isinstance(value, list) else [value]
    return len(axes) == len(spec.n_classes) and all(
        type(axis) is int and 0 <= axis < n for axis, n in zip(axes, spec.n_classes, strict=True)
    )


def _picture(env: object, episode: Episode, shown: Collection[int]) -> None:
    if episode.number in shown:
        episode.frames.append(np.asarray(env.render()))  # pyright: ignore
