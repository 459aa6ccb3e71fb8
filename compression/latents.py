"""What a compressor returns: `Latents`."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    def bits_per_region(self) -> Tensor | float:
        """`bits`, or M x D numbers of the size in which they are stored."""
        if self.bits is not None:
            return self.bits
        return 8.0 * self.values[0].numel() * self.values.element_size()
