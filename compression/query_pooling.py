"""The default compressor: an encoder, and learned latent queries that pool its hidden states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression.compressor import Compressor, CompressorConfig
from compression.latents import Latents
from nets.positions import sinusoids, spread
from nets.transformer import Transformer


class Encoder(nn.Module):
    """Pre-norm transformer encoder over a region's tokens, with learned positions.

    Args:
        config: Layers, dropout, causality.
        d_model: Width D.
        n_heads: Heads.
        region_len: Longest region.
    """

    def __init__(self, config: CompressorConfig, d_model: int, n_heads: int, region_len: int):
        super().__init__()
        self.causal = config.causal
        self.positions = nn.Parameter(torch.randn(region_len, d_model) * d_model**-0.5)
        self.layers = Transformer(d_model, n_heads, config.n_layers, dropout=config.dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Map tokens (B, T, D) to hidden states (B, T, D)."""
        x = tokens + self.positions[: tokens.shape[1]]
        if self.causal:
            return self.layers(x, is_causal=True)  # padding trails, so causal steps never see it
        return self.layers(x, mask=mask)


class QueryPooling(Compressor):
    """z_j = Attention(q_j, H, H): m learned latent queries attend to the encoder's hidden states H.

    A query begins with the position of the part of the region that it stands for, or has that
    position for ever, or begins as noise alone (`compressor.latent_positions`).
    """

    learns = True

    def __init__(self, config: CompressorConfig, *, d_model: int, n_heads: int, region_len: int):
        super().__init__(config, d_model=d_model, n_heads=n_heads, region_len=region_len)
        self.encoder = Encoder(config, d_model, n_heads, region_len)
        positions = sinusoids(spread(config.n_latents, region_len), d_model)
        noise = torch.randn(config.n_latents, d_model)
        begin = 0.1 * positions if config.latent_positions in ("learned", "rotary") else 0.0
        self.latent_queries = nn.Parameter(begin + 0.02 * noise)
        fixed = 0.1 * positions if config.latent_positions == "fixed" else None
        self.query_positions: Tensor | None
        self.register_buffer("query_positions", fixed)
        self.pooling = Transformer(
            d_model,
            n_heads,
            config.n_pooling_layers,
            dropout=config.dropout,
            self_attention=False,
            cross_attention=True,
        )

    def match(self) -> None:
        """Tell the latent queries apart from the start: each finds contents of its own."""
        nn.init.normal_(self.latent_queries)

    def addresses(self) -> Tensor:
        """Return the latent queries, (M, D)."""
        return self.latent_queries.detach()

    def forward(self, tokens: Tensor, mask: Tensor) -> Latents:
        """Map tokens (B, T, D) to latents (B, M, D)."""
        pooled = self.pooling(
            self._queries(len(tokens)),
            memory=self.pooling.project_memory(self.encoder(tokens, mask)),
            memory_mask=mask,
        )
        return Latents(pooled)

    def attention(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return what the latents attend to, (B, N, H, M, T) for N pooling layers; rows sum to 1.

        The hidden states attended to have seen the whole region themselves: a weight says where a
        latent reads, not that it learns of that transition alone.

        Args:
            tokens: As in `forward`.
            mask: As in `forward`.
        """
        x = self._queries(len(tokens))
        memory = self.pooling.project_memory(self.encoder(tokens, mask))
        weights = []
        for block, (keys, values) in zip(self.pooling.blocks, memory, strict=True):
            weights.append(block.cross.weights(block.cross_norm(x), keys, mask))  # pyright: ignore
            x = block(x, memory=(keys, values), memory_mask=mask)
        return torch.stack(weights, dim=1)

    def _queries(self, batch: int) -> Tensor:
        queries = self.latent_queries
        if self.query_positions is not None:
            queries = queries + self.query_positions
        return queries.expand(batch, -1, -1)  # (B, M, D)
