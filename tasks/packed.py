"""Dict and Tuple observations as one row of numbers, of which models encode every part by itself.

`load_family` wraps a family of such observations: histories, tables and policies then know arrays
alone. A part stays what it was: classes are kept as their numbers, images as their pixels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from tasks.family import FamilyError, Task, TaskFamily

Parts = tuple[tuple[str, gymnasium.Space], ...]


class PackedSpace(spaces.Box):
    """A row of numbers made of parts.

    Attributes:
        parts: Name and space of each, in order; parts of parts bear dotted names.
    """

    def __init__(self, space: gymnasium.Space) -> None:
        """Pack a Dict or Tuple; raises FamilyError where a part is not made of numbers."""
        self.parts = parts_of(space)
        low, high = (
            np.concatenate([_bounds(part)[side] for _, part in self.parts]) for side in (0, 1)
        )
        super().__init__(low, high, dtype=np.float32)

    def __repr__(self) -> str:
        """Name and space of every part."""
        return f"Parts({', '.join(f'{name}: {space}' for name, space in self.parts)})"

    def __eq__(self, other: object) -> bool:
        """Whether the parts are the same; of a plain Box, as files hold, whether the bounds are."""
        if isinstance(other, PackedSpace):
            return self.parts == other.parts
        return super().__eq__(other)

    def one_hot(self, rows: np.ndarray) -> np.ndarray:
        """Rows `(n, W)` for networks that know no parts, float32 `(n, F)`: classes one-hot."""
        ends = np.cumsum([_width(part) for _, part in self.parts])
        pieces = np.split(np.asarray(rows, dtype=np.float32), ends[:-1], axis=-1)
        return np.concatenate(
            [one_hot(part, piece) for (_, part), piece in zip(self.parts, pieces, strict=True)], -1
        )


def parts_of(space: gymnasium.Space, name: str = "") -> Parts:
    """Name and space of every part that is no Dict or Tuple itself."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        entries = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        return tuple(
            part for key, inner in entries for part in parts_of(inner, f"{name}.{key}".lstrip("."))
        )
    known = spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box
    if not isinstance(space, known):
        raise FamilyError(
            f"observation part {name!r} is {space}: expected Discrete, MultiDiscrete, MultiBinary "
            "or Box; wrap the environment so that it is left out or made of numbers"
        )
    return ((name, space),)


def pack(space: gymnasium.Space, value: Any) -> np.ndarray:
    """One observation, a dict or tuple, as float32 `(W,)`."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        entries = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        return np.concatenate([pack(inner, value[key]) for key, inner in entries])
    return np.asarray(value, dtype=np.float32).reshape(-1)


def one_hot(space: Any, values: np.ndarray) -> np.ndarray:
    """Classes `(n, A)` one-hot, axis by axis, float32 `(n, sum of sizes)`; others as they are."""
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return values
    sizes = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)
    classes = values - np.ravel(space.start)
    hot = [np.arange(size) == classes[..., axis, np.newaxis] for axis, size in enumerate(sizes)]
    return np.concatenate(hot, -1).astype(np.float32)


class PackedObservations(gymnasium.ObservationWrapper, RecordConstructorArgs):
    """An environment whose Dict or Tuple observations are packed."""

    def __init__(self, env: gymnasium.Env) -> None:
        """Wrap `env`; raises FamilyError where a part is not made of numbers."""
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.observation_space = PackedSpace(env.observation_space)

    def observation(self, observation: Any) -> np.ndarray:
        """As a row."""
        return pack(self.env.observation_space, observation)


def unpack(space: gymnasium.Space, rows: np.ndarray) -> Any:
    """Rows `(n, W)` as a dict or tuple of arrays `(n, ...)` of the parts' dtypes."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = space.spaces if isinstance(space, spaces.Dict) else dict(enumerate(space.spaces))
        keys, inner = list(named), list(named.values())
        ends = np.cumsum([sum(_width(part) for _, part in parts_of(one)) for one in inner])
        pieces = np.split(rows, ends[:-1], axis=1)
        values = [unpack(one, piece) for one, piece in zip(inner, pieces, strict=True)]
        return (
            dict(zip(keys, values, strict=True))
            if isinstance(space, spaces.Dict)
            else tuple(values)
        )
    return rows.reshape(len(rows), *(space.shape or ())).astype(space.dtype)


class PackedFamily:
    """A family whose observations are packed. Its environments are stepped one by one."""

    def __init__(self, family: TaskFamily) -> None:
        """Wrap `family`, whose observations are a Dict or Tuple."""
        self.family, self.inner_space = family, family.observation_space
        self.name, self.episode_len = family.name, family.episode_len
        self.observation_space: gymnasium.Space = PackedSpace(family.observation_space)
        self.action_space = family.action_space
        bits = getattr(family, "information_bits", None)
        if bits is not None:
            self.information_bits = bits

    def tasks(self) -> Sequence[Task]:
        """As the family's."""
        return self.family.tasks()

    def make_env(self, task: Task, render_mode: str | None = None) -> gymnasium.Env:
        """One environment of packed observations."""
        return PackedObservations(self.family.make_env(task, render_mode))

    def make_vector_env(self, tasks: Sequence[Task]) -> VectorEnv:
        """A SyncVectorEnv, one copy per entry, autoreset SAME_STEP."""
        makers = [partial(self.make_env, task) for task in tasks]
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)

    def random_return(self, task: Task) -> float:
        """As the family's."""
        return self.family.random_return(task)

    def optimal_return(self, task: Task) -> float | None:
        """As the family's."""
        return self.family.optimal_return(task)

    def optimal_actions(
        self,
        tasks: Sequence[Task],
        observations: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """As the family's, which is shown its own observations, `(n, ...)` in every part."""
        return self.family.optimal_actions(tasks, unpack(self.inner_space, observations), rng)


def packed(family: TaskFamily) -> TaskFamily:
    """The family itself, or one of packed observations where these are a Dict or Tuple."""
    if isinstance(family.observation_space, spaces.Dict | spaces.Tuple):
        return PackedFamily(family)
    return family


def _width(space: gymnasium.Space) -> int:
    return int(np.prod(space.shape or (), dtype=np.int64))


def _bounds(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest values of a part, flat."""
    if isinstance(space, spaces.Box):
        return space.low.ravel().astype(np.float32), space.high.ravel().astype(np.float32)
    low = np.broadcast_to(np.asarray(getattr(space, "start", 0)), space.shape or ()).ravel()
    if isinstance(space, spaces.MultiBinary):
        return low.astype(np.float32), np.ones(_width(space), np.float32)
    count = np.asarray(getattr(space, "nvec", getattr(space, "n", 1))).ravel()
    return low.astype(np.float32), (low + count - 1).astype(np.float32)
