"""One training loop for every stage: `fit`.

An update is a pure function of (weights, optimiser state, seed, step): batches and dropout are
seeded by the step, so a run resumed from any checkpoint ends with the same weights, bit for bit on
one CPU process.
"""

from __future__ import annotations

import contextlib
import csv
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from base.errors import UserError
from base.seeding import derive
from training.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
from training.optim import OptimConfig, StagedObjective, build_optimizer, build_schedule

Batches = Callable[[int, int], Any]
"""(step, micro-batch) -> this process' share of the batch, on its device."""
Validate = Callable[[], dict[str, float]]
"""Return metrics of the current weights; `score` is what the best checkpoint is chosen by."""


class DivergedError(UserError):
    """A loss or gradient that is no number any more."""


def fit(
    objective: nn.Module,
    batches: Batches,
    config: OptimConfig,
    stage_dir: Path,
    accelerator: Accelerator,
    *,
    seed: int,
    targets_per_update: int,
    validate: Validate | None = None,
    validate_first: bool = False,
    slow: Iterable[nn.Parameter] = (),
    slow_ratio: float = 1.0,
) -> dict[str, Any]:
    """Train an objective and leave it holding the weights with the best validation score.

    Args:
        objective: Module whose `forward(batch)` returns (loss, metrics); told how far the stage is
            if it is a `StagedObjective`.
        batches: Where batches come from.
        config: Updates, rates, intervals.
        stage_dir: Receives `checkpoints/` and `log.csv`.
        accelerator: Device, processes, precision, trackers.
        seed: Training seed of this stage.
        targets_per_update: Supervised positions in one global batch.
        validate: Run every `validate_every` updates and at the end.
        validate_first: Whether the weights the stage starts from compete for the best score too.
        slow: Parameters that learn at `slow_ratio` times the rate.
        slow_ratio: Their share of the learning rate.

    Returns:
        `updates, seconds, targets_per_s, best_step, best_score` and the last metrics.

    Raises:
        CheckpointError: The checkpoint to go on from is damaged or of another model.
        DivergedError: A metric is not finite; noticed when it is logged.
    """
    stage_dir.mkdir(parents=True, exist_ok=True)
    optimizer = build_optimizer(objective, config, slow, slow_ratio)
    model, optimizer = accelerator.prepare(objective, optimizer)
    log = StageLog(stage_dir / "log.csv", accelerator)
    state: dict[str, Any] = {"seconds": 0.0, "busy": 0.0, "best_score": None, "best_step": None}
    best: dict[str, Tensor] | None = None
    start = 0
    if (checkpoint := latest_checkpoint(stage_dir)) is not None:
        state, best = load_checkpoint(checkpoint, objective, optimizer)
        start = state["step"]
        if start > config.updates:
            raise CheckpointError(
                f"{checkpoint} is of update {start}, but this stage has only {config.updates}; "
                "delete this folder to start the stage anew."
            )
        accelerator.print(f"resuming {stage_dir} at update {start} of {config.updates}")
    schedule = build_schedule(optimizer, config, start)
    log.resume(start)
    judge = None
    if validate is not None:
        judge = _Judge(validate, objective, accelerator, log, state, best)
        if validate_first and start == 0:
            judge(0)
    for step in range(start, config.updates):
        began, began_busy = time.perf_counter(), time.process_time()
        torch.manual_seed(derive(seed, "update", step, accelerator.process_index))
        objective.train()
        if isinstance(objective, StagedObjective):
            objective.progress = step / max(config.updates - 1, 1)
        metrics = _update(model, batches, step, config, accelerator, optimizer)
        schedule.step()
        done = step + 1
        due_log = done % config.log_every == 0 or done == config.updates
        if due_log and accelerator.device.type != "cpu":
            torch.accelerator.synchronize()  # what was only asked for until now counts too
        state["seconds"] += time.perf_counter() - began
        state["busy"] += time.process_time() - began_busy
        log.add(metrics)
        if due_log:
            log.write(done, {"lr": float(schedule.get_last_lr()[0]), "seconds": state["seconds"]})
            log.tell_pace(done, config.updates, state["seconds"])
        due = config.validate_every and done % config.validate_every == 0
        if judge is not None and (due or done == config.updates):
            judge(done)
        if done % config.checkpoint_every == 0 or done == config.updates:
            if accelerator.is_main_process:
                weights = judge.best if judge is not None else None
                save_checkpoint(stage_dir, done, objective, optimizer, state, weights)
            accelerator.wait_for_everyone()
    if judge is not None and judge.best is not None:
        objective.load_state_dict(judge.best)
    objective.eval()
    # On a CPU, processor time: what else the machine does must not decide which method is fast.
    on_cpu = accelerator.device.type == "cpu"
    pace = state["busy"] / torch.get_num_threads() if on_cpu else state["seconds"]
    return {
        "updates": config.updates,
        "seconds": state["seconds"],
        "targets_per_s": config.updates * targets_per_update / max(pace, 1e-9),
        "best_step": state["best_step"],
        "best_score": state["best_score"],
        "final": log.last,
    }


@dataclass
class _Judge:
    """Validates, and keeps the weights with the best score so far; `state` says which."""

    validate: Validate
    objective: nn.Module
    accelerator: Accelerator
    log: StageLog
    state: dict[str, Any]
    best: dict[str, Tensor] | None

    def __call__(self, done: int) -> None:
        scores = _validated(self.validate, self.objective, self.accelerator)
        self.log.write_scores(done, scores)
        if self.state["best_score"] is None or scores["score"] > self.state["best_score"]:
            self.state.update(best_score=scores["score"], best_step=done)
            weights = self.objective.state_dict()
            self.best = {name: value.detach().cpu().clone() for name, value in weights.items()}


def _update(
    model: nn.Module,
    batches: Batches,
    step: int,
    config: OptimConfig,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Tensor]:
    """Do one optimiser update; return its metrics, averaged over micro-batches."""
    totals: dict[str, Tensor] = {}
    share = 1.0 / config.accumulation_steps
    for micro in range(config.accumulation_steps):
        batch = batches(step, micro)
        last = micro == config.accumulation_steps - 1
        with _sync(accelerator, model, last), accelerator.autocast():
            loss, metrics = model(batch)
            accelerator.backward(loss * share)
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + value * share
    norm: Any = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    totals["grad_norm"] = norm
    optimizer.step()
    optimizer.zero_grad()
    return totals


def _sync(accelerator: Accelerator, model: nn.Module, last: bool):
    """Synchronise gradients at the last micro-batch only."""
    if last or accelerator.num_processes == 1:
        return contextlib.nullcontext()
    return accelerator.no_sync(model)


def _validated(
    validate: Validate, objective: nn.Module, accelerator: Accelerator
) -> dict[str, float]:
    """Validate in eval mode; every process gets the main process' scores."""
    objective.eval()
    scores = validate()
    if accelerator.num_processes > 1:
        holder = [scores]
        broadcast_object_list(holder)
        scores = holder[0]
    return scores


class StageLog:
    """`log.csv` of a stage (one row per interval) and whatever trackers the accelerator has."""

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self.path = path
        self.accelerator = accelerator
        self.rows: list[dict[str, float]] = []
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    @property
    def last(self) -> dict[str, float]:
        """The last row."""
        return self.rows[-1] if self.rows else {}

    def resume(self, step: int) -> None:
        """Keep the rows up to `step`: later ones are computed again."""
        if not self.path.exists():
            return
        try:
            with self.path.open(newline="") as file:
                rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
            self.rows = [{**row, "step": int(row["step"])} for row in rows if row["step"] <= step]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} is damaged; delete {self.path.parent} to start the stage anew."
            ) from error

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Accumulate the metrics of one update."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        self.count += 1

    def write(self, step: int, extra: dict[str, float]) -> None:
        """Write the mean of what was added since the last row."""
        names = sorted(self.sums)
        means = torch.stack([self.sums[n].float() / self.count for n in names])
        reduced: Any = self.accelerator.reduce(means, reduction="mean")
        row = dict(zip(names, reduced.tolist(), strict=True))
        self._append({"step": step, **row, **extra})
        if lost := [f"{name} is {v}" for name, v in row.items() if not math.isfinite(v)]:
            raise DivergedError(
                f"{self.path.parent} diverged before update {step}: {', '.join(lost)}; delete it "
                "and try a smaller optim.learning_rate."
            )
        self.sums, self.count = {}, 0

    def tell_pace(self, step: int, updates: int, seconds: float) -> None:
        """Print the loss and how long the rest will take."""
        pace = seconds / step
        self.accelerator.print(
            f"update {step} of {updates}: loss {self.last.get('loss', math.nan):.3f}, "
            f"{pace:.2f} s/update, {(updates - step) * pace / 60:.1f} min left",
            flush=True,
        )

    def write_scores(self, step: int, scores: dict[str, float]) -> None:
        """Write validation metrics, as `val_<name>`."""
        named = {f"val_{name}": value for name, value in scores.items()}
        if self.rows and self.rows[-1]["step"] == step:
            named = {**self.rows.pop(), **named}
        self._append({"step": step, **named})
        shown = "  ".join(f"{k} {v:.3f}" for k, v in self.rows[-1].items() if k != "step")
        self.accelerator.print(f"update {step}: {shown}", flush=True)

    def _append(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        self.accelerator.log(row, step=int(row["step"]))
        if not self.accelerator.is_main_process:
            return
        names = list(dict.fromkeys(name for r in self.rows for name in r))
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self.path)
