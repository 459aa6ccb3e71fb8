"""A sweep: one table, figures and page over runs that differ in one or several settings.

    <sweep_dir>/sweep.json
        {"format_version": 1, "name": "latents", "axes": {"compressor.n_latents": [1, 2, 4]},
         "seeds": [0, 1], "base": "cells/base" or null,
         "points": [{"dir": "cells/n_latents=1", "values": {"compressor.n_latents": 1}}, ...]}

A point is one combination of values; its directory, relative to the sweep's, is a run directory.
The base holds the methods that all points share: teacher, no context, random, optimal. An axis may
be "method": its values are methods, and a point's directory holds that one. The figures stand in
reports.sweep_figures. Labels are those of reports.results; a point's student is `student@m = 8`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from reports import tables
from reports.aggregate import SOLVED_THRESHOLD, MethodRow, MethodScores, stack_methods
from reports.comparison import (
    Material,
    ReportOptions,
    write_report_page,
    write_tables_and_figures,
)
from reports.cost import load_cost
from reports.files import write_csv
from reports.page import figure, method_table, notes_under, section
from reports.results import (
    EvaluationResult,
    ResultsError,
    check_comparable,
    load_run,
    load_source_curves,
    method_rank,
)
from reports.statistics import DEFAULT_BOOTSTRAP, Bootstrap
from reports.sweep_figures import (
    METHOD_AXIS,
    Axis,
    PlacedPoint,
    Value,
    draw_sweep,
    show,
    sweep_captions,
)
from reports.training_logs import StageLog, load_stage_logs

FORMAT_VERSION = 1
REFERENCES = ("random", "optimal")
SYMBOLS = {"n_latents": "m"}
MAX_TRAINING_CURVES = 12  # methods in the figure of training; more would be a thicket
SWEEP_COLUMNS = (
    "seeds",
    "normalized_return",
    "ci_low",
    "ci_high",
    "gap_recovered",
    "tasks_solved",
    "reconstruction_accuracy",
    "latent_bits",
    "context_bytes",
    "ms_per_action",
)
TABLE_COLUMNS = {
    "method": "Setting",
    "seeds": "Seeds",
    "normalized_return": "Return",
    "interval": "95 % CI",
    "gap_recovered": "Gap rec.",
    "tasks_solved": "Solved",
    "reconstruction_accuracy": "Rec. acc.",
    "latent_bits": "Latent bits",
    "context_bytes": "Context bytes",
    "ms_per_action": "ms / action",
}
TERMINAL_COLUMNS = {
    "method": "setting",
    "seeds": "n",
    "normalized_return": "return",
    "interval": "95 % CI",
    "gap_recovered": "gap\nrec.",
    "tasks_solved": "solved",
    "reconstruction_accuracy": "rec.\nacc.",
    "latent_bits": "latent\nbits",
    "context_bytes": "ctx\nbytes",
    "ms_per_action": "ms /\nact",
}


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes:
        directory: its run directory.
        values: by the key of each axis.
        label: its settings as a reader names them, "m = 8"; empty where the method is all.
    """

    directory: Path
    values: dict[str, Value]
    label: str

    @property
    def method(self) -> str | None:
        """The method this point is of, where that is an axis."""
        method = self.values.get(METHOD_AXIS)
        return None if method is None else str(method)


@dataclass(frozen=True)
class Sweep:
    """What sweep.json says.

    Attributes:
        name: of the sweep.
        axes: by key, the settings that were varied.
        seeds: training seeds.
        base: run directory of the methods that all points share, if any.
        points: every combination, whether it has been evaluated or not.
    """

    name: str
    axes: dict[str, Axis]
    seeds: tuple[int, ...]
    base: Path | None
    points: tuple[Point, ...]

    @property
    def run_dirs(self) -> list[Path]:
        """Base and points."""
        return [*([self.base] if self.base else []), *(point.directory for point in self.points)]


def write_sweep_comparison(
    sweep_dir: str | Path,
    out_dir: str | Path,
    *,
    folder: str = "evaluate",
    region_len: int | None = None,
    solved_threshold: float = SOLVED_THRESHOLD,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
    commands: Sequence[str] = (),
    config_text: str = "",
    console: Console | None = None,
) -> list[MethodRow]:
    """Compare the points of a sweep with each other and with the methods of its base.

    Writes what `write_comparison` writes, sweep.csv with a row per point, and the figures
    sweep_<axis> for every axis, bits where the points' latents hold different numbers of bits, and
    heatmap where there are two axes. Points that have not been evaluated are named in a note.

    Args:
        sweep_dir: holds sweep.json.
        out_dir: made if need be; files of an earlier report are replaced.
        folder: where the evaluations are, `evaluate` or `evaluate_<name>`.
        region_len: transitions in a region, which dates the source algorithm's curve.
        solved_threshold: normalised final return from which a task counts as solved.
        bootstrap: how intervals are drawn.
        commands: what was run, for the page.
        config_text: the resolved configuration, for the page.
        console: the table of the sweep is printed there; not at all when None.

    Returns:
        One row per method and point, in the order of table.csv.

    Raises:
        ResultsError: sweep.json or results are damaged, do not belong together, or no point has
            been evaluated.
    """
    sweep = load_sweep(sweep_dir)
    results, missing = load_sweep_results(sweep, folder)
    methods = stack_methods(results)
    placed = place_points(sweep, methods)
    material = Material(
        results,
        _load_logs(sweep),
        load_source_curves(sweep.run_dirs, results[0].tasks, results[0].part),
        load_cost(sweep.run_dirs),
    )
    options = ReportOptions(region_len, solved_threshold, bootstrap, commands, config_text)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    # A control at every point would bury the figures; the tables hold them all.
    shown = [method for method in methods if not _is_point_control(method.label)]
    report = write_tables_and_figures(material, shown, out_dir, options)
    figures = draw_sweep(list(sweep.axes.values()), placed, methods, out_dir, bootstrap=bootstrap)
    write_sweep_csv(sweep, placed, report.rows, out_dir / "sweep.csv")
    rows = [row for row in report.rows if not _is_point_control(row.method)]
    lines = [*report.notes, *missing]
    captions = sweep_captions(list(sweep.axes.values()))
    lead = [
        section("Sweep", method_table(rows, TABLE_COLUMNS) + notes_under(lines)),
        *(figure(name, figures, captions=captions) for name in figures),
    ]
    title = f"Sweep {sweep.name}"
    write_report_page(report, results, out_dir, options, title=title, lead=lead)
    if console is not None:
        tables.print_table(rows, lines, console, TERMINAL_COLUMNS)
    return report.rows


def load_sweep(sweep_dir: str | Path) -> Sweep:
    """Read sweep.json.

    Raises:
        ResultsError: it is missing, damaged, or of a format this code does not read.
    """
    sweep_dir = Path(sweep_dir)
    path = sweep_dir / "sweep.json"
    if not path.is_file():
        raise ResultsError(f"{path} is missing: give the directory of a sweep that was run")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format_version"]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ResultsError(f"{path} is damaged ({error!r}): run the sweep again") from error
    if version != FORMAT_VERSION:
        raise ResultsError(
            f"{path} has format version {version!r}, this code reads {FORMAT_VERSION}: run the "
            "sweep again with this version"
        )
    try:
        return _parse(content, sweep_dir)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{path} is damaged ({error!r}): run the sweep again") from error


def _parse(content: Mapping[str, Any], sweep_dir: Path) -> Sweep:
    keys = list(content["axes"])
    axes = {
        key: Axis(key, stem, SYMBOLS.get(stem, stem), tuple(values))
        for key, values in content["axes"].items()
        for stem in [shortest_stem(key, keys)]
    }
    points = []
    for entry in content["points"]:
        values = {key: entry["values"][key] for key in keys}
        for key, value in values.items():
            axes[key].position(value)  # raises ValueError where it is none of the axis
        named = [axes[key].setting(value) for key, value in values.items() if key != METHOD_AXIS]
        points.append(Point(sweep_dir / entry["dir"], values, ", ".join(named)))
    base = content["base"]
    return Sweep(
        str(content["name"]),
        axes,
        tuple(int(seed) for seed in content["seeds"]),
        None if base is None else sweep_dir / base,
        tuple(points),
    )


def shortest_stem(key: str, keys: Sequence[str]) -> str:
    """The last part of a dotted key, with as many parts before it as tell it from other keys."""
    parts = key.split(".")
    for n in range(1, len(parts)):
        suffix = ".".join(parts[-n:])
        if sum(f".{other}".endswith(f".{suffix}") for other in keys) == 1:
            return suffix
    return key


def load_sweep_results(
    sweep: Sweep, folder: str = "evaluate"
) -> tuple[list[EvaluationResult], list[str]]:
    """Read base and points, labelled; and what is missing of them, as sentences.

    Random and optimal do not depend on settings: one of each is read, the base's if it has them. A
    method that a point and the base both hold under one name is taken from the point.

    Raises:
        ResultsError: results are damaged or do not belong together, or no point was evaluated.
    """
    found: list[EvaluationResult] = []
    shared = load_run(sweep.base, sweep.seeds, folder, unfinished=True) if sweep.base else []
    missing: dict[str, list[int]] = {}
    for point in sweep.points:
        results = load_run(point.directory, sweep.seeds, folder, unfinished=True)
        own = [result for result in results if _belongs(result.method, point.method)]
        shared += [result for result in results if result.method in REFERENCES]
        main = _main_method(own, point)
        seeds = {result.training_seed for result in own if result.method == main}
        absent = [seed for seed in sweep.seeds if seed not in seeds]
        if absent:
            missing[_point_name(point)] = absent
        suffix = f"@{point.label}" if point.label else ""
        found += [replace(result, label=result.method + suffix) for result in own]
    if not found:
        raise ResultsError(
            f"no point of the sweep {sweep.name} has been evaluated: expected each of its "
            f"{len(sweep.points)} points to hold seed_<n>/{folder}/<method>/; run the sweep first"
        )
    taken = {(result.label, result.training_seed) for result in found}
    for result in shared:
        if (result.label, result.training_seed) not in taken:
            taken.add((result.label, result.training_seed))
            found.append(result)
    check_comparable(found)
    return sorted(found, key=_order), _missing_notes(missing, len(sweep.seeds))


def _belongs(method: str, axis_method: str | None) -> bool:
    """Whether a method of a point's directory is told apart by the point's settings."""
    if axis_method is None:
        return method not in REFERENCES
    return method in (axis_method, f"{axis_method}_zeroed", f"{axis_method}_shuffled")


def _order(result: EvaluationResult) -> tuple[int, tuple[int, str]]:
    """By group and method; points of one method stay as the sweep has them (sorting is stable)."""
    return tables.label_group(result.label), method_rank(result.method)


def _main_method(results: Sequence[EvaluationResult], point: Point) -> str:
    """What a point is there for: its method, the student, or else the first it holds."""
    held = sorted({result.method for result in results}, key=method_rank)
    return point.method or ("student" if "student" in held or not held else held[0])


def _point_name(point: Point) -> str:
    return ", ".join(filter(None, (point.method, point.label)))


def _missing_notes(absent: Mapping[str, Sequence[int]], n_seeds: int) -> list[str]:
    whole = [name for name, seeds in absent.items() if len(seeds) == n_seeds]
    partly = [
        f"{name} (seed {', '.join(map(str, seeds))})"
        for name, seeds in absent.items()
        if len(seeds) < n_seeds
    ]
    notes = []
    if whole:
        notes.append(f"Not evaluated (failed or unfinished): {'; '.join(whole)}.")
    if partly:
        notes.append(f"Evaluated without some training seeds: {'; '.join(partly)}.")
    return notes


def _is_point_control(label: str) -> bool:
    return tables.label_group(label) == tables.POINT_CONTROL_GROUP


def place_points(sweep: Sweep, methods: Sequence[MethodScores]) -> list[PlacedPoint]:
    """Every point with the scores of its main method, None where it was not evaluated."""
    placed = []
    for point in sweep.points:
        of_point = [
            method
            for method in methods
            if any(result.run_dir == point.directory for result in method.results)
        ]
        main = _main_method([method.results[0] for method in of_point], point)
        scores = next((method for method in of_point if method.method == main), None)
        placed.append(PlacedPoint(point.values, scores))
    return placed


def write_sweep_csv(
    sweep: Sweep, placed: Sequence[PlacedPoint], rows: Sequence[MethodRow], path: Path
) -> None:
    """Write a row per point: values of the axes, then `SWEEP_COLUMNS`, empty where not known."""
    by_label = {row.method: row for row in rows}
    unknown = MethodRow("")
    write_csv(
        path,
        (*sweep.axes, *SWEEP_COLUMNS),
        (
            (
                *(show(point.values[key]) for key in sweep.axes),
                *(getattr(row, column) for column in SWEEP_COLUMNS),
            )
            for point in placed
            for row in [by_label[point.scores.label] if point.scores else unknown]
        ),
    )


def _load_logs(sweep: Sweep) -> list[StageLog]:
    """Training logs of base and points, or none where there are too many for one figure."""
    labels = {point.directory: point.label for point in sweep.points if point.label}
    logs = load_stage_logs(sweep.run_dirs, sweep.seeds, names=labels)
    return logs if len({log.method for log in logs}) <= MAX_TRAINING_CURVES else []
