"""SB3VecEnv lets stable-baselines3 drive a gymnasium vector environment without a Python loop.

Apart from tasks/vector.py so that acting and evaluating do not import stable-baselines3.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv

from tasks.family import FamilyError
from tasks.packed import PackedSpace
from tasks.vector import take_step


class SB3VecEnv(VecEnv):
    """A gymnasium vector environment, autoreset SAME_STEP, behind SB3's interface.

    At an episode's end `infos[i]["terminal_observation"]` holds the true last observation and
    `infos[i]["TimeLimit.truncated"]` whether it was cut off rather than terminated, as SB3's
    algorithms expect. Classes counted from elsewhere than 0, which SB3 does not know, are shifted;
    of packed observations they are one-hot.

    Attributes:
        last_transition: What the last step was in the wrapped environment's own terms: fields
            `(n, ...)` by the names of a history's, with true next observations.
    """

    def __init__(self, env: VectorEnv) -> None:
        """Wrap `env`; raises FamilyError for another autoreset mode."""
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise FamilyError(
                f"a vector environment must declare autoreset_mode SAME_STEP, got {mode}; "
                "build it with gymnasium's autoreset_mode=AutoresetMode.SAME_STEP"
            )
        self.env = env
        self.last_transition: dict[str, np.ndarray] = {}
        self._observed, self._actions = np.zeros(0), np.zeros(env.num_envs)
        shown, self._shown = _for_sb3(env.single_observation_space)
        self._start = _start(env.single_action_space)
        super().__init__(env.num_envs, shown, _from_zero(env.single_action_space))

    def reset(self) -> np.ndarray:
        """Reset every copy; observations `(n, ...)`."""
        seeds = list(self._seeds) if any(seed is not None for seed in self._seeds) else None
        observations, _ = self.env.reset(seed=seeds)  # pyright: ignore[reportArgumentType]
        self._reset_seeds()
        self._observed = observations
        return self._shown(observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep actions `(n, ...)` for `step_wait`."""
        self._actions = actions + self._start

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations `(n, ...)`, rewards `(n,)` float32, dones `(n,)` bool, `n` infos."""
        observations, rewards, true_next, terminated, truncated = take_step(self.env, self._actions)
        dones = terminated | truncated
        sb3_infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        shown_next = self._shown(true_next)
        for index in np.flatnonzero(dones):
            sb3_infos[index] = {
                "terminal_observation": shown_next[index],
                "TimeLimit.truncated": bool(truncated[index]),
            }
        self.last_transition = {
            "observations": self._observed,
            "actions": self._actions,
            "rewards": rewards,
            "next_observations": true_next,
            "terminated": terminated,
            "truncated": truncated,
        }
        self._observed = observations
        return self._shown(observations), rewards.astype(np.float32), dones, sb3_infos

    def close(self) -> None:
        """Close the wrapped environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The wrapped environment's attribute, once per copy; None where it has none."""
        return [getattr(self.env, attr_name, None)] * len(self._indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the wrapped environment, for all copies at once."""
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the wrapped environment once; its result, once per copy."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result] * len(self._indices(indices))

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None
    ) -> list[bool]:
        """Never: copies are not separate environments here."""
        return [False] * len(self._indices(indices))

    def _indices(self, indices: Any) -> Sequence[int]:
        return list(self._get_indices(indices))


def _start(space: gymnasium.Space) -> Any:
    """What classes are counted from, of the dtype of the values; 0 for other spaces."""
    return np.asarray(getattr(space, "start", 0), dtype=space.dtype)


def _for_sb3(
    space: gymnasium.Space,
) -> tuple[gymnasium.Space, Callable[[np.ndarray], np.ndarray]]:
    """Return the space of what SB3 is shown, and what makes it of observations `(n, ...)`."""
    if isinstance(space, PackedSpace):
        width = space.one_hot(np.zeros((1, *space.shape))).shape[1]
        return Box(-np.inf, np.inf, (width,), np.float32), space.one_hot
    start = _start(space)
    return _from_zero(space), lambda observations: observations - start


def _from_zero(space: gymnasium.Space) -> gymnasium.Space:
    if isinstance(space, Discrete) and space.start != 0:
        return Discrete(int(space.n))
    if isinstance(space, MultiDiscrete) and np.any(space.start):
        return MultiDiscrete(space.nvec)
    return space
