"""What a history holds: fields, dtypes, space descriptions, and the check of one against them.

How it lies in a file is in store.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from base.errors import UserError

SCHEMA_VERSION = 1
FIELDS = (
    *("observations", "actions", "rewards", "next_observations"),
    *("terminated", "truncated", "compress_markers"),
)


class HistoryError(UserError):
    """A history does not fit the schema, or a space cannot be stored."""


@dataclass
class History:
    """What `S` streams of one task saw, `T` transitions each, in order, across episodes.

    Attributes:
        observations: `(S, T, ...)`.
        actions: `(S, T)` or `(S, T, ...)`.
        rewards: `(S, T)` float32.
        next_observations: `(S, T, ...)`, true ones: the terminal one at an episode's end.
        terminated: `(S, T)` bool.
        truncated: `(S, T)` bool.
        compress_markers: `(S, T)` uint8, see regions.py.
        style: Who acted: `ppo`, `noise_expert`, `random`, …
        source_seed: Seed of the source algorithm.
        settings: Of the source algorithm, as JSON values.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    compress_markers: np.ndarray
    style: str
    source_seed: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def n_streams(self) -> int:
        """Streams, S."""
        return self.rewards.shape[0]

    @property
    def n_transitions(self) -> int:
        """Transitions per stream, T."""
        return self.rewards.shape[1]

    @classmethod
    def empty(
        cls,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        n_streams: int,
        n_transitions: int,
        **labels: Any,
    ) -> "History":
        """Allocated arrays to record into; `labels` are style, source_seed and settings."""
        dtypes = field_dtypes(observation_space, action_space)
        shapes = field_shapes(observation_space, action_space)
        size = (n_streams, n_transitions)
        arrays = {name: np.zeros(size + shapes[name], dtypes[name]) for name in FIELDS}
        return cls(**arrays, **labels)


def storage_dtype(space: gymnasium.Space) -> np.dtype:
    """Smallest dtype that holds every value of a space; raises HistoryError for unknown kinds."""
    if isinstance(space, Discrete):
        return _smallest_int(int(space.start), int(space.start) + int(space.n) - 1)
    if isinstance(space, MultiDiscrete):
        starts = np.asarray(space.start)
        return _smallest_int(int(starts.min()), int((starts + space.nvec).max()) - 1)
    if isinstance(space, MultiBinary):
        return np.dtype(np.int8)
    if isinstance(space, Box):
        is_float = np.issubdtype(space.dtype, np.floating)
        return np.dtype(np.float32) if is_float else np.dtype(space.dtype)
    raise HistoryError(
        f"histories hold Discrete, MultiDiscrete, MultiBinary and Box spaces, got {space}; "
        "wrap the environment in gymnasium's FlattenObservation"
    )


def field_dtypes(
    observation_space: gymnasium.Space, action_space: gymnasium.Space
) -> dict[str, np.dtype]:
    """Storage dtype of every field."""
    observation, action = storage_dtype(observation_space), storage_dtype(action_space)
    return {
        "observations": observation,
        "actions": action,
        "rewards": np.dtype(np.float32),
        "next_observations": observation,
        "terminated": np.dtype(bool),
        "truncated": np.dtype(bool),
        "compress_markers": np.dtype(np.uint8),
    }


def field_shapes(
    observation_space: gymnasium.Space, action_space: gymnasium.Space
) -> dict[str, tuple[int, ...]]:
    """Shape of one transition of every field."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(FIELDS, ())
    shapes["observations"] = shapes["next_observations"] = tuple(observation_space.shape or ())
    shapes["actions"] = tuple(action_space.shape or ())
    return shapes


def space_spec(space: gymnasium.Space) -> dict[str, Any]:
    """A space as JSON values; `space_from_spec` builds it again. Raises HistoryError."""
    if isinstance(space, Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, MultiDiscrete):
        start = np.asarray(space.start).tolist()
        return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": start}
    if isinstance(space, MultiBinary):
        return {"kind": "MultiBinary", "n": np.asarray(space.n).tolist()}
    if isinstance(space, Box):
        return {
            "kind": "Box",
            "shape": list(space.shape),
            "dtype": np.dtype(space.dtype).name,
            "low": _bound(space.low),
            "high": _bound(space.high),
        }
    raise HistoryError(f"no description for the space {space}")


def space_from_spec(spec: Mapping[str, Any]) -> gymnasium.Space:
    """Inverse of `space_spec`; raises HistoryError for an unknown description."""
    kind = spec.get("kind")
    if kind == "Discrete":
        return Discrete(spec["n"], start=spec["start"])
    if kind == "MultiDiscrete":
        return MultiDiscrete(spec["nvec"], start=np.array(spec["start"]))
    if kind == "MultiBinary":
        return MultiBinary(spec["n"])
    if kind == "Box":
        dtype = np.dtype(spec["dtype"])
        low, high = (
            np.array(spec[name], dtype=np.float64).astype(dtype) for name in ("low", "high")
        )
        shape = tuple(spec["shape"])
        low, high = np.broadcast_to(low, shape), np.broadcast_to(high, shape)
        return Box(low, high, shape, dtype.type)
    raise HistoryError(f"unknown space description {dict(spec)}")


def check_history(
    history: History, observation_space: gymnasium.Space, action_space: gymnasium.Space
) -> None:
    """Raise HistoryError where a field has another shape or dtype than the spaces ask for."""
    dtypes = field_dtypes(observation_space, action_space)
    shapes = field_shapes(observation_space, action_space)
    size = (history.n_streams, history.n_transitions)
    for name in FIELDS:
        array = getattr(history, name)
        expected = size + shapes[name]
        if array.shape != expected or array.dtype != dtypes[name]:
            raise HistoryError(
                f"history field {name} must be {expected} {dtypes[name]}, "
                f"got {array.shape} {array.dtype}"
            )
    if not np.isfinite(history.rewards).all():
        raise HistoryError("history rewards must be finite")


def _smallest_int(low: int, high: int) -> np.dtype:
    for dtype in (np.int8, np.int16, np.int32):
        info = np.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


def _bound(values: np.ndarray) -> Any:
    unique = np.unique(values)
    return float(unique[0]) if len(unique) == 1 else values.tolist()
