"""Finite scalar quantisation: each number of a code is rounded to one of a few levels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from vector_quantize_pytorch import FSQ

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


class FiniteScalars(Bottleneck):
    """A latent becomes `n_groups` codes, each one of Π `levels` (Mentzer et al. 2023).

    Nothing is learned but the projections, and no loss is added. `bits` is exact:
    M · n_groups · log2 Π levels. Levels are spaced evenly over [-1, 1] (Parker et al. 2024, §3.2),
    for two of them as well, so that `levels: [2]` is one bit a group. Always in fp32.
    """

    settings: dict[str, Any] = {"levels": [8, 5, 5, 5], "n_groups": 1}  # noqa: RUF012
    keeps_address = False

    def __init__(self, kwargs: dict[str, Any], *, n_latents: int, d_model: int) -> None:
        super().__init__(kwargs, n_latents=n_latents, d_model=d_model)
        levels, self.n_groups = list(self.kwargs["levels"]), self.kwargs["n_groups"]
        if not levels or any(type(n) is not int or n < 2 for n in levels):
            raise CompressorError(
                f"compressor.bottleneck_kwargs.levels is {levels}, expected whole numbers of at "
                "least 2, one for each number of a code; change compressor.bottleneck_kwargs.levels"
            )
        check_counts(n_groups=self.n_groups)
        self.n_codes = math.prod(levels)
        check_n_codes(self.n_codes, "levels")
        self.code = CodeProjection(d_model, self.n_groups * len(levels))
        self.quantize = FSQ(
            levels,
            num_codebooks=self.n_groups,
            keep_num_codebooks_dim=True,
            preserve_symmetry=True,
            return_indices=False,
        )
        store_every_buffer(self.quantize)

    def forward(self, latents: Latents) -> Latents:
        """Round the latents to codes."""
        device = latents.values.device.type
        with torch.autocast(device, enabled=False):
            code, _ = self.quantize(self.code.down(latents.values.float()))  # (B, M, G x N)
            indices = self.quantize.codes_to_indices(code.unflatten(-1, (self.n_groups, -1)))
        return latents.replaced(
            self.code.up(code.to(latents.values)),
            metrics=code_use(indices.detach(), self.n_codes, latents.shown[..., None]),
            bits=latents.n_shown * self.n_groups * math.log2(self.n_codes),
            codes=indices.long(),
        )

    def decoded(self, codes: Tensor) -> Tensor:
        """Return the latents (B, M, D) of codes (B, M, G)."""
        numbers = self.quantize.indices_to_codes(codes)
        return self.code.up(numbers.to(self.code.down.weight))
