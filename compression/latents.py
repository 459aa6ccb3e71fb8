"""What a compressor returns: `Latents`."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Latents:
    """Latent tokens of a batch of regions, and what is to be known of them.

    Attributes:
        values: (B, M, D).
        mask: (B, M) bool, True = attend; None where all are attended to.
        losses: Auxiliary losses by name, scalars with gradient. Objectives add them, weighted by
            `loss.weights`, and log each by its name.
        metrics: Further scalars to log, such as codebook use.
        bits: Bits in which a region is kept, a number or a scalar; None for M x D floats.
    """

    values: Tensor
    mask: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    bits: Tensor | float | None = None

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
        )
