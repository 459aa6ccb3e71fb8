"""Bottlenecks: what limits how much latents can hold. One stands behind every compressor.

A bottleneck maps a compressor's latents (B, M, D) to those the decoder reads; it may add losses and
says in how many bits a region is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compression.compressor import CompressorConfig, CompressorError, check_kwargs, import_class
from compression.latents import Latents

BOTTLENECKS = {
    "continuous": "compression.bottleneck:Continuous",
    "gaussian": "compression.bottleneck:GaussianChannel",
    "vib": "compression.vib:VariationalChannel",
    "fsq": "compression.fsq:FiniteScalars",
    "vq": "compression.vq:Codebook",
    "transform": "compression.transform:TransformCode",
}


class Bottleneck(nn.Module):
    """Base class: latents in, latents out.

    Args:
        kwargs: `compressor.bottleneck_kwargs`, checked against `settings`.
        n_latents: M.
        d_model: D.

    Attributes:
        settings: Names and defaults of what `compressor.bottleneck_kwargs` may hold.
        has_capacity: Whether it returns a loss `capacity`, R(Z), for λ_cap to act on.
        counts: Whether its losses, codes or bits depend on which latents are shown.
        n_codes: Codes there are, where latents are sent as such (`Latents.codes`); 0 elsewhere.
        keeps_address: Whether a latent still holds by what it sought its contents; a code does not.
        joint: Whether a code is about several latents, none of which can be left out.
    """

    settings: dict[str, Any] = {}  # noqa: RUF012  (read only, replaced by subclasses)
    has_capacity: bool = False
    counts: bool = True
    keeps_address: bool = True
    joint: bool = False
    n_codes: int = 0

    def __init__(self, kwargs: dict[str, Any], *, n_latents: int, d_model: int) -> None:
        super().__init__()
        self.kwargs = check_kwargs(
            "compressor.bottleneck_kwargs", kwargs, self.settings, "bottleneck"
        )

    @classmethod
    def is_fitted(cls, kwargs: dict[str, Any]) -> bool:
        """Return whether it comes behind a distilled compressor, which `fit` is called with.

        Args:
            kwargs: `compressor.bottleneck_kwargs`.
        """
        return bool(kwargs.get("fitted"))

    def forward(self, latents: Latents) -> Latents:
        """Map latents (B, M, D) to latents (B, M, D)."""
        raise NotImplementedError

    def fit(self, latents: Latents) -> None:
        """Fit it to a compressor that was trained without it: to latents (N, M, D) of regions."""

    def decoded(self, codes: Tensor) -> Tensor:
        """Return the latents (B, M, D) that were sent as codes (B, M, G); only with `n_codes`."""
        raise NotImplementedError


class Continuous(Bottleneck):
    """No limit but the numbers themselves."""

    counts = False

    def forward(self, latents: Latents) -> Latents:
        """Return the latents as they are."""
        return latents


class GaussianChannel(Bottleneck):
    """Latents pass a channel with additive Gaussian noise of fixed size, trained and acting alike.

    A linear map before the noise sets each number's power P, which is what the capacity term
    R(Z) = mean P / σ² acts on: behind a normalisation it could move nothing. With noise of variance
    σ² such a channel carries at most 1/2 log2(1 + P / σ²) bits a number (Shannon 1949); `bits` is
    their sum over a region's M x D numbers, P averaged over the batch. Latents that a mask hides
    count for nothing.
    """

    settings: dict[str, Any] = {"noise": 1.0}  # noqa: RUF012
    has_capacity = True

    def __init__(self, kwargs: dict[str, Any], *, n_latents: int, d_model: int) -> None:
        super().__init__(kwargs, n_latents=n_latents, d_model=d_model)
        if self.kwargs["noise"] <= 0:
            raise CompressorError(
                f"compressor.bottleneck_kwargs.noise is {self.kwargs['noise']}, expected more "
                "than 0; take compressor.bottleneck=continuous for none."
            )
        self.scale = nn.Linear(d_model, d_model)

    def forward(self, latents: Latents) -> Latents:
        """Scale, measure and add noise."""
        sent = self.scale(latents.values)
        noise = float(self.kwargs["noise"])
        shown = latents.shown  # (B, M)
        weights = shown / shown.sum(0).clamp_min(1)
        snr = torch.einsum("bm,bmd->md", weights, sent.square()) / noise**2
        used = shown.mean(0)[:, None]  # (M, 1)
        capacity = (used * snr).sum() / (used.sum() * snr.shape[1])
        bits = (used * 0.5 * torch.log2(1 + snr.detach())).sum()
        return latents.replaced(
            sent + noise * torch.randn_like(sent), losses={"capacity": capacity}, bits=bits
        )


def bottleneck_class(kind: str) -> type[Bottleneck]:
    """Return the class of a kind: a key of `BOTTLENECKS` or an import path `module:Class`.

    Raises:
        CompressorError: If there is no such class.
    """
    return import_class("compressor.bottleneck", kind, BOTTLENECKS, Bottleneck)


def before_fit(config: CompressorConfig) -> CompressorConfig:
    """Return the settings with which a compressor is trained before its bottleneck is fitted.

    Raises:
        CompressorError: There is no such bottleneck.
    """
    if not bottleneck_class(config.bottleneck).is_fitted(config.bottleneck_kwargs):
        return config
    return replace(config, bottleneck="continuous", bottleneck_kwargs={})


def build_bottleneck(config: CompressorConfig, d_model: int) -> Bottleneck:
    """Build the bottleneck that a compressor's config asks for."""
    cls = bottleneck_class(config.bottleneck)
    bottleneck = cls(config.bottleneck_kwargs, n_latents=config.n_latents, d_model=d_model)
    if config.nested and bottleneck.joint:
        raise CompressorError(
            f"compressor.nested hides latents, but bottleneck {config.bottleneck!r} with "
            f"{bottleneck.kwargs} codes several together; set compressor.nested=false."
        )
    return bottleneck
