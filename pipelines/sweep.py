"""A sweep file: a base configuration, a grid of settings, training seeds; and the cells it means.

A point is one choice of every axis of the grid; a cell is a point and a training seed.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from base.errors import UserError
from base.ranges import AtLeast, Between, Choices, Distinct, NonEmpty, PathText, PlainName
from pipelines.config import RunConfig
from pipelines.methods import TRAINED
from pipelines.plan import PlannedStage, plan
from pipelines.stages import STAGES
from pipelines.store import StageStore
from training.clusters import EXECUTORS
from training.config import load_config_for

MOST_CELLS = 10_000


class SweepError(UserError):
    """A sweep that cannot be laid out; the message says what to do."""


@dataclass(frozen=True)
class SweepConfig:
    """What a sweep file holds.

    Attributes:
        config: YAML of the base configuration; a path from here, or relative to the sweep file.
        name: Of the sweep; the file's name unless given.
        run_dir: Where the sweep goes; runs/sweeps/<name>-<name of the base> unless given.
        settings: Dotted keys of the base configuration that all cells have otherwise.
        grid: What is varied, by axis. A dotted key of the configuration (or `method`) with a list
            of values, or with a range: {start, stop, step} or {start, stop, factor}, both ends
            included. Or a name of your own with labelled groups of settings,
            {label: {dotted key: value, ...}, ...}.
        first_stage: The stage from which cells differ; a grid that changes one before it is
            refused.
        seeds: Training seeds of every point.
        methods: Methods of every point, unless `method` is an axis.
        controls: Methods that are run once per training seed, with the base configuration.
        reuse: Run directories whose finished stages are taken where their inputs are the same. That
            of the base configuration is always among them.
        store: Where stages are kept by the hash of their inputs; sweeps share it.
        executor: Where cells run: local, ray or slurm.
        n_workers: Jobs at once; 0 takes one per core (or GPU), on a cluster what it has room for.
        executor_options: What the executor is given besides, see docs/running.md.
    """

    config: Annotated[str, PathText()] = ""
    name: Annotated[str, PlainName()] = ""
    run_dir: Annotated[str, PathText()] = ""
    settings: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    first_stage: Annotated[str, Choices(tuple(STAGES))] = "collect"
    seeds: Annotated[list[Annotated[int, AtLeast(0)]], NonEmpty(), Distinct()] = field(
        default_factory=lambda: [0]
    )
    methods: Annotated[list[Annotated[str, Choices(TRAINED)]], NonEmpty(), Distinct()] = field(
        default_factory=lambda: ["student"]
    )
    controls: Annotated[list[Annotated[str, Choices(TRAINED)]], Distinct()] = field(
        default_factory=lambda: ["teacher", "none"]
    )
    reuse: Annotated[list[Annotated[str, PathText()]], Distinct()] = field(default_factory=list)
    store: Annotated[str, PathText()] = "runs/store"
    executor: Annotated[str, Choices(EXECUTORS)] = "local"
    n_workers: Annotated[int, Between(0, 1024)] = 0
    executor_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One choice of every axis, or the base configuration with the controls.

    Attributes:
        values: Of each axis, by its name; empty for the base.
        folder: Its run directory, relative to the sweep's.
        overrides: `key=value` that lead from the base configuration to its own.
    """

    values: Mapping[str, Any]
    folder: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One point with one training seed: a job.

    Attributes:
        point: The point.
        seed: The training seed.
        run_dir: Where its stages' folders are, those of the point's other seeds beside.
        stages: All its stages in an order in which they can run.
    """

    point: Point
    seed: int
    run_dir: Path
    stages: tuple[PlannedStage, ...]

    @property
    def name(self) -> str:
        """Unique in the sweep; also the name of its log."""
        return f"{Path(self.point.folder).name}/seed_{self.seed}"


@dataclass(frozen=True)
class Sweep:
    """A sweep laid out.

    Attributes:
        config: What its file holds, `name` and `run_dir` filled in.
        axes: Values of each axis, by its name.
        base: The point of the controls, None without controls.
        points: All points of the grid.
        cells: A cell per point and training seed, those of the base first.
        base_config: The base configuration with the sweep's settings.
    """

    config: SweepConfig
    axes: Mapping[str, tuple[Any, ...]]
    base: Point | None
    points: tuple[Point, ...]
    cells: tuple[Cell, ...]
    base_config: RunConfig

    @property
    def root(self) -> Path:
        """The sweep's directory."""
        return Path(self.config.run_dir)

    def store(self) -> StageStore:
        """Where its stages are kept."""
        return StageStore(self.config.store, [*self.config.reuse, self.base_config.run_dir])


def lay_out(config: SweepConfig, file: str | Path) -> Sweep:
    """Return all cells of a sweep and their stages; nothing is run or written.

    Args:
        config: What the sweep file holds.
        file: The sweep file itself, which gives the name and where paths are looked for.

    Raises:
        UserError: The base configuration, the grid, or a cell's configuration is not usable.
    """
    base_file = _base_file(config, Path(file))
    name = config.name or Path(file).stem
    root = Path(config.run_dir or f"runs/sweeps/{name}-{base_file.stem}")
    axes = {axis: _values(axis, values) for axis, values in config.grid.items()}
    if not axes:
        raise SweepError(f"{file}: grid is empty; give at least one key with a list of values.")
    _check_keys(config, file)
    _check_count(config, axes, file)
    settings = _settings(config.settings)
    overrides = [override(k, v) for k, v in settings.items()]
    shared = load_config_for(RunConfig, base_file, overrides, f"{file}: settings")
    points = [
        _point(dict(zip(axes, labels, strict=True)), axes, config.methods, settings)
        for labels in itertools.product(*(tuple(values) for values in axes.values()))
    ]
    _check_equal(points)
    base = None
    if config.controls:
        methods = override("methods", config.controls)
        base = Point({}, "cells/base", (*(override(k, v) for k, v in settings.items()), methods))
    cells = [
        _cell(point, seed, root, base_file, f"{file}: grid, {point.folder}")
        for point in ([base] if base else []) + points
        for seed in config.seeds
    ]
    _check_first_stage(config, [cell for cell in cells if cell.point.values])
    filled = {**config.__dict__, "name": name, "run_dir": str(root), "config": str(base_file)}
    return Sweep(
        SweepConfig(**filled),
        {axis: tuple(values) for axis, values in axes.items()},
        base,
        tuple(points),
        tuple(cells),
        shared,
    )


def _base_file(config: SweepConfig, file: Path) -> Path:
    if not config.config:
        raise SweepError(f"{file}: config is missing; name the YAML of the base configuration.")
    for candidate in (Path(config.config), file.parent / config.config):
        if candidate.is_file():
            return candidate
    raise SweepError(f"{file}: config: no such file: {config.config}; give a path from here.")


def _values(axis: str, given: Any) -> dict[Any, Mapping[str, Any]]:
    """Return the settings of each value of an axis, by the value (or its label, unless null)."""
    if isinstance(given, Mapping):
        wanted = {label: of for label, of in given.items() if of is not None}
        if not wanted:
            raise SweepError(f"grid.{axis}: nothing is left of {axis}; give settings to a label.")
        if all(isinstance(settings, Mapping) for settings in wanted.values()):
            return {label: _settings(settings) for label, settings in wanted.items()}
    values = list(_range(axis, given)) if isinstance(given, Mapping) else given
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise SweepError(
            f"grid.{axis}: expected a list of values, a range such as {{start: 1, stop: 32, "
            f"factor: 2}}, or labelled settings, got {given!r}."
        )
    if len({json.dumps(value) for value in values}) < len(values):
        raise SweepError(f"grid.{axis}: a value stands there twice in {values}.")
    return {_hashable(value): {axis: value} for value in values}


def _hashable(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _range(axis: str, given: Mapping[str, Any]) -> Iterator[float]:
    """Yield the values of {start, stop, step} or {start, stop, factor}."""
    kind = next((key for key in ("step", "factor") if set(given) == {"start", "stop", key}), None)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in given.values())
    if kind is None or not numbers:
        raise SweepError(
            f"grid.{axis}: a range is {{start, stop, step}} or {{start, stop, factor}} with "
            f"numbers, got {dict(given)}."
        )
    start, stop, by = given["start"], given["stop"], given[kind]
    rising = (by > 0) if kind == "step" else (by > 1 and start > 0)
    if not rising or stop < start:
        raise SweepError(f"grid.{axis}: the range {dict(given)} never gets from start to stop.")
    count = (stop - start) / by if kind == "step" else math.log(stop / start, by)
    if count >= MOST_CELLS:
        raise SweepError(
            f"grid.{axis}: the range {dict(given)} has {count + 1:.0f} values, at most "
            f"{MOST_CELLS} are possible."
        )
    for i in range(math.floor(count + 1e-9) + 1):
        value = start + i * by if kind == "step" else start * by**i
        yield value if isinstance(value, int) else float(f"{value:.12g}")


def _check_keys(config: SweepConfig, file: str | Path) -> None:
    """Refuse keys that a sweep sets itself, and folders that are not there."""
    grouped = [group for axis in config.grid.values() for group in _groups(axis)]
    for key in [*config.grid, *(key for group in grouped for key in _settings(group))]:
        if key in ("run_dir", "seed", "seeds", "methods"):
            other = "seeds: [...]" if key in ("seed", "seeds") else "method" * (key == "methods")
            hint = f"; give {other} instead" if other else ": every cell has a folder of its own"
            raise SweepError(f"{file}: grid has {key}, which a sweep sets itself{hint}.")
    for folder in config.reuse:
        if not Path(folder).is_dir():
            raise SweepError(f"{file}: reuse: {folder} is no folder; give that of a run.")


def _groups(axis: Any) -> list[Mapping[str, Any]]:
    every = axis.values() if isinstance(axis, Mapping) else ()
    return [group for group in every if isinstance(group, Mapping)]


def _check_count(config: SweepConfig, axes: Mapping[str, Any], file: str | Path) -> None:
    count = math.prod(len(values) for values in axes.values()) * len(config.seeds)
    if count > MOST_CELLS:
        raise SweepError(
            f"{file}: grid and seeds make {count} cells, at most {MOST_CELLS} are possible; vary "
            "fewer keys at once."
        )


def _check_equal(points: Sequence[Point]) -> None:
    seen: dict[tuple[str, ...], Point] = {}
    for point in points:
        first = seen.setdefault(tuple(sorted(point.overrides)), point)
        if first is not point:
            raise SweepError(
                f"grid: {first.folder} and {point.folder} have the same settings; take one out."
            )


def _settings(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted keys: a command line's `settings.a.b=1` comes nested, a file's does not."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and not f"{prefix}{key}".endswith("kwargs"):
            flat |= _settings(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def override(key: str, value: Any) -> str:
    """Return `key=value` as a command line has it."""
    return f"{key}={json.dumps(value)}"


def _point(
    labels: dict[str, Any],
    axes: Mapping[str, Mapping[Any, Mapping[str, Any]]],
    methods: list[str],
    settings: Mapping[str, Any],
) -> Point:
    chosen = dict(settings)
    for axis, label in labels.items():
        own = dict(axes[axis][label])
        if "method" in own:
            methods = [own.pop("method")]
        chosen |= own
    overrides = (*(override(k, v) for k, v in chosen.items()), override("methods", methods))
    return Point(labels, f"cells/{point_name(labels)}", overrides)


def point_name(values: Mapping[str, Any]) -> str:
    """Return e.g. `n_latents=8,gamma=0.1`: the last part of each axis and its value."""
    parts = (f"{axis.split('.')[-1]}={value}" for axis, value in values.items())
    return ",".join(part.replace("/", "-").replace(" ", "") for part in parts)


def _cell(point: Point, seed: int, root: Path, base_file: Path, where: str) -> Cell:
    run_dir = root / point.folder
    own = (override("seeds", [seed]), override("run_dir", str(run_dir)))
    config = load_config_for(RunConfig, base_file, [*point.overrides, *own], where)
    stages = plan(config)
    if point.values:  # what tells of no method in particular stands with the controls
        stages = [s for s in stages if s.module != "cost"]
        stages = [s for s in stages if s.config.method in config.methods or s.module != "evaluate"]
    return Cell(point, seed, run_dir, tuple(stages))


def _check_first_stage(config: SweepConfig, cells: Sequence[Cell]) -> None:
    """Refuse a grid that changes a stage before the one from which cells are said to differ."""
    names = list(STAGES)
    before = names[: names.index(config.first_stage)]
    known: dict[str, tuple[str, Cell]] = {}
    for cell in cells:
        for stage in cell.stages:
            if stage.module not in before:
                continue
            inputs, first = known.setdefault(stage.name, (stage.inputs, cell))
            if inputs != stage.inputs:
                raise SweepError(
                    f"first_stage is {config.first_stage}, but {stage.module} already differs "
                    f"between {first.name} and {cell.name}; set first_stage={stage.module}, or "
                    "take the key that changes it out of the grid."
                )
