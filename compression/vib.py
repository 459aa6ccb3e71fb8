"""The variational information bottleneck: latents with noise whose size is learned."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from compression.bottleneck import Bottleneck
from compression.codes import CodeProjection, check_counts
from compression.latents import Latents

FIRST_STD = 0.1
"""Noise at first: little, so that there is something to learn from."""


class VariationalChannel(Bottleneck):
    """Each latent becomes `width` Gaussian numbers N(μ, σ²), of which a sample is sent.

    `capacity`, R(Z), is KL(N(μ, σ²) ‖ N(0, I)) in nats a region: its mean bounds the information
    between region and sample from above (Alemi et al. 2017, eq. 14), λ_cap is the price of one nat,
    and `bits` is nats / ln 2. Samples are sent when acting too: the bound holds for them, not for
    μ, which holds as many bits as its numbers have.
    """

    settings: dict[str, Any] = {"width": 16}  # noqa: RUF012
    has_capacity = True

    def __init__(self, kwargs: dict[str, Any], *, n_latents: int, d_model: int) -> None:
        super().__init__(kwargs, n_latents=n_latents, d_model=d_model)
        width = self.kwargs["width"]
        check_counts(width=width)
        self.code = CodeProjection(d_model, width, 2 * width)
        with torch.no_grad():
            self.code.down.bias[width:] += math.log(math.expm1(FIRST_STD))  # softplus' inverse

    def forward(self, latents: Latents) -> Latents:
        """Send a sample of the latents."""
        mean, spread = self.code.down(latents.values).float().chunk(2, dim=-1)  # (B, M, C)
        std = F.softplus(spread) + 1e-4
        nats = 0.5 * (mean.square() + std.square() - 1) - std.log()
        nats = (nats.sum(-1) * latents.shown).sum(1).mean()
        sample = mean + std * torch.randn_like(std)
        return latents.replaced(
            self.code.up(sample.to(latents.values)),
            losses={"capacity": nats},
            bits=nats.detach() / math.log(2),
        )
