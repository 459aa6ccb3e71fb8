"""Steps of gymnasium's autoresetting vector environments, with true next observations."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv


def final_observations(next_observations: np.ndarray, infos: Mapping[str, Any]) -> np.ndarray:
    """The observations that the last step really led to.

    Args:
        next_observations: `(n, ...)` as `step` returned them: reset ones where an episode ended.
        infos: Of the same step; `final_obs` may be a dense `(n, ...)` array or gymnasium's object
            array `(n,)` with None where no episode ended.

    Returns:
        `(n, ...)`, the argument itself where no episode ended, else a copy.
    """
    ended = infos.get("_final_obs")
    if ended is None or not np.any(ended):
        return next_observations
    ended = np.asarray(ended, dtype=bool)
    final = np.asarray(infos["final_obs"])[ended]
    if final.dtype == object:
        final = np.stack(list(final))
    true_next = next_observations.copy()
    true_next[ended] = final
    return true_next


class Step(NamedTuple):
    """What one step of n streams led to.

    Attributes:
        observations: `(n, ...)` to act on next: reset ones where an episode ended.
        rewards: `(n,)`.
        true_next: `(n, ...)` what the actions really led to.
        terminated: `(n,)` bool.
        truncated: `(n,)` bool, where not terminated: an end is of one kind.
    """

    observations: np.ndarray
    rewards: np.ndarray
    true_next: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


def take_step(env: VectorEnv, actions: np.ndarray) -> Step:
    """Step every stream of an autoresetting vector environment; actions `(n, ...)`."""
    observations, rewards, terminated, truncated, infos = env.step(actions)
    true_next = final_observations(observations, infos)
    return Step(observations, rewards, true_next, terminated, truncated & ~terminated)


class OnlyEnv(gymnasium.Env):
    """The environment in a vector environment of one, for families that write only the latter."""

    def __init__(
        self,
        vector_env: VectorEnv,
        draw: Callable[[Any], np.ndarray] | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Wrap `vector_env`, autoreset SAME_STEP; `reset` must follow an episode's end.

        Args:
            vector_env: Of one environment.
            draw: Makes a picture `(H, W, 3)` uint8 of an observation; without it there are none.
            render_mode: `rgb_array` or None.
        """
        self.metadata = {"render_modes": ["rgb_array"] if draw else [], "render_fps": 8}
        self.draw, self.render_mode = draw, render_mode
        self._observation: Any = None
        self.vector_env = vector_env
        self.observation_space = vector_env.single_observation_space
        self.action_space = vector_env.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As gymnasium's."""
        super().reset(seed=seed)
        observations, _ = self.vector_env.reset(seed=seed)
        self._observation = observations[0]
        return observations[0], {}

    def render(self) -> Any:
        """The picture of the last observation, where asked for and possible."""
        if self.draw is None or self.render_mode != "rgb_array":
            return None
        return self.draw(self._observation)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As gymnasium's; the true last observation at an episode's end."""
        observations, rewards, terminated, truncated, infos = self.vector_env.step(
            np.asarray(action)[None]
        )
        true_next = final_observations(observations, infos)
        self._observation = true_next[0]
        return true_next[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}
