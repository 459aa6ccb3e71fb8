"""A whole comparison in one call: results in; tables, figures and the page out."""

from collections.abc import Iterable, Sequence
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
from reports.page import write_page
from reports.results import load_results, load_source_curves
from reports.statistics import DEFAULT_BOOTSTRAP, Bootstrap
from reports.training_logs import draw_training, load_stage_logs


def write_comparison(
    run_dirs: Iterable[str | Path],
    out_dir: str | Path,
    *,
    seeds: Iterable[int] | None = None,
    folder: str = "evaluate",
    region_len: int | None = None,
    solved_threshold: float = SOLVED_THRESHOLD,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
    commands: Sequence[str] = (),
    config_text: str = "",
    console: Console | None = None,
) -> list[MethodRow]:
    """Compare the evaluated methods of one or several runs.

    Writes table.{csv,md,tex}, differences.csv (every method minus the student, paired), the
    figures learning_curves, bars, tasks and training as PDF, PNG and CSV, and report.html, which
    holds it all.

    Args:
        run_dirs: run directories.
        out_dir: made if need be; files of an earlier comparison are replaced.
        seeds: training seeds; all when None.
        folder: where the evaluations are, `evaluate` or `evaluate_<name>`.
        region_len: transitions in a region, which dates the source algorithm's curve.
        solved_threshold: normalised final return from which a task counts as solved.
        bootstrap: how intervals are drawn.
        commands: what was run, for the page.
        config_text: the resolved configuration, for the page.
        console: the table is printed there; not at all when None.

    Returns:
        One row per method, in the order of the table.

    Raises:
        ResultsError: results are missing, damaged, or do not belong together.
    """
    directories = [Path(run_dir) for run_dir in run_dirs]
    seeds = None if seeds is None else list(seeds)
    results = load_results(directories, seeds, folder)
    logs = load_stage_logs(directories, seeds)
    source = load_source_curves(directories, results[0].tasks, results[0].part)
    rows = method_rows(results, solved_threshold=solved_threshold, bootstrap=bootstrap)
    lines = tables.notes(results, rows, bootstrap)
    methods = stack_methods(results)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    tables.write_tables(rows, lines, out_dir)
    tables.write_differences(difference_rows(methods, bootstrap=bootstrap), out_dir)
    figures = write_figures(
        methods,
        out_dir,
        source=source,
        region_len=region_len,
        solved_threshold=solved_threshold,
        bootstrap=bootstrap,
    )
    if logs:
        figures["training"] = draw_training(logs, out_dir)
    write_page(
        rows,
        results,
        figures,
        commands,
        config_text,
        out_dir / "report.html",
        notes=lines,
        solved_threshold=solved_threshold,
    )
    if console is not None:
        tables.print_table(rows, lines, console)
    return rows
