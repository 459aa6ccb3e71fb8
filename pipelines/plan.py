"""Which stages a configuration is made of, in what order, from which inputs; nothing is run.

A stage's inputs hash is known before anything has run, because it depends on configuration and
parents' hashes alone. `pipelines.run` takes its jobs from here, and a sweep what its cells share.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ad.evaluate import has_expert
from pipelines.build_triples import triples_sections
from pipelines.collect import collect_sections
from pipelines.common import inputs_hash, is_pretrained, open_tasks
from pipelines.config import RAW_CONTEXT, REFERENCES, STUDENTS, RunConfig
from pipelines.cost import cost_sections
from pipelines.distill import action_sections, distill_sections
from pipelines.evaluate import evaluate_sections, evaluated, results_name
from pipelines.fitting import training_inputs
from pipelines.pretrain_compressor import pretrain_sections
from pipelines.train_teacher import teacher_sections

DATA_STAGES = ("collect", "build_triples")
"""Stages that use all processes themselves, and that no training seed takes part in."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

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
        importlib.import_module(f"pipelines.{self.module}").main(config)


def plan(config: RunConfig) -> list[Stage]:
    """Every stage of a configuration's methods and training seeds, longest chains first.

    Raises:
        UserError: The tasks cannot be made, or existing histories are no file.
    """
    family, split = open_tasks(config)
    stages = []
    if not config.histories:
        collected = inputs_hash(collect_sections(config, split), {})
        stages.append(Stage("collect", "collect", config, collected, ("collect",)))
    tables = inputs_hash(triples_sections(config, split), {})
    after = tuple(stage.name for stage in stages)
    triples = Stage("triples", "build_triples", config, tables, ("triples",), after)
    references = REFERENCES if has_expert(family) else ("random",)
    for seed in config.seeds:
        stages += _SeedPlan(replace(config, seed=seed), triples).stages(references)
    cost = Stage("cost", "cost", config, inputs_hash(cost_sections(config), {}), ("cost",))
    return [*stages[: len(after)], triples, *stages[len(after) :], cost]


class _SeedPlan:
    """The stages of one training seed, added one by one, each after its parents."""

    def __init__(self, config: RunConfig, triples: Stage) -> None:
        self.config, self.seed_dir = config, f"seed_{config.seed}"
        self.triples = triples
        self.added: list[Stage] = []

    def stages(self, references: tuple[str, ...]) -> list[Stage]:
        """Return them: teachers, compressors, then each method's chain, its evaluation last."""
        config = self.config
        stages = [config.distill, *([config.finetune] if config.finetune.enabled else [])]
        students = [method for method in config.methods if method in STUDENTS]
        needs_teacher = bool(students) and any(stage.loss.beta > 0 for stage in stages)
        raw = {}
        for name in RAW_CONTEXT:
            if name in config.methods or (name == "teacher" and needs_teacher):
                raw[name] = self.raw_context(name)
        teacher = raw.get("teacher")
        own = [replace(config, method=method) for method in students]
        pretrained = {c.method: self.pretrain(c) for c in own if is_pretrained(c)}
        for student in own:
            self.student(student, teacher, pretrained.get(student.method))
        for name in (method for method in RAW_CONTEXT if method in config.methods):
            self.evaluate(replace(config, method=name), {"train": raw[name]}, teacher)
        for name in references:
            self.evaluate(replace(config, method=name), {}, None)
        return self.added

    def raw_context(self, name: str) -> Stage:
        config = replace(self.config, method=name)
        sections, parents = teacher_sections(config, name), {"triples": self.triples}
        inputs = training_inputs(config, sections, _hashes(parents))
        return self.add(f"{name}/train_teacher", "train_teacher", config, inputs, [name], parents)

    def pretrain(self, config: RunConfig) -> Stage:
        return self.training("pretrain", config, pretrain_sections(config), {})

    def student(self, config: RunConfig, teacher: Stage | None, pretrained: Stage | None) -> None:
        def parents(beta: float, **more: Stage | None) -> dict[str, Stage | None]:
            return {"teacher": teacher if beta > 0 else None, **more}

        before = parents(config.distill.loss.beta, pretrain=pretrained)
        last = self.training("distill", config, distill_sections(config), before)
        trained = {"pretrain": pretrained, "distill": last}
        if config.finetune.enabled:
            sections = action_sections(config, config.finetune)
            before = parents(config.finetune.loss.beta, distill=last)
            trained["finetune"] = self.training("finetune", config, sections, before)
        self.evaluate(config, trained, teacher)

    def training(
        self,
        stage: str,
        config: RunConfig,
        sections: Mapping[str, Any],
        parents: Mapping[str, Stage | None],
    ) -> Stage:
        known = _known({"triples": self.triples, **parents})
        inputs = training_inputs(config, sections, _hashes(known))
        module = "pretrain_compressor" if stage == "pretrain" else stage
        folders = [f"{config.method}/{stage}"]
        return self.add(f"{config.method}/{module}", module, config, inputs, folders, known)

    def evaluate(
        self, config: RunConfig, trained: Mapping[str, Stage | None], teacher: Stage | None
    ) -> None:
        known = _known(trained)
        inputs = inputs_hash(evaluate_sections(config), _hashes(known))
        folders = [f"{results_name(config)}/{name}" for name in evaluated(config.method)]
        # The divergence from the teacher is measured where there is one.
        before = known | _known({"teacher": teacher})
        self.add(f"{config.method}/evaluate", "evaluate", config, inputs, folders, before)

    def add(
        self,
        name: str,
        module: str,
        config: RunConfig,
        inputs: str,
        folders: list[str],
        parents: Mapping[str, Stage],
    ) -> Stage:
        after = tuple(dict.fromkeys(stage.name for stage in parents.values()))
        at = tuple(f"{self.seed_dir}/{folder}" for folder in folders)
        self.added.append(Stage(f"{self.seed_dir}/{name}", module, config, inputs, at, after))
        return self.added[-1]


def _known(stages: Mapping[str, Stage | None]) -> dict[str, Stage]:
    return {name: stage for name, stage in stages.items() if stage is not None}


def _hashes(stages: Mapping[str, Stage]) -> dict[str, dict[str, str]]:
    return {name: {"inputs": stage.inputs} for name, stage in stages.items()}
