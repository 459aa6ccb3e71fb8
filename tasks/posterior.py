"""What a stream can still know of its task: posteriors over the tasks of a family, many at once.

A posterior holds n streams, each acting in one unknown task. Draws from it are the hypotheses of
posterior sampling (Strens 2000; Osband, Russo & Van Roy 2013, arXiv 1306.0940). A family offers
its own by a method `posterior(prior_tasks, n_streams)` or gets one for nothing: `posterior_of`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from tasks.family import FamilyError, Task, TaskFamily, optimal_actions_at
from tasks.references import is_optimal, optimal_action_values


class Posterior(Protocol):
    """Beliefs of n streams over their tasks.

    A draw is one row of an array `(n, ...)`, opaque to all but the posterior that made it: an index
    of a task, a cell, a table of levers.
    """

    def sample(self, rng: np.random.Generator, streams: np.ndarray) -> np.ndarray:
        """One draw `(k, ...)` for each of the k streams that `streams` `(n,)` bool selects.

        Where nothing is possible any more the draw is arbitrary, and `possible` denies it.
        """
        ...

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """Take in one transition of every stream; true next observations, `ended` `(n,)` bool."""
        ...

    def possible(self, drawn: np.ndarray) -> np.ndarray:
        """Whether each stream's draw `(n, ...)` can still be its task, `(n,)` bool."""
        ...

    def actions(
        self, drawn: np.ndarray, observations: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Actions `(n, ...)` that are optimal if the draws `(n, ...)` are true."""
        ...


class EnumeratedPosterior:
    """Log-likelihoods of every prior task in every stream; prior uniform; draws are places in it.

    The family gives `transition_log_likelihood(tasks, observations, actions, rewards,
    next_observations)`, which returns `(n, K)`, -inf where a task rules the transition out.
    """

    def __init__(self, family: TaskFamily, tasks: Sequence[Task], n_streams: int) -> None:
        """Begin `n_streams` beliefs over `tasks`; raises FamilyError where there is none."""
        if not tasks:
            raise FamilyError("a posterior needs at least one task in its prior, got none")
        self.family, self.tasks = family, tuple(tasks)
        self.indices = np.array([task.index for task in tasks])
        self.log_likelihoods = np.zeros((n_streams, len(tasks)))  # (n, K)

    def sample(self, rng: np.random.Generator, streams: np.ndarray) -> np.ndarray:
        """Places in the prior `(k,)`, by the Gumbel trick."""
        chosen = self.log_likelihoods[streams]
        return (chosen + rng.gumbel(size=chosen.shape)).argmax(-1)

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """Add the transition's log-likelihood under every task."""
        self.log_likelihoods += self.transition(observations, actions, rewards, next_observations)

    def transition(self, *fields: np.ndarray) -> np.ndarray:
        """Log-likelihood `(n, K)` of one transition."""
        family: Any = self.family
        return family.transition_log_likelihood(self.tasks, *fields)

    def possible(self, drawn: np.ndarray) -> np.ndarray:
        """Whether the draws have a likelihood."""
        return self.log_likelihoods[np.arange(len(drawn)), drawn] > -np.inf

    def actions(
        self, drawn: np.ndarray, observations: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """The family's optimal actions in the drawn tasks."""
        return optimal_actions_at(self.family, self.indices[drawn], observations, rng)


class TabularPosterior(EnumeratedPosterior):
    """Of a family that gives `tabular(task)`, a `TabularMDP`, and `states(observations)`, `(n,)`.

    The state must be seen in full and rewards must be certain, given state and action. Likelihoods
    and optimal actions, which may depend on the time in the episode, are looked up in arrays of
    K·S·A·S and K·H·S·A numbers.
    """

    def __init__(self, family: TaskFamily, tasks: Sequence[Task], n_streams: int) -> None:
        super().__init__(family, tasks, n_streams)
        mdps = [self.family.tabular(task) for task in tasks]  # type: ignore[attr-defined]
        with np.errstate(divide="ignore"):
            self.log_transitions = np.log(np.stack([mdp.transitions for mdp in mdps], -1))  # SASK
        self.rewards = np.stack([mdp.rewards for mdp in mdps], -1)  # (S, A, K)
        values = np.stack([optimal_action_values(mdp) for mdp in mdps])  # (K, H, S, A)
        self.optimal = is_optimal(values)
        self.elapsed = np.zeros(n_streams, dtype=np.int64)

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """Also count the steps of the episode."""
        super().update(observations, actions, rewards, next_observations, ended)
        self.elapsed = np.where(ended, 0, self.elapsed + 1)

    def transition(self, *fields: np.ndarray) -> np.ndarray:
        """By looking up."""
        observations, actions, rewards, next_observations = fields
        state, following = self._states(observations), self._states(next_observations)
        paid = np.isclose(self.rewards[state, actions], rewards[:, None])  # (n, K)
        return np.where(paid, self.log_transitions[state, actions, following], -np.inf)

    def weights(self) -> np.ndarray:
        """Likelihoods `(n, K)`, of the likeliest task 1; zeros where none is possible."""
        best = self.log_likelihoods.max(-1, keepdims=True)
        return np.exp(self.log_likelihoods - np.where(np.isfinite(best), best, 0.0))

    def action_table(self, observations: np.ndarray) -> np.ndarray:
        """How likely each action `(n, K, A)` is in each task, the optimal ones evenly."""
        step = np.minimum(self.elapsed, self.optimal.shape[1] - 1)
        places = np.arange(len(self.tasks))
        states = self._states(observations)
        optimal = self.optimal[places, step[:, None], states[:, None]]  # (n, K, A)
        return optimal / optimal.sum(-1, keepdims=True)

    def actions(
        self, drawn: np.ndarray, observations: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """One of the optimal actions of this moment of the episode, evenly drawn."""
        step = np.minimum(self.elapsed, self.optimal.shape[1] - 1)
        optimal = self.optimal[drawn, step, self._states(observations)]  # (n, A)
        return (optimal * rng.random(optimal.shape)).argmax(-1)

    def _states(self, observations: np.ndarray) -> np.ndarray:
        return self.family.states(observations)  # type: ignore[attr-defined]


def has_posterior(family: TaskFamily) -> bool:
    """Whether `posterior_of` makes one."""
    return any(_offers(family, name) for name in ("posterior", *_LIKELIHOODS))


def posterior_of(family: TaskFamily, tasks: Sequence[Task], n_streams: int) -> Posterior:
    """The posterior of a family over `tasks`.

    Raises:
        FamilyError: The family offers none and nothing to make one of.
    """
    offered: Any = family
    if _offers(family, "posterior"):
        return offered.posterior(tasks, n_streams)
    for name, kind in _LIKELIHOODS.items():
        if _offers(family, name):
            return kind(family, tasks, n_streams)
    raise FamilyError(
        f"family {family.name!r} has no posterior, which posterior sampling needs; give it "
        "posterior(prior_tasks, n_streams), or transition_log_likelihood, or tabular and states "
        "(tasks/posterior.py says what they return), or collect other styles"
    )


_LIKELIHOODS = {"transition_log_likelihood": EnumeratedPosterior, "tabular": TabularPosterior}


def _offers(family: TaskFamily, name: str) -> bool:
    return getattr(family, name, None) is not None
