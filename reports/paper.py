"""A comparison's tables as Markdown and as LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from reports import columns, differences
from reports.column import HEADLINE, TABLES, Column
from reports.rows import Row
from reports.tables import cell, table_columns


@dataclass(frozen=True)
class PrintedTable:
    """A table as every format prints it.

    Attributes:
        heading: of its section.
        columns: shown, after the first, which names the row.
        rows: of it.
        notes: sentences under it.
    """

    heading: str
    columns: Sequence[Column[Any]]
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    @property
    def titles(self) -> list[str]:
        """Headings, that of the first column too."""
        return ["Method", *(column.title for column in self.columns)]

    @property
    def groups(self) -> list[list[tuple[Row, list[str]]]]:
        """Rows and their cells, apart where a rule divides them."""
        return [
            [(row, [row.title, *(cell(row, column) for column in self.columns)]) for row in group]
            for _, group in groupby(self.rows, key=lambda row: row.section)
        ]


def printed_tables(
    rows: Sequence[Row],
    notes: Sequence[str],
    paired: Sequence[Row],
    paired_notes: Sequence[str],
) -> list[PrintedTable]:
    """Every table of a report, in order.

    Args:
        rows: one per method.
        notes: the sentences under the first table.
        paired: rows of differences.
        paired_notes: the sentences under them.
    """
    found = [
        PrintedTable(heading, table_columns(rows, table), rows, notes if table == HEADLINE else ())
        for table, heading in TABLES.items()
    ]
    if paired:
        found.insert(-1, PrintedTable("Differences", differences.SHOWN, paired, paired_notes))
    return [table for table in found if table.columns]


def described(tables: Sequence[PrintedTable]) -> dict[str, str]:
    """What each shown column of methods means, by its title."""
    shown = {column.name for table in tables for column in table.columns}
    return {c.title: c.description for c in columns.COLUMNS if c.name in shown}


def write_markdown(tables: Sequence[PrintedTable], path: Path) -> None:
    """Write tables, notes, and what each column means."""
    parts = ["# Comparison", ""]
    for table in tables:
        parts += [f"## {table.heading}", "", *_markdown(table), ""]
        parts += [line + "  " for line in table.notes] + [""] * bool(table.notes)
    parts += ["## Columns", ""]
    parts += [f"- **{title}**: {meaning}." for title, meaning in described(tables).items()]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _markdown(table: PrintedTable) -> list[str]:
    cells = [[text.replace("|", "\\|") for text in line] for g in table.groups for _, line in g]
    alignment = [":--", *["--:"] * len(table.columns)]
    return ["| " + " | ".join(line) + " |" for line in (table.titles, alignment, *cells)]


LATEX_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "–": "--",
        "−": "$-$",
    }
)


def latex_escape(text: str) -> str:
    """`text` as LaTeX prints it."""
    return text.translate(LATEX_ESCAPES)


def write_latex(tables: Sequence[PrintedTable], path: Path) -> None:
    r"""Write booktabs tables to `\input`; they need booktabs and graphicx."""
    head = "% \\usepackage{booktabs, graphicx}"
    path.write_text("\n\n".join([head, *map(_latex, tables)]) + "\n", encoding="utf-8")


def _latex(table: PrintedTable) -> str:
    body = []
    for group in table.groups:
        body.append(r"  \midrule")
        body += [f"  {' & '.join(map(latex_escape, cells))} \\\\" for _, cells in group]
    caption = " ".join([f"{table.heading}.", *table.notes])
    label = table.heading.lower().replace(" ", "-")
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{latex_escape(caption)}}}",
            rf"\label{{tab:comparison-{label}}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{@{{}}l{'r' * len(table.columns)}@{{}}}}",
            r"  \toprule",
            f"  {' & '.join(map(latex_escape, table.titles))} \\\\",
            *body,
            r"  \bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    )
