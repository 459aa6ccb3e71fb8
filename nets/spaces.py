"""Gymnasium spaces as data: descriptions that fit into JSON, and the fields a model has to encode.

A `FieldSpec` says how one raw field of a transition looks: a vector of class indices (Discrete,
MultiDiscrete, MultiBinary), a real vector, or an image. Encoders and the reconstruction head are
built from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from base.errors import UserError


class SpaceError(UserError):
    """A space that nobody here can encode."""


@dataclass(frozen=True)
class FieldSpec:
    """How one raw field looks.

    Attributes:
        kind: `classes` (indices), `vector` (real numbers) or `image` (H, W, C).
        shape: Shape of one value as stored, without batch and time.
        n_classes: Number of classes per axis; empty unless `kind` is `classes`.
        low: Finite lower bounds of a real field, flat, or empty.
        high: Finite upper bounds, flat, or empty.
    """

    kind: str
    shape: tuple[int, ...]
    n_classes: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able description; `from_json` is its inverse."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> FieldSpec:
        """Build a spec from what `to_json` returned."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return FieldSpec(**values)


def field_spec(space: gymnasium.Space, what: str) -> FieldSpec:
    """Describe a space as a field.

    Args:
        space: Discrete, MultiDiscrete, MultiBinary, or Box with one or three dimensions.
        what: Names it in the message, such as `observation`.

    Raises:
        SpaceError: For any other space.
    """
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return FieldSpec("classes", (), (int(space.n),))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and not space.start.any():
        return FieldSpec("classes", space.shape, tuple(int(n) for n in space.nvec))
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return FieldSpec("classes", space.shape, (2,) * space.shape[0])
    if isinstance(space, spaces.Box) and len(space.shape) in (1, 3):
        bounded = bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
        low = tuple(map(float, space.low.ravel())) if bounded and len(space.shape) == 1 else ()
        high = tuple(map(float, space.high.ravel())) if low else ()
        return FieldSpec("vector" if len(space.shape) == 1 else "image", space.shape, (), low, high)
    raise SpaceError(
        f"no encoder for {what} {space}: expected Discrete, MultiDiscrete or MultiBinary "
        "counted from 0, or a Box of one (vector) or three (image) dimensions; wrap the "
        "environment, for example in gymnasium.wrappers.FlattenObservation."
    )
