"""Baselines that keep raw tokens or nothing: truncation at the marker, and no context at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression.compressor import Compressor, CompressorConfig
from compression.latents import Latents


class Truncation(Compressor):
    """The last m raw transition tokens before the marker, with their positions."""

    def __init__(self, config: CompressorConfig, *, d_model: int, n_heads: int, region_len: int):
        super().__init__(config, d_model=d_model, n_heads=n_heads, region_len=region_len)
        self.positions = nn.Parameter(torch.randn(config.n_latents, d_model) * d_model**-0.5)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, tokens: Tensor, mask: Tensor) -> Latents:
        """Map tokens (B, T, D) to latents (B, M, D); shorter regions repeat their first token."""
        lengths = mask.sum(1, keepdim=True)  # (B, 1)
        offsets = torch.arange(-self.n_latents, 0, device=tokens.device)  # (M,)
        index = (lengths + offsets).clamp_min(0)[..., None].expand(-1, -1, tokens.shape[-1])
        return Latents(self.norm(tokens.gather(1, index) + self.positions))


class NoContext(Compressor):
    """The negative control: latents that say nothing about the region."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Latents:
        """Return zeros (B, M, D), in no bits."""
        zeros = tokens.new_zeros(len(tokens), self.n_latents, self.d_model)
        return Latents(zeros, bits=0.0)
