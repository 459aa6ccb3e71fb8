"""Agents that search for their task without learning from gradients; they act as policies do.

They have `reset(n, seed)`, `act(observations)` and `observe(rewards, terminated, truncated,
next_observations)`. They make histories, and their own returns are references beside a student's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from tasks.family import Task, TaskFamily
from tasks.noise import RepeatedNoise
from tasks.posterior import Posterior, has_posterior, posterior_of


class PosteriorSamplingPolicy:
    """Posterior sampling (Strens 2000; Osband, Russo & Van Roy 2013, arXiv 1306.0940).

    At an episode's start, and whenever the drawn task is ruled out, each stream draws a task from
    those still possible given all it has seen, and follows that task's optimal policy. A stream
    whose prior is ruled out altogether acts at random.
    """

    def __init__(
        self,
        family: TaskFamily,
        prior_tasks: Sequence[Task],
        *,
        noise: float = 0.0,
        max_repeat: int = 1,
        overshoot: int = 0,
        every_step: bool = False,
    ) -> None:
        """Search among `prior_tasks`.

        Args:
            family: Of the tasks; has a posterior.
            prior_tasks: That are drawn from.
            noise: Share of uniformly random actions.
            max_repeat: Longest run of one random action, see `RepeatedNoise`.
            overshoot: When a drawn task is ruled out within an episode, the action that did it is
                repeated 1 … `overshoot` times, evenly drawn, unless it pays; 0 for never.
            every_step: Draw anew at every step: Thompson sampling, for bandits.
        """
        self.family, self.prior_tasks = family, tuple(prior_tasks)
        self.noise, self.max_repeat, self.overshoot = noise, max_repeat, overshoot
        self.every_step = every_step

    def reset(self, n: int, seed: int) -> None:
        """Begin n streams that know the prior only; raises FamilyError without a posterior."""
        self.rng = np.random.default_rng(seed)
        self.random = RepeatedNoise(self.family.action_space, n, self.max_repeat, seed)
        self.posterior: Posterior = posterior_of(self.family, self.prior_tasks, n)
        self.starts = np.ones(n, dtype=bool)
        self.drawn = self.posterior.sample(self.rng, self.starts)
        self.overshooting = np.zeros(n, dtype=np.int64)  # steps left of each stream

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions `(n, ...)`."""
        ruled_out = ~self.posterior.possible(self.drawn)
        redraw = ruled_out | self.starts | self.every_step
        if redraw.any():
            self.drawn[redraw] = self.posterior.sample(self.rng, redraw)
        actions = self.posterior.actions(self.drawn, observations, self.rng)
        if ruled_out.any():
            lost = ~self.posterior.possible(self.drawn)
            if lost.any():
                actions[lost] = self.random.sample()[lost]
            ruled_out &= ~lost
        if self.overshoot:
            actions = self._walk_on(actions, ruled_out & ~self.starts)
        if self.noise:
            actions = self.random.mix(actions, self.noise)
        self._observations, self._actions = observations, actions
        return actions

    def acted(self, observations: np.ndarray, actions: np.ndarray) -> None:
        """Say that somebody else acted in this step; `observe` then tells what that led to."""
        self._observations, self._actions = observations, actions

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Take in what the actions led to, true next observations."""
        self.starts = terminated | truncated
        transition = (self._observations, self._actions, rewards, next_observations)
        self.posterior.update(*transition, self.starts)
        self.random.observe(self.starts)
        self.overshooting[self.starts | (rewards > 0)] = 0

    def _walk_on(self, actions: np.ndarray, ruled_out: np.ndarray) -> np.ndarray:
        """Replace the actions of streams that go on where the drawn task was not."""
        begins = np.flatnonzero(ruled_out & (self.overshooting == 0))
        self.overshooting[begins] = self.rng.integers(1, self.overshoot + 1, size=len(begins))
        going_on = self.overshooting > 0
        if going_on.any():
            actions[going_on] = self._actions[going_on]
            self.overshooting[going_on] -= 1
        return actions


def search_policies(
    family: TaskFamily, prior_tasks: Sequence[Task]
) -> dict[str, Callable[[], Any]]:
    """What a student's search is compared with: makers of policies by name.

    Posterior sampling where the family has a posterior, and what the family offers by
    `search_policies(prior_tasks)`.

    Args:
        family: Of the tasks.
        prior_tasks: What the searchers may know; the training tasks, or all.
    """
    offered: Any = family
    policies: dict[str, Callable[[], Any]] = {}
    if has_posterior(family):
        policies["posterior_sampling"] = partial(PosteriorSamplingPolicy, family, prior_tasks)
    if hasattr(family, "search_policies"):
        policies |= offered.search_policies(prior_tasks)
    return policies
