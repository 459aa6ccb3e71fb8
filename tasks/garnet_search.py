"""Acting in small random MDPs, known or unknown; `tasks.random_mdp` says what they are.

Transitions `(n, S, A, S)`, pays `(n, S)` bool: whether a step that ends on a state pays.
"""

from collections.abc import Sequence

import numpy as np

from tasks.references import action_values, is_optimal


class TimedExpert:
    """Optimal actions that depend on the time in the episode, of n streams."""

    def __init__(self, optimal: np.ndarray, places: np.ndarray) -> None:
        """Follow `optimal` `(K, H, S, A)` bool; stream i is in the MDP `places[i]`."""
        self.optimal, self.places = optimal, places
        self.reset()

    def reset(self) -> None:
        """Time 0."""
        self.elapsed = np.zeros(len(self.places), dtype=np.int64)

    def act(self, observations: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """One of the optimal actions `(n,)`, evenly drawn by `rng`, else the first."""
        optimal = self.optimal[self.places, self.elapsed, observations]  # (n, A)
        return one_of(optimal, rng)

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Count the step."""
        self.elapsed = np.where(terminated | truncated, 0, self.elapsed + 1)


class GarnetPosterior:
    """Which MDP n streams may be in; transitions and the states that pay are unknown.

    For posterior sampling in tabular MDPs (Strens 2000; Osband, Russo & Van Roy 2013, arXiv
    1306.0940), with the family's own prior in the place of their Dirichlet one: a Dirichlet prior
    over all states would go on expecting what branching rules out.

    Exact but for the tasks the family refuses: given what was counted, an action's possible next
    states are those seen and others drawn evenly, for nothing tells the unseen ones apart; how they
    share the probability is one of the compositions, drawn by its likelihood. A draw holds the
    possible next states, the states that pay, and what is optimal at every time.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        compositions: np.ndarray,
        n_rewarded: int,
        horizon: int,
    ) -> None:
        """Begin with nothing seen.

        Args:
            shape: Streams, states, actions.
            compositions: `(C, b)`, ways to share the probability between b next states.
            n_rewarded: States that pay.
            horizon: Steps in an episode.
        """
        n, n_states, n_actions = shape
        self.compositions, self.n_rewarded, self.horizon = compositions, n_rewarded, horizon
        self.counts = np.zeros((n, n_states, n_actions, n_states), dtype=np.int64)
        self.paid, self.unpaid = np.zeros((2, n, n_states), dtype=bool)
        self.elapsed = np.zeros(n, dtype=np.int64)
        self._streams = np.arange(n)
        self._dtype = np.dtype(
            [
                ("follows", bool, (n_states, n_actions, n_states)),
                ("pays", bool, (n_states,)),
                ("optimal", bool, (horizon, n_states, n_actions)),
            ]
        )

    def sample(self, rng: np.random.Generator, streams: np.ndarray) -> np.ndarray:
        """MDPs and their optimal actions, a structured array `(k,)`."""
        counts = self.counts[streams]  # (k, S, A, S)
        targets = subsets(rng, counts > 0, self.compositions.shape[-1])  # (k, S, A, b)
        counts = np.take_along_axis(counts, targets, -1)
        likelihood = counts @ np.log(self.compositions).T  # (k, S, A, C)
        chosen = (likelihood + rng.gumbel(size=likelihood.shape)).argmax(-1)
        rank = self.paid[streams].astype(np.int64) - self.unpaid[streams]
        rewarded = subsets(rng, rank, self.n_rewarded)
        fields = (targets, self.compositions[chosen], rewarded)
        transitions, pays = dense(fields, self.counts.shape[-1])
        values = action_values(transitions, expected(transitions, pays), self.horizon)
        drawn = np.empty(len(counts), dtype=self._dtype)
        drawn["follows"], drawn["pays"] = transitions > 0, pays
        drawn["optimal"] = is_optimal(values)
        return drawn

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """Count where the actions led, and what was paid there."""
        self.counts[self._streams, observations, actions, next_observations] += 1
        self.paid[self._streams, next_observations] |= rewards > 0
        self.unpaid[self._streams, next_observations] |= rewards == 0
        self.elapsed = np.where(ended, 0, self.elapsed + 1)

    def possible(self, drawn: np.ndarray) -> np.ndarray:
        """Whether all that was seen is possible in the draws."""
        unforeseen = ((self.counts > 0) & ~drawn["follows"]).any((1, 2, 3))
        wrong = (self.paid & ~drawn["pays"]) | (self.unpaid & drawn["pays"])
        return np.asarray(~(unforeseen | wrong.any(-1)))

    def actions(
        self, drawn: np.ndarray, observations: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """One of the actions that are optimal at this time in the drawn MDPs, evenly drawn."""
        return one_of(drawn["optimal"][self._streams, self.elapsed, observations], rng)


def subsets(rng: np.random.Generator, rank: np.ndarray, size: int) -> np.ndarray:
    """Indices `(..., size)` of those of highest rank `(..., S)`, evenly drawn among equals."""
    keys = rng.random(rank.shape) - 2.0 * rank
    return keys.argsort(-1)[..., :size]


def dense(fields: Sequence[np.ndarray], n_states: int) -> tuple[np.ndarray, np.ndarray]:
    """Transitions and pays of tasks.

    Args:
        fields: Next states `(n, S, A, b)`, their probabilities `(n, S, A, b)`, and the states that
            pay, `(n, R)`.
        n_states: S.
    """
    targets, probabilities, rewarded = fields
    transitions = np.zeros((*targets.shape[:-1], n_states))
    np.put_along_axis(transitions, targets, probabilities, -1)
    pays = np.zeros((len(rewarded), n_states), dtype=bool)
    np.put_along_axis(pays, rewarded, True, -1)
    return transitions, pays


def expected(transitions: np.ndarray, pays: np.ndarray) -> np.ndarray:
    """Expected rewards `(..., S, A)`, by `dense` arrays."""
    return np.einsum("...sat,...t->...sa", transitions, pays)


def one_of(allowed: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """One index of the allowed `(n, A)` each, evenly drawn, or the first."""
    return (allowed if rng is None else allowed * rng.random(allowed.shape)).argmax(-1)
