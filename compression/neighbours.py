"""Exact nearest neighbours among flat vectors or codes, in chunks that fit in memory."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 4096
"""Queries compared with all entries at once."""


def squared_distances(queries: Tensor, entries: Tensor) -> Tensor:
    """Return |q - e|² (..., N) of queries (..., F) and their entries (..., N, F)."""
    return (queries.unsqueeze(-2) - entries).square().sum(-1)


def differing(queries: Tensor, entries: Tensor) -> Tensor:
    """Return how many codes differ, (Q, N), of queries (Q, F) and entries (N, F)."""
    count = torch.zeros(len(queries), len(entries), dtype=torch.int32)
    for query, entry in zip(queries.T, entries.T, strict=True):
        count += query[:, None] != entry
    return count


def nearest(queries: Tensor, entries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest entries of every query, nearest first.

    Args:
        queries: (Q, F), real numbers, or whole ones, which are codes.
        entries: (N, F) likewise, N >= k.
        k: At least 1.

    Returns:
        Indices (Q, k) and distances (Q, k): Euclidean ones of real numbers, of codes how many
        differ. Which of several equally far ones comes first is not said.
    """
    real = entries.is_floating_point()
    found = []
    for part in queries.split(CHUNK):
        far = torch.cdist(part, entries) if real else differing(part, entries)
        found.append(far.topk(k, dim=1, largest=False))
    indices = torch.cat([each.indices for each in found])
    return indices, torch.cat([each.values for each in found])
