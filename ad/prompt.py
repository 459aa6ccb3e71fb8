"""Prompting: acting that begins from a compressed demonstration of some skill.

The first regions of every stream are acted by a demonstrator, the family's expert with a share of
random actions, and taken in like the agent's own; from then on the agent acts and its context goes
on as always. Does it keep what it was shown, does it improve on it, and from which skill on?
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ad.policy import ContextPolicy
from tasks.family import Task, TaskFamily
from tasks.noise import NoisyExpert


def demonstrator(family: TaskFamily, tasks: Sequence[Task], skill: float) -> NoisyExpert:
    """Make the expert of every stream's task, who errs.

    Args:
        family: Knows the expert.
        tasks: Of the streams.
        skill: Share of the expert's actions, 0 ... 1; the others are uniformly random.
    """
    return NoisyExpert(family, tasks, np.array([1 - skill]))


class PromptedPolicy:
    """Hands the first regions to a demonstrator, and acts by itself from then on.

    Args:
        policy: Acts; its context takes the demonstration in.
        shown_by: Acts in the first regions.
        n_regions: How many.
    """

    def __init__(self, policy: ContextPolicy, shown_by: NoisyExpert, n_regions: int = 1) -> None:
        self.policy, self.demonstrator, self.n_regions = policy, shown_by, n_regions

    @property
    def shows(self) -> bool:
        """Whether the demonstration is still going on."""
        return self.policy.n_closed < self.n_regions

    def reset(self, n: int, seed: int) -> None:
        """Begin n streams, each with a demonstration."""
        self.policy.reset(n, seed)
        self.demonstrator.reset(n, seed)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Return the demonstrator's actions, afterwards the agent's."""
        if self.shows:
            return self.policy.act_as(observations, self.demonstrator.act(observations))
        return self.policy.act(observations)

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Take the transition in."""
        transition = (rewards, terminated, truncated, next_observations)
        if self.shows:
            self.demonstrator.observe(*transition)
        self.policy.observe(*transition)


def prompted_facts(
    returns: np.ndarray, regions: np.ndarray, *, n_shown: int, final_episodes: int
) -> dict[str, float | None]:
    """What a prompted rollout says.

    Args:
        returns: (..., episodes) normalised.
        regions: (..., episodes) the region in which each began, counted from 0.
        n_shown: Regions that were demonstrated.
        final_episodes: Last episodes that count as final.

    Returns:
        Mean returns: `demonstrated`, of the episodes that began in the demonstration; `first`, of
        those that began in the first region of the agent's own; `final`. None where none began.
    """

    def mean(chosen: np.ndarray) -> float | None:
        return float(returns[chosen].mean()) if chosen.any() else None

    return {
        "demonstrated": mean(regions < n_shown),
        "first": mean(regions == n_shown),
        "final": float(returns[..., -final_episodes:].mean()),
    }
