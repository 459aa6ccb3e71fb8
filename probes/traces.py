"""Acting, recorded step by step: many streams for a number of steps, or one stream with pictures.

`ad.rollout` keeps returns only; here is what shows where an agent goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from ad.policy import Policy
from base.errors import UserError
from nets.spaces import FieldSpec
from tasks.family import Task, TaskFamily
from tasks.vector import take_step

PICTURES, TEXT = "rgb_array", "ansi"


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
        observations, rewards, true_next, terminated, truncated = take_step(env, actions)
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
        actions: (T, ...).
        frames: Pictures (H, W, 3) uint8 of the same T + 1 moments; empty where not asked for.
        texts: What the environment prints of them; likewise.
    """

    number: int
    observations: np.ndarray
    rewards: np.ndarray
    actions: np.ndarray = field(default_factory=lambda: np.empty(0))
    frames: list[np.ndarray] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

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
    modes: Sequence[str] = (PICTURES,),
) -> Iterator[Episode]:
    """Act in one environment and yield every episode as it ends; the context crosses episodes.

    Args:
        policy: Acts.
        family: Makes the environment.
        task: Its task.
        n_episodes: How many.
        seed: Of environment and sampling.
        shown: Numbers of the episodes that are shown in these modes.
        modes: Of `render_modes`. An environment has one, so of two modes the second is shown by a
            twin that is stepped along, until it goes another way.
    """
    modes = list(modes) if shown else []
    envs = {mode: family.make_env(task, mode) for mode in modes} or {"": family.make_env(task)}
    env = next(iter(envs.values()))
    policy.reset(1, seed)
    for number in range(1, n_episodes + 1):
        first = [each.reset(seed=seed if number == 1 else None)[0] for each in envs.values()]
        _drop_strayed(envs, first)
        episode = Episode(number, np.empty(0), np.empty(0))
        observations, actions, rewards, ended = [first[0]], [], [], False
        _show(envs, episode, shown)
        while not ended:
            action = policy.act(np.asarray(observations[-1])[None])[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            others = [each.step(action)[0] for each in envs.values() if each is not env]
            _drop_strayed(envs, [observation, *others])
            ends = (np.array([terminated]), np.array([truncated]))
            policy.observe(np.array([reward]), *ends, np.asarray(observation)[None])
            observations.append(observation)
            actions.append(action)
            rewards.append(float(reward))
            _show(envs, episode, shown)
            ended = bool(terminated or truncated)
        episode.observations, episode.rewards = np.stack(observations), np.array(rewards)
        episode.actions = np.stack(actions)
        yield episode
    for each in envs.values():
        each.close()


def _drop_strayed(envs: dict[str, gymnasium.Env], observations: Sequence[np.ndarray]) -> None:
    """Leave out twins that saw something else than the first."""
    for mode, observation in list(zip(envs, observations, strict=True))[1:]:
        if not np.array_equal(observation, observations[0]):
            envs.pop(mode).close()


def _show(envs: dict[str, gymnasium.Env], episode: Episode, shown: Collection[int]) -> None:
    if episode.number not in shown:
        return
    for mode, env in envs.items():
        if mode == PICTURES:
            episode.frames.append(np.asarray(env.render()))
        elif mode == TEXT:
            episode.texts.append(str(env.render()))


def render_modes(family: TaskFamily, task: Task) -> list[str]:
    """The modes in which a task's environment really shows itself, of pictures and text."""
    env = family.make_env(task)
    named = env.metadata.get("render_modes") or ()
    env.close()
    return [mode for mode in (PICTURES, TEXT) if mode in named and _shows(family, task, mode)]


def _shows(family: TaskFamily, task: Task, mode: str) -> bool:
    """Whether an environment can be made to draw: what it draws with may not be installed."""
    try:
        env = family.make_env(task, mode)
        env.reset(seed=0)
        drawn: Any = env.render()
        env.close()
    except (gymnasium.error.Error, ImportError, NotImplementedError, TypeError, UserError):
        return False
    if mode == TEXT:
        return isinstance(drawn, str)
    return isinstance(drawn, np.ndarray) and drawn.ndim == 3 and drawn.shape[-1] == 3


def draws_pictures(family: TaskFamily) -> bool:
    """Whether a family's environments can be asked for pictures."""
    return PICTURES in render_modes(family, family.tasks()[0])


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
    axes = axes - np.array(spec.start or (0,))
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
        type(axis) is int and first <= axis < first + n
        for axis, first, n in zip(axes, spec.start or (0,) * len(axes), spec.n_classes, strict=True)
    )
