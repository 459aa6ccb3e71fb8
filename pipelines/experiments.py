"""A list of experiments, runs and sweeps one after the other, and where tables are published.

    publish_to: docs/results
    experiments:
      darkroom:
        config: configs/darkroom.yaml
        settings: {seeds: [0, 1, 2, 3, 4]}
        publish: [table.csv, learning_curves.png]

Each entry is a run or a sweep, by what its file is; what is done is skipped.
"""

from __future__ import annotations

import importlib.util
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table

from base.errors import UserError
from base.files import atomic_file
from base.ranges import Between, Distinct, PathText
from pipelines.cli import SWEEP_CONFIG, run_or_sweep
from pipelines.config import RunConfig
from pipelines.plan import plan, unneeded
from pipelines.store import StageStore, name_of
from pipelines.sweep import SweepConfig, lay_out, override
from training.config import config_of, load_config_for
from training.locks import lock_scope

EVALUATIONS = "evaluations.tar.xz"
"""Published like a file of the comparison: what that is made from, every episode's return.

Unpacked into an empty run directory, a sweep's into the store, it serves as evaluations made there
do: the same command goes on with more training seeds, methods or cells, on whichever machine.
"""
OF_A_RUN = (
    "config.yaml",
    "collect/learning_curves.csv",
    "seed_*/evaluate/*/*",
    "references/*/*",
    "cost/*",
)
OF_A_SWEEP = ("evaluate", "cost")
"""Stages whose folders it holds, called as in a store."""


class ExperimentsError(UserError):
    """A list of experiments that cannot be used."""


@dataclass(frozen=True)
class Entry:
    """One experiment.

    Attributes:
        config: YAML of a run or of a sweep; a path from here, or relative to the list.
        settings: Keys of that file that are otherwise here, dotted ones for those of sections.
        publish: Files of its comparison (a sweep's: its report) that are published, and
            evaluations.tar.xz, what those are made from.
        needs: Top-level modules beyond the usual libraries; where one is not installed the entry
            is left out.
    """

    config: Annotated[str, PathText()] = ""
    settings: dict[str, Any] = field(default_factory=dict)
    publish: Annotated[list[Annotated[str, PathText()]], Distinct()] = field(default_factory=list)
    needs: Annotated[list[str], Distinct()] = field(default_factory=list)


@dataclass(frozen=True)
class ExperimentsConfig:
    """What a list of experiments holds.

    Attributes:
        experiments: The entries by name, in the order in which they run.
        publish_to: Folder that published files are copied to, in one of the entry's name each;
            empty: nothing is published.
        only: Names of the entries to run, and all where there are none.
        n_workers: Processes at once in every entry; 0 leaves it to each.
    """

    experiments: dict[str, Any] = field(default_factory=dict)
    publish_to: Annotated[str, PathText()] = ""
    only: Annotated[list[str], Distinct()] = field(default_factory=list)
    n_workers: Annotated[int, Between(0, 1024)] = 0


@dataclass(frozen=True)
class Experiment:
    """An entry, its configuration read.

    Attributes:
        name: Of the entry.
        file: Its YAML.
        config: What that holds, with the entry's settings.
        publish: Names of the files that are published.
        absent: Modules it needs that are not installed.
    """

    name: str
    file: str
    config: RunConfig | SweepConfig
    publish: tuple[str, ...]
    absent: tuple[str, ...]

    def folder(self) -> Path:
        """Where its tables and figures are."""
        if isinstance(self.config, SweepConfig):
            return lay_out(self.config, self.file).root / "report"
        return Path(self.config.run_dir) / "comparison"

    def evaluations(self) -> dict[str, Path]:
        """The files that evaluations.tar.xz holds, by their names there."""
        if not isinstance(self.config, SweepConfig):
            root = Path(self.config.run_dir)
            paths = [path for pattern in OF_A_RUN for path in root.glob(pattern)]
            return {str(path.relative_to(root)): path for path in paths if path.is_file()}
        sweep = lay_out(self.config, self.file)
        store = sweep.store()
        stages = [s for c in sweep.cells for s in c.stages if s.module in OF_A_SWEEP]
        folders = {
            name_of(stage, position): store.folder(stage, position)
            for stage in stages
            if store.done(stage)
            for position in range(len(stage.folders))
        }
        paths = [(name, path) for name, folder in folders.items() for path in folder.iterdir()]
        return {f"{name}/{path.name}": path for name, path in paths if path.is_file()}

    def progress(self) -> tuple[int, int]:
        """Stages whose results it needs, and how many of them are done."""
        if isinstance(self.config, SweepConfig):
            sweep = lay_out(self.config, self.file)
            store = sweep.store()
            cells = [cell.stages for cell in sweep.cells]
        else:
            store = StageStore(self.config.run_dir, [self.config.run_dir])
            cells = [plan(self.config)]
        found: dict[str, bool] = {}
        for stages in cells:
            done = {stage.name for stage in stages if store.done(stage)}
            idle = unneeded(stages, done)
            found |= {s.inputs: s.name in done for s in stages if s.name not in idle}
        return len(found), sum(found.values())

    def run(self) -> None:
        """Run what is not done of it."""
        with lock_scope():
            if isinstance(self.config, SweepConfig):
                from pipelines import ablate  # late: ablate hands lists of experiments to here

                ablate.main(self.config, self.file)
            else:
                from pipelines import run

                run.main(self.config)


def read(config: ExperimentsConfig, file: str) -> list[Experiment]:
    """Every experiment of a list that is to run.

    Raises:
        UserError: An entry, its file or its settings are not usable; nothing has been run.
    """
    if not config.experiments:
        raise ExperimentsError(f"{file}: experiments is empty; name at least one run or sweep.")
    if unknown := [name for name in config.only if name not in config.experiments]:
        raise ExperimentsError(
            f"{file}: only names {unknown[0]!r}; there are {', '.join(config.experiments)}."
        )
    names = config.only or list(config.experiments)
    return [_read(name, config, Path(file)) for name in names]


def _read(name: str, config: ExperimentsConfig, file: Path) -> Experiment:
    where = f"{file}: experiments.{name}"
    entry = config_of(Entry, config.experiments[name], where)
    candidates = [Path(entry.config), file.parent / entry.config]
    found = next((path for path in candidates if entry.config and path.is_file()), None)
    if found is None:
        raise ExperimentsError(
            f"{where}.config: expected the YAML of a run or a sweep, got "
            f"{entry.config!r}; give a path from here."
        )
    if outside := [p for p in entry.publish if Path(p).name != p]:
        raise ExperimentsError(f"{where}.publish: expected names of files, got {outside[0]!r}.")
    if malformed := [module for module in entry.needs if not module.isidentifier()]:
        raise ExperimentsError(
            f"{where}.needs: expected names of top-level modules, got {malformed[0]!r}."
        )
    settings = dict(entry.settings)
    if config.n_workers:
        settings["n_workers"] = config.n_workers
    overrides = [override(key, value) for key, value in settings.items()]
    kind = SweepConfig if run_or_sweep(str(found)) == SWEEP_CONFIG else RunConfig
    own = load_config_for(kind, found, overrides, f"{where}.settings")
    absent = tuple(module for module in entry.needs if importlib.util.find_spec(module) is None)
    return Experiment(name, str(found), own, tuple(entry.publish), absent)


def run_all(config: ExperimentsConfig, file: str, *, dry_run: bool = False) -> None:
    """Run a list of experiments, those after one that failed too, and publish their files.

    Raises:
        UserError: The list is not usable, or experiments failed; their names and causes.
    """
    experiments = read(config, file)
    console = Console(highlight=False, markup=False)
    if dry_run:
        console.print(_overview(experiments))
        return
    failed: dict[str, str] = {}
    for experiment in experiments:
        console.rule(experiment.name)
        if experiment.absent:
            console.print(f"left out: {_lacks(experiment)}")
            continue
        try:
            experiment.run()
            publish(experiment, config.publish_to)
        except UserError as error:
            console.print(f"{experiment.name}: {error}")
            failed[experiment.name] = str(error)
    if failed:
        raise ExperimentsError(
            f"{len(failed)} of {len(experiments)} experiments did not finish: {', '.join(failed)}; "
            "their causes stand above, the same command runs what is missing."
        )


def _lacks(experiment: Experiment) -> str:
    return f"needs {', '.join(experiment.absent)}, not installed"


def publish(experiment: Experiment, folder: str) -> None:
    """Copy an experiment's published files into a folder of its name."""
    if not folder or not experiment.publish:
        return
    source, target = experiment.folder(), Path(folder) / experiment.name
    files = [name for name in experiment.publish if name != EVALUATIONS]
    if missing := [name for name in files if not (source / name).is_file()]:
        raise ExperimentsError(
            f"experiments.{experiment.name}.publish: {source} has no {', '.join(missing)}."
        )
    target.mkdir(parents=True, exist_ok=True)
    for name in files:
        shutil.copyfile(source / name, target / name)
    if EVALUATIONS in experiment.publish:
        _pack(experiment.evaluations(), target / EVALUATIONS)


def _pack(files: Mapping[str, Path], archive: Path) -> None:
    """Write files to an archive under their names: of equal files equal bytes."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime = entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mode = 0o644
        return entry

    with atomic_file(archive) as temporary, tarfile.open(temporary, "w:xz") as tar:
        for name, path in sorted(files.items()):
            tar.add(path, name, filter=plain)


def _overview(experiments: list[Experiment]) -> Table:
    """What every experiment is made of, and how much of it is done; nothing is written."""
    table = Table("experiment", "of", "stages", "done", box=None, pad_edge=False)
    for experiment in experiments:
        try:
            told = (_lacks(experiment), "–")
            if not experiment.absent:
                told = tuple(map(str, experiment.progress()))
        except UserError as error:
            told = (str(error), "–")
        table.add_row(experiment.name, experiment.file, *told)
    return table
