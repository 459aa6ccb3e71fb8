"""Bandits of Gaussian rewards: arms with means of their own, or means linear in known features.

Both are one thing: an arm pays phi . theta and Gaussian noise; phi are the arm's features, equal in
all tasks, theta is a task's. With independent arms the features are the unit vectors. What theta
is drawn from is the prior of an exact posterior, Bayesian linear regression.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.bandit_search import LinearPosterior, LinUCBPolicy, UCBPolicy
from tasks.bandits import BanditFamily, BanditVectorEnv
from tasks.draws import check_counts
from tasks.family import FamilyError, Task

DIGITS = 3  # of a task's numbers


class GaussianBanditVectorEnv(BanditVectorEnv):
    """Many bandits that pay a mean and Gaussian noise."""

    def __init__(self, means: np.ndarray, horizon: int, noise: float) -> None:
        """Make n bandits of means `(n, 1, A)` and noise of standard deviation `noise`."""
        super().__init__(means, horizon)
        self._noise = noise

    def _rewards(self, means: np.ndarray) -> np.ndarray:
        return means + self._noise * self._rng.standard_normal(self.num_envs)


class LinearBanditFamily(BanditFamily):
    """Arms of known features and an unknown theta, normally distributed (0, 1/d) in each of d.

    Features are drawn evenly from the sphere of radius sqrt(d), so that means vary as N(0, 1).
    Nothing is observed: the observation is always 0.
    """

    def __init__(
        self,
        n_arms: int = 10,
        dimension: int = 3,
        noise: float = 0.3,
        horizon: int = 20,
        n_tasks: int = 1000,
        seed: int = 0,
        feature_seed: int = 0,
    ) -> None:
        """Draw the tasks.

        Args:
            n_arms: Arms, A.
            dimension: Of theta, d.
            noise: Standard deviation of a reward, above 0.
            horizon: Pulls in an episode.
            n_tasks: Number of tasks.
            seed: Of their thetas, rounded to three digits.
            feature_seed: Of the features.

        Raises:
            FamilyError: A number is out of range.
        """
        check_counts(n_arms=n_arms, dimension=dimension, horizon=horizon, n_tasks=n_tasks)
        features = np.random.default_rng([feature_seed, 1]).standard_normal((n_arms, dimension))
        features *= math.sqrt(dimension) / np.linalg.norm(features, axis=-1, keepdims=True)
        self.feature_seed = feature_seed
        self._draw("linear_bandit", features, dimension**-0.5, noise, horizon, n_tasks, seed)

    def _params(self) -> dict[str, Any]:
        return {
            "env": "LinearBandit",
            "n_arms": len(self.features),
            "feature_seed": self.feature_seed,
        }

    def _draw(
        self,
        name: str,
        features: np.ndarray,
        prior_std: float,
        noise: float,
        horizon: int,
        n_tasks: int,
        seed: int,
    ) -> None:
        if not (math.isfinite(noise) and noise > 0):
            raise FamilyError(f"noise must be above 0 and finite, got {noise}")
        self.name, self.episode_len = name, horizon
        self.features, self.noise, self.prior_std = features, float(noise), prior_std
        drawn = np.random.default_rng(seed).normal(0, prior_std, (n_tasks, features.shape[1]))
        thetas = (drawn.round(DIGITS) + 0.0).tolist()  # no -0.0
        if len({tuple(theta) for theta in thetas}) < n_tasks:
            raise FamilyError(
                f"{n_tasks} tasks of {features.shape[1]} numbers of {DIGITS} digits are not all "
                "different; ask for fewer"
            )
        self._name_tasks(self._make(thetas), 1, len(features))

    def _make(self, thetas: Sequence[Sequence[float]]) -> Iterator[Task]:
        params = {**self._params(), "horizon": self.episode_len, "noise": self.noise}
        for index, theta in enumerate(thetas):
            yield Task(index, f"theta_{index}", {**params, "theta": list(theta)})

    @property
    def reward_std(self) -> float:
        """Of one reward, what UCB scales its bonus by."""
        return self.noise

    @property
    def information_bits(self) -> float:
        """Bits of a task, whose numbers are drawn from a normal distribution and rounded."""
        of_one = 0.5 * math.log2(2 * math.pi * math.e * self.prior_std**2) + DIGITS * math.log2(10)
        return self.features.shape[1] * of_one

    def _pay(self, params: Mapping[str, Any]) -> np.ndarray:
        return (self.features @ np.array(params["theta"], dtype=np.float64))[None]

    def make_vector_env(self, tasks: Sequence[Task]) -> GaussianBanditVectorEnv:
        """One bandit per entry of `tasks`."""
        return GaussianBanditVectorEnv(self._pay_of(tasks), self.episode_len, self.noise)

    def posterior(self, prior_tasks: Sequence[Task], n_streams: int) -> LinearPosterior:
        """Bayesian linear regression from what thetas are drawn from: it knows no task."""
        return LinearPosterior(self.features, self.prior_std, self.noise, n_streams)

    def search_policies(self, prior_tasks: Sequence[Task]) -> dict[str, Callable[[], Any]]:
        """UCB1, which knows no features, and LinUCB."""
        return {"ucb": lambda: UCBPolicy(self), "linucb": lambda: LinUCBPolicy(self)}


class GaussianBanditFamily(LinearBanditFamily):
    """Arms of independent means, normally distributed (0, 1), and Gaussian noise."""

    def __init__(
        self,
        n_arms: int = 5,
        noise: float = 0.5,
        horizon: int = 20,
        n_tasks: int = 1000,
        seed: int = 0,
    ) -> None:
        """Draw the tasks; see `LinearBanditFamily` for arguments and errors."""
        check_counts(n_arms=n_arms, horizon=horizon, n_tasks=n_tasks)
        self._draw("gaussian_bandit", np.eye(n_arms), 1.0, noise, horizon, n_tasks, seed)

    def _params(self) -> dict[str, Any]:
        return {"env": "GaussianBandit"}

    def search_policies(self, prior_tasks: Sequence[Task]) -> dict[str, Callable[[], Any]]:
        """UCB1."""
        return {"ucb": lambda: UCBPolicy(self)}
