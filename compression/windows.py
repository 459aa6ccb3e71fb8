"""A region cut into m windows of neighbouring tokens, and back.

Window j of m holds tokens ⌊jL/m⌋ … ⌊(j+1)L/m⌋ − 1 of the region length L. Where m does not divide
L, windows differ by one token, and the shorter ones are padded. Shapes: B batch, T steps, L region
length, M windows, P = ⌈L/M⌉ places in a window, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def window_len(region_len: int, n_windows: int) -> int:
    """Return P, places in a window."""
    return -(-region_len // n_windows)


def to_windows(x: Tensor, mask: Tensor, region_len: int, n_windows: int) -> tuple[Tensor, Tensor]:
    """Cut tokens into windows; every place without a token is zero.

    Args:
        x: (B, T, D), T <= L.
        mask: (B, T) bool, True for a region's transitions.
        region_len: L.
        n_windows: M <= L.

    Returns:
        Tokens (B, M, P, D), and which places hold one, (B, M, P) bool.
    """
    missing = region_len - x.shape[1]
    x = F.pad(x.masked_fill(~mask[..., None], 0.0), (0, 0, 0, missing))  # (B, L, D)
    mask = F.pad(mask, (0, missing))
    if region_len % n_windows == 0:
        return x.unflatten(1, (n_windows, -1)), mask.unflatten(1, (n_windows, -1))
    edges = _edges(region_len, n_windows, x.device)
    places = torch.arange(window_len(region_len, n_windows), device=x.device)
    index = edges[:-1, None] + places  # (M, P)
    inside = index < edges[1:, None]
    index = index.clamp_max(region_len - 1)
    cut = x.index_select(1, index.flatten()).unflatten(1, index.shape)  # (B, M, P, D)
    held = mask.index_select(1, index.flatten()).unflatten(1, index.shape) & inside
    return cut * inside[..., None], held


def from_windows(x: Tensor, region_len: int) -> Tensor:
    """Return the tokens (B, L, D) that stand in windows (B, M, P, D): `to_windows` undone."""
    if x.shape[1] * x.shape[2] == region_len:
        return x.flatten(1, 2)
    edges = _edges(region_len, x.shape[1], x.device)
    steps = torch.arange(region_len, device=x.device)
    window = torch.bucketize(steps, edges[1:], right=True)
    return x.flatten(1, 2).index_select(1, window * x.shape[2] + steps - edges[window])


def _edges(region_len: int, n_windows: int, device: torch.device) -> Tensor:
    return torch.arange(n_windows + 1, device=device) * region_len // n_windows  # (M + 1,)
