"""What changes over a stage: AdamW groups (no decay on norms, biases, embeddings), schedules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_cosine_schedule_with_warmup

from base.ranges import Above, AtLeast, Between


@dataclass(frozen=True)
class OptimConfig:
    """Settings of one training stage.

    Attributes:
        updates: Optimiser updates.
        batch_size: Rows of the global batch, over all processes and accumulation steps.
        learning_rate: Peak of the schedule.
        weight_decay: AdamW's, on matrices only.
        warmup_ratio: Share of the updates with linear warm-up; cosine decay to 0 follows.
        max_grad_norm: Gradient clipping.
        accumulation_steps: Micro-batches per update.
        log_every: Updates between two log rows.
        validate_every: Updates between two validations; 0 validates at the end only.
        checkpoint_every: Updates between two checkpoints.
    """

    updates: Annotated[int, AtLeast(1)] = 1000
    batch_size: Annotated[int, AtLeast(1)] = 48
    learning_rate: Annotated[float, Above(0)] = 1e-3
    weight_decay: Annotated[float, AtLeast(0)] = 0.05
    warmup_ratio: Annotated[float, Between(0, 1)] = 0.05
    max_grad_norm: Annotated[float, Above(0)] = 1.0
    accumulation_steps: Annotated[int, AtLeast(1)] = 1
    log_every: Annotated[int, AtLeast(1)] = 50
    validate_every: Annotated[int, AtLeast(0)] = 0
    checkpoint_every: Annotated[int, AtLeast(1)] = 200

    def __post_init__(self) -> None:
        """Refuse a batch that cannot be cut into equal micro-batches."""
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of accumulation_steps "
                f"{self.accumulation_steps}"
            )


class StagedObjective(nn.Module):
    """An objective whose loss may change over its stage.

    Attributes:
        progress: Share of the stage that is over, 0 at the first update and 1 at the last;
            `training.loop.fit` sets it.
    """

    progress: float = 0.0

    @property
    def companions(self) -> tuple[nn.Module, ...]:
        """Modules that the loss reads and does not train, such as a teacher."""
        return ()


def annealed(first: float, last: float | None, progress: float) -> float:
    """Return what goes linearly from `first` to `last`, or stays at `first` where that is None."""
    return first if last is None else first + (last - first) * progress


def build_optimizer(
    module: nn.Module,
    config: OptimConfig,
    slow: Iterable[nn.Parameter] = (),
    slow_ratio: float = 1.0,
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters of `module`.

    Args:
        module: What is trained.
        config: Rates and decay.
        slow: Parameters that learn at `slow_ratio` times the rate.
        slow_ratio: Their share of the learning rate.
    """
    slow_ids = {id(parameter) for parameter in slow}
    # What a layer does not multiply by is an embedding: positions, latent queries, markers.
    matrices = {
        id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            key = (id(parameter) in slow_ids, id(parameter) in matrices)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": config.learning_rate * (slow_ratio if is_slow else 1.0),
                "weight_decay": config.weight_decay if decayed else 0.0,
            }
            for (is_slow, decayed), parameters in groups.items()
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.99),
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimConfig, done: int = 0
) -> LRScheduler:
    """Return linear warm-up and cosine decay over `config.updates`, `done` of which are over."""
    warmup = max(1, round(config.warmup_ratio * config.updates))
    return get_cosine_schedule_with_warmup(optimizer, warmup, config.updates, last_epoch=done - 1)
