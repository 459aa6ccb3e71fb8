"""Reconstruction by attention: a light transformer decoder from one query per position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression.latents import Latents
from compression.reconstruction import ReconstructionConfig, ReconstructionHead
from nets.positions import sinusoids, spread
from nets.spaces import FieldSpec
from nets.transformer import Transformer


class AttentionHead(ReconstructionHead):
    """Position queries attend to each other and to the latents."""

    def __init__(
        self,
        observation: FieldSpec,
        action: FieldSpec,
        config: ReconstructionConfig,
        *,
        d_model: int,
        n_heads: int,
        region_len: int,
        n_latents: int,
    ) -> None:
        super().__init__(observation, action, d_model=d_model)
        self.latent_positions = nn.Parameter(
            0.1 * sinusoids(spread(n_latents, region_len), d_model)
        )
        self.position_queries = nn.Parameter(torch.randn(region_len, d_model) * d_model**-0.5)
        self.layers = Transformer(d_model, n_heads, config.n_layers, cross_attention=True)

    def hidden(self, latents: Latents) -> Tensor:
        """Map latents (B, M, D) to hidden states (B, L, D)."""
        queries = self.position_queries.expand(len(latents.values), -1, -1)
        memory = self.layers.project_memory(latents.values + self.latent_positions)
        return self.layers(queries, memory=memory, memory_mask=latents.mask)
