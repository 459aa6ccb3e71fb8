"""Searching bandits: what is still possible or likely of their levers, UCB and LinUCB."""

from typing import Any

import numpy as np
from gymnasium.spaces import Discrete

from tasks.family import FamilyError


class BetaPosterior:
    """Of independent Bernoulli arms with an even prior; a draw is a mean per arm, `(n, A)`."""

    def __init__(self, n_arms: int, n_streams: int) -> None:
        """Begin with Beta(1, 1) for every arm."""
        self.counts = np.ones((2, n_streams, n_arms))  # paid, not paid
        self._streams = np.arange(n_streams)

    def sample(self, rng: np.random.Generator, streams: np.ndarray) -> np.ndarray:
        """Means `(k, A)`."""
        return rng.beta(*self.counts[:, streams])

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """Count what was paid."""
        self.counts[np.where(rewards > 0, 0, 1), self._streams, actions] += 1

    def possible(self, drawn: np.ndarray) -> np.ndarray:
        """Nothing is ever ruled out."""
        return np.ones(len(drawn), dtype=bool)

    def actions(
        self, drawn: np.ndarray, observations: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """The arm of the largest drawn mean."""
        return drawn.argmax(-1)


class LeverPosterior:
    """Of contexts with one paying lever each; a draw is a lever per context, `(n, N)`.

    Followed by posterior sampling: untried levers at random until one pays, that one from then on.
    """

    def __init__(self, n_contexts: int, n_levers: int, n_streams: int) -> None:
        """Begin with every lever possible."""
        self.levers = np.ones((n_streams, n_contexts, n_levers), dtype=bool)
        self._streams = np.arange(n_streams)

    def sample(self, rng: np.random.Generator, streams: np.ndarray) -> np.ndarray:
        """One of the possible levers of each context, evenly drawn, `(k, N)`."""
        levers = self.levers[streams]
        return (levers * rng.random(levers.shape, dtype=np.float32)).argmax(-1)

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """Rule out a lever that did not pay, or all others."""
        paid = rewards > 0
        levers = self.levers[self._streams, observations]
        levers &= ~paid[:, None]
        levers[self._streams, actions] = paid
        self.levers[self._streams, observations] = levers

    def possible(self, drawn: np.ndarray) -> np.ndarray:
        """Whether every drawn lever can be the paying one."""
        held = np.take_along_axis(self.levers, drawn[..., None], -1)  # (n, N, 1)
        return np.asarray(held.all((1, 2)))

    def actions(
        self, drawn: np.ndarray, observations: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """The drawn lever of the context shown."""
        return drawn[self._streams, observations]

    def action_probabilities(self, observations: np.ndarray) -> np.ndarray:
        """How likely each lever `(n, A)` of the context shown is drawn: evenly of those possible.

        A lever that is still possible after a visit pays, so that draws leave no other trace.
        """
        levers = self.levers[self._streams, observations]
        return levers / levers.sum(-1, keepdims=True).clip(1)


class LinearPosterior:
    """Of a theta that rewards phi . theta + noise are linear in; a draw is a theta, `(n, d)`.

    Bayesian linear regression with a normal prior, exact: precision and precision times mean.
    """

    def __init__(
        self, features: np.ndarray, prior_std: float, noise: float, n_streams: int
    ) -> None:
        """Begin with the prior N(0, prior_std²) for each of d; features `(A, d)`."""
        dimension = features.shape[1]
        self.features, self.noise = features, noise
        self.precision = np.tile(np.eye(dimension) / prior_std**2, (n_streams, 1, 1))  # (n, d, d)
        self.weighted = np.zeros((n_streams, dimension))

    @property
    def mean(self) -> np.ndarray:
        """Expected theta `(n, d)`."""
        return np.linalg.solve(self.precision, self.weighted[..., None])[..., 0]

    def sample(self, rng: np.random.Generator, streams: np.ndarray) -> np.ndarray:
        """Thetas `(k, d)`."""
        precision, weighted = self.precision[streams], self.weighted[streams]
        factor = np.linalg.cholesky(precision)  # its inverse, transposed, spreads as the posterior
        noise = rng.standard_normal((*weighted.shape, 1))
        spread = np.linalg.solve(factor.swapaxes(-1, -2), noise)
        return (np.linalg.solve(precision, weighted[..., None]) + spread)[..., 0]

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """Add what the pulled arms paid."""
        seen = self.features[actions] / self.noise  # (n, d)
        self.precision += seen[:, :, None] * seen[:, None]
        self.weighted += seen * (np.asarray(rewards) / self.noise)[:, None]

    def possible(self, drawn: np.ndarray) -> np.ndarray:
        """Nothing is ever ruled out."""
        return np.ones(len(drawn), dtype=bool)

    def actions(
        self, drawn: np.ndarray, observations: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """The arm that pays most if the drawn thetas are true."""
        return (drawn @ self.features.T).argmax(-1)


class LinUCBPolicy:
    """LinUCB (Li, Chu, Langford & Schapire 2010) for arms of known features.

    The arm of the largest phi . mean + alpha sqrt(phi . covariance . phi), of the exact posterior.
    """

    def __init__(self, family: Any, exploration: float = 1.0) -> None:
        """Act in a family of linear rewards; raises FamilyError for others.

        Args:
            family: Of the tasks; has `features` and a posterior over theta.
            exploration: alpha, in standard deviations.
        """
        if not hasattr(family, "features"):
            raise FamilyError(
                f"LinUCB needs arms of known features, family {family.name!r} has none; collect "
                "another style"
            )
        self.family, self.exploration = family, exploration

    def reset(self, n: int, seed: int) -> None:
        """Begin n streams that know the prior only."""
        self.rng = np.random.default_rng(seed)
        self.posterior: LinearPosterior = self.family.posterior((), n)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Arms `(n,)`, equals evenly."""
        features = self.family.features
        covariance = np.linalg.inv(self.posterior.precision)  # (n, d, d)
        variance = np.einsum("ad,nde,ae->na", features, covariance, features)
        index = self.posterior.mean @ features.T + self.exploration * np.sqrt(variance)
        best = np.isclose(index, index.max(-1, keepdims=True), rtol=0, atol=1e-9)
        self._actions = (best * self.rng.random(best.shape)).argmax(-1)
        return self._actions

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Take in the rewards."""
        ended = terminated | truncated
        fields = (next_observations, self._actions, rewards, next_observations)
        self.posterior.update(*fields, ended)


class UCBPolicy:
    """UCB1 (Auer, Cesa-Bianchi & Fischer 2002), of each observation by itself.

    Every action once, at random, then that of the largest mean reward + s sqrt(c ln t / n), t
    visits of the observation and n pulls of the action there; s is the family's `reward_std`, the
    standard deviation of Gaussian rewards, or 1.
    """

    def __init__(self, family: Any, exploration: float = 2.0) -> None:
        """Act in a family of Discrete observations and actions; raises FamilyError for others.

        Args:
            family: Of the tasks.
            exploration: c.
        """
        spaces = (family.observation_space, family.action_space)
        if not all(isinstance(space, Discrete) for space in spaces):
            raise FamilyError(
                f"UCB needs Discrete observations and actions, family {family.name!r} has "
                f"{spaces[0]} and {spaces[1]}; collect another style"
            )
        self.shape = tuple(int(space.n) for space in spaces)
        self.first_observation, self.first_action = (int(space.start) for space in spaces)
        self.exploration = exploration * getattr(family, "reward_std", 1.0) ** 2

    def reset(self, n: int, seed: int) -> None:
        """Begin n streams without experience."""
        self.rng = np.random.default_rng(seed)
        self.pulls, self.paid = np.zeros((2, n, *self.shape))
        self.streams = np.arange(n)

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions `(n,)`."""
        observations = observations - self.first_observation
        pulls, paid = (counts[self.streams, observations] for counts in (self.pulls, self.paid))
        with np.errstate(divide="ignore", invalid="ignore"):
            bonus = np.sqrt(self.exploration * np.log(pulls.sum(-1, keepdims=True)) / pulls)
            index = np.where(pulls > 0, paid / pulls + bonus, np.inf)
        best = index == index.max(-1, keepdims=True)
        actions = (best * self.rng.random(best.shape)).argmax(-1)
        self._place = (self.streams, observations, actions)
        return actions + self.first_action

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Count the rewards."""
        self.pulls[self._place] += 1
        self.paid[self._place] += rewards
