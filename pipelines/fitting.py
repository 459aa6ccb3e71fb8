"""Running a training stage, of one training seed or several as one: fit, save, mark as done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ad.evaluate import validation_scores
from ad.model import InContextModel
from ad.objectives import LABELS_NAME
from ad.policy import Policy
from base.files import write_text
from base.seeding import derive
from pipelines.common import Run, source
from pipelines.labels import recorded_labels
from pipelines.models import policy_of
from pipelines.stage import StageError
from pipelines.stages import STAGES, own_config
from tasks.family import Task
from training.checkpoint import latest_checkpoint
from training.loop import Batches, DivergedError, fit
from training.metrics import training_bytes
from training.run_dir import mark_done, stage_done
from training.stacked import Member, StackError, fit_together


def rollout_validation(run: Run, model: InContextModel) -> Callable[[], dict[str, float]]:
    """Return the validation of an acting model: in-context rollouts on validation tasks."""
    config = run.config.validation

    def validate() -> dict[str, float]:
        if not run.accelerator.is_main_process:
            return {"score": 0.0}

        def make(tasks: Sequence[Task]) -> Policy:
            return policy_of(model, run, config.temperature)

        return validation_scores(make, run.family, run.tasks("validation"), config)

    return validate


@dataclass
class Training:
    """One training stage, ready to run: see `train`.

    Attributes:
        stage: Its name in `pipelines.stages.STAGES`, which knows its inputs and its directory.
        build: Makes (objective, model to save, parameters that learn slowly); the objective says by
            `n_context_regions` how many previous regions a row must bring.
        slow_ratio: Share of the learning rate of the slow parameters.
        validate: Makes the validation of the objective; None for rollouts of the model.
        validate_first: Whether the weights it starts from may stay the best.
        first_region: First region of a history used as a current one.
        batches: Makes the batches for the objective and its model; None for those of the training
            tasks' histories.
    """

    stage: str
    build: Callable[[], tuple[Any, InContextModel, Sequence[nn.Parameter]]]
    slow_ratio: float = 1.0
    validate: Callable[[Run, Any], Callable[[], dict[str, float]]] | None = None
    validate_first: bool = False
    first_region: int = 0
    batches: Callable[[Any, InContextModel], Batches] | None = None


def train(run: Run, training: Training) -> None:
    """Run a training stage unless it is done: fit, save the model, mark as done.

    The initial weights and the batches depend on the training seed, not on the method: what is
    compared at one seed differs by the method alone.
    """
    begun = _begin(run, training)
    if begun is None:
        return
    member, stage = begun.member, STAGES[training.stage]
    result = fit(
        member.objective,
        member.batches,
        stage.settings(run.config).optim,
        member.stage_dir,
        member.accelerator,
        seed=member.seed,
        validate=member.validate,
        slow=member.slow,
        **_alike(run, training),
    )
    _finish(begun, result)


def train_together(stages: Sequence[tuple[Run, Training]]) -> None:
    """Run one training stage of several training seeds as one model, those that are not done.

    Where they cannot be one model, it says why and trains one after the other.

    Raises:
        UserError: As of `train`; one that diverges lets the others end first.
    """
    failures: list[DivergedError] = []
    while stages:
        begun = {i: b for i, each in enumerate(stages) if (b := _begin(*each)) is not None}
        if not begun:
            break
        run, training = stages[0]
        try:
            results = fit_together(
                [each.member for each in begun.values()],
                STAGES[training.stage].settings(run.config).optim,
                **_alike(run, training),
            )
        except StackError as error:
            run.say(f"{training.stage}: seeds are trained one after the other, for {error}")
            for run, training in stages:
                train(run, training)
            return
        except DivergedError as error:
            failures.append(error)
            diverged = [i for i, b in begun.items() if b.member.stage_dir == error.stage_dir]
            stages = [each for i, each in enumerate(stages) if i not in diverged]
            continue
        for each, result in zip(begun.values(), results, strict=True):
            _finish(each, {**result, "trained_with": len(begun)})
        break
    if failures:
        raise failures[0]


@dataclass
class _Begun:
    """A training stage that has begun."""

    run: Run
    training: Training
    model: InContextModel
    member: Member
    parents: dict[str, dict[str, Any]]
    bytes: int
    started: float


def _alike(run: Run, training: Training) -> dict[str, Any]:
    """Return what is the same for every training seed."""
    optim = STAGES[training.stage].settings(run.config).optim
    return {
        "targets_per_update": optim.batch_size * run.config.region_len,
        "validate_first": training.validate_first,
        "slow_ratio": training.slow_ratio,
    }


def _begin(run: Run, training: Training) -> _Begun | None:
    """Build everything that is fitted; None if the stage is done."""
    config, stage = run.config, STAGES[training.stage]
    stage_dir, inputs = run.folder(stage.name), run.inputs_of(stage.name)
    if stage_done(stage_dir, inputs):
        run.say(f"{stage_dir} is done")
        return None
    started = time.perf_counter()
    parents = run.parents(stage.name)
    _check_unfinished(stage_dir, inputs, run)
    torch.manual_seed(derive(config.seed, "weights"))
    objective, model, slow = training.build()
    objective.to(run.accelerator.device)
    if training.batches is not None:
        batches = training.batches(objective, model)
    else:
        batches = _recorded(run, training, objective, model)
    if config.trackers and not run.accelerator.trackers:
        name = "/".join(stage_dir.parts[-2:])
        run.accelerator.init_trackers(f"seed_{config.seed}/{name}")
    objective.train()
    memory = training_bytes(objective, batches(0, 0))
    own = training.validate
    validate = rollout_validation(run, model) if own is None else own(run, objective)
    member = Member(
        objective,
        batches,
        stage_dir,
        run.accelerator,
        derive(config.seed, "updates", stage.name),
        validate,
        tuple(slow),
    )
    return _Begun(run, training, model, member, parents, memory, started)


def _finish(begun: _Begun, result: dict[str, Any]) -> None:
    """Save the model and mark the stage as done."""
    run, model, stage = begun.run, begun.model, STAGES[begun.training.stage]
    stage_dir, seconds = begun.member.stage_dir, time.perf_counter() - begun.started
    seconds /= result.get("trained_with", 1)
    for tracker in run.accelerator.trackers:  # end_training() would part the processes for good
        tracker.finish()
    if run.accelerator.is_main_process:
        folder = stage_dir / "model"
        model.save_pretrained(str(folder))
        write_text(folder / "README.md", model_card(run, stage.name, model, result))
        mark_done(
            stage_dir,
            stage.name,
            run.inputs_of(stage.name),
            seconds=seconds,
            results=stage.results,
            parents={name: meta["inputs"] for name, meta in begun.parents.items()},
            split_identity=run.split.identity,
            train_peak_mb=begun.bytes / 2**20,
            n_parameters=sum(p.numel() for p in model.parameters()),
            n_parameters_acting=model.n_acting_parameters,
            processes=run.accelerator.num_processes,
            result=result,
        )
    run.accelerator.wait_for_everyone()
    run.say(f"{stage_dir} finished in {seconds:.0f} s")


def _recorded(run: Run, training: Training, objective: Any, model: InContextModel) -> Batches:
    """Return batches of the histories of training tasks."""
    stage = STAGES[training.stage]
    optim = stage.settings(run.config).optim
    labels = recorded_labels(run, run.table("train"), stage.target(own_config(run.config)))
    return source(
        run,
        "train",
        optim.batch_size,
        objective.n_context_regions,
        extra=None if labels is None else {LABELS_NAME: labels},
        windows=stage.batches != "regions",
        max_stride=model.max_stride,
        seed=derive(run.config.seed, "batches", stage.batches),
        rank=run.accelerator.process_index,
        world_size=run.accelerator.num_processes,
        accumulation_steps=optim.accumulation_steps,
        first_region=training.first_region,
    )


def model_card(run: Run, stage: str, model: nn.Module, result: Mapping[str, Any]) -> str:
    """Return the card (README.md) of an exported model: what it is, how good, how to load it."""
    config, module = run.config, type(model).__module__
    kind = type(model).__name__
    score = "none" if result["best_score"] is None else f"{result['best_score']:.3f}"
    return f"""---
library_name: transformers
license: mit
tags: [in-context-reinforcement-learning, algorithm-distillation]
---

# {stage} of method {config.method}, training seed {config.seed}

In-context reinforcement learning on `{config.family.target}` {config.family.kwargs}: regions of
{config.region_len} transitions. Weights frozen, it improves its behaviour on tasks it has not seen.

- Trained on {len(run.split.train)} tasks of split `{run.split.name}`
  (identity {run.split.identity[:12]}); not seen: its {len(run.split.test)} test tasks.
- Best of {result["updates"]} updates by validation on {len(run.split.validation)} other tasks:
  update {result["best_step"]}, score {score}.
- Made by `accelerate launch -m pipelines.run --config config.yaml` with the run's `config.yaml`.
- Limits: acts in this family's observation and action spaces and with this region length only.

```python
from {module} import {kind}

model = {kind}.from_pretrained("path/to/this/folder")
```
"""


def _check_unfinished(stage_dir: Path, inputs: str, run: Run) -> None:
    """Refuse to continue checkpoints that were begun with other inputs."""
    marker = stage_dir / "inputs"
    begun = marker.exists()
    started = latest_checkpoint(stage_dir) is not None
    if (begun and marker.read_bytes() != inputs.encode()) or (started and not begun):
        raise StageError(
            f"{stage_dir} was begun with another configuration or other inputs; give another "
            f"run_dir, or delete {stage_dir} to begin it anew."
        )
    if run.accelerator.is_main_process and not begun:
        write_text(marker, inputs)
    run.accelerator.wait_for_everyone()
