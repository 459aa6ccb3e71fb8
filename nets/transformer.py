"""Pre-norm transformer blocks and stacks, with optional cross-attention to a memory.

One block serves the compressor's encoder, the decoder, the teacher and the reconstruction head;
what differs (causality, memory, cache) is said at the call. Shapes as in `nets.attention`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nets.attention import CrossAttention, KeyValueCache, SelfAttention

Memory = tuple[Tensor, Tensor]


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them, `ratio` times as wide inside.

    ReLU because on a CPU, GELU's forward and backward took 16 % of a whole update at width 64.
    """

    def __init__(self, d_model: int, ratio: int = 4) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, ratio * d_model)
        self.down = nn.Linear(ratio * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        return self.down(F.relu(self.up(x)))


class Block(nn.Module):
    """Pre-norm block: self-attention, cross-attention on request, feed-forward.

    Args:
        d_model: Width D.
        n_heads: Heads H.
        dropout: Probability on every residual branch.
        self_attention: Whether steps attend to each other.
        cross_attention: Whether steps attend to a memory.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        dropout: float = 0.0,
        self_attention: bool = True,
        cross_attention: bool = False,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(d_model, n_heads) if self_attention else None
        self.attention_norm = nn.LayerNorm(d_model) if self_attention else None
        self.cross = CrossAttention(d_model, n_heads) if cross_attention else None
        self.cross_norm = nn.LayerNorm(d_model) if cross_attention else None
        self.feed_forward = FeedForward(d_model)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        *,
        is_causal: bool = False,
        mask: Tensor | None = None,
        memory: Memory | None = None,
        memory_mask: Tensor | None = None,
        places: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Map (B, T, D) to (B, T, D); arguments as in `nets.attention`."""
        if self.attention is not None and self.attention_norm is not None:
            mixed = self.attention(
                self.attention_norm(x), is_causal=is_causal, mask=mask, cache=cache
            )
            x = x + self.dropout(mixed)
        if self.cross is not None and self.cross_norm is not None:
            if memory is None:
                raise TypeError("a block with cross-attention needs a projected memory")
            x = x + self.dropout(self.cross(self.cross_norm(x), memory, memory_mask, places))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Transformer(nn.Module):
    """A stack of blocks and a final LayerNorm.

    Args:
        d_model: Width D.
        n_heads: Heads H.
        n_layers: Number of blocks.
        dropout: Probability on residual branches.
        self_attention: See `Block`.
        cross_attention: See `Block`.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_layers: int,
        *,
        dropout: float = 0.0,
        self_attention: bool = True,
        cross_attention: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(
                d_model,
                n_heads,
                dropout=dropout,
                self_attention=self_attention,
                cross_attention=cross_attention,
            )
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)

    def project_memory(self, memory: Tensor, places: Tensor | None = None) -> list[Memory]:
        """Return each block's keys and values of a memory (B, M, D), to be kept while acting."""
        return [block.cross.project(memory, places) for block in self.blocks]  # pyright: ignore

    def new_caches(self, batch: int, length: int) -> list[KeyValueCache]:
        """Return one empty cache per block."""
        return [block.attention.new_cache(batch, length) for block in self.blocks]  # pyright: ignore

    def forward(
        self,
        x: Tensor,
        *,
        is_causal: bool = False,
        mask: Tensor | None = None,
        memory: Sequence[Memory] | None = None,
        memory_mask: Tensor | None = None,
        places: Tensor | None = None,
        caches: Sequence[KeyValueCache] | None = None,
    ) -> Tensor:
        """Map (B, T, D) to (B, T, D) through every block and the final norm."""
        for i, block in enumerate(self.blocks):
            x = block(
                x,
                is_causal=is_causal,
                mask=mask,
                memory=None if memory is None else memory[i],
                memory_mask=memory_mask,
                places=places,
                cache=None if caches is None else caches[i],
            )
        return self.norm(x)
