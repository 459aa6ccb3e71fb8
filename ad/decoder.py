"""The AD decoder: causal self-attention over the current region, cross-attention to the latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from base.ranges import AtLeast, Between
from nets.attention import KeyValueCache
from nets.transformer import Memory, Transformer


@dataclass(frozen=True)
class DecoderConfig:
    """Settings of the decoder.

    Attributes:
        n_layers: Blocks, each with self-attention, cross-attention and feed-forward.
        dropout: Probability on residual branches.
    """

    n_layers: Annotated[int, AtLeast(1)] = 4
    dropout: Annotated[float, Between(0, 1, high_open=True)] = 0.0


@dataclass
class DecoderState:
    """What the decoder keeps while a region is being filled.

    Attributes:
        memory: Each block's keys and values of the latents, projected once per region.
        caches: Each block's keys and values of the steps so far.
    """

    memory: list[Memory]
    caches: list[KeyValueCache]

    @property
    def n_bytes(self) -> int:
        """Bytes of the state at full length."""
        memory = sum(2 * keys.numel() * keys.element_size() for keys, _ in self.memory)
        return memory + sum(cache.n_bytes for cache in self.caches)


class Decoder(nn.Module):
    """Maps step tokens and latents to action parameters, offline at once or step by step.

    Args:
        config: Depth and dropout.
        d_model: Width D.
        n_heads: Heads.
        region_len: L, the most steps in a query.
        n_outputs: P, parameters of the action distribution.
    """

    def __init__(
        self, config: DecoderConfig, *, d_model: int, n_heads: int, region_len: int, n_outputs: int
    ) -> None:
        super().__init__()
        self.region_len = region_len
        self.positions = nn.Parameter(torch.randn(region_len, d_model) * d_model**-0.5)
        self.layers = Transformer(
            d_model, n_heads, config.n_layers, dropout=config.dropout, cross_attention=True
        )
        self.action_head = nn.Linear(d_model, n_outputs)

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """Return action parameters (B, T, P) for step tokens (B, T, D) given latents (B, M, D)."""
        x = tokens + self.positions[: tokens.shape[1]]
        hidden = self.layers(x, is_causal=True, memory=self.layers.project_memory(latents))
        return self.action_head(hidden)

    def start(self, latents: Tensor, state: DecoderState | None = None) -> DecoderState:
        """Begin a region: project latents (B, M, D), empty the caches (`state`'s are reused)."""
        memory = self.layers.project_memory(latents)
        if state is None:
            return DecoderState(memory, self.layers.new_caches(len(latents), self.region_len))
        for cache in state.caches:
            cache.rewind()
        return DecoderState(memory, state.caches)

    def step(self, token: Tensor, state: DecoderState) -> Tensor:
        """Return action parameters (B, P) for the next step token (B, 1, D), kept in `state`."""
        x = token + self.positions[state.caches[0].length]
        hidden = self.layers(x, memory=state.memory, caches=state.caches)
        return self.action_head(hidden[:, 0])
