"""The same comparison group by group, of a family whose tasks are of several kinds.

A mixture of families has a group for each. Numbers that evaluation has measured over all tasks
together, such as recall or what acting costs, are not in these tables.
"""

from collections.abc import Sequence
from pathlib import Path

from reports import columns
from reports.column import Column, Compared
from reports.files import write_csv
from reports.paper import PrintedTable
from reports.rows import Row, make_row
from reports.scores import MethodScores
from reports.tables import MISSING, cell

NAME = "groups.csv"
EVERY = "all"
SHOWN = ("mean", "interval", "worst_task", "return_first_10", "episodes_to_0.9", "gap_recovered")
IN_FILE = (
    *("seeds", "mean", "interval", "interval_low", "interval_high", "iqm", "tasks_solved"),
    *("worst_task", "worst_task_name", "return_first_10", "episodes_to_0.9", "border_loss"),
    *("gap_recovered", "raw_return", "normalised_by"),
)


def group_names(methods: Sequence[MethodScores]) -> list[str]:
    """The groups of the tasks in their order; none where all tasks are of one kind."""
    names = dict.fromkeys(task.group for task in methods[0].results[0].tasks)
    return list(names) if len(names) > 1 else []


def group_rows(
    methods: Sequence[MethodScores], solved_threshold: float
) -> list[tuple[str, list[Row]]]:
    """A row for every method by group, first of all tasks together; nothing without groups.

    Args:
        methods: from `stack_methods`.
        solved_threshold: normalised final return from which a task counts as solved.
    """
    names = group_names(methods)
    parts = [(EVERY, list(methods)), *((name, _of_group(methods, name)) for name in names)]
    return [(name, _rows(part, solved_threshold)) for name, part in parts] if names else []


def _of_group(methods: Sequence[MethodScores], group: str) -> list[MethodScores]:
    return [
        MethodScores(method.label, tuple(result.of_group(group) for result in method.results))
        for method in methods
    ]


def _rows(methods: Sequence[MethodScores], threshold: float) -> list[Row]:
    kept = [columns.BY_NAME[name] for name in IN_FILE]
    return [make_row(method, Compared(method, methods, threshold), kept) for method in methods]


def printed(grouped: Sequence[tuple[str, Sequence[Row]]]) -> list[PrintedTable]:
    """A table for every group; that of all tasks is the report's first one."""
    return [
        PrintedTable(f"Results: {group}", _shown(rows), rows)
        for group, rows in grouped
        if group != EVERY
    ]


def _shown(rows: Sequence[Row]) -> list[Column[Compared]]:
    """Returns as they are where they cannot be normalised; no column of which nothing is known."""
    known = any(row["mean"] is not None for row in rows)
    asked = [columns.BY_NAME[name] for name in (SHOWN if known else ("raw_return",))]
    return [column for column in asked if any(cell(row, column) != MISSING for row in rows)]


def write_groups(grouped: Sequence[tuple[str, Sequence[Row]]], path: Path) -> None:
    """Write a line per method and group."""
    names = [name for name in IN_FILE if columns.BY_NAME[name].in_csv]
    lines = [
        (row.label, group, *(row[name] for name in names))
        for group, rows in grouped
        for row in rows
    ]
    write_csv(path, ("method", "group", *names), lines)
