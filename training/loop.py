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
from base.files import atomic_file
from base.seeding import derive
from training.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
from training.optim import OptimConfig, StagedObjective, build_optimizer, build_schedule

Batches = Callable[[int, int], Any]
"""(step, micro-batch) -> this process' share of the batch, on its device."""
Validate = Callable[[], dict[str, float]]
"""Return metrics of the current weights; `score` is what the best checkpoint is chosen by."""


class DivergedError(UserError):
    """A loss or gradient that is no number any more.

    Attributes:
        stage_dir: Of the stage.
    """

    def __init__(self, message: str, stage_dir: Path | None = None) -> None:
        super().__init__(message)
        self.stage_dir = stage_dir


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
    optimizer = build_optimizer(objective, config, slow, slow_ratio)
    model, optimizer = accelerator.prepare(objective, optimizer)
    course = Course(objective, optimizer, config, stage_dir, accelerator, validate)
    schedule = build_schedule(optimizer, config, course.done)
    if validate_first:
        course.judge_start()
    for step in range(course.done, config.updates):
        clock = Clock()
        torch.manual_seed(derive(seed, "update", step, accelerator.process_index))
        objective.train()
        tell_progress(objective, step, config)
        metrics = _update(model, batches, step, config, accelerator, optimizer)
        schedule.step()
        clock.stop(course.due_log(step + 1) and accelerator.device.type != "cpu")
        course.updated(step + 1, metrics, float(schedule.get_last_lr()[0]), clock)
    return course.end(targets_per_update)


def tell_progress(objective: nn.Module, step: int, config: OptimConfig) -> None:
    """Tell a `StagedObjective` how much of its stage is over."""
    if isinstance(objective, StagedObjective):
        objective.progress = step / max(config.updates - 1, 1)


class Clock:
    """Seconds of one update, of the wall and of the processor."""

    def __init__(self) -> None:
        self.seconds, self.busy = -time.perf_counter(), -time.process_time()

    def stop(self, wait: bool = False) -> None:
        """Stop it, if so when the device has done what was only asked of it until now."""
        if wait:
            torch.accelerator.synchronize()
        self.seconds += time.perf_counter()
        self.busy += time.process_time()


class Course:
    """What a stage keeps besides what it trains: log, clock, best weights, checkpoints.

    Args:
        objective: What is trained; goes on from the latest checkpoint, if there is one.
        optimizer: Its optimiser, likewise.
        config: Updates and intervals.
        stage_dir: Receives `checkpoints/` and `log.csv`.
        accelerator: Processes, trackers.
        validate: See `fit`.
        told: Whether the pace is printed.

    Attributes:
        done: Updates that are over.

    Raises:
        CheckpointError: The checkpoint is damaged or of another model.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: OptimConfig,
        stage_dir: Path,
        accelerator: Accelerator,
        validate: Validate | None,
        *,
        told: bool = True,
    ) -> None:
        stage_dir.mkdir(parents=True, exist_ok=True)
        self.objective, self.optimizer, self.config = objective, optimizer, config
        self.stage_dir, self.accelerator, self.told = stage_dir, accelerator, told
        self.log = StageLog(stage_dir / "log.csv", accelerator)
        self.state: dict[str, Any] = {"seconds": 0.0, "busy": 0.0}
        self.state |= {"best_score": None, "best_step": None}
        self.done = 0
        best: dict[str, Tensor] | None = None
        if (checkpoint := latest_checkpoint(stage_dir)) is not None:
            self.state, best = load_checkpoint(checkpoint, objective, optimizer)
            self.done = self.state["step"]
            if self.done > config.updates:
                raise CheckpointError(
                    f"{checkpoint} is of update {self.done}, but this stage has only "
                    f"{config.updates}; delete this folder to start the stage anew."
                )
            accelerator.print(f"resuming {stage_dir} at update {self.done} of {config.updates}")
        self.log.resume(self.done)
        self.judge = None
        if validate is not None:
            self.judge = _Judge(validate, objective, accelerator, self.log, self.state, best)

    def judge_start(self) -> None:
        """Let the weights the stage starts from compete for the best score."""
        if self.judge is not None and self.done == 0:
            self.judge(0)

    def due_log(self, done: int) -> bool:
        """Whether an update ends with a row of the log."""
        return done % self.config.log_every == 0 or done == self.config.updates

    def due_checkpoint(self, done: int) -> bool:
        """Whether an update ends with a checkpoint."""
        return done % self.config.checkpoint_every == 0 or done == self.config.updates

    def updated(self, done: int, metrics: dict[str, Tensor], lr: float, clock: Clock) -> None:
        """Log, validate and save what is due after update `done`."""
        config, self.done = self.config, done
        self.state["seconds"] += clock.seconds
        self.state["busy"] += clock.busy
        self.log.add(metrics)
        if self.due_log(done):
            self.log.write(done, {"lr": lr, "seconds": self.state["seconds"]})
            if self.told:
                self.log.tell_pace(done, config.updates, self.state["seconds"])
        due = config.validate_every and done % config.validate_every == 0
        if self.judge is not None and (due or done == config.updates):
            self.judge(done)
        if self.due_checkpoint(done):
            if self.accelerator.is_main_process:
                weights = self.judge.best if self.judge is not None else None
                save_checkpoint(
                    self.stage_dir, done, self.objective, self.optimizer, self.state, weights
                )
            self.accelerator.wait_for_everyone()

    def end(self, targets_per_update: int) -> dict[str, Any]:
        """Take the best weights and return what `fit` returns."""
        if self.judge is not None and self.judge.best is not None:
            self.objective.load_state_dict(self.judge.best)
        self.objective.eval()
        # On a CPU, processor time: what else the machine does must not decide which method is fast.
        on_cpu = self.accelerator.device.type == "cpu"
        busy = self.state["busy"] / torch.get_num_threads()
        pace = busy if on_cpu else self.state["seconds"]
        return {
            "updates": self.config.updates,
            "seconds": self.state["seconds"],
            "targets_per_s": self.config.updates * targets_per_update / max(pace, 1e-9),
            "best_step": self.state["best_step"],
            "best_score": self.state["best_score"],
            "final": self.log.last,
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
                "and try a smaller optim.learning_rate.",
                self.path.parent,
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
        with (
            atomic_file(self.path, flush=False) as temporary,
            temporary.open("w", newline="") as file,
        ):
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
