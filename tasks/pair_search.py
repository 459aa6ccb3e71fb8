"""Predicting outputs from the pairs seen so far: the classic rules, and exact Bayesian regression.

They act as policies do and keep what they were told; a class is predicted as the largest of C
numbers, one for each. Shapes: n streams, t pairs, d inputs, C outputs, 1 for a number.
"""

from typing import Any

import numpy as np

from tasks.bandit_search import LinearPosterior
from tasks.family import FamilyError

RULES = ("least_squares", "ridge", "nearest", "averaging")
LEAST_NOISE = 0.1
"""Standard deviation that ridge regression takes noise to have at least."""


class PairsPolicy:
    """Predicts by a rule from all pairs since its reset; 0, or the first class, without any."""

    def __init__(self, family: Any, rule: str = "ridge", n_neighbours: int = 3) -> None:
        """Act in a family of pairs.

        Args:
            family: `tasks.supervised:SupervisedFamily`.
            rule: `least_squares`, the solution of least norm; `ridge`, with the prior of linear
                functions and noise of 0.1 at least; `nearest`, the mean of the nearest neighbours;
                `averaging`, x · mean(x y).
            n_neighbours: Of `nearest`.

        Raises:
            FamilyError: Another family, or no such rule.
        """
        if not hasattr(family, "n_told"):
            raise FamilyError(
                f"predicting from pairs needs the family tasks.supervised:SupervisedFamily, got "
                f"{family.name!r}; collect another style"
            )
        if rule not in RULES:
            raise FamilyError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
        if n_neighbours < 1:
            raise FamilyError(f"n_neighbours must be at least 1, got {n_neighbours}")
        self.family, self.rule, self.n_neighbours = family, rule, n_neighbours
        self.penalty = family.dimension * max(family.noise, LEAST_NOISE) ** 2
        self._predict = getattr(self, f"_{rule}")

    def reset(self, n: int, seed: int) -> None:
        """Begin n streams that have seen no pair."""
        d, c = self.family.dimension, self.family.n_told
        self.inputs, self.told = np.zeros((n, 0, d)), np.zeros((n, 0, c))
        self.squares, self.products = np.zeros((n, d, d)), np.zeros((n, d, c))

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Predictions of the inputs shown."""
        self._shown = np.asarray(observations, dtype=np.float64)[:, : self.family.dimension]
        scores = self._predict(self._shown)  # (n, C)
        values = scores.argmax(-1) if self.family.n_classes else scores[:, 0]
        return self.family.predicted(values)

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Keep the pair that was told."""
        told = np.asarray(next_observations, dtype=np.float64)[:, self.family.dimension :]
        if self.family.n_classes:
            told = told - 1 / self.family.n_classes
        self.inputs = np.concatenate([self.inputs, self._shown[:, None]], axis=1)
        self.told = np.concatenate([self.told, told[:, None]], axis=1)
        self.squares += self._shown[:, :, None] * self._shown[:, None]
        self.products += self._shown[:, :, None] * told[:, None]

    def _least_squares(self, shown: np.ndarray) -> np.ndarray:
        inverse = np.linalg.pinv(self.squares, rcond=1e-9, hermitian=True)
        return np.einsum("nd,nde,nec->nc", shown, inverse, self.products)

    def _ridge(self, shown: np.ndarray) -> np.ndarray:
        penalised = self.squares + self.penalty * np.eye(self.family.dimension)
        return np.einsum("nd,ndc->nc", shown, np.linalg.solve(penalised, self.products))

    def _nearest(self, shown: np.ndarray) -> np.ndarray:
        n_pairs = self.inputs.shape[1]
        if not n_pairs:
            return np.zeros((len(shown), self.family.n_told))
        far = ((self.inputs - shown[:, None]) ** 2).sum(-1)  # (n, t)
        near = far.argsort(axis=1)[:, : self.n_neighbours, None]
        return np.take_along_axis(self.told, near, axis=1).mean(1)

    def _averaging(self, shown: np.ndarray) -> np.ndarray:
        return np.einsum("nd,ndc->nc", shown, self.products) / max(1, self.inputs.shape[1])


class RegressionPosterior(LinearPosterior):
    """Of the weights of a linear function; a draw is one set of weights, `(n, d)`."""

    def __init__(self, family: Any, n_streams: int) -> None:
        """Begin with what weights are drawn from; without noise a little is assumed."""
        self.family = family
        d = family.dimension
        super().__init__(np.eye(d), d**-0.5, max(family.noise, 0.01), n_streams)

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """Add the pair that was told, whatever was predicted."""
        d = self.family.dimension
        seen = np.asarray(observations, dtype=np.float64)[:, :d] / self.noise
        self.precision += seen[:, :, None] * seen[:, None]
        self.weighted += seen * np.asarray(next_observations, dtype=np.float64)[:, d:] / self.noise

    def actions(
        self, drawn: np.ndarray, observations: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """What the drawn functions say."""
        inputs = np.asarray(observations, dtype=np.float64)[:, : self.family.dimension]
        return self.family.predicted(np.einsum("nd,nd->n", drawn, inputs))
