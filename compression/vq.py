"""Vector quantisation: each latent becomes the nearest entries of a learned codebook."""

from __future__ import annotations

import math
from typing import Any

import torch
from vector_quantize_pytorch import VectorQuantize

from compression.bottleneck import Bottleneck
from compression.codes import (
    CodeProjection,
    check_counts,
    check_n_codes,
    code_use,
    store_every_buffer,
)
from compression.compressor import CompressorError
from compression.latents import Latents


class Codebook(Bottleneck):
    """A latent becomes `n_heads` codes of `width` numbers from one codebook (van den Oord 2017).

    The codebook begins as k-means of the first batch and follows the latents by an exponential
    moving average (`decay`). A code chosen less often than `dead_below` times an update, on the
    same average, is replaced by a latent of the batch. Loss `commitment`: the mean squared distance
    of latents from their codes. `bits` = M · n_heads · log2 `codebook_size`. Always in fp32.
    """

    keeps_address = False
    settings: dict[str, Any] = {  # noqa: RUF012
        "codebook_size": 512,
        "width": 16,
        "n_heads": 1,
        "decay": 0.99,
        "dead_below": 0.05,
    }

    def __init__(self, kwargs: dict[str, Any], *, n_latents: int, d_model: int) -> None:
        super().__init__(kwargs, n_latents=n_latents, d_model=d_model)
        self.n_heads, self.n_codes = self.kwargs["n_heads"], self.kwargs["codebook_size"]
        width, decay = self.kwargs["width"], self.kwargs["decay"]
        check_counts(width=width, n_heads=self.n_heads)
        check_n_codes(self.n_codes, "codebook_size")
        if not 0 < decay < 1:
            raise CompressorError(
                f"compressor.bottleneck_kwargs.decay is {decay}, expected more than 0 and less "
                "than 1; change compressor.bottleneck_kwargs.decay."
            )
        self.code = CodeProjection(d_model, self.n_heads * width)
        self.quantize = VectorQuantize(
            width,
            self.n_codes,
            decay=decay,
            kmeans_init=True,
            threshold_ema_dead_code=self.kwargs["dead_below"],
            commitment_weight=0.0,  # computed here, training or not
        )
        store_every_buffer(self.quantize)

    def forward(self, latents: Latents) -> Latents:
        """Replace the latents by codes; in training the codebook follows."""
        mask = latents.mask
        mask = None if mask is None else mask.repeat_interleave(self.n_heads, dim=1)
        with torch.autocast(latents.values.device.type, enabled=False):
            down = self.code.down(latents.values.float())
            each = down.unflatten(-1, (self.n_heads, -1)).flatten(1, 2)  # (B, M x H, C)
            code, indices, _ = self.quantize(each, mask=mask)
            errors = (each - code.detach()).square().mean(-1)
            commitment = errors.mean() if mask is None else errors[mask].mean()
        indices = indices if mask is None else indices[mask]
        return latents.replaced(
            self.code.up(code.reshape(down.shape).to(latents.values)),
            losses={"commitment": commitment},
            metrics=code_use(indices, self.n_codes),
            bits=latents.n_shown * self.n_heads * math.log2(self.n_codes),
        )
