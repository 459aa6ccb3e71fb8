"""Patches: a learned projection of L/m neighbouring tokens to a latent, nothing averaged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression.compressor import Compressor, CompressorConfig
from compression.latents import Latents
from compression.windows import to_windows, window_len
from nets.transformer import Transformer


class Patches(Compressor):
    """Tokens with positions, side by side in m windows, through two linear layers to D.

    `n_layers` transformer layers over the latents follow, and a norm; with 0 a latent knows its
    own window alone. With `causal`, a latent knows its own and earlier windows. Where m does not
    divide L, the shorter windows are padded with zeros (`compression.windows`), as is whatever a
    region shorter than L lacks.
    """

    learns = True

    def __init__(self, config: CompressorConfig, *, d_model: int, n_heads: int, region_len: int):
        super().__init__(config, d_model=d_model, n_heads=n_heads, region_len=region_len)
        self.causal = config.causal
        self.positions = nn.Parameter(torch.randn(region_len, d_model) * d_model**-0.5)
        self.project = nn.Sequential(
            nn.Linear(window_len(region_len, config.n_latents) * d_model, 4 * d_model),
            nn.ReLU(),
            nn.Linear(4 * d_model, d_model),
        )
        self.layers = Transformer(d_model, n_heads, config.n_layers, dropout=config.dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Latents:
        """Map tokens (B, T, D) to latents (B, M, D)."""
        x = tokens + self.positions[: tokens.shape[1]]
        cut, _ = to_windows(x, mask, self.region_len, self.n_latents)  # (B, M, P, D)
        return Latents(self.layers(self.project(cut.flatten(2)), is_causal=self.causal))
