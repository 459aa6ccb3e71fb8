"""A whole comparison in one call: results in, tables and figures out."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from reports import tables
from reports.aggregate import (
    SOLVED_THRESHOLD,
    MethodRow,
    difference_rows,
    method_rows,
    stack_methods,
)
from reports.figures import write_figures
from reports.results import load_results, load_source_curves
from reports.statistics import DEFAULT_BOOTSTRAP, Bootstrap


def write_comparison(
    run_dirs: Iterable[str | Path],
    out_dir: str | Path,
    *,
    seeds: Iterable[int] | None = None,
    region_len: int | None = None,
    solved_threshold: float = SOLVED_THRESHOLD,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
    console: Console | None = None,
) -> list[MethodRow]:
    """Compare the evaluated methods of one or several runs.

    Writes table.{csv,md,tex}, differences.csv (every method minus the student, paired), and the
    figures learning_curves, bars and tasks as PDF, PNG and CSV.

    Args:
        run_dirs: run directories.
        out_dir: made if need be; files of an earlier comparison are replaced.
        seeds: training seeds; all when None.
        region_len: transitions in a region, which dates the source algorithm's curve.
        solved_threshold: normalised final return from which a task counts as solved.
        bootstrap: how intervals are drawn.
        console: the table is printed there; not at all when None.

    Returns:
        One row per method, in the order of the table.

    Raises:
        ResultsError: results are missing, damaged, or do not belong together.
    """
    directories = [Path(run_dir) for run_dir in run_dirs]
    results = load_results(directories, seeds)
    first = results[0]
    source = load_source_curves(directories, first.tasks, first.metrics["split_name"])
    rows = method_rows(results, solved_threshold=solved_threshold, bootstrap=bootstrap)
    lines = tables.notes(results, rows, bootstrap)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    tables.write_tables(rows, lines, out_dir)
    methods = stack_methods(results)
    tables.write_differences(difference_rows(methods, bootstrap=bootstrap), out_dir)
    write_figures(methods, out_dir, source=source, region_len=region_len, bootstrap=bootstrap)
    if console is not None:
        tables.print_table(rows, lines, console)
    return rows
