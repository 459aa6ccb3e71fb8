"""Positions of tokens and latents inside a region."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

LatentPositions = Literal["learned", "fixed", "rotary", "none"]
"""What tells latents of a region apart besides their contents."""


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return the sinusoidal encoding (N, width) of real positions, after Vaswani et al. 2017, §3.5.

    Args:
        positions: (N,) in tokens; fractions are allowed.
        width: D, even.
    """
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2) / width)  # (D/2,)
    angles = positions[:, None].float() * frequencies  # (N, D/2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def spread(n_latents: int, region_len: int) -> Tensor:
    """Return the centres (n_latents,) of equal chunks of a region, in tokens."""
    return (torch.arange(n_latents) + 0.5) * region_len / n_latents


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Turn keys or queries by their positions, so that products depend on distances alone.

    Rotary encoding of Su et al. 2021 (arXiv 2104.09864), §3.2.2, pairs being the two halves of K.

    Args:
        x: (B, H, N, K), K even.
        positions: (N,) in steps; fractions and negative ones are allowed.

    Returns:
        (B, H, N, K).
    """
    sines, cosines = sinusoids(positions, x.shape[-1]).to(x).chunk(2, dim=-1)  # (N, K/2) each
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)


def settle(module: nn.Module, name: str, kind: LatentPositions) -> None:
    """Leave a parameter `name` of positions to be learned, keep it as it is, or put zeros there.

    What is not learned is no parameter. Rotary positions are told where latents are attended to.
    """
    if kind == "learned":
        return
    values = getattr(module, name).detach().clone()
    delattr(module, name)
    values = values if kind == "fixed" else torch.zeros_like(values)
    module.register_buffer(name, values)
