"""Rows of tables: what the record of each column computes for one method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.column import Column, Value
from reports.columns import COLUMNS, Compared
from reports.measures import SOLVED_THRESHOLD
from reports.scores import MethodScores
from reports.statistics import Interval


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        label: of the method, as CSV files call it.
        title: as tables call it.
        section: a rule divides rows of different sections.
        is_ours: whether it is set off from the others.
        n_episodes: in-context episodes; what is never reached is more than that.
        values: by the name of a column; None is not known, inf never.
    """

    label: str
    title: str
    section: int
    is_ours: bool
    n_episodes: int
    values: Mapping[str, Value]

    def __getitem__(self, name: str) -> Value:
        return self.values[name]


def method_rows(
    methods: Sequence[MethodScores], *, solved_threshold: float = SOLVED_THRESHOLD
) -> list[Row]:
    """One row per method.

    Args:
        methods: from `stack_methods`.
        solved_threshold: normalised final return from which a task counts as solved.
    """
    return [
        make_row(method, Compared(method, methods, solved_threshold), COLUMNS) for method in methods
    ]


def make_row(method: MethodScores, subject: Any, columns: Sequence[Column[Any]]) -> Row:
    """The row of a method: every column's value of `subject`."""
    values = {column.name: _value(column.compute(subject)) for column in columns}
    return Row(
        method.label, method.title, method.section, method.is_ours, method.n_episodes, values
    )


def _value(value: Any) -> Value:
    """A Python value; None for nan and empty text."""
    if value is None or isinstance(value, str | Interval):
        return value or None
    number = value if isinstance(value, int) else float(value)
    return None if np.isnan(number) else number
