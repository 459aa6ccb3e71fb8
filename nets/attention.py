"""Multi-head attention over `F.scaled_dot_product_attention`, with preallocated key/value caches.

Self- and cross-attention and the cache used while acting live here; blocks and stacks are in
`nets.transformer`. Shapes: B batch, T steps, M latents, D width, H heads, K = D / H head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets.positions import rotate


@dataclass
class KeyValueCache:
    """Keys and values of the steps seen so far, in buffers of the full length.

    Attributes:
        keys: (B, H, T_max, K).
        values: (B, H, T_max, K).
        length: Number of steps already written.
    """

    keys: Tensor
    values: Tensor
    length: int = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, K) new keys and values; return views of everything written so far."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def rewind(self, length: int = 0) -> None:
        """Forget everything after the first `length` steps, keeping the buffers."""
        self.length = length

    @property
    def n_bytes(self) -> int:
        """Bytes held by both buffers."""
        return 2 * self.keys.numel() * self.keys.element_size()


class SelfAttention(nn.Module):
    """Multi-head self-attention, causal, bidirectional or against a cache.

    Args:
        d_model: Width D.
        n_heads: Heads H; must divide D.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def match(self) -> None:
        """Draw queries and keys as one projection (`nets.matching`)."""
        _match(self.qkv, self.qkv, self.n_heads)

    def new_cache(self, batch: int, length: int) -> KeyValueCache:
        """Return an empty cache for `batch` sequences of at most `length` steps."""
        weight = self.out.weight
        shape = (batch, self.n_heads, length, weight.shape[0] // self.n_heads)
        return KeyValueCache(weight.new_zeros(shape), weight.new_zeros(shape))

    def forward(
        self,
        x: Tensor,
        *,
        is_causal: bool = False,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Attend within `x`.

        Args:
            x: (B, T, D).
            is_causal: Step t sees steps <= t.
            mask: (B, T) bool keys to attend to, True = attend, or those of each step, (B, T, T) or
                (1, T, T). Not together with `is_causal`.
            cache: With a cache, `x` holds only the steps after those in it. A non-empty cache takes
                one new step at a time.

        Returns:
            (B, T, D).
        """
        batch, steps, width = x.shape
        qkv = self.qkv(x).view(batch, steps, 3, self.n_heads, width // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, K)
        if cache is not None:
            k, v = cache.append(k, v)
            if is_causal and k.shape[2] > steps > 1:
                raise ValueError(f"a cache that is not empty takes one new step, not {steps}")
            is_causal = is_causal and steps > 1
        attend = None
        if mask is not None:  # (B, 1, 1, T) or (B, 1, T, T)
            attend = mask[:, None] if mask.ndim == 3 else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, is_causal=is_causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, steps, width))


class CrossAttention(nn.Module):
    """Multi-head attention from steps to a separate memory, whose projection can be kept.

    Args:
        d_model: Width D of steps and memory.
        n_heads: Heads H; must divide D.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(d_model, d_model)
        self.kv = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def match(self) -> None:
        """Draw queries and keys as one projection (`nets.matching`)."""
        _match(self.q, self.kv, self.n_heads)

    def project(self, memory: Tensor, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the keys and values (B, H, M, K) of a memory (B, M, D), keys turned by `places`.

        Args:
            memory: (B, M, D).
            places: (M,) rotary positions of the memory, in steps; None for none.
        """
        batch, length, width = memory.shape
        kv = self.kv(memory).view(batch, length, 2, self.n_heads, width // self.n_heads)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return k if places is None else rotate(k, places), v

    def forward(
        self,
        x: Tensor,
        memory: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Attend from `x` (B, T, D) to projected `memory`.

        Args:
            x: (B, T, D).
            memory: Keys and values of M places, as `project` returns them.
            mask: (B, M) bool, True = attend, or (B, T, M) where it differs between steps.
            places: (T,) rotary positions of the steps, where the memory has some.

        Returns:
            (B, T, D).
        """
        batch, steps, width = x.shape
        q = self.q(x).view(batch, steps, self.n_heads, -1).transpose(1, 2)  # (B, H, T, K)
        q = q if places is None else rotate(q, places)
        attend = None
        if mask is not None:  # (B, 1, 1, M) or (B, 1, T, M)
            attend = mask[:, None] if mask.ndim == 3 else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, memory[0], memory[1], attn_mask=attend)
        return self.out(mixed.transpose(1, 2).reshape(batch, steps, width))

    def weights(self, x: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what each step attends to, softmax(q kᵀ / √K) (B, H, T, M); rows sum to one.

        The fused attention of `forward` never holds these weights; this computes them apart, to be
        looked at.

        Args:
            x: (B, T, D), as given to `forward`.
            keys: (B, H, M, K), the first of what `project` returns.
            mask: (B, M) bool, True = attend.
        """
        batch, steps, _ = x.shape
        q = self.q(x).view(batch, steps, self.n_heads, -1).transpose(1, 2)  # (B, H, T, K)
        scores = q @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, H, T, M)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        return scores.softmax(-1)


@torch.no_grad()
def _match(queries: nn.Linear, keys: nn.Linear, n_heads: int) -> None:
    """Give queries and keys one projection, orthonormal within a head, and no bias.

    Queries are the first D outputs of `queries`; keys those of `keys`, or the second D where both
    are one layer. A normalised x then scores about sqrt(K) with itself and less with others.
    """
    width = queries.in_features
    heads = torch.empty(n_heads, width // n_heads, width, device=queries.weight.device)
    for head in heads:
        nn.init.orthogonal_(head)
    offset = width if queries is keys else 0
    for layer, first in ((queries, 0), (keys, offset)):
        layer.weight[first : first + width] = heads.flatten(0, 1)
        layer.bias[first : first + width] = 0
