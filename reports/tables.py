"""A comparison as a table in the terminal and as CSV files; cells as every table shows them.

What is not known is a dash, in the CSV an empty cell. Nothing is computed here. Markdown and LaTeX
stand in `reports.paper`, the sentences under a table in `reports.notes`.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports.column import HEADLINE, SWEEP, TERMINAL, Column, number
from reports.columns import BY_NAME, shown_in
from reports.files import write_csv
from reports.rows import Row
from reports.statistics import Interval

MISSING = "–"
TERMINAL_WIDTH = 80
THOUSANDS_FROM = 10_000  # counts are shortened where room is short


def cell(row: Row, column: Column[Any], *, short: bool = False) -> str:
    """The string that tables show for one column of a row.

    Args:
        row: the row.
        column: of it.
        short: thousands as k.
    """
    value = row[column.name]
    if isinstance(value, str):
        return value
    if isinstance(value, Interval):
        if math.isnan(value.low):
            return MISSING
        bounds = (number(bound, column.decimals or 0) for bound in value[:2])
        return f"[{', '.join(bounds)}]"
    if value is None:
        return MISSING
    if math.isinf(value):
        return f">{row.n_episodes}"
    if column.decimals is not None:
        return number(value, column.decimals)
    if short and value >= THOUSANDS_FROM:
        return f"{value / 1000:,.0f}k"
    return number(value, 0 if float(value).is_integer() else 1)


def table_columns(rows: Sequence[Row], table: str) -> list[Column[Any]]:
    """The columns of a table, without those that nothing is known of, whatever the row."""
    columns = list(shown_in(table))
    if table in (HEADLINE, TERMINAL, SWEEP) and all(row["mean"] is None for row in rows):
        columns.insert(1, BY_NAME["raw_return"])  # nothing is normalised
    return [c for c in columns if any(cell(row, c) != MISSING for row in rows)]


def terminal_table(rows: Sequence[Row], table: str = TERMINAL, first: str = "method") -> Table:
    """The columns of a table as a rich table that fits 80 columns."""
    columns = table_columns(rows, table)
    drawn = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    drawn.add_column(first, vertical="bottom", overflow="fold")
    for column in columns:
        heading = column.short or column.title
        drawn.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    for _, group in groupby(rows, key=lambda row: row.section):
        drawn.add_section()
        for row in group:
            style = "bold" if row.is_ours else ""
            cells = [row.title, *(cell(row, column, short=True) for column in columns)]
            drawn.add_row(*(Text(text, style=style) for text in cells))
    return drawn


def print_table(
    rows: Sequence[Row],
    lines: Sequence[str],
    console: Console,
    table: str = TERMINAL,
    first: str = "method",
) -> None:
    """Print a table and the notes under it."""
    console.print(terminal_table(rows, table, first))
    width = min(console.width, TERMINAL_WIDTH)
    for line in lines:
        console.print(Text(line), style="dim", width=width)


def write_rows(rows: Sequence[Row], columns: Sequence[Column[Any]], path: Path) -> None:
    """Write rows in full, every column but the joined interval."""
    names = [column.name for column in columns if column.in_csv]
    write_csv(
        path, ("method", *names), ((row.label, *(row[name] for name in names)) for row in rows)
    )
