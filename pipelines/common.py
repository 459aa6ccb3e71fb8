"""What all stage scripts share: opening a run, naming directories, loading what came before."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from ad.batches import TripleSource
from ad.policy import Policy, StudentPolicy, TeacherPolicy
from ad.student import CADStudent, StudentConfig, StudentParts
from base.errors import UserError
from base.hashes import config_hash
from compression.compressor import compressor_class
from histories.triples import RegionTable
from nets.spaces import FieldSpec, field_spec
from pipelines.config import BASELINES, RAW_CONTEXT, REFERENCES, RUN_INDEPENDENT, RunConfig
from tasks.family import Task, TaskFamily, load_family
from tasks.splits import Split, make_split
from teacher.model import TeacherConfig, TeacherModel, TeacherModelConfig
from training.run_dir import claim_run_dir, git_sha, read_meta


class StageError(UserError):
    """A stage that cannot start: something before it is missing or does not fit."""


@dataclass
class Run:
    """An opened run: its configuration, directory, tasks and accelerator.

    Attributes:
        config: Resolved configuration.
        root: Run directory.
        family: Tasks.
        split: Train, validation and test tasks.
        accelerator: Device, processes, trackers.
    """

    config: RunConfig
    root: Path
    family: TaskFamily
    split: Split
    accelerator: Accelerator

    @property
    def collect_dir(self) -> Path:
        """Of the histories."""
        return self.root / "collect"

    @property
    def triples_dir(self) -> Path:
        """Of the tables of regions."""
        return self.root / "triples"

    @property
    def seed_dir(self) -> Path:
        """Of this training seed."""
        return self.root / f"seed_{self.config.seed}"

    def tasks(self, part: str) -> list[Task]:
        """Tasks of a part of the split."""
        every = self.family.tasks()
        return [every[i] for i in getattr(self.split, part)]

    @property
    def observation(self) -> FieldSpec:
        """The observation field."""
        return field_spec(self.family.observation_space, "observation")

    @property
    def action(self) -> FieldSpec:
        """The action field."""
        return field_spec(self.family.action_space, "action")

    def table(self, part: str) -> RegionTable:
        """Load the regions of a part, checked to belong to this run's split."""
        self.require(self.triples_dir, "build_triples")
        table = RegionTable.load(self.triples_dir / part)
        if table.split_identity != self.split.identity:
            raise StageError(
                f"{self.triples_dir / part} was built for another task split (identity "
                f"{table.split_identity[:12]}, this run's is {self.split.identity[:12]}); "
                "use the run_dir it belongs to, or build the triples in a new one."
            )
        return table

    def require(self, stage_dir: Path, module: str, extra: str = "") -> dict[str, Any]:
        """Return the meta.json of a stage that must be done.

        Raises:
            StageError: Naming the command that does it.
        """
        meta = read_meta(stage_dir)
        if meta is None:
            raise StageError(
                f"{stage_dir} is not finished, and this stage needs it; run `accelerate launch -m "
                f"pipelines.{module} --config ...{extra}` with the same run_dir first."
            )
        return meta

    def say(self, text: str) -> None:
        """Print on the main process."""
        self.accelerator.print(text, flush=True)


def open_tasks(config: RunConfig) -> tuple[TaskFamily, Split]:
    """Build a configuration's tasks and their split.

    Raises:
        UserError: The family cannot be made, nobody can encode its spaces, or the split is refused.
    """
    family = load_family(config.family.target, config.family.kwargs)
    field_spec(family.observation_space, "observation")
    field_spec(family.action_space, "action")
    return family, make_split(family.tasks(), **split_settings(config))


def split_settings(config: RunConfig) -> dict[str, Any]:
    """Return the arguments with which `tasks.splits.make_split` makes a configuration's split."""
    split = asdict(config.split)
    return {**split, "n_test": None if split["named"] else split["n_test"]}


def open_run(config: RunConfig, stage: str) -> Run:
    """Open a run for a stage: claim its directory, build tasks and split, say where it runs.

    Raises:
        UserError: The directory is another configuration's, or tasks or models cannot be made.
    """
    if not config.run_dir:
        raise StageError("run_dir is empty; give a directory, for example run_dir=runs/mine.")
    torch.set_num_threads(config.threads)
    transformers_logging.disable_progress_bar()  # a bar per loaded model would drown the log
    family, split = open_tasks(config)
    accelerator = _accelerator(config)
    if (started := int(os.environ.get("WORLD_SIZE", "1"))) not in (1, accelerator.num_processes):
        raise StageError(
            f"{started} processes were launched, but this one found {accelerator.num_processes}: "
            "they would write over each other; launch several with torchrun --nproc-per-node."
        )
    run = Run(config, Path(config.run_dir), family, split, accelerator)
    for method in config.methods if stage == "run" else [config.method]:
        _check_model(replace(run, config=replace(config, method=method)))
    if accelerator.is_main_process:
        claim_run_dir(config.run_dir, config, RUN_INDEPENDENT)
    accelerator.wait_for_everyone()
    n = accelerator.num_processes
    processes = f"{n} process{'es' if n > 1 else ''}"
    run.say(f"{stage}: {processes} on {accelerator.device}, {config.run_dir}")
    return run


def _accelerator(config: RunConfig) -> Accelerator:
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # or else CPU processes stay apart
            log_with=list(config.trackers) or None,
            project_dir=str(Path(config.run_dir) / "trackers"),
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True),
                # Others wait while one collects or validates: longer than the usual half hour.
                InitProcessGroupKwargs(timeout=timedelta(days=2)),
            ],
        )
    except ValueError as error:
        raise StageError(f"accelerate cannot start: {error}") from error
    if accelerator.mixed_precision == "fp16":
        raise StageError("fp16 overflows here; launch with --mixed_precision bf16 or no.")
    return accelerator


def check_method(config: RunConfig, allowed: Sequence[str], stage: str) -> None:
    """Refuse a method that a stage is not for.

    Raises:
        StageError: Naming the methods it is for.
    """
    if config.method not in allowed:
        raise StageError(
            f"pipelines.{stage} is not for method={config.method}, but for {', '.join(allowed)}."
        )


def _check_model(run: Run) -> None:
    """Build a method's model without memory, so that impossible sizes are told before any work."""
    with torch.device("meta"):
        if run.config.method in RAW_CONTEXT:
            TeacherModel(teacher_config(run, run.config.method))
        elif run.config.method not in REFERENCES:
            CADStudent(student_config(run))


def inputs_hash(sections: Mapping[str, Any], parents: Mapping[str, Mapping[str, Any]]) -> str:
    """Hash of everything a stage's result depends on: its sections and its parents' inputs."""
    return config_hash({**sections, "parents": {k: v["inputs"] for k, v in parents.items()}})


def method_config(config: RunConfig) -> RunConfig:
    """Return the configuration of `config.method`: baselines exchange the compressor only."""
    if config.method in BASELINES:
        return replace(config, compressor=replace(config.compressor, kind=config.method))
    return config


def is_pretrained(config: RunConfig) -> bool:
    """Whether the compressor of `config.method` is pretrained before it is used."""
    kind = method_config(config).compressor.kind
    return config.pretrain.enabled and compressor_class(kind).learns


def student_config(run: Run) -> StudentConfig:
    """Return the model configuration of this run's method."""
    config = method_config(run.config)
    parts = StudentParts(config.model, config.compressor, config.reconstruction, config.decoder)
    return StudentConfig(
        run.observation.to_json(),
        run.action.to_json(),
        config.region_len,
        asdict(parts),
        provenance(run, config.method),
    )


def raw_context_config(config: RunConfig, name: str) -> TeacherConfig:
    """Return the section of `teacher` or `long_context`."""
    return config.long_context if name == "long_context" else config.teacher


def teacher_config(run: Run, name: str) -> TeacherModelConfig:
    """Return the model configuration of `teacher` or `long_context`."""
    return TeacherModelConfig(
        run.observation.to_json(),
        run.action.to_json(),
        run.config.region_len,
        asdict(run.config.model),
        asdict(raw_context_config(run.config, name)),
        provenance(run, name),
    )


def provenance(run: Run, method: str) -> dict[str, Any]:
    """What a saved model says of its origin."""
    return {
        "method": method,
        "training_seed": run.config.seed,
        "family": run.config.family.target,
        "family_kwargs": run.config.family.kwargs,
        "split_identity": run.split.identity,
        "split": run.split.name,
        "git_sha": git_sha(),
    }


def load_model(cls: type[PreTrainedModel], stage_dir: Path, run: Run) -> Any:
    """Load a stage's saved model and check that it fits this run.

    Raises:
        StageError: It is damaged, of other spaces or region length, or trained on another split.
    """
    path = stage_dir / "model"
    try:
        model: Any = cls.from_pretrained(str(path), local_files_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise StageError(
            f"{path} cannot be loaded ({reason}); delete {stage_dir} and run its stage again."
        ) from error
    config = model.config
    expected = (run.observation.to_json(), run.action.to_json(), run.config.region_len)
    if (config.observation, config.action, config.region_len) != expected:
        raise StageError(
            f"{path} was trained for other spaces or another region length ({config.region_len}) "
            f"than this run's ({run.config.region_len}); use the run_dir it belongs to."
        )
    if config.provenance.get("split_identity") != run.split.identity:
        raise StageError(
            f"{path} was trained on the task split {config.provenance.get('split')!r}, not on this "
            f"run's {run.split.name!r}: its training tasks may be test tasks here; use its own "
            "run_dir."
        )
    return model.to(run.accelerator.device).eval()


def source(
    run: Run, part: str, batch_size: int, n_context_regions: int, **kwargs: Any
) -> TripleSource:
    """Return batches of triples of a part of the split."""
    table = run.table(part)
    try:
        return TripleSource(
            table,
            run.config.sampling,
            batch_size=batch_size,
            n_context_regions=n_context_regions,
            device=run.accelerator.device,
            **kwargs,
        )
    except ValueError as error:
        raise StageError(f"{error}.") from error


def policy_of(model: Any, run: Run, temperature: float, **kwargs: Any) -> Policy:
    """Return the policy that acts with a model."""
    kind = StudentPolicy if isinstance(model, CADStudent) else TeacherPolicy
    return kind(model, temperature=temperature, device=run.accelerator.device, **kwargs)


def last_stage(config: RunConfig) -> str:
    """Name the stage whose student is evaluated."""
    return "finetune" if config.finetune.enabled else "distill"


def load_student(run: Run) -> tuple[CADStudent, Path]:
    """Load the student that evaluation uses, and name the directory of its stage.

    Raises:
        StageError: It is not trained, or damaged.
    """
    last = last_stage(run.config)
    stage_dir = run.seed_dir / run.config.method / last
    run.require(stage_dir, last, f" seed={run.config.seed} method={run.config.method}")
    return load_model(CADStudent, stage_dir, run), stage_dir


def load_teacher(run: Run) -> tuple[TeacherModel, dict[str, Any]]:
    """Load this seed's teacher, frozen."""
    meta = run.require(run.seed_dir / "teacher", "train_teacher")
    teacher = load_model(TeacherModel, run.seed_dir / "teacher", run)
    return teacher.requires_grad_(False), meta
