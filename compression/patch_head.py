"""Reconstruction by patches: each latent is projected to the positions of its part of a region."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression.latents import Latents
from compression.reconstruction import ReconstructionConfig, ReconstructionHead
from compression.windows import from_windows, window_len
from nets.spaces import FieldSpec
from nets.transformer import Transformer


class PatchHead(ReconstructionHead):
    """`compression.patches` the other way round.

    Two linear layers lead from D to the P positions of a window, then `n_layers` of self-attention
    go over all L positions. A latent that the mask hides counts as zeros.
    """

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
        self.region_len = region_len
        self.project = nn.Sequential(
            nn.Linear(d_model, 4 * d_model),
            nn.ReLU(),
            nn.Linear(4 * d_model, window_len(region_len, n_latents) * d_model),
        )
        self.positions = nn.Parameter(torch.randn(region_len, d_model) * d_model**-0.5)
        self.layers = Transformer(d_model, n_heads, config.n_layers)

    def hidden(self, latents: Latents) -> Tensor:
        """Map latents (B, M, D) to hidden states (B, L, D)."""
        read = latents.values * latents.shown[..., None]
        patches = self.project(read).unflatten(-1, (-1, read.shape[-1]))  # (B, M, P, D)
        return self.layers(from_windows(patches, self.region_len) + self.positions)
