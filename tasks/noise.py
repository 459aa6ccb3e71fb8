"""Uniformly random actions among an expert's, each repeated for a while if asked."""

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space


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
