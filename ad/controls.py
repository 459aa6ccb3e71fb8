"""Controls: a student whose latents are interfered with at every border, acting like any model.

`zeroed` and `shuffled` latents lie outside what the decoder was trained on; the learned "no
context" latents (`no_context`) lie within. Shapes: n streams, M latents, D width, L region length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ad.student import CADStudent, StudentState
from compression.latents import Latents
from nets.regions import Regions

Control = Literal["zeroed", "shuffled", "no_context"]


class InterferedStudent:
    """A student whose `border` a subclass replaces; everything else is the student's own."""

    def __init__(self, student: CADStudent) -> None:
        self.student = student

    def __getattr__(self, name: str) -> Any:
        """What is not interfered with is the student's."""
        return getattr(self.student, name)

    def border(self, region: Regions, state: StudentState) -> StudentState:
        """Remember a completed region, or something else."""
        raise NotImplementedError

    def part(self, region: Regions, state: StudentState) -> StudentState:
        """Show the part of a region being filled, or something else."""
        return self.student.part(region, state)

    def take(self, region: Regions, state: StudentState) -> StudentState:
        """As `border`: no region escapes the interference."""
        return self.border(region, state)


class LatentControl(InterferedStudent):
    """A student whose latents are replaced at every border.

    Args:
        student: The student.
        kind: `zeroed` latents; latents `shuffled` between streams of different tasks, drawn anew
            at every border; or no latents remembered, `no_context`.
        tasks_of_streams: (n,) task of each stream.
        seed: Of the shuffling.
    """

    def __init__(
        self, student: CADStudent, kind: Control, tasks_of_streams: Sequence[int], seed: int = 0
    ) -> None:
        super().__init__(student)
        self.kind = kind
        self.tasks = np.asarray(tasks_of_streams)
        self.seed = seed

    def start(self, n: int) -> StudentState:
        """Begin anew; equal rollouts shuffle alike."""
        self.rng = np.random.default_rng(self.seed)
        return self.student.start(n)

    def border(self, region: Regions, state: StudentState) -> StudentState:
        """Compress a completed region and remember something else."""
        latents = self.student.compress(region)
        if self.kind == "no_context":
            return self.student.remember(latents, state, torch.zeros_like(region.mask[:, 0]))
        return self.student.remember(self._replaced(latents), state)

    def part(self, region: Regions, state: StudentState) -> StudentState:
        """Compress a part of a region, and show something else."""
        return self.student.remember_part(self._replaced(self.student.compress(region)), state)

    def _replaced(self, latents: Latents) -> Latents:
        """Return zeros, another task's latents, or hidden ones in their place."""
        if self.kind == "no_context":
            return replace(latents, mask=torch.zeros_like(latents.values[..., 0]).bool())
        if self.kind == "zeroed":
            return replace(latents, values=torch.zeros_like(latents.values))
        return replace(latents, values=latents.values[self._others(latents.values.device)])

    def _others(self, device: torch.device) -> Tensor:
        """Return for each stream a stream of another task, where there is one."""
        others = [np.flatnonzero(self.tasks != task) for task in self.tasks]
        picked = [self.rng.choice(o) if len(o) else i for i, o in enumerate(others)]
        return torch.tensor(picked, device=device)
