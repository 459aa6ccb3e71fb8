"""Nested latents: any prefix of the m latents works, so that one checkpoint serves every m.

After nested dropout (Rippel et al. 2014). Hidden latents are masked: bottlenecks do not count them,
decoder and reconstruction do not read them. Shapes: B batch, M latents, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from compression.compressor import CompressorError
from compression.latents import Latents


def random_prefixes(latents: Latents) -> Latents:
    """Hide the last latents of every row at random: all are shown in half of the rows.

    The other half show 1 ... M − 1, each equally likely. Were M as rare as any other number, the
    latents would fall behind those trained at M alone.
    """
    rows, n_latents = latents.values.shape[:2]
    device = latents.values.device
    drawn = torch.randint(1, max(n_latents, 2), (rows,), device=device)
    whole = torch.rand(rows, device=device) < 0.5
    lengths = torch.where(whole, n_latents, drawn)
    return _first(latents, lengths[:, None])


def prefix(latents: Latents, n_shown: int) -> Latents:
    """Hide all but the first `n_shown` latents.

    Raises:
        CompressorError: There are fewer, or none is asked for.
    """
    n_latents = latents.values.shape[1]
    if not 1 <= n_shown <= n_latents:
        raise CompressorError(
            f"the first {n_shown} latents were asked for, expected 1 ... {n_latents}, "
            "compressor.n_latents; ask for fewer."
        )
    return _first(latents, n_shown)


def _first(latents: Latents, lengths: Tensor | int) -> Latents:
    """Show the first `lengths`, or (B, 1) of them, of each row, of those shown so far."""
    rows, n_latents = latents.values.shape[:2]
    mask = torch.arange(n_latents, device=latents.values.device).expand(rows, -1) < lengths
    return replace(latents, mask=mask if latents.mask is None else mask & latents.mask)
