"""Gymnasium spaces as data: descriptions that fit into JSON, and the fields a model has to encode.

A `FieldSpec` says how one raw field of a transition looks: a vector of class indices (Discrete,
MultiDiscrete, MultiBinary), a real vector, an image, or several of these side by side. Encoders
and the reconstruction head are built from it. Models see fields scaled (`nets.scaling`): classes
counted from 0, pixels from 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from torch import Tensor

from base.errors import UserError
from tasks.packed import PackedSpace


class SpaceError(UserError):
    """A space that nobody here can encode."""


@dataclass(frozen=True)
class FieldSpec:
    """How one raw field looks.

    Attributes:
        kind: `classes` (indices), `vector` (real numbers), `image` (H, W, C) or `parts` (a row of
            numbers, those of each part after the other).
        shape: Shape of one value as stored, without batch and time.
        n_classes: Number of classes per axis; empty unless `kind` is `classes`.
        low: Finite lower bounds of a vector, flat, or empty; the least value of an image's pixels,
            empty for 0.
        high: Likewise the upper bounds, and the largest value, empty for 255.
        start: What the classes of each axis are counted from; empty for 0.
        parts: Name and spec of each part.
    """

    kind: str
    shape: tuple[int, ...]
    n_classes: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    start: tuple[int, ...] = ()
    parts: tuple[tuple[str, FieldSpec], ...] = ()

    @property
    def width(self) -> int:
        """Numbers in one value."""
        return math.prod(self.shape)

    def split(self, values: Tensor) -> list[tuple[FieldSpec, Tensor]]:
        """Return every part with its values (..., *its shape) of rows (..., W)."""
        pieces = values.split([spec.width for _, spec in self.parts], dim=-1)
        return [
            (spec, piece.reshape(*piece.shape[:-1], *spec.shape))
            for (_, spec), piece in zip(self.parts, pieces, strict=True)
        ]

    def indices(self, values: Tensor) -> Tensor:
        """Return raw classes (..., *shape) as indices from 0, int64 (..., axes)."""
        axes = values.long().reshape(*values.shape[: values.ndim - len(self.shape)], -1)
        return axes - axes.new_tensor(self.start) if self.start else axes

    def classes(self, indices: Tensor) -> Tensor:
        """Return indices from 0 (..., axes) as raw classes (..., *shape)."""
        if self.start:
            indices = indices + indices.new_tensor(self.start)
        return indices if self.shape else indices[..., 0]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able description; `from_json` is its inverse."""
        found = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}
        found["parts"] = [[name, spec.to_json()] for name, spec in self.parts]
        for key in ("start", "parts"):  # so that what needs neither reads as it always did
            if not found[key]:
                del found[key]
        return found

    @staticmethod
    def from_json(data: dict[str, Any]) -> FieldSpec:
        """Build a spec from what `to_json` returned."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        values["parts"] = tuple(
            (name, FieldSpec.from_json(spec)) for name, spec in values.get("parts", ())
        )
        return FieldSpec(**values)


def field_spec(space: gymnasium.Space, what: str) -> FieldSpec:
    """Describe a space as a field.

    Args:
        space: Discrete, MultiDiscrete, MultiBinary, Box with one or three dimensions, or a row of
            such parts, `tasks.packed.PackedSpace`.
        what: Names it in the message, such as `observation`.

    Raises:
        SpaceError: For any other space.
    """
    if isinstance(space, PackedSpace):
        parts = tuple((name, field_spec(part, f"{what} part {name}")) for name, part in space.parts)
        return FieldSpec("parts", space.shape, parts=parts)
    if isinstance(space, spaces.Discrete):
        start = (int(space.start),) if space.start else ()
        return FieldSpec("classes", (), (int(space.n),), start=start)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        start = tuple(map(int, space.start)) if space.start.any() else ()
        return FieldSpec("classes", space.shape, tuple(int(n) for n in space.nvec), start=start)
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return FieldSpec("classes", space.shape, (2,) * space.shape[0])
    if isinstance(space, spaces.Box) and len(space.shape) == 3:
        return FieldSpec("image", space.shape, (), *_pixel_range(space))
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        bounded = bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
        low = tuple(map(float, space.low.ravel())) if bounded else ()
        high = tuple(map(float, space.high.ravel())) if bounded else ()
        return FieldSpec("vector", space.shape, (), low, high)
    raise SpaceError(
        f"no encoder for {what} {space}: expected Discrete, MultiDiscrete or MultiBinary of one "
        "axis, or a Box of one (vector) or three (image) dimensions; observations may be a Dict or "
        "Tuple of these; wrap the environment, as in gymnasium.wrappers.FlattenObservation."
    )


def _pixel_range(space: spaces.Box) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What pixels are scaled by: their bounds; left alone where there are none, 0 ... 1."""
    low, high = float(space.low.min()), float(space.high.max())
    if (low, high) == (0.0, 255.0):
        return (), ()
    bounded = np.isfinite(low) and np.isfinite(high) and high > low
    return ((low,), (high,)) if bounded else ((0.0,), (1.0,))
