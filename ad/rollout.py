"""In-context rollouts: any policy, any number of tasks and streams, in one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ad.policy import Policy
from nets.spaces import FieldSpec, SpaceError, field_spec
from tasks.family import FamilyError, Task, TaskFamily
from tasks.family_check import too_long
from tasks.vector import take_step

MOST_CELLS = 4096
"""Joint observations above which nobody counts which ones an episode visited."""


@dataclass
class Rollout:
    """What a rollout gave.

    Attributes:
        returns: (n, episodes) float32, undiscounted return of every episode.
        starts: (n, episodes) int64, the stream's step, from 0, at which every episode began.
        cells_visited: (n, episodes) float32, different observations of every episode, its first
            and its last among them; None where they are not of few classes.
        ms_per_action: Mean wall-clock milliseconds per environment step of `act` and `observe`, all
            streams together.
    """

    returns: np.ndarray
    starts: np.ndarray
    cells_visited: np.ndarray | None
    ms_per_action: float


class _Cells:
    """Which of a family's discrete observations each stream has seen in its open episode."""

    def __init__(self, spec: FieldSpec, n: int) -> None:
        self.shape, self.start = spec.n_classes, np.array(spec.start or (0,))[:, None]
        self.seen = np.zeros((n, int(np.prod(self.shape))), dtype=bool)

    def see(self, observations: np.ndarray) -> None:
        axes = observations.reshape(len(self.seen), -1).astype(np.int64).T - self.start
        self.seen[np.arange(len(self.seen)), np.ravel_multi_index(tuple(axes), self.shape)] = True

    @staticmethod
    def of(family: TaskFamily, n: int) -> _Cells | None:
        try:
            spec = field_spec(family.observation_space, "observation")
        except SpaceError:
            return None
        shape = spec.n_classes
        return _Cells(spec, n) if shape and np.prod(shape) <= MOST_CELLS else None


def rollout(
    policy: Policy,
    family: TaskFamily,
    tasks: Sequence[Task],
    *,
    n_episodes: int,
    seed: int,
    on_step: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> Rollout:
    """Let a policy act until every stream has finished `n_episodes` episodes.

    Args:
        policy: Acts in all streams; its context crosses episodes.
        family: Makes the environments.
        tasks: One per stream; entries may repeat.
        n_episodes: In-context episodes per stream.
        seed: Of environments and sampling.
        on_step: Called with (observations, actions) of every step.
    """
    n = len(tasks)
    env = family.make_vector_env(tasks)
    observations, _ = env.reset(seed=seed)
    policy.reset(n, seed)
    returns = np.zeros((n, n_episodes), dtype=np.float32)
    starts = np.zeros((n, n_episodes), dtype=np.int64)
    visited = np.zeros((n, n_episodes), dtype=np.float32)
    episode = np.zeros(n, dtype=np.int64)
    streams = np.arange(n)
    cells = _Cells.of(family, n)
    since = np.zeros(n, dtype=np.int64)  # the step at which a stream's episode began
    seconds, steps = 0.0, 0
    while (episode < n_episodes).any():
        began = _now()
        actions = policy.act(observations)
        seconds += _now() - began
        if on_step is not None:
            on_step(observations, actions)
        next_observations, rewards, true_next, terminated, truncated = take_step(env, actions)
        running = streams[episode < n_episodes]
        returns[running, episode[running]] += rewards[running]
        began = _now()
        policy.observe(rewards, terminated, truncated, true_next)
        seconds += _now() - began
        steps += 1
        ended = terminated | truncated
        since = np.where(ended, steps, since)
        if steps - since.min() > family.episode_len:
            raise FamilyError(too_long(family))
        if not np.isfinite(rewards).all():
            raise FamilyError(f"family {family.name}: a reward is no finite number: {rewards}.")
        if cells is not None:
            cells.see(observations)
            cells.see(true_next)
            done = running[ended[running]]
            visited[done, episode[done]] = cells.seen[done].sum(1)
            cells.seen[ended] = False
        episode += ended
        begun = streams[ended & (episode < n_episodes)]
        starts[begun, episode[begun]] = steps
        observations = next_observations
    env.close()
    counted = visited if cells is not None else None
    return Rollout(returns, starts, counted, 1000.0 * seconds / max(steps, 1))


def _now() -> float:
    """Seconds, all that was asked of an accelerator being done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
