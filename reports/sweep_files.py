"""A sweep as its files describe it: what was varied, its points, and the results of each.

    <sweep_dir>/sweep.json
        {"format_version": 1, "name": "latents", "axes": {"compressor.n_latents": [1, 2, 4]},
         "seeds": [0, 1], "base": "cells/base" or null,
         "points": [{"dir": "cells/n_latents=1", "values": {"compressor.n_latents": 1}}, ...]}

A point is one combination of values; its directory, relative to the sweep's, is a run directory.
The base holds the methods that all points share: teacher, no context, random, optimal. An axis may
be "method": its values are methods, and a point's directory holds that one. Labels are those of
reports.result_files; a point's student is `student@m = 8`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reports.records import CONTROL, MethodRecord
from reports.result_files import EvaluationResult, ResultsError, load_run
from reports.results import check_comparable
from reports.scores import MethodScores, section
from reports.sweep_axes import METHOD_AXIS, Axis, PlacedPoint, Value

FORMAT_VERSION = 1
SYMBOLS = {"n_latents": "m"}


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

    What is only rolled out depends on no settings: one of each is read, the base's if it has it.
    A method that a point and the base both hold under one name is taken from the point.

    Raises:
        ResultsError: results are damaged or do not belong together, or no point was evaluated.
    """
    found: list[EvaluationResult] = []
    shared = load_run(sweep.base, sweep.seeds, folder, unfinished=True) if sweep.base else []
    missing: dict[str, list[int]] = {}
    for point in sweep.points:
        results = load_run(point.directory, sweep.seeds, folder, unfinished=True)
        own = [result for result in results if _belongs(result.record, point.method)]
        shared += [result for result in results if result.record.is_rollout]
        main = _main_method((result.record for result in own), point)
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


def _belongs(record: MethodRecord, axis_method: str | None) -> bool:
    """Whether a method of a point's directory is told apart by the point's settings."""
    if record.is_rollout:
        return False
    return (
        axis_method is None
        or record.name == axis_method
        or (record.group == CONTROL and record.name.startswith(f"{axis_method}_"))
    )


def _order(result: EvaluationResult) -> tuple[int, tuple[int, int, str]]:
    """By group and method; points of one method stay as the sweep has them (sorting is stable)."""
    return section(result), result.record.rank


def _main_method(records: Iterable[MethodRecord], point: Point) -> str:
    """What a point is there for: its method, the student, or else the first it holds."""
    held = sorted(records, key=lambda record: record.rank)  # students first
    return point.method or (held[0].name if held else "")


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


def place_points(sweep: Sweep, methods: Sequence[MethodScores]) -> list[PlacedPoint]:
    """Every point with the scores of its main method, None where it was not evaluated."""
    placed = []
    for point in sweep.points:
        of_point = [
            method
            for method in methods
            if any(result.run_dir == point.directory for result in method.results)
        ]
        main = _main_method((method.record for method in of_point), point)
        scores = next((method for method in of_point if method.method == main), None)
        placed.append(PlacedPoint(point.values, scores))
    return placed
