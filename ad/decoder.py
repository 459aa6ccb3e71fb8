"""The AD decoder: causal self-attention over the current region, cross-attention to the latents.

With `reads: prefix` the latents stand before the steps in one self-attention instead. With `sees:
step` steps do not attend to each other and have no position: a step has the latents and its own
token, and nothing of the current region is kept. Where a region is compressed while it is being
filled (`chunk_len`), steps attend to those since the last part alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base.ranges import Between
from compression.latents import Latents
from nets.attention import KeyValueCache
from nets.embeddings import Sees
from nets.transformer import Memory, Transformer

Reads = Literal["cross", "prefix"]
"""How a decoder reads latents."""


@dataclass(frozen=True)
class DecoderConfig:
    """Settings of the decoder.

    Attributes:
        n_layers: Blocks, each with self-attention, cross-attention and feed-forward.
        dropout: Probability on residual branches.
        sees: What it has besides the latents: `region`, the current one up to now, or `step`, the
            current observation alone, so that what it knows, it knows through the latents.
        reads: How it reads latents: by `cross`-attention, in every block, or as a `prefix` of the
            self-attention, where they are processed by the blocks as the steps are.
    """

    n_layers: Annotated[int, Between(1, 1000)] = 4
    dropout: Annotated[float, Between(0, 1, high_open=True)] = 0.0
    sees: Sees = "region"
    reads: Reads = "cross"

    def n_steps(self, region_len: int) -> int:
        """Return the most steps of the current region that one of them attends to."""
        return region_len if self.sees == "region" else 1


@dataclass
class DecoderState:
    """What the decoder keeps while a region is being filled.

    Attributes:
        memory: Each block's keys and values of the latents, projected once per region; none where
            they are a prefix.
        memory_mask: (n, M) bool, or None.
        caches: Each block's keys and values of the steps so far, behind those of a prefix; none
            where it sees a step alone and has no prefix.
        n_prefix: Latents at the beginning of the caches.
        at: Steps of the region so far.
    """

    memory: list[Memory]
    memory_mask: Tensor | None
    caches: list[KeyValueCache]
    n_prefix: int = 0
    at: int = 0

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
        chunk_len: n, steps that attend to each other, where fewer than L; 0 for all of a region.
        places: (M,) rotary positions of the latents, in steps from the region's first; None for
            none.
    """

    places: Tensor | None

    def __init__(
        self,
        config: DecoderConfig,
        *,
        d_model: int,
        n_heads: int,
        region_len: int,
        n_outputs: int,
        chunk_len: int = 0,
        places: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("places", places)
        self.region_len = region_len
        self.sees_region = config.sees == "region"
        self.prefixed = config.reads == "prefix"
        self.chunk_len = chunk_len
        if self.sees_region:
            self.positions = nn.Parameter(torch.randn(region_len, d_model) * d_model**-0.5)
        self.layers = Transformer(
            d_model,
            n_heads,
            config.n_layers,
            dropout=config.dropout,
            self_attention=self.sees_region or self.prefixed,
            cross_attention=not self.prefixed,
        )
        self.action_head = nn.Linear(d_model, n_outputs)

    def forward(self, tokens: Tensor, latents: Latents) -> Tensor:
        """Return action parameters (B, T, P) for step tokens (B, T, D) given latents (B, M, D)."""
        return self.action_head(self.hidden(tokens, latents))

    def hidden(self, tokens: Tensor, latents: Latents) -> Tensor:
        """Return what the actions are read from, (B, T, D), arguments as of `forward`."""
        if self.sees_region:
            tokens = tokens + self.positions[: tokens.shape[1]]
        if self.prefixed:
            n_prefix = latents.values.shape[1]
            x = torch.cat([latents.values, tokens], dim=1)
            return self.layers(x, mask=self._attended(latents, tokens.shape[1]))[:, n_prefix:]
        chunks = None
        if self.chunk_len and self.sees_region:
            chunk = torch.arange(tokens.shape[1], device=tokens.device) // self.chunk_len
            chunks = (chunk == chunk[:, None]).tril()[None]  # (1, T, T)
        return self.layers(
            tokens,
            is_causal=chunks is None,
            mask=chunks,
            memory=self.layers.project_memory(latents.values, self.places),
            memory_mask=latents.mask,
            places=self._step_places(tokens.shape[1]),
        )

    def _step_places(self, n_steps: int, at: int = 0) -> Tensor | None:
        """Return the positions of steps from `at` on, where latents have some.

        A step that is seen alone does not know which it is: it stands at the region's first.
        """
        if self.places is None:
            return None
        steps = torch.arange(at, at + n_steps, device=self.places.device)
        return steps if self.sees_region else torch.zeros_like(steps)

    def _attended(self, latents: Latents, n_steps: int) -> Tensor:
        """Return which of latents and steps each of them attends to, (B, M + T, M + T)."""
        shown = latents.shown.bool()[:, None]  # (B, 1, M)
        n_prefix = shown.shape[2]
        own = torch.ones(n_steps, n_steps, dtype=torch.bool, device=shown.device).tril()
        own = own if self.sees_region else torch.eye(n_steps).to(own)
        steps = F.pad(own, (0, 0, n_prefix, 0))  # (M + T, T): latents see no step
        prefix = shown.expand(-1, n_prefix + n_steps, -1)
        return torch.cat([prefix, steps.expand(len(shown), -1, -1)], dim=2)

    def _start_prefix(self, latents: Latents, state: DecoderState | None) -> DecoderState:
        """Begin a region: let the blocks process latents (B, M, D) into the caches."""
        n, n_prefix, _ = latents.values.shape
        caches = [] if state is None or state.n_prefix != n_prefix else state.caches
        if not caches:
            n_steps = self.region_len if self.sees_region else 1
            caches = self.layers.new_caches(n, n_prefix + n_steps)
        for cache in caches:
            cache.rewind()
        self.layers(latents.values, mask=latents.mask, caches=caches)
        return DecoderState([], latents.mask, caches, n_prefix)

    def start(
        self, latents: Latents, state: DecoderState | None = None, at: int = 0
    ) -> DecoderState:
        """Begin a region, or a chunk of it: project latents (B, M, D), empty the caches.

        Args:
            latents: What is read from now on.
            state: Whose caches are used again.
            at: Steps of the region so far.
        """
        if self.prefixed:
            return self._start_prefix(latents, state)
        memory = self.layers.project_memory(latents.values, self.places)
        if state is None:
            caches = []
            if self.sees_region:
                n_steps = min(self.chunk_len or self.region_len, self.region_len)
                caches = self.layers.new_caches(len(latents.values), n_steps)
            return DecoderState(memory, latents.mask, caches, at=at)
        for cache in state.caches:
            cache.rewind()
        return DecoderState(memory, latents.mask, state.caches, at=at)

    def step(self, token: Tensor, state: DecoderState) -> Tensor:
        """Return action parameters (B, P) for the next step token (B, 1, D), kept in `state`."""
        if self.sees_region:
            token = token + self.positions[state.at]
        places = self._step_places(1, state.at)
        state.at += 1
        if self.prefixed:
            return self.action_head(self._step_after_prefix(token, state)[:, 0])
        hidden = self.layers(
            token,
            memory=state.memory,
            memory_mask=state.memory_mask,
            places=places,
            caches=state.caches or None,
        )
        return self.action_head(hidden[:, 0])

    def _step_after_prefix(self, token: Tensor, state: DecoderState) -> Tensor:
        """Return the hidden state (B, 1, D) of a token behind the latents and steps so far."""
        if not self.sees_region:
            for cache in state.caches:
                cache.rewind(state.n_prefix)
        mask = state.memory_mask
        if mask is not None:  # (B, M + t + 1)
            n_steps = state.caches[0].length - state.n_prefix + 1
            mask = F.pad(mask, (0, n_steps), value=True)
        return self.layers(token, mask=mask, caches=state.caches)
