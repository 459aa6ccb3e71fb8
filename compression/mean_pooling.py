"""Mean pooling of m equal chunks of a region: of raw transition tokens, or of encoder outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression.compressor import Compressor, CompressorConfig
from compression.latents import Latents
from compression.query_pooling import Encoder


def chunk_means(x: Tensor, mask: Tensor, n_chunks: int) -> Tensor:
    """Average equal chunks of what a mask allows.

    Args:
        x: (B, T, D).
        mask: (B, T) bool, True for a region's transitions; padding trails them and counts for
            nothing: it is the region that is divided, whatever it was padded to.
        n_chunks: M. A chunk in which a region of fewer transitions has none is zero.

    Returns:
        (B, M, D).
    """
    lengths = mask.sum(1, keepdim=True).clamp_min(1)  # (B, 1)
    chunk = torch.arange(x.shape[1], device=x.device) * n_chunks // lengths  # (B, T)
    weights = chunk[:, None, :] == torch.arange(n_chunks, device=x.device)[:, None]  # (B, M, T)
    weights = (weights & mask[:, None, :]).to(x)
    return weights @ x / weights.sum(-1, keepdim=True).clamp_min(1.0)


class MeanPooling(Compressor):
    """Means of m chunks of raw transition tokens with positions, normalised."""

    def __init__(self, config: CompressorConfig, *, d_model: int, n_heads: int, region_len: int):
        super().__init__(config, d_model=d_model, n_heads=n_heads, region_len=region_len)
        self.positions = nn.Parameter(torch.randn(region_len, d_model) * d_model**-0.5)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, tokens: Tensor, mask: Tensor) -> Latents:
        """Map tokens (B, T, D) to latents (B, M, D)."""
        x = tokens + self.positions[: tokens.shape[1]]
        return Latents(self.norm(chunk_means(x, mask, self.n_latents)))


class EncodedMeanPooling(Compressor):
    """Means of m chunks of the outputs of the same encoder that query pooling has."""

    learns = True

    def __init__(self, config: CompressorConfig, *, d_model: int, n_heads: int, region_len: int):
        super().__init__(config, d_model=d_model, n_heads=n_heads, region_len=region_len)
        self.encoder = Encoder(config, d_model, n_heads, region_len)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, tokens: Tensor, mask: Tensor) -> Latents:
        """Map tokens (B, T, D) to latents (B, M, D)."""
        means = chunk_means(self.encoder(tokens, mask), mask, self.n_latents)
        return Latents(self.norm(means))
