"""The report of a sweep: one table, figures and page over runs that differ in some settings.

What a sweep's files hold stands in `reports.sweep_files`, its figures in `reports.sweep_figures`.
"""

from collections.abc import Sequence
from pathlib import Path

from reports import tables
from reports.column import SWEEP
from reports.columns import COLUMNS
from reports.comparison import cleared, write_tables_and_figures
from reports.files import write_csv
from reports.page import figure_sections, table_section, write_page
from reports.paper import PrintedTable
from reports.report import DEFAULT_OPTIONS, Material, ReportOptions
from reports.rows import Row
from reports.scores import POINT_CONTROL_SECTION
from reports.sweep_axes import PlacedPoint, show
from reports.sweep_figures import draw_sweep, sweep_captions
from reports.sweep_files import Sweep, load_sweep, load_sweep_results, place_points
from reports.training_logs import StageLog, load_stage_logs

MAX_TRAINING_CURVES = 12  # methods in the figure of training; more would be a thicket


def write_sweep_comparison(
    sweep_dir: str | Path, out_dir: str | Path, options: ReportOptions = DEFAULT_OPTIONS
) -> list[Row]:
    """Compare the points of a sweep with each other and with the methods of its base.

    Writes what `write_comparison` writes, sweep.csv with a row per point, and the figures
    sweep_<axis> for every axis, bits where the points' latents hold different numbers of bits, and
    heatmap where there are two axes. Points that have not been evaluated are named in a note.

    Args:
        sweep_dir: holds sweep.json.
        out_dir: made if need be; files of an earlier report are replaced.
        options: how the report is made; the table of the sweep is what is printed.

    Returns:
        One row per method and point, in the order of table.csv.

    Raises:
        ResultsError: sweep.json or results are damaged, do not belong together, or no point has
            been evaluated.
    """
    sweep = load_sweep(sweep_dir)
    results, missing = load_sweep_results(sweep, options.folder)
    material = Material.of(results, sweep.run_dirs, _load_logs(sweep))
    methods, out_dir = material.methods, cleared(out_dir)
    # A control at every point would bury the figures; the tables hold them all.
    shown = [method for method in methods if method.section != POINT_CONTROL_SECTION]
    report = write_tables_and_figures(material, shown, out_dir, options)
    axes, placed = list(sweep.axes.values()), place_points(sweep, methods)
    figures = draw_sweep(axes, placed, methods, out_dir)
    write_sweep_csv(sweep, placed, report.rows, out_dir / "sweep.csv")
    rows = [row for row in report.rows if row.section != POINT_CONTROL_SECTION]
    lines = [*report.notes, *missing]
    table = PrintedTable("Sweep", tables.table_columns(rows, SWEEP), rows, lines)
    lead = [
        table_section(table),
        *figure_sections(list(figures), figures, captions=sweep_captions(axes)),
    ]
    write_page(report, methods, out_dir, options, title=f"Sweep {sweep.name}", lead=lead)
    if options.console is not None:
        tables.print_table(rows, lines, options.console, SWEEP, "setting")
    return report.rows


def write_sweep_csv(
    sweep: Sweep, placed: Sequence[PlacedPoint], rows: Sequence[Row], path: Path
) -> None:
    """Write a row per point: values of the axes, then every column, empty where not known."""
    by_label = {row.label: row.values for row in rows}
    names = [column.name for column in COLUMNS if column.in_csv]
    write_csv(
        path,
        (*sweep.axes, *names),
        (
            (*(show(point.values[key]) for key in sweep.axes), *(values.get(n) for n in names))
            for point in placed
            for values in [by_label[point.scores.label] if point.scores else {"seeds": 0}]
        ),
    )


def _load_logs(sweep: Sweep) -> list[StageLog]:
    """Training logs of base and points, or none where there are too many for one figure."""
    labels = {point.directory: point.label for point in sweep.points if point.label}
    logs = load_stage_logs(sweep.run_dirs, sweep.seeds, names=labels)
    return logs if len({log.method for log in logs}) <= MAX_TRAINING_CURVES else []
