"""A whole comparison in one call: results in; tables, figures and the page out."""

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from base.hashes import CHECKSUMS_NAME, write_checksums
from reports import bits_figure, columns, differences, groups, paper, sweep_figures, tables
from reports.bits import method_series, other_evaluations
from reports.cost import draw_cost
from reports.figures import write_figures
from reports.files import write_csv
from reports.notes import difference_notes, notes
from reports.page import CAPTIONS, write_page
from reports.report import DEFAULT_OPTIONS, Material, Report, ReportOptions
from reports.results import load_results
from reports.rows import Row, method_rows
from reports.scores import MethodScores
from reports.training_logs import draw_training, load_stage_logs

FIGURE_PARTS = ("", "_points", "_positions", "_bound")
"""What names of a figure's files end with."""


def write_comparison(
    run_dirs: Iterable[str | Path],
    out_dir: str | Path,
    *,
    seeds: Iterable[int] | None = None,
    options: ReportOptions = DEFAULT_OPTIONS,
) -> list[Row]:
    """Compare the evaluated methods of one or several runs.

    Writes table.{csv,md,tex}, by_seed.csv, differences.csv (every method minus the student,
    paired), groups.csv where tasks are of several kinds, the figures learning_curves, borders,
    bars, profiles, gap, bits, tasks, cost and training as PDF, PNG and CSV, and report.html, which
    holds it all. What the results do not allow is left out. By checksums.json whoever reads
    table.csv again knows that it is as it was written.

    Args:
        run_dirs: run directories.
        out_dir: made if need be; files of an earlier comparison are replaced.
        seeds: training seeds; all when None.
        options: how the report is made.

    Returns:
        One row per method, in the order of the table.

    Raises:
        ResultsError: results are missing, damaged, or do not belong together.
    """
    directories = [Path(run_dir) for run_dir in run_dirs]
    seeds = None if seeds is None else list(seeds)
    results = load_results(directories, seeds, options.folder)
    material = Material.of(results, directories, load_stage_logs(directories, seeds))
    methods, out_dir = material.methods, cleared(out_dir)
    report = write_tables_and_figures(material, methods, out_dir, options)
    bits = method_series(methods, other_evaluations(methods, directories, options.folder))
    report.figures[bits_figure.NAME] = bits_figure.draw_bits(bits, methods, out_dir)
    write_page(report, methods, out_dir, options)
    write_checksums(out_dir, ("table.csv",))
    if options.console is not None:
        tables.print_table(report.rows, report.notes, options.console)
    return report.rows


def cleared(out_dir: str | Path) -> Path:
    """The directory of a report, made if need be, without what an earlier one might leave there."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    names = (*CAPTIONS, *sweep_figures.CAPTIONS, "sweep_*")
    for name in (groups.NAME, CHECKSUMS_NAME):
        (out_dir / name).unlink(missing_ok=True)
    for name, part, suffix in product(names, FIGURE_PARTS, ("pdf", "png", "csv")):
        for path in out_dir.glob(f"{name}{part}.{suffix}"):
            path.unlink()
    return out_dir


def write_tables_and_figures(
    material: Material, shown: Sequence[MethodScores], out_dir: Path, options: ReportOptions
) -> Report:
    """Write everything but the page.

    Args:
        material: what was read; all of its methods are in the tables.
        shown: the methods that are in the figures.
        out_dir: an existing directory.
        options: how it is made.
    """
    methods, threshold = material.methods, options.solved_threshold
    rows, lines = method_rows(methods, solved_threshold=threshold), notes(methods)
    reference = differences.reference_method(methods)
    paired = differences.difference_rows(methods, reference)
    grouped = groups.group_rows(methods, threshold)
    printed = paper.printed_tables(rows, lines, paired, difference_notes(paired, reference))
    printed[1:1] = groups.printed(grouped)
    tables.write_rows(rows, columns.COLUMNS, out_dir / "table.csv")
    tables.write_rows(paired, differences.COLUMNS, out_dir / "differences.csv")
    write_by_seed(methods, threshold, out_dir / "by_seed.csv")
    if grouped:
        groups.write_groups(grouped, out_dir / groups.NAME)
    paper.write_markdown(printed, out_dir / "table.md")
    paper.write_latex(printed, out_dir / "table.tex")
    figures = write_figures(shown, out_dir, sources=material.sources, solved_threshold=threshold)
    if material.cost:
        figures["cost"] = draw_cost(material.cost, material.records, out_dir)
    if material.logs:
        figures["training"] = draw_training(material.logs, material.records, out_dir)
    return Report(rows, lines, printed, figures)


def write_by_seed(methods: Sequence[MethodScores], solved_threshold: float, path: Path) -> None:
    """Write a row per method and training seed, every column as if there were no other seed."""
    rows = []
    trained = [method for method in methods if not method.record.is_rollout]
    for seed in sorted({seed for method in trained for seed in method.seeds}):
        of_seed = [method.of_seed(seed) for method in methods if seed in method.seeds]
        rows += [(seed, row) for row in method_rows(of_seed, solved_threshold=solved_threshold)]
    order = {method.label: position for position, method in enumerate(methods)}
    rows.sort(key=lambda pair: order[pair[1].label])
    names = [column.name for column in columns.COLUMNS if column.in_csv]
    write_csv(
        path,
        ("method", "training_seed", *names),
        ((row.label, seed, *(row[name] for name in names)) for seed, row in rows),
    )
