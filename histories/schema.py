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
    history: History,
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    episode_len: int | None = None,
) -> None:
    """Raise HistoryError as `check_fields`, of a history that is to be written."""
    fields = {name: getattr(history, name) for name in FIELDS}
    check_fields(fields, observation_space, action_space, episode_len=episode_len)


def check_fields(
    fields: Mapping[str, np.ndarray],
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    *,
    lengths: np.ndarray | None = None,
    episode_len: int | None = None,
) -> None:
    """Check what is written and what is read alike.

    Args:
        fields: `FIELDS`, each `(S, T, ...)`.
        observation_space: Of one environment.
        action_space: Of one environment.
        lengths: `(S,)` transitions of each stream, where some are filled up.
        episode_len: Longest possible episode; None where it is not known.

    Raises:
        HistoryError: A field has another shape or dtype than the spaces ask for, a value is none
            of its space's, a reward is not finite, or an episode never ends.
    """
    dtypes = field_dtypes(observation_space, action_space)
    shapes = field_shapes(observation_space, action_space)
    size = fields["rewards"].shape[:2]
    for name in FIELDS:
        array = fields[name]
        expected = (*size, *shapes[name])
        if len(size) != 2 or array.shape != expected or array.dtype != dtypes[name]:
            raise HistoryError(
                f"history field {name} must be {expected} {dtypes[name]}, "
                f"got {array.shape} {array.dtype}"
            )
    if lengths is not None and (
        lengths.shape != size[:1] or (lengths < 1).any() or (lengths > size[1]).any()
    ):
        raise HistoryError(f"history field n_transitions must be {size[:1]} of 1 ... {size[1]}")
    there = (
        np.arange(size[1]) < (np.full(size[0], size[1]) if lengths is None else lengths)[:, None]
    )
    check_values(fields, observation_space, action_space, there)
    longest = _longest_episode(fields["terminated"] | fields["truncated"], there)
    if episode_len is not None and longest > episode_len:
        raise HistoryError(
            f"a history has an episode of {longest} steps or more, but the family's episode_len is "
            f"{episode_len}"
        )


def check_values(
    fields: Mapping[str, np.ndarray],
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    there: np.ndarray | slice = slice(None),
) -> None:
    """Raise HistoryError where an observation, action or reward that is there cannot be one."""
    if not np.isfinite(fields["rewards"]).all():
        raise HistoryError("history rewards must be finite")
    for name, space in (
        ("observations", observation_space),
        ("next_observations", observation_space),
        ("actions", action_space),
    ):
        if name in fields and (wrong := _outside(fields[name][there], space)) is not None:
            raise HistoryError(f"history field {name} holds {wrong}, which is none of {space}")


def _outside(values: np.ndarray, space: gymnasium.Space) -> Any:
    """A value `(n, ...)` that a space does not hold, None if it holds all.

    Real numbers need only be finite: bounds that environments state are often kept loosely.
    """
    if isinstance(space, Box):
        wrong = ~np.isfinite(values)
    else:
        start = np.asarray(getattr(space, "start", 0))
        count = 2 if isinstance(space, MultiBinary) else getattr(space, "nvec", None)
        count = np.asarray(space.n if count is None else count)  # pyright: ignore
        wrong = (values < start) | (values >= start + count)
    return values[wrong][0] if wrong.any() else None


def _longest_episode(ended: np.ndarray, there: np.ndarray) -> int:
    """Steps of the longest episode, broken-off ones included, of streams `(S, T)`."""
    n = ended.shape[1]
    ends = np.where(ended & there, np.arange(1, n + 1), 0)
    before = np.maximum.accumulate(np.pad(ends, [(0, 0), (1, 0)]), axis=1)[:, :-1]
    return int(((np.arange(1, n + 1) - before) * there).max(initial=0))


def _smallest_int(low: int, high: int) -> np.dtype:
    for dtype in (np.int8, np.int16, np.int32):
        info = np.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


def _bound(values: np.ndarray) -> Any:
    unique = np.unique(values)
    return float(unique[0]) if len(unique) == 1 else values.tolist()
