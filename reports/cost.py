"""The figure of what acting costs: context bytes and time per action against the history's length.

<run_dir>/cost/cost.csv    method, history_regions, context_bytes, ms_per_action, ...
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from reports import style
from reports.columns import axis_title
from reports.files import write_csv
from reports.records import MethodRecord, unknown_record
from reports.result_files import ResultsError, check_written

NAME = "cost"
COLUMNS = ("method", "history_regions", "context_bytes", "ms_per_action", "n_streams")
NAMES = {"long_context": "raw, whole history", "teacher": "teacher, raw", "student": "student"}


@dataclass(frozen=True)
class CostRow:
    """What one method's actions cost after a history of so many regions.

    Attributes:
        method: student, teacher, or long_context, which keeps the whole history raw.
        history_regions: completed regions.
        context_bytes: bytes of context state of one stream.
        ms_per_action: milliseconds of processor time of one action, all streams together.
        n_streams: how many streams acted at once.
    """

    method: str
    history_regions: int
    context_bytes: float
    ms_per_action: float
    n_streams: int


def load_cost(run_dirs: Iterable[str | Path]) -> list[CostRow]:
    """Read the first cost/cost.csv of the runs; nothing where none was measured.

    Raises:
        ResultsError: it cannot be read, or is not what the stage has written.
    """
    for run_dir in map(Path, run_dirs):
        path = run_dir / "cost" / "cost.csv"
        remedy = f"delete {path.parent} and run pipelines.cost again"
        check_written(path.parent, remedy)
        if not path.is_file():
            continue
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [_row(row) for row in csv.DictReader(file)]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ResultsError(
                f"{path} cannot be read ({type(error).__name__}: {error}): expected the columns "
                f"{', '.join(COLUMNS)}; {remedy}"
            ) from error
        if rows:
            return rows
    return []


def _row(row: dict[str, str]) -> CostRow:
    return CostRow(
        row["method"],
        int(row["history_regions"]),
        float(row["context_bytes"]),
        float(row["ms_per_action"]),
        int(row["n_streams"]),
    )


def draw_cost(
    rows: Sequence[CostRow], records: Mapping[str, MethodRecord], out_dir: Path
) -> list[Path]:
    """Draw bytes and milliseconds against regions of history, all axes logarithmic.

    Args:
        rows: from `load_cost`.
        records: of the compared methods, by name.
        out_dir: an existing directory; cost.{pdf,png,csv} are written there.

    Returns:
        The PDF and the PNG.
    """
    found = {row.method: records.get(row.method) or unknown_record(row.method) for row in rows}
    rows = sorted(rows, key=lambda row: (found[row.method].rank, row.history_regions))
    write_csv(
        out_dir / f"{NAME}.csv", COLUMNS, ([getattr(row, c) for c in COLUMNS] for row in rows)
    )
    lengths = sorted({row.history_regions for row in rows})
    with style.new_figure(6.4, 2.3) as figure:
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(wspace=0.32)
        _draw(left, rows, found, [row.context_bytes / 1024 for row in rows])
        _draw(right, rows, found, [row.ms_per_action for row in rows])
        left.set_ylabel(axis_title("context_bytes"))
        streams = ", ".join(str(n) for n in sorted({row.n_streams for row in rows}))
        right.set_ylabel(f"ms per action of {streams} streams")
        for axes in (left, right):
            axes.set_xlabel("regions of history")
            axes.xaxis.set_major_locator(FixedLocator(lengths))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        style.legend_beside(right)
        return style.save(figure, out_dir, NAME)


def _draw(
    axes: Axes,
    rows: Sequence[CostRow],
    records: Mapping[str, MethodRecord],
    values: Sequence[float],
) -> None:
    looks = style.looks({row.method: records[row.method] for row in rows})
    for method in looks:
        look = looks[method]
        points = [
            (r.history_regions, v) for r, v in zip(rows, values, strict=True) if r.method == method
        ]
        axes.plot(
            *zip(*points, strict=True),
            **look.line(),
            ms=3.5,
            label=NAMES.get(method, records[method].title),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
