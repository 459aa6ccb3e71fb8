"""Several training seeds trained as one model: each update is one vectorised call over all.

    results = fit_together(members, config, targets_per_update=..., ...)

What `training.loop.fit` does for each, at once: parameters of all members are stacked and the
objective is mapped over them (`torch.func`), while batches, random numbers, clipping, validation,
logs and checkpoints stay each member's own. Its parameters are views of the stacked ones, so that
whoever reads or loads a member sees what is trained. Shapes: S members.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from base.errors import UserError
from base.seeding import derive
from training.loop import Batches, Clock, Course, Validate, tell_progress
from training.optim import OptimConfig, StagedObjective, build_optimizer, build_schedule


class StackError(UserError):
    """Members that cannot be trained as one; nothing has been trained or written."""


@dataclass
class Member:
    """One training seed of a stack; attributes as the arguments of `training.loop.fit`."""

    objective: nn.Module
    batches: Batches
    stage_dir: Path
    accelerator: Accelerator
    seed: int
    validate: Validate | None = None
    slow: Sequence[nn.Parameter] = ()


def fit_together(
    members: Sequence[Member],
    config: OptimConfig,
    *,
    targets_per_update: int,
    validate_first: bool = False,
    slow_ratio: float = 1.0,
) -> list[dict[str, Any]]:
    """Train all members as `fit` would train each, and return what it would return of each.

    Seconds and paces are a member's share of what all took. On a CPU dropout draws for each member
    what it would draw alone; other random numbers of a loss, and dropout elsewhere, are drawn anew.

    Raises:
        StackError: They differ in more than numbers, or the objective cannot be mapped.
        CheckpointError: A checkpoint to go on from is damaged or of another model.
        DivergedError: A metric of one is not finite.
    """
    tried = _tried(members)
    optimizers = [build_optimizer(m.objective, config, m.slow, slow_ratio) for m in members]
    courses = [
        Course(m.objective, o, config, m.stage_dir, m.accelerator, m.validate, told=m is members[0])
        for m, o in zip(members, optimizers, strict=True)
    ]
    if validate_first:
        for course in courses:
            course.judge_start()
    everyone = list(zip(members, courses, strict=True))
    while len(reached := sorted({course.done for course in courses})) > 1:
        # Killed while checkpoints were written: those behind catch up first.
        behind = [pair for pair in everyone if pair[1].done == reached[0]]
        _Stack(behind, config, tried).run(reached[1])
    _Stack(everyone, config, tried).run(config.updates)
    return [course.end(targets_per_update) for course in courses]


class _Whole(nn.Module):
    """An objective together with what its loss reads and does not train."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective
        companions = objective.companions if isinstance(objective, StagedObjective) else ()
        self.companions = nn.ModuleList(companions)

    def tensors(self) -> dict[str, Tensor]:
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective(batch)


@dataclass
class _Tried:
    """What a first batch has shown: the masks that dropout draws, as (shape, type, probability)."""

    dropouts: list[tuple[torch.Size, torch.dtype, float]]


class _Stack:
    """Members whose parameters are stacked for as long as `run` runs."""

    def __init__(
        self, pairs: Sequence[tuple[Member, Course]], config: OptimConfig, tried: _Tried
    ) -> None:
        self.members = [member for member, _ in pairs]
        self.courses = [course for _, course in pairs]
        self.config = config
        self.dropouts = tried.dropouts
        self.wholes = [_Whole(member.objective) for member in self.members]
        self.own = [whole.tensors() for whole in self.wholes]
        self.device = self.members[0].accelerator.device

    def run(self, until: int) -> None:
        """Train all of them up to update `until`."""
        if self.courses[0].done == until:
            return
        self._stack()
        schedule = build_schedule(self.optimizer, self.config, self.courses[0].done)
        objective, n = self.members[0].objective, len(self.members)
        for step in range(self.courses[0].done, until):
            clock, done = Clock(), step + 1
            objective.train()
            tell_progress(objective, step, self.config)
            metrics = self._update(step)
            schedule.step()
            clock.stop(self.courses[0].due_log(done) and self.device.type != "cpu")
            clock.seconds, clock.busy = clock.seconds / n, clock.busy / n
            if self.courses[0].due_checkpoint(done):
                self._hand_back_moments()
            lr = float(schedule.get_last_lr()[0])
            for i, course in enumerate(self.courses):
                own = {name: value[i] for name, value in metrics.items()}
                course.updated(done, own, lr, clock)
        for own in self.own:
            for tensor in own.values():
                tensor.data = tensor.data.clone()

    def _stack(self) -> None:
        """Stack tensors and moments; a member's own become views of them."""
        self.stacked: dict[str, Tensor] = {}
        for name, first in self.own[0].items():
            both = torch.stack([own[name].detach() for own in self.own])
            self.stacked[name] = nn.Parameter(both) if first.requires_grad else both
            for i, own in enumerate(self.own):
                own[name].data = both[i]
        of = {id(tensor): self.stacked[name] for name, tensor in self.own[0].items()}
        first = self.courses[0].optimizer
        groups = [
            {**group, "params": [of[id(p)] for p in group["params"]]}
            for group in first.param_groups
        ]
        make: Any = type(first)
        self.optimizer: torch.optim.Optimizer = make(groups)
        # By their places: (of the stack, those of the members)
        self.trained = [
            (of[id(theirs[0])], theirs)
            for theirs in zip(*(_parameters(course) for course in self.courses), strict=True)
        ]
        for mine, theirs in self.trained:
            states = [c.optimizer.state.get(p) for c, p in zip(self.courses, theirs, strict=True)]
            if states[0]:
                self.optimizer.state[mine] = {
                    name: torch.stack([state[name] for state in states])  # pyright: ignore
                    if value.ndim
                    else value.clone()
                    for name, value in states[0].items()
                }

    def _hand_back_moments(self) -> None:
        """Let each member's optimiser hold what it would hold alone."""
        for course in self.courses:
            for group, mine in zip(
                course.optimizer.param_groups, self.optimizer.param_groups, strict=True
            ):
                group.update({k: v for k, v in mine.items() if k != "params"})
        for mine, theirs in self.trained:
            for i, (course, parameter) in enumerate(zip(self.courses, theirs, strict=True)):
                course.optimizer.state[parameter] = {
                    name: value[i].clone() if value.ndim else value.clone()
                    for name, value in self.optimizer.state[mine].items()
                }

    def _update(self, step: int) -> dict[str, Tensor]:
        """Do one update of all; metrics (S,), averaged over micro-batches."""
        totals: dict[str, Tensor] = {}
        share = 1.0 / self.config.accumulation_steps
        seeds = [derive(m.seed, "update", step, 0) for m in self.members]
        torch.manual_seed(derive(seeds[0], "stack", *seeds[1:]))
        own = [torch.Generator().manual_seed(seed) for seed in seeds]
        accelerator = self.members[0].accelerator
        for micro in range(self.config.accumulation_steps):
            batches = [member.batches(step, micro) for member in self.members]
            masks = self._masks(own) if self.device.type == "cpu" else []
            with accelerator.autocast():
                losses, metrics = _mapped(self.wholes[0], self.stacked, batches, masks)
                accelerator.backward(losses.sum() * share)
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value * share
        totals["grad_norm"] = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return totals

    def _masks(self, generators: Sequence[torch.Generator]) -> list[Tensor]:
        """Return what dropout multiplies by, (S, ...) each, as every member alone would draw it."""
        drawn = []
        for shape, dtype, p in self.dropouts:
            mask = torch.empty(len(generators), *shape, dtype=dtype)
            for own, generator in zip(mask, generators, strict=True):
                own.bernoulli_(1 - p, generator=generator).div_(1 - p)
            drawn.append(mask)
        return drawn

    def _clip(self) -> Tensor:
        """Clip each member's gradients by their own norm; return the norms (S,) before."""
        gradients = [p.grad for p, _ in self.trained if p.grad is not None]
        each = [gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in gradients]
        norms = torch.stack(each).norm(dim=0)
        scale = (self.config.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))
        return norms


def _parameters(course: Course) -> list[nn.Parameter]:
    return [p for group in course.optimizer.param_groups for p in group["params"]]


def _mapped(
    whole: _Whole, stacked: dict[str, Tensor], batches: Sequence[Any], masks: Sequence[Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return losses (S,) and metrics (S,) of all members, each with its own batch."""
    lists: list[list[Tensor]] = [[] for _ in batches]
    rebuild, *_ = [_taken_apart(batch, own) for batch, own in zip(batches, lists, strict=True)]
    inputs = [torch.stack(fields) for fields in zip(*lists, strict=True)]

    def one(tensors: dict[str, Tensor], drawn: list[Tensor], *fields: Tensor):
        with _Dropouts(drawn):
            return functional_call(whole, tensors, (rebuild(iter(fields)),))

    with warnings.catch_warnings():
        # Attention on a CPU is computed member by member, which torch calls a drop in performance.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return vmap(one, randomness="different")(stacked, list(masks), *inputs)


def _taken_apart(value: Any, tensors: list[Tensor]) -> Callable[[Iterator[Tensor]], Any]:
    """Append the tensors of a batch to a list; return what builds a batch of others like them."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return next
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        parts = {name: _taken_apart(getattr(value, name), tensors) for name in names}
        make: Any = type(value)
        return lambda found: make(**{name: part(found) for name, part in parts.items()})
    if isinstance(value, dict):
        entries = {key: _taken_apart(entry, tensors) for key, entry in value.items()}
        return lambda found: {key: entry(found) for key, entry in entries.items()}
    return lambda found: value


class _Dropouts(TorchFunctionMode):
    """Lets dropout multiply by given masks, in order; without any, it draws as always.

    Attributes:
        seen: (shape, type, probability) of each that was drawn.
    """

    def __init__(self, masks: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.masks = iter(masks)
        self.given = bool(masks)
        self.seen: list[tuple[torch.Size, torch.dtype, float]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `F.dropout` alone."""
        kwargs = kwargs or {}
        if func is not F.dropout:
            return func(*args, **kwargs)
        call = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
        x, p, training = call["input"], call.get("p", 0.5), call.get("training", True)
        if not training or p == 0:
            return x
        if self.given:
            return x * next(self.masks)
        self.seen.append((x.shape, x.dtype, p))
        return func(*args, **kwargs)


def _tried(members: Sequence[Member]) -> _Tried:
    """Compute one loss, alone and mapped, and see whether members can be trained as one.

    Raises:
        StackError: Saying why not.
    """
    wholes = [_Whole(member.objective) for member in members]
    shapes = [{name: t.shape for name, t in whole.tensors().items()} for whole in wholes]
    if any(other != shapes[0] for other in shapes):
        raise StackError("their parameters have different shapes.")
    for member in members:
        member.objective.train()
    batches = [member.batches(0, 0) for member in members]
    buffers = {name: t.detach().clone() for name, t in wholes[0].named_buffers()}
    dropouts = _Dropouts()
    with torch.no_grad():
        with dropouts:
            wholes[0](batches[0])
        changed = [n for n, t in wholes[0].named_buffers() if not torch.equal(t, buffers[n])]
        for name, tensor in wholes[0].named_buffers():
            tensor.copy_(buffers[name])
    if changed:
        raise StackError(f"{changed[0].removeprefix('objective.')} changes as it is trained.")
    own = [whole.tensors() for whole in wholes]
    stacked = {name: torch.stack([o[name].detach() for o in own]) for name in own[0]}
    try:
        with torch.no_grad():
            _mapped(wholes[0], stacked, batches, [])
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StackError(f"the loss cannot be mapped over them ({reason})") from error
    return _Tried(dropouts.seen)
