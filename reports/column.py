"""What a column of a table is: its record, the tables there are, what it is computed from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from reports import measures, statistics
from reports.measures import SOLVED_THRESHOLD
from reports.scores import MethodScores
from reports.statistics import Interval

Subject = TypeVar("Subject")
Value = float | str | Interval | None

HEADLINE, SEARCH, STATISTICS, DETAILS = "headline", "search", "statistics", "details"
TERMINAL, SWEEP = "terminal", "sweep"
INTERVAL = "interval"
TABLES = {
    HEADLINE: "Results",
    SEARCH: "Search and borders",
    STATISTICS: "Statistics",
    DETAILS: "Details",
}
"""The tables of methods that a report prints, by name, in order."""


@dataclass(frozen=True)
class Column(Generic[Subject]):
    """One column.

    Attributes:
        name: in CSV files.
        title: its heading.
        description: what its numbers mean.
        compute: from what a row is about to its value; nan and None are not known.
        tables: where it is shown; table.csv has every column but those of intervals.
        decimals: shown; None for counts, which are whole.
        short: heading where room is short; the title if empty.
        axis: how a figure's axis calls it; the title if empty.
    """

    name: str
    title: str
    description: str
    compute: Callable[[Subject], Any]
    tables: tuple[str, ...] = ()
    decimals: int | None = 3
    short: str = ""
    axis: str = ""

    @property
    def in_csv(self) -> bool:
        """Whether CSV files have it: the bounds of an interval have columns of their own there."""
        return self.name != INTERVAL


def number(value: float, decimals: int) -> str:
    """A number as tables show it."""
    # Rounded first, so that no -0.00 is printed; a true minus sign is as wide as a digit.
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "−")


def by_key(keys: Sequence[float], values: Sequence[float], decimals: int = 3) -> str:
    """Values by training seed, or another number, in one cell: "0: 0.971, 1: 0.962"."""
    pairs = zip(keys, values, strict=True)
    return ", ".join(f"{key:g}: {number(value, decimals)}" for key, value in pairs)


@dataclass(frozen=True)
class Compared:
    """What a row of methods is about.

    Attributes:
        method: the row's.
        methods: all of the comparison, itself among them.
        solved_threshold: normalised final return from which a task counts as solved.
    """

    method: MethodScores
    methods: Sequence[MethodScores]
    solved_threshold: float = SOLVED_THRESHOLD

    @cached_property
    def interval(self) -> Interval:
        """Of the mean, over training seeds."""
        return statistics.seed_interval(self.method.replicated(self.method.seed_scores))

    @cached_property
    def border(self) -> measures.Border | None:
        """Return at the border."""
        return measures.border(self.method)

    @cached_property
    def gap(self) -> measures.Gap:
        """Gap recovered."""
        return measures.gap_recovered(self.method, self.methods)

    @cached_property
    def episodes_to_level(self) -> float:
        """Median over training seeds, never being later than any episode."""
        return float(np.median(measures.episodes_to_level(self.method)))


def normalized(compute: Callable[[Compared], Any]) -> Callable[[Compared], Any]:
    """Not known where returns cannot be normalised."""
    return lambda row: compute(row) if row.method.has_reference.any() else None


def measured(key: str) -> Callable[[Compared], Value]:
    """Mean over training seeds of a number of metrics.json."""
    return lambda row: row.method.number(key)


def copied(
    name: str,
    title: str,
    description: str,
    tables: tuple[str, ...],
    decimals: int | None = 3,
    short: str = "",
    axis: str = "",
) -> Column[Compared]:
    """A column whose numbers evaluation has written into metrics.json under its name."""
    return Column(name, title, description, measured(name), tables, decimals, short, axis)


def at_border(compute: Callable[[measures.Border], Any]) -> Callable[[Compared], Any]:
    """Mean over training seeds of something of the return at the border."""
    return normalized(lambda row: None if row.border is None else compute(row.border).mean())
