"""Recorded actions played again in a family's environment: what they must have led to.

Where an environment draws nothing, a replay that meets every recorded observation and reward
proves which task a history is of, where its episodes ended and how, and what it saw last.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tasks.family import Task, TaskFamily
from tasks.vector import take_step

MOST_TRIED = 400
"""Steps by which an environment is tried for draws."""
TRIED_STREAMS = 4


@dataclass
class Replayed:
    """What actions `(S, T)` led to.

    Attributes:
        observations: `(S, T, ...)`.
        rewards: `(S, T)`.
        next_observations: `(S, T, ...)`, true ones.
        terminated: `(S, T)` bool.
        truncated: `(S, T)` bool, where not terminated: an end is of one kind.
    """

    observations: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


def replay(family: TaskFamily, task: Task, actions: np.ndarray, seed: int = 0) -> Replayed:
    """Play actions `(S, T, ...)` in S environments of a task."""
    env = family.make_vector_env([task] * len(actions))
    seen: dict[str, list[np.ndarray]] = {name: [] for name in Replayed.__dataclass_fields__}
    observations, _ = env.reset(seed=seed)
    for action in np.swapaxes(actions.astype(family.action_space.dtype), 0, 1):
        following, *reached = take_step(env, action)
        row = (observations, *reached)
        for name, values in zip(seen, row, strict=True):
            seen[name].append(np.array(values))
        observations = following
    env.close()
    return Replayed(**{name: np.stack(rows, axis=1) for name, rows in seen.items()})


def draws(family: TaskFamily, task: Task, actions: np.ndarray) -> bool:
    """Whether equal actions lead to different things under different seeds."""
    some = actions[:TRIED_STREAMS, :MOST_TRIED]
    first, second = (replay(family, task, some, seed) for seed in (0, 1))
    return any(
        not np.array_equal(getattr(first, name), getattr(second, name))
        for name in Replayed.__dataclass_fields__
    )


def differ(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where arrays of one shape differ; real numbers up to the rounding of storage."""
    if "f" in (first.dtype.kind, second.dtype.kind):
        return ~np.isclose(first.astype(np.float64), second.astype(np.float64), 1e-4, 1e-5)
    return np.asarray(first != second)


def steps_that_differ(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`(S, T)` bool where arrays `(S, T, ...)` differ in any value."""
    return np.asarray(differ(first, second).any(axis=tuple(range(2, first.ndim))))


def first_difference(
    played: Replayed, recorded: Mapping[str, np.ndarray]
) -> tuple[str, int, int] | None:
    """Field, stream and step where observations or rewards first differ; None where none does."""
    found = []
    for name in ("observations", "rewards"):
        own, theirs = getattr(played, name), recorded[name]
        differs = steps_that_differ(own, theirs)
        if differs.any():
            step = int(np.flatnonzero(differs.any(0))[0])
            stream = int(np.flatnonzero(differs[:, step])[0])
            found.append((step, stream, name))
    if not found:
        return None
    step, stream, name = min(found)
    return name, stream, step
