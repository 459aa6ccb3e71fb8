"""Raw fields as tensors: completed regions, and the steps a model acts at.

Shapes: B batch, T steps. Nothing here is learned; encoders are in `nets.embeddings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Regions:
    """Raw fields of a batch of regions.

    Attributes:
        observations: (B, T, ...) s.
        actions: (B, T, ...) a.
        rewards: (B, T) float r.
        next_observations: (B, T, ...) s', the true terminal one at an episode's end.
        terminated: (B, T) bool.
        truncated: (B, T) bool.
        mask: (B, T) bool, True where there is a transition.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminated: Tensor
    truncated: Tensor
    mask: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Regions:
        """Return regions with `function` applied to every field."""
        return Regions(**{name: function(getattr(self, name)) for name in REGION_FIELDS})

    def chunks(self, size: int = 256) -> Iterator[Regions]:
        """Yield the regions (B, T, ...) in order, `size` at once."""
        for start in range(0, len(self.mask), size):
            yield self.map(lambda field, start=start: field[start : start + size])

    def to(self, device: torch.device | str) -> Regions:
        """Return the regions on a device."""
        return self.map(lambda field: field.to(device))

    @property
    def ended(self) -> Tensor:
        """(B, T) bool, True on the last transition of an episode."""
        return self.terminated | self.truncated


REGION_FIELDS = tuple(field.name for field in fields(Regions))


def blanked(field: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Zero what is absent; `field` (*S, ...), `present` (*S)."""
    shown = present.view(*present.shape, *[1] * (field.ndim - present.ndim))
    return torch.where(shown, field, torch.zeros((), dtype=field.dtype, device=field.device))


def padded(regions: Regions, length: int) -> Regions:
    """Return regions (B, T, ...) followed by zeros up to `length`, their mask False there."""
    missing = length - regions.mask.shape[1]
    if missing <= 0:
        return regions
    return regions.map(
        lambda field: torch.cat(
            [field, field.new_zeros(len(field), missing, *field.shape[2:])], dim=1
        )
    )


def stack_regions(regions: list[Regions]) -> Regions:
    """Stack fields (B, T, ...) of R batches of regions to (B, R, T, ...)."""
    return Regions(
        **{name: torch.stack([getattr(r, name) for r in regions], dim=1) for name in REGION_FIELDS}
    )


def join_regions(first: Regions, second: Regions) -> Regions:
    """Join two batches of regions in time: fields (B, T1 + T2, ...)."""
    return Regions(
        **{
            name: torch.cat([getattr(first, name), getattr(second, name)], dim=1)
            for name in REGION_FIELDS
        }
    )


@dataclass
class Steps:
    """What is known at each step before its action is taken.

    Attributes:
        observations: (B, T, ...) s_t.
        previous_observations: (B, T, ...) s_{t-1}; not read where `first`.
        previous_actions: (B, T, ...) a_{t-1}; not read where `first`.
        previous_rewards: (B, T) float r_{t-1}, 0 where `first`.
        starts: (B, T) bool, an episode starts here; True where `first`.
        first: (T,) bool, nothing was before this step: a region starts here.
    """

    observations: Tensor
    previous_observations: Tensor
    previous_actions: Tensor
    previous_rewards: Tensor
    starts: Tensor
    first: Tensor

    @classmethod
    def of(cls, regions: Regions) -> Steps:
        """Return all steps of regions, nothing being known from before their first."""
        n_steps = regions.mask.shape[1]
        return cls(
            observations=regions.observations,
            previous_observations=regions.observations.roll(1, dims=1),
            previous_actions=regions.actions.roll(1, dims=1),
            previous_rewards=F.pad(regions.rewards[:, :-1], (1, 0)),
            starts=F.pad(regions.ended[:, :-1], (1, 0), value=True),
            first=torch.arange(n_steps, device=regions.mask.device) == 0,
        )
