"""Rows of tables: what each column's record computes for each method, and for each pair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.columns import (
    COLUMNS,
    DIFFERENCE_COLUMNS,
    Column,
    Compared,
    Pair,
    Value,
)
from reports.measures import SOLVED_THRESHOLD
from reports.records import STUDENT, TEACHER
from reports.scores import MethodScores


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
        _row(method, Compared(method, methods, solved_threshold), COLUMNS) for method in methods
    ]


def reference_method(methods: Sequence[MethodScores]) -> MethodScores | None:
    """What methods are set against: the student, else the teacher, else the first trained one."""
    trained = [method for method in methods if not method.record.is_rollout]
    shared = [method for method in trained if not method.is_point]
    for group in (STUDENT, TEACHER):
        for method in shared:
            if method.record.group == group and method.label == method.method:
                return method
    return trained[0] if trained else None


def difference_rows(methods: Sequence[MethodScores], reference: MethodScores | None) -> list[Row]:
    """Every trained method minus the reference, paired by training seed and task.

    Policies that are only rolled out are left out: no training seed of theirs could be paired.

    Args:
        methods: from `stack_methods`.
        reference: the method that is subtracted.

    Returns:
        A row for every other method that shares training seeds with the reference.
    """
    rows = []
    for method in methods:
        if reference is None or method is reference or method.record.is_rollout:
            continue
        common = [seed for seed in method.seeds if seed in reference.seeds]
        if common:
            scores, others = (
                m.scores[[m.seeds.index(seed) for seed in common]] for m in (method, reference)
            )
            pair = Pair(tuple(common), scores, others, reference.label)
            rows.append(_row(method, pair, DIFFERENCE_COLUMNS))
    return rows


def _row(method: MethodScores, subject: Any, columns: Sequence[Column[Any]]) -> Row:
    values = {column.name: _value(column.compute(subject)) for column in columns}
    return Row(
        method.label, method.title, method.section, method.is_ours, method.n_episodes, values
    )


def _value(value: Any) -> Value:
    """A Python value; None for nan and empty text."""
    if value is None or isinstance(value, str | tuple):
        return value or None
    number = value if isinstance(value, int) else float(value)
    return None if np.isnan(number) else number
