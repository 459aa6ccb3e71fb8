"""Slots written by keys: a transition goes where it will be looked for, and is added there."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compression.compressor import Compressor, CompressorConfig
from compression.latents import Latents
from compression.query_pooling import Encoder
from nets.transformer import Transformer

FIRST_SHARPNESS = 8.0
"""By which cosines of keys are multiplied at first; it is learned."""


class KeySlots(Compressor):
    """Each token spreads over m slots by softmax(key · slot key); a slot sums what it is given.

    In query pooling the softmax runs over the tokens: a latent is an average of all it reads, and
    each further item thins the others out. Here it runs over the slots: a token's weight does not
    depend on how many others there are, and items in different slots never mix. A token's key is
    read from the transition alone, without its position or neighbours, so that equal states are
    written to equal slots; a learned gate says how much of it is written at all. Every head has
    keys of its own. `n_layers` encoder layers stand before the values, `n_pooling_layers`
    feed-forward layers behind the sums.
    """

    learns = True

    def __init__(self, config: CompressorConfig, *, d_model: int, n_heads: int, region_len: int):
        super().__init__(config, d_model=d_model, n_heads=n_heads, region_len=region_len)
        self.n_heads = n_heads
        self.encoder = Encoder(config, d_model, n_heads, region_len)
        self.key_norm = nn.LayerNorm(d_model)
        self.keys = nn.Linear(d_model, d_model)
        self.slot_keys = nn.Parameter(torch.randn(n_heads, config.n_latents, d_model // n_heads))
        self.log_sharpness = nn.Parameter(torch.full((n_heads, 1, 1), math.log(FIRST_SHARPNESS)))
        self.gates = nn.Linear(d_model, n_heads)
        self.values = nn.Linear(d_model, d_model)
        self.start = nn.Parameter(0.02 * torch.randn(config.n_latents, d_model))
        self.out = nn.Linear(d_model, d_model)
        self.layers = Transformer(
            d_model,
            n_heads,
            config.n_pooling_layers,
            dropout=config.dropout,
            self_attention=False,
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> Latents:
        """Map tokens (B, T, D) to latents (B, M, D); `slots_used` is among the metrics."""
        hidden = self.encoder(tokens, mask)
        shares = self.shares(tokens)  # (B, H, T, M)
        written = self.gates(hidden).sigmoid() * mask[..., None]  # (B, T, H)
        written = shares * written.transpose(1, 2)[..., None]
        values = self.values(hidden).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        sums = (written.transpose(-1, -2) @ values).transpose(1, 2)  # (B, M, H, K)
        latents = self.layers(self.start + self.out(sums.flatten(2)))
        load = written.detach().sum((0, 1, 2))
        used = torch.special.entr(load / load.sum().clamp_min(1e-9)).sum().exp()
        return Latents(latents, metrics={"slots_used": used})

    def shares(self, tokens: Tensor) -> Tensor:
        """Return how tokens (B, T, D) spread over slots, (B, H, T, M); rows sum to 1."""
        keys = self.keys(self.key_norm(tokens)).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        cosines = F.normalize(keys, dim=-1) @ F.normalize(self.slot_keys, dim=-1).transpose(-1, -2)
        return (self.log_sharpness.exp() * cosines).softmax(-1)
