"""Uniformly random actions among an expert's, each repeated for a while if asked; who acts so."""

from collections.abc import Callable, Sequence

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector.utils import batch_space

from tasks.family import Expert, FamilyError, Task, TaskFamily, expert_of


class RepeatedNoise:
    """Says which of n streams act at random in a step, and how.

    A random action is repeated 1 … `max_repeat` times, evenly drawn, but not over an episode's end
    (temporally extended noise, after Dabney et al. 2021, arXiv 2006.01782).
    """

    def __init__(self, action_space: gymnasium.Space, n: int, max_repeat: int, seed: int) -> None:
        """Draw actions of `action_space`, that of one environment."""
        self.max_repeat = max_repeat
        self._space = batch_space(action_space, n)
        self._space.seed(seed)
        self._rng = np.random.default_rng([seed, 1])
        self._left = np.zeros(n, dtype=np.int64)  # steps left of each stream's random action
        self._actions = self.sample()

    def sample(self) -> np.ndarray:
        """One random action per stream, `(n, ...)`."""
        return np.asarray(self._space.sample())

    def mix(self, actions: np.ndarray, epsilon: float) -> np.ndarray:
        """`actions` `(n, ...)`, a share `epsilon` of them replaced; called once a step."""
        # Starts are rarer than random steps, so that these make up the share epsilon.
        mean_repeat = (1 + self.max_repeat) / 2
        start_ratio = epsilon / (mean_repeat - (mean_repeat - 1) * epsilon)
        starts = (self._left == 0) & (self._rng.random(len(actions)) < start_ratio)
        self._left[starts] = self._rng.integers(1, self.max_repeat + 1, size=int(starts.sum()))
        self._actions[starts] = self.sample()[starts]
        random = self._left > 0
        self._left = np.maximum(self._left - 1, 0)
        mixed = np.array(actions, dtype=self._actions.dtype)
        mixed[random] = self._actions[random]
        return mixed

    def observe(self, ended: np.ndarray) -> None:
        """Repeat nothing over the end of an episode `(n,)` bool."""
        self._left[ended] = 0


class NoisyExpert:
    """Epsilon-greedy around the optimal actions of every stream's own task; acts as policies do.

    Where epsilon is 1 the expert is not asked, so that a family without one is played at random.
    With `std` its actions are real numbers, and are off by Gaussian noise instead: right on average
    at every step, so that who imitates them learns the expert's, not a mixture with random ones.
    """

    def __init__(
        self,
        family: TaskFamily,
        tasks: Sequence[Task],
        epsilons: np.ndarray,
        max_repeat: int = 1,
        make: Callable[[TaskFamily, Sequence[Task]], Expert] = expert_of,
        std: float = 0.0,
    ) -> None:
        """Act in streams of `tasks`.

        Args:
            family: Of the tasks; `act` raises FamilyError where it knows no optimal actions.
            tasks: Of the streams.
            epsilons: Share of random steps `(T,)` at every step; the last one holds on.
            max_repeat: Longest run of one random action, see `RepeatedNoise`.
            make: Of whom the actions are that are not random.
            std: Standard deviation, times epsilon, of noise on the expert's actions; 0 for random
                actions among them.

        Raises:
            FamilyError: Actions are no real numbers that `std` could be added to.
        """
        space, self.bounds = family.action_space, (-np.inf, np.inf)
        if isinstance(space, Box):
            self.bounds = (space.low, space.high)
        elif std:
            raise FamilyError(
                f"noise.std is {std}, but actions of family {family.name!r} are no real numbers to "
                f"add it to: they are {space}; set it to 0"
            )
        self.space, self.epsilons, self.max_repeat = space, epsilons, max_repeat
        self.std = std
        self.expert = make(family, tasks)

    def reset(self, n: int, seed: int) -> None:
        """Begin n streams."""
        self.rng = np.random.default_rng(seed)
        self.noise = RepeatedNoise(self.space, n, self.max_repeat, seed)
        self.expert.reset()
        self.time = 0

    def act(self, observations: np.ndarray) -> np.ndarray:
        """The expert's or random actions `(n, ...)`."""
        epsilon = self.epsilons[min(self.time, len(self.epsilons) - 1)]
        self.time += 1
        if self.std:
            right = self.expert.act(observations, self.rng)
            off = right + epsilon * self.std * self.rng.standard_normal(right.shape)
            return off.clip(*self.bounds).astype(self.space.dtype)
        if epsilon >= 1.0:
            return self.noise.sample()
        return self.noise.mix(self.expert.act(observations, self.rng), epsilon)

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        """Take in what the actions led to."""
        self.noise.observe(terminated | truncated)
        self.expert.observe(rewards, terminated, truncated, next_observations)
