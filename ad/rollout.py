"""In-context rollouts: any policy, any number of tasks and streams, in one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ad.policy import Policy
from tasks.family import Task, TaskFamily
from tasks.vector import final_observations


@dataclass
class Rollout:
    """What a rollout gave.

    Attributes:
        returns: (n, episodes) float32, undiscounted return of every episode.
        ms_per_action: Mean wall-clock milliseconds per environment step of `act` and `observe`, all
            streams together.
    """

    returns: np.ndarray
    ms_per_action: float


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
    episode = np.zeros(n, dtype=np.int64)
    streams = np.arange(n)
    seconds, steps = 0.0, 0
    while (episode < n_episodes).any():
        began = time.perf_counter()
        actions = policy.act(observations)
        seconds += time.perf_counter() - began
        if on_step is not None:
            on_step(observations, actions)
        next_observations, rewards, terminated, truncated, infos = env.step(actions)
        running = episode < n_episodes
        returns[streams[running], episode[running]] += rewards[running]
        began = time.perf_counter()
        true_next = final_observations(next_observations, infos)
        policy.observe(rewards, terminated, truncated, true_next)
        seconds += time.perf_counter() - began
        episode += terminated | truncated
        observations = next_observations
        steps += 1
    env.close()
    return Rollout(returns, 1000.0 * seconds / max(steps, 1))
