"""What a sweep varied, and where its points stand among the values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reports import statistics
from reports.scores import MethodScores
from reports.statistics import Interval

METHOD_AXIS = "method"

Value = float | int | bool | str | None


@dataclass(frozen=True)
class Axis:
    """One setting that was varied.

    Attributes:
        key: its dotted key.
        stem: the part of the key that tells it from the other axes; names files.
        name: how it is called in labels.
        values: in the order of the sweep.
    """

    key: str
    stem: str
    name: str
    values: tuple[Value, ...]

    def position(self, value: Value) -> int:
        """Where `value` stands among the values; true is not 1.

        Raises:
            ValueError: it is none of them.
        """
        for position, other in enumerate(self.values):
            if other == value and isinstance(other, bool) == isinstance(value, bool):
                return position
        raise ValueError(f"{self.key} = {value!r} is none of {list(self.values)}")

    def setting(self, value: Value) -> str:
        """The setting as a label, "m = 8"."""
        return str(value) if self.is_method else f"{self.name} = {show(value)}"

    def tick(self, value: Value) -> str:
        """The value as a label of this axis."""
        return str(value).replace("_", " ") if self.is_method else show(value)

    @property
    def is_method(self) -> bool:
        """Whether the values are methods."""
        return self.key == METHOD_AXIS

    @property
    def is_ordered(self) -> bool:
        """Whether a line between two values means anything."""
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)


def show(value: Value) -> str:
    """A value as YAML writes it, numbers as short as they stay exact."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


@dataclass(frozen=True)
class PlacedPoint:
    """A point of the sweep and the scores of what it is there for, None where not evaluated."""

    values: Mapping[str, Value]
    scores: MethodScores | None

    @property
    def by_seed(self) -> dict[int, float]:
        """Mean over tasks of the final return, by training seed."""
        return {} if self.scores is None else self.scores.by_seed

    def number_by_seed(self, key: str) -> dict[int, float]:
        """A number of metrics.json by training seed, where it is known."""
        return {} if self.scores is None else self.scores.number_by_seed(key)

    def number(self, key: str) -> float | None:
        """Mean over training seeds of a number of metrics.json."""
        return None if self.scores is None else self.scores.number(key)

    @property
    def center(self) -> float:
        """Mean over training seeds and tasks, nan where not evaluated."""
        return float(self.scores.scores.mean()) if self.scores else np.nan

    @property
    def interval(self) -> Interval:
        """Interval of `center` over training seeds."""
        return statistics.seed_interval(list(self.by_seed.values()))


def lines(
    axis: Axis, axes: Sequence[Axis], points: Sequence[PlacedPoint]
) -> dict[str, list[PlacedPoint]]:
    """Points in the order of `axis`, apart by what the other axes say; keys are labels."""
    others = [other for other in axes if other is not axis]
    found: dict[str, list[PlacedPoint]] = {}
    for point in sorted(points, key=lambda point: axis.position(point.values[axis.key])):
        label = ", ".join(other.setting(point.values[other.key]) for other in others)
        found.setdefault(label or "student", []).append(point)

    def rank(label: str) -> list[int]:
        return [other.position(found[label][0].values[other.key]) for other in others]

    return {label: found[label] for label in sorted(found, key=rank)}
