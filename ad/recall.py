"""Recall: what a context alone makes of an episode, every method being given the same one.

The context is k recorded regions of a held-out task's history; then it is frozen, and an episode is
acted under it. Shapes: n streams, L region length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ad.batches import Table
from ad.model import InContextModel
from ad.policy import ContextPolicy
from base.errors import UserError
from base.seeding import derive
from nets.regions import REGION_FIELDS, Regions
from tasks.family import Task, TaskFamily


class RecallError(UserError):
    """Recorded histories do not hold the contexts that are asked for."""


class FrozenPolicy(ContextPolicy):
    """Acts after these completed regions and takes in no more.

    Where an episode is longer than a region, the next region begins with the same context.

    Args:
        model: As of a `ContextPolicy`.
        context: Completed regions (n, L, ...), oldest first; none for an empty context.
        kwargs: Further arguments of a `ContextPolicy`.
    """

    def __init__(self, model: InContextModel, context: Sequence[Regions], **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.context = context

    def _begin(self) -> None:
        super()._begin()
        self.resume(self.context)

    def _full(self, region: Regions) -> None:
        self._begin()


TEMPERATURES = torch.logspace(-4, 4, 33, base=2, dtype=torch.float64)
"""At which probabilities are read; students of noisy histories say less than they know."""


class ToldBits:
    """Counts how many bits of its task a model tells in an episode that asks for all of it.

    Where an episode asks once for every letter of a task, letters being independent and one of A as
    likely as another, the sum of log2 A + log2 p(right action) over its steps is on average at most
    the information between context and task (Barber & Agakov 2003, The IM algorithm, eq. 3), so
    at most the bits that the context is kept in. Probabilities are those of the temperature, one
    for all steps and tasks, at which they tell the most; at an infinite one they tell nothing.

    Args:
        policy: Acts; asked after every action what it offered.
        family: With `spells_task`.
        tasks: Of the streams.
    """

    def __init__(self, policy: ContextPolicy, family: TaskFamily, tasks: Sequence[Task]) -> None:
        self.policy, self.family, self.tasks = policy, family, tasks
        self._told = torch.zeros(len(TEMPERATURES), dtype=torch.float64)
        self.reset, self.observe = policy.reset, policy.observe

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Return the policy's actions."""
        actions = self.policy.act(observations)
        right = torch.as_tensor(self.family.optimal_actions(self.tasks, observations))
        logits = self.policy.offered.double().cpu()  # (n, A)
        logs = (logits / TEMPERATURES[:, None, None]).log_softmax(-1)
        told = logs[:, torch.arange(len(right)), right].mean(-1)
        self._told += (math.log(logits.shape[-1]) + told) / math.log(2)
        return actions

    @property
    def bits(self) -> float:
        """Of a task, on average over streams."""
        return max(0.0, float(self._told.max()))


def recorded_regions(
    table: Table,
    tasks: Sequence[Task],
    *,
    n_regions: int,
    n_streams: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> list[Regions]:
    """Return the first regions of recorded histories, `n_streams` drawn of each task.

    Args:
        table: Holds histories of these tasks.
        tasks: In the order of the streams.
        n_regions: Regions of each; histories with fewer are not drawn.
        n_streams: Histories of each task; where there are fewer, they repeat.
        seed: Of the drawing.
        device: Where the regions go.

    Returns:
        `n_regions` regions (tasks x n_streams, L, ...), oldest first.

    Raises:
        RecallError: No history of a task is so long.
    """
    if not n_regions:
        return []
    first = []
    for task in tasks:
        last = np.flatnonzero((table.task == task.index) & (table.region == n_regions - 1))
        if not len(last):
            raise RecallError(
                f"evaluate.recall_regions asks for contexts of {n_regions} regions, but no "
                f"recorded history of task {task.name} has so many; ask for fewer."
            )
        rng = np.random.default_rng(derive(seed, "recall", task.index))
        first.append(np.resize(rng.permutation(last), n_streams) - (n_regions - 1))
    rows = np.concatenate(first)
    return [
        Regions(
            **{name: torch.from_numpy(table.columns[name][rows + k]) for name in REGION_FIELDS}
        ).to(device)
        for k in range(n_regions)
    ]
