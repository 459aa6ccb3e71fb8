"""A hybrid: a few pooled latents that sum the region up, beside patches that keep its detail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from compression.compressor import Compressor, CompressorConfig, CompressorError
from compression.latents import Latents
from compression.patches import Patches
from compression.query_pooling import QueryPooling


class Hybrid(Compressor):
    """`n_pooled` latents by query pooling first, the other m − `n_pooled` by patches."""

    learns = True
    settings: dict[str, Any] = {"n_pooled": 1}  # noqa: RUF012

    def __init__(self, config: CompressorConfig, *, d_model: int, n_heads: int, region_len: int):
        sizes = {"d_model": d_model, "n_heads": n_heads, "region_len": region_len}
        super().__init__(config, **sizes)
        n_pooled = self.kwargs["n_pooled"]
        if not 1 <= n_pooled < config.n_latents:
            raise CompressorError(
                f"compressor.kwargs.n_pooled is {n_pooled}, expected at least 1 and less than the "
                f"compressor.n_latents of {config.n_latents}: the others are patches; change one."
            )
        pooled = replace(config, n_latents=n_pooled, kwargs={})
        self.pooled = QueryPooling(pooled, **sizes)
        self.patches = Patches(replace(pooled, n_latents=config.n_latents - n_pooled), **sizes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Latents:
        """Map tokens (B, T, D) to latents (B, M, D)."""
        parts = [part(tokens, mask).values for part in (self.pooled, self.patches)]
        return Latents(torch.cat(parts, dim=1))
