"""Cheap points on the curve of return against bits: a trained student's latents cut down at test.

Fewer of them (`compression.nested`), or in coarser numbers. Nothing is trained for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from compression.bottleneck import Bottleneck
from compression.compressor import CompressorError
from compression.latents import Latents
from compression.nested import prefix

NumberFormat = Literal["bf16", "int8"]


def rounded(latents: Latents, number: NumberFormat) -> Latents:
    """Round latents (B, M, D) to another number format, in the bits of which they are kept.

    Args:
        latents: Plain numbers, with `bits` None.
        number: `bf16`, 16 bits a number; `int8`, 8 bits a number and 16 bits a latent for the step
            size, the latent's largest magnitude / 127 in bf16.

    Raises:
        CompressorError: The latents are codes or noisy already, and their bits fewer than these.
    """
    if latents.bits is not None:
        raise CompressorError(
            f"latents cannot be rounded to {number} behind a bottleneck that counts bits of its "
            "own; take compressor.bottleneck=continuous."
        )
    values, width = latents.values, latents.values.shape[2]
    if number == "bf16":
        return replace(
            latents, values=values.bfloat16().to(values), bits=latents.n_shown * 16 * width
        )
    steps = (values.abs().amax(-1, keepdim=True) / 127).bfloat16().to(values)
    # bf16 may round a step down, which would carry the largest number past 127.
    whole = (values / steps.clamp_min(torch.finfo(values.dtype).tiny)).round().clamp(-127, 127)
    return replace(latents, values=whole * steps, bits=latents.n_shown * (8 * width + 16))


class AtTest(Bottleneck):
    """A trained bottleneck that shows fewer latents or coarser numbers, usable when acting only.

        student.bottleneck = AtTest(student.bottleneck, n_shown=4)

    Args:
        bottleneck: The trained one.
        n_shown: Latents of a region that are shown; None for all.
        number: Format that plain latents are rounded to; None for none.
    """

    def __init__(
        self,
        bottleneck: Bottleneck,
        *,
        n_shown: int | None = None,
        number: NumberFormat | None = None,
    ) -> None:
        super().__init__({}, n_latents=0, d_model=0)
        self.bottleneck = bottleneck
        self.n_codes = bottleneck.n_codes
        self.n_shown = n_shown
        self.number: NumberFormat | None = number
        self.eval()

    def forward(self, latents: Latents) -> Latents:
        """Cut down latents (B, M, D).

        Raises:
            CompressorError: In training mode.
        """
        if self.training:
            raise CompressorError(
                "latents are cut down at test only, but the model is in training mode; for fewer "
                "latents in training take compressor.nested or a smaller compressor.n_latents."
            )
        shown = latents if self.n_shown is None else prefix(latents, self.n_shown)
        kept = self.bottleneck(shown)
        return kept if self.number is None else rounded(kept, self.number)

    def decoded(self, codes: Tensor) -> Tensor:
        """Return the latents (B, M, D) that were sent as codes (B, M, G)."""
        return self.bottleneck.decoded(codes)
