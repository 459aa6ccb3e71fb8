"""Opening a run: its tasks, its directory, where it runs, and whether its models can be built."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from transformers.utils import logging as transformers_logging

from ad.model import InContextModel
from base.errors import UserError
from base.files import remove_temporaries
from histories.schema import field_dtypes, field_shapes
from nets.regions import Regions
from nets.spaces import field_spec
from pipelines.common import Run, split_settings
from pipelines.config import RUN_INDEPENDENT, RunConfig
from pipelines.methods import METHODS, TRAINED, UNTRAINED
from pipelines.models import build_model
from pipelines.sizes import LARGE_MODEL, check_sizes, least_parameters
from pipelines.stage import StageError
from pipelines.stages import STAGES
from tasks.family import TaskFamily, load_family
from tasks.family_check import check_family
from tasks.splits import Split, few_tasks, make_split
from training.locks import take_lock
from training.run_dir import claim_run_dir


def open_tasks(config: RunConfig) -> tuple[TaskFamily, Split]:
    """Build a configuration's tasks and their split.

    Raises:
        UserError: The family cannot be made, nobody can encode its spaces, the split is refused, or
            a rollout asks for more training tasks than there are.
    """
    family = load_family(config.family.target, config.family.kwargs)
    field_spec(family.observation_space, f"{type(family).__name__}.observation_space:")
    field_spec(family.action_space, f"{type(family).__name__}.action_space:")
    check_family(family)
    split = make_split(family.tasks(), **split_settings(config))
    for name in ("policy_gradient", "on_policy"):
        stage = getattr(config, name)
        if stage.enabled and stage.rollouts.n_tasks > len(split.train):
            raise StageError(
                f"{name}.rollouts.n_tasks is {stage.rollouts.n_tasks}, but the split has "
                f"{len(split.train)} training tasks; give at most as many, or hold fewer out."
            )
    return family, split


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
    methods = config.methods if stage == "run" else [config.method]
    if stage in ("run", "evaluate"):
        check_cut_down(config, methods)
    check_models(run, methods)
    if accelerator.is_main_process:
        claim_run_dir(config.run_dir, config, RUN_INDEPENDENT)
        _lock(config, stage)
    accelerator.wait_for_everyone()
    n = accelerator.num_processes
    processes = f"{n} process{'es' if n > 1 else ''}"
    run.say(f"{stage}: {processes} on {accelerator.device}, {config.run_dir}")
    if stage in ("run", "collect") and (told := few_tasks(split)):
        run.say(f"warning: {told}")
    return run


def _lock(config: RunConfig, stage: str) -> None:
    """Let nobody else write what a stage writes; what all seeds share, whoever comes next skips."""
    if stage == "run":
        for seed in config.seeds:
            take_lock(config.run_dir, f"seed_{seed}")
    elif stage in STAGES:
        shared = STAGES[stage].shared or config.method in UNTRAINED
        folders = STAGES[stage].folders(config)
        if take_lock(config.run_dir, folders[0], wait=shared):
            for folder in folders:
                remove_temporaries(Path(config.run_dir) / folder)


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


def check_cut_down(config: RunConfig, methods: Sequence[str]) -> None:
    """Refuse methods without latents where latents are to be cut down at test.

    Raises:
        StageError: Naming the first of them.
    """
    raw = [name for name in methods if name in TRAINED and "distill" not in METHODS[name].stages]
    if config.evaluate.cuts_down and raw:
        raise StageError(
            f"evaluate.n_shown and evaluate.number cut latents down, but {raw[0]} has none; leave "
            "it out of the methods."
        )


def check_models(run: Run, methods: Sequence[str]) -> None:
    """Build methods' models, so that impossible sizes are told before any work.

    On the meta device, for whose sake torch imports its compiler, only where they are large.

    Raises:
        UserError: One cannot be built.
    """
    trained = [method for method in methods if method in TRAINED]
    models: dict[str, InContextModel] = {}
    large = max((least_parameters(run.of(m).config) for m in trained), default=0) > LARGE_MODEL
    with torch.random.fork_rng(devices=[]), torch.device("meta" if large else "cpu"):
        for method in trained:
            try:
                models[method] = build_model(run.of(method))
            except (OverflowError, RuntimeError) as error:
                raise StageError(
                    f"the model of method={method} cannot be built ({error}); take smaller sizes "
                    "in the sections model, compressor, decoder, memory or teacher."
                ) from error
    check_sizes(run, models)
    for method, model in models.items():
        if getattr(model.config, "foreign_code", {}):
            _try_out(run.of(method))


def _try_out(run: Run) -> None:
    """Let a student with parts of somebody's own remember two regions, one of them short.

    Raises:
        StageError: A part fails, or what comes out is no finite number.
    """
    spaces = run.family.observation_space, run.family.action_space
    dtypes, shapes = field_dtypes(*spaces), field_shapes(*spaces)
    size = (2, run.config.region_len)
    zeros = {n: torch.from_numpy(np.zeros(size + shapes[n], dtypes[n])) for n in shapes}
    mask = torch.ones(size, dtype=torch.bool)
    mask[1, (size[1] + 1) // 2 :] = False
    regions = Regions(**{f.name: zeros.get(f.name, mask) for f in fields(Regions)})
    with torch.random.fork_rng(devices=[]):
        student = build_model(run).eval()
        kinds = ", ".join(student.config.foreign_code.values())
        try:
            with torch.no_grad():
                latents = student.compress(regions)
                remembered = student.remember(latents, student.start(2))
                shown = student.memory.read(remembered.memory)
        except UserError:
            raise
        except Exception as error:
            raise StageError(
                f"{kinds}: failed on a batch of two regions: {type(error).__name__}: {error}"
            ) from error
    if not (torch.isfinite(latents.values).all() and torch.isfinite(shown.values).all()):
        raise StageError(f"{kinds}: latents of two regions hold what is no finite number.")
