"""Transform coding: a region's latents, coded together in a given number of bits."""

from __future__ import annotations

import heapq
from typing import Any

import torch
from torch import Tensor

from compression.bottleneck import Bottleneck
from compression.codes import FittedProjection
from compression.compressor import CompressorError
from compression.latents import Latents

MOST_BITS = 16
"""Of one component; more are as good as floats."""


class TransformCode(Bottleneck):
    """Principal components of a region's M x D numbers, each rounded to a number of levels.

    Components are those over training regions, standardised. Each gets a whole number b of bits,
    `bits` in all, one after the other where a bit takes most off the distortion, variance x 4^-b
    (reverse water-filling: Huang & Schultheiss 1963; Gersho & Gray 1992, ch. 8), and is rounded to
    2^b levels spaced evenly over [-1, 1] behind a tanh (Mentzer et al. 2023; Parker et al. 2024,
    section 3.2), with straight-through gradients. Back leads the least-squares map from the
    rounded ones. It is fitted to a compressor that was distilled without it; the maps are learned
    on from there, the levels stay.
    """

    settings: dict[str, Any] = {"bits": 32}  # noqa: RUF012
    counts = False
    joint = True
    levels: Tensor

    def __init__(self, kwargs: dict[str, Any], *, n_latents: int, d_model: int) -> None:
        super().__init__(kwargs, n_latents=n_latents, d_model=d_model)
        self.bits, size = self.kwargs["bits"], n_latents * d_model
        if not 1 <= self.bits <= MOST_BITS * size:
            raise CompressorError(
                f"compressor.bottleneck_kwargs.bits is {self.bits}, expected 1 ... "
                f"{MOST_BITS * size}, at most {MOST_BITS} for each number of {n_latents} latents; "
                "change compressor.bottleneck_kwargs.bits."
            )
        width = min(self.bits, size)
        self.register_buffer("levels", torch.ones(width))
        self.code = FittedProjection(1, size, width)  # of all latents as one

    @classmethod
    def is_fitted(cls, kwargs: dict[str, Any]) -> bool:
        """Always."""
        return True

    @torch.no_grad()
    def fit(self, latents: Latents) -> None:
        """Fit components, their levels and the way back to latents (N, M, D)."""
        values = latents.values.flatten(1)[:, None].float()  # (N, 1, M x D)
        variances = self.code.fit_down(values)[0]
        self.levels.copy_(2.0 ** torch.tensor(allotted(variances.tolist(), self.bits)))
        used = variances > 0
        scale = torch.where(used, variances, 1.0).rsqrt() * used
        self.code.to_code.mul_(scale.to(self.code.to_code))
        self.code.fit_up(self._rounded(values), values)

    def forward(self, latents: Latents) -> Latents:
        """Round the latents' components, and lead back."""
        with torch.autocast(latents.values.device.type, enabled=False):
            sent = self.code.up(self._rounded(latents.values.flatten(1)[:, None].float()))
        values = sent.to(latents.values).view_as(latents.values)
        return latents.replaced(values, bits=self.bits)

    def _rounded(self, values: Tensor) -> Tensor:
        """Return the rounded components (B, 1, C) of latents (B, 1, M x D)."""
        bounded = self.code.down(values).tanh()
        steps = self.levels - 1
        rounded = 2 * ((bounded + 1) / 2 * steps).round() / steps.clamp_min(1) - 1
        return (bounded + (rounded - bounded).detach()) * (steps > 0)


def allotted(variances: list[float], bits: int) -> list[int]:
    """Return the bits of each component, `bits` in all, where each takes most off the distortion.

    Args:
        variances: Of the components.
        bits: At most `MOST_BITS` for each.
    """
    found = [0] * len(variances)
    queue = [(-variance, i) for i, variance in enumerate(variances)]
    heapq.heapify(queue)
    for _ in range(bits):
        distortion, i = heapq.heappop(queue)
        found[i] += 1
        if found[i] < MOST_BITS:
            heapq.heappush(queue, (distortion / 4, i))
    return found
