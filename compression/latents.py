"""What a compressor returns: `Latents`."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from base.errors import UserError


class LatentsError(UserError):
    """A compressor, bottleneck or memory that returns something else than latents."""


@dataclass
class Latents:
    """Latent tokens of a batch of regions, and what is to be known of them.

    Attributes:
        values: (B, M, D).
        mask: (B, M) bool, True = attend; None where all are attended to. What a decoder is handed
            may differ between its steps, (B, T, M).
        losses: Auxiliary losses by name, scalars with gradient. Objectives add them, weighted by
            `loss.weights`, and log each by its name.
        metrics: Further scalars to log, such as codebook use.
        codes: (B, M, G) int64, the codes in which a bottleneck sends them, or (B, 1, G) where one
            is about several latents; None where there are none.
        bits: Bits in which a region is kept, a number or a scalar; None for M x D floats.
    """

    values: Tensor
    mask: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    bits: Tensor | float | None = None
    codes: Tensor | None = None

    @property
    def shown(self) -> Tensor:
        """`mask` as numbers (B, M), 1 = attend."""
        if self.mask is None:
            return torch.ones_like(self.values[..., 0])
        return self.mask.to(self.values)

    @property
    def n_shown(self) -> Tensor | float:
        """Latents of a region that are attended to, averaged over the batch."""
        if self.mask is None:
            return float(self.values.shape[1])
        return self.mask.sum(1).float().mean()

    @property
    def bits_per_region(self) -> Tensor | float:
        """`bits`, or D numbers a shown latent of the size in which they are stored."""
        if self.bits is not None:
            return self.bits
        return 8.0 * self.values.shape[2] * self.values.element_size() * self.n_shown

    def replaced(
        self,
        values: Tensor,
        *,
        losses: dict[str, Tensor] | None = None,
        metrics: dict[str, Tensor] | None = None,
        bits: Tensor | float | None = None,
        codes: Tensor | None = None,
    ) -> Latents:
        """Return other values with these `bits`; losses and metrics join those that were there.

        Where bits were counted before, the fewer hold: no step can add what an earlier one lost.
        """
        if self.bits is not None and bits is not None:
            bits = min(self.bits, bits)
        return Latents(
            values,
            self.mask,
            {**self.losses, **(losses or {})},
            {**self.metrics, **(metrics or {})},
            bits,
            codes,
        )


def check_latents(module: nn.Module, latents: Latents, shape: tuple[int, int, int]) -> None:
    """Refuse what a part of somebody's own returns, if it is not what it should be.

    Args:
        module: Whose latents they are.
        latents: What it returned.
        shape: (B, M, D) they should have.

    Raises:
        LatentsError: Naming the class.
    """
    name = type(module).__name__
    if not isinstance(latents, Latents):
        raise LatentsError(f"{name} must return Latents, got {type(latents).__name__}.")
    values, mask = latents.values, latents.mask
    found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if found != shape:
        raise LatentsError(
            f"{name} must return latents of shape {shape} (batch, latents, d_model), got {found}."
        )
    if not values.is_floating_point():
        raise LatentsError(f"{name} must return latents of real numbers, got {values.dtype}.")
    if mask is not None and (tuple(mask.shape) != shape[:2] or mask.dtype != torch.bool):
        raise LatentsError(
            f"{name} must return a mask of shape {shape[:2]}, bool, got {tuple(mask.shape)} "
            f"{mask.dtype}."
        )
