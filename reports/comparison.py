"""A whole comparison in one call: results in; tables, figures and the page out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from reports import tables
from reports.aggregate import (
    SOLVED_THRESHOLD,
    DifferenceRow,
    MethodRow,
    MethodScores,
    difference_rows,
    method_rows,
    reference_label,
    stack_methods,
)
from reports.cost import CostRow, draw_cost, load_cost
from reports.figures import write_figures
from reports.page import write_page
from reports.results import EvaluationResult, SourceCurves, load_results, load_source_curves
from reports.statistics import DEFAULT_BOOTSTRAP, Bootstrap
from reports.training_logs import StageLog, draw_training, load_stage_logs


@dataclass(frozen=True)
class Material:
    """Everything a report is made from, as the result files give it.

    Attributes:
        results: of all methods.
        logs: of the training stages.
        source: the source algorithm's learning curves, if any.
        cost: what acting costs, if it was measured.
    """

    results: Sequence[EvaluationResult]
    logs: Sequence[StageLog] = ()
    source: SourceCurves | None = None
    cost: Sequence[CostRow] = ()


@dataclass(frozen=True)
class ReportOptions:
    """How a report is made; see `write_comparison`."""

    region_len: int | None = None
    solved_threshold: float = SOLVED_THRESHOLD
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP
    commands: Sequence[str] = ()
    config_text: str = ""


@dataclass(frozen=True)
class Report:
    """What a comparison says, before it is a page.

    Attributes:
        rows: one per method.
        notes: the sentences under the table.
        differences: every method minus one of them.
        figures: PDF and PNG of each figure, by its name.
    """

    rows: list[MethodRow]
    notes: list[str]
    differences: list[DifferenceRow] = field(default_factory=list)
    figures: dict[str, list[Path]] = field(default_factory=dict)


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
    figures learning_curves, bars, profiles, gap, tasks, cost and training as PDF, PNG and CSV, and
    report.html, which holds it all. What the results do not allow is left out.

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
    material = Material(
        results,
        load_stage_logs(directories, seeds),
        load_source_curves(directories, results[0].tasks, results[0].part),
        load_cost(directories),
    )
    options = ReportOptions(region_len, solved_threshold, bootstrap, commands, config_text)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    report = write_tables_and_figures(material, stack_methods(results), out_dir, options)
    write_report_page(report, results, out_dir, options)
    if console is not None:
        tables.print_table(report.rows, report.notes, console)
    return report.rows


def write_tables_and_figures(
    material: Material, shown: Sequence[MethodScores], out_dir: Path, options: ReportOptions
) -> Report:
    """Write everything but the page.

    Args:
        material: what was read; all of its results are in the tables.
        shown: the methods that are in the figures.
        out_dir: an existing directory.
        options: how it is made.
    """
    results, bootstrap = material.results, options.bootstrap
    rows = method_rows(results, solved_threshold=options.solved_threshold, bootstrap=bootstrap)
    lines = tables.notes(results, rows, bootstrap)
    methods = stack_methods(results)
    differences = difference_rows(methods, reference_label(methods), bootstrap=bootstrap)
    tables.write_tables(rows, lines, out_dir, differences)
    figures = write_figures(
        shown,
        out_dir,
        source=material.source,
        region_len=options.region_len,
        solved_threshold=options.solved_threshold,
        bootstrap=bootstrap,
    )
    if material.cost:
        figures["cost"] = draw_cost(material.cost, out_dir)
    if material.logs:
        figures["training"] = draw_training(material.logs, out_dir)
    return Report(rows, lines, differences, figures)


def write_report_page(
    report: Report,
    results: Sequence[EvaluationResult],
    out_dir: Path,
    options: ReportOptions,
    *,
    title: str = "Comparison",
    lead: Sequence[str] = (),
) -> None:
    """Write report.html; `title` and `lead` as in `write_page`."""
    write_page(
        report.rows,
        results,
        report.figures,
        options.commands,
        options.config_text,
        out_dir / "report.html",
        notes=report.notes,
        differences=report.differences,
        solved_threshold=options.solved_threshold,
        title=title,
        lead=lead,
    )
