"""Which stages a configuration is made of, in what order, from which inputs; nothing is run.

`pipelines.run` takes its jobs from here, and a sweep what its cells share.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.common import Run
from pipelines.config import RunConfig
from pipelines.methods import TRAINED, untrained_of
from pipelines.opening import check_models, open_tasks
from pipelines.stage import Stage
from pipelines.stages import STAGES, Inputs, before
from tasks.splits import Split
from training.locks import lock_scope


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a run, ready to be handed to another process.

    Attributes:
        name: Unique in a run, also the name of its log.
        module: Of `pipelines`, what runs it.
        config: With the training seed and the method it is for.
        inputs: Hash of everything its result depends on, as its meta.json will hold.
        folders: Its directories in the run directory.
        after: Names of the stages that must be done before.
    """

    name: str
    module: str
    config: RunConfig
    inputs: str
    folders: tuple[str, ...]
    after: tuple[str, ...] = ()

    def run(self, run_dir: str | None = None) -> None:
        """Run it in this process, in another run directory if one is given."""
        config = replace(self.config, run_dir=run_dir) if run_dir else self.config
        with lock_scope():
            importlib.import_module(f"pipelines.{self.module}").main(config)


@dataclass(frozen=True)
class StackedStage:
    """One training stage of several training seeds, trained as one model.

    Attributes:
        name: Unique in a run, also the name of its log.
        stages: One per training seed.
        after: Names of the stages that must be done before.
    """

    name: str
    stages: tuple[PlannedStage, ...]
    after: tuple[str, ...]

    def run(self) -> None:
        """Run it in this process."""
        from pipelines.fitting import train_together  # late: planning trains nothing

        module = importlib.import_module(f"pipelines.{self.stages[0].module}")
        with lock_scope():
            train_together([module.prepare(stage.config) for stage in self.stages])


def stacked(stages: Sequence[PlannedStage]) -> list[PlannedStage | StackedStage]:
    """Return stages in which those that training seeds can share are one."""
    groups: dict[tuple[str, str], list[PlannedStage]] = {}
    for stage in stages:
        if STAGES[stage.module].stacks:
            groups.setdefault((stage.module, stage.config.method), []).append(stage)
    names: dict[str, str] = {}
    for (module, method), group in groups.items():
        if len(group) > 1:
            seeds = "_".join(str(stage.config.seed) for stage in group)
            names |= {stage.name: f"seeds_{seeds}/{method}/{module}" for stage in group}
    found: dict[str, PlannedStage | StackedStage] = {}
    for stage in stages:
        group = groups.get((stage.module, stage.config.method), [stage])
        group = group if stage.name in names else [stage]
        after = tuple(dict.fromkeys(names.get(n, n) for s in group for n in s.after))
        if stage.name in names:
            name = names[stage.name]
            found.setdefault(name, StackedStage(name, tuple(group), after))
        else:
            found[stage.name] = replace(stage, after=after)
    return list(found.values())


def plan(config: RunConfig) -> list[PlannedStage]:
    """Every stage of a configuration's methods and training seeds, each after its parents.

    Raises:
        UserError: The tasks cannot be made, or existing histories are no file.
    """
    family, split = open_tasks(config)
    bare: Any = None  # nothing runs, so nothing is placed on a device
    check_models(Run(config, Path(config.run_dir), family, split, bare), config.methods)
    planner = _Planner(split)
    planner.add(STAGES["build_triples"], config)
    for seed in config.seeds:
        for method in (name for name in config.methods if name in TRAINED):
            planner.add(STAGES["evaluate"], replace(config, seed=seed, method=method))
    for method in untrained_of(family):
        planner.add(STAGES["evaluate"], replace(config, method=method))
    planner.add(STAGES["cost"], config)
    return list(planner.planned.values())


def unneeded(stages: Sequence[PlannedStage], done: Collection[str]) -> set[str]:
    """Return the names of stages that have no result and that nothing waits for.

    A stage is run for those after it. Where all of them are done, its own result may be gone:
    models deleted after they were evaluated, evaluations brought from another machine.

    Args:
        stages: Each after its parents.
        done: Names of those that have their results.
    """
    followers: dict[str, list[str]] = {}
    for stage in stages:
        for name in stage.after:
            followers.setdefault(name, []).append(stage.name)
    to_run: set[str] = set()
    for stage in reversed(stages):
        after = followers.get(stage.name)
        if stage.name not in done and (after is None or not to_run.isdisjoint(after)):
            to_run.add(stage.name)
    return {stage.name for stage in stages} - to_run - set(done)


class _Planner:
    """Collects stages by name, those that a stage needs before it."""

    def __init__(self, split: Split) -> None:
        self.inputs = Inputs(split)
        self.planned: dict[str, PlannedStage] = {}

    def add(self, stage: Stage, config: RunConfig) -> None:
        name = stage.job(config)
        if name in self.planned:
            return
        parents = before(stage, config)
        for parent in parents:
            self.add(*parent)
        self.planned[name] = PlannedStage(
            name,
            stage.name,
            config,
            self.inputs.of(stage, config),
            stage.folders(config),
            tuple(parent.job(own) for parent, own in parents),
        )
