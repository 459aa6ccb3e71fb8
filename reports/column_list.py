"""The list of columns in docs/reports.md, made from their records.

`python -m reports.column_list` writes it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports import columns, differences
from reports.column import TABLES, Column

PAGE = Path(__file__).parents[1] / "docs" / "reports.md"
BEGIN, END = "<!-- columns: made by python -m reports.column_list -->", "<!-- end of columns -->"


def documentation() -> str:
    """The list of columns as Markdown tables."""
    parts = []
    named = [*TABLES.items(), ("", "In table.csv only")]
    listed: set[str] = set()
    for table, heading in named:
        new = [
            column
            for column in columns.COLUMNS
            if column.name not in listed and (table in column.tables if table else True)
        ]
        listed |= {column.name for column in new}
        parts.append(_doc_table(heading, new))
    parts.append(_doc_table("Differences", differences.COLUMNS))
    return "\n\n".join(parts)


def _doc_table(heading: str, listed: Sequence[Column[Any]]) -> str:
    names = {c.name: f"`{c.name}`" if c.in_csv else "" for c in listed}
    rows = [f"| {c.title} | {names[c.name]} | {c.description} |" for c in listed]
    return "\n".join(
        [f"**{heading}**", "", "| column | in CSV | meaning |", "|---|---|---|", *rows]
    )


def documented(text: str) -> str:
    """A page with the list between its two marks made anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{documentation()}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write the list of columns into docs/reports.md."""
    PAGE.write_text(documented(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
