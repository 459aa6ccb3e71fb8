"""The interface behind which every compressor stands, learned or baseline, and how one is built.

A compressor maps the tokens of a completed region to latents: `(tokens (B, T, D), mask (B, T)) ->
latents (B, M, D)`. Where the tokens come from is the student's business: learned transition tokens,
or, for compressors with `tokens = "raw"`, fixed raw features.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor, nn

from base.errors import UserError
from base.ranges import AtLeast, Between

KINDS = {
    "query_pooling": "compression.query_pooling:QueryPooling",
    "mean_pooling": "compression.mean_pooling:MeanPooling",
    "mean_pooling_encoded": "compression.mean_pooling:EncodedMeanPooling",
    "truncation": "compression.truncation:Truncation",
    "pca": "compression.pca:PCACompressor",
    "none": "compression.truncation:NoContext",
}


class CompressorError(UserError):
    """A compressor that cannot be built as asked."""


@dataclass(frozen=True)
class CompressorConfig:
    """Settings of a compressor.

    Attributes:
        kind: A key of `KINDS`, or the import path `module:Class` of a user's own compressor.
        n_latents: m, the number of latents; at most the region length.
        n_layers: Encoder layers, where the kind has an encoder.
        n_pooling_layers: Layers in which the latent queries attend to the hidden states.
        causal: Whether the encoder is causal instead of bidirectional.
        dropout: Probability on residual branches.
    """

    kind: str = "query_pooling"
    n_latents: Annotated[int, AtLeast(1)] = 8
    n_layers: Annotated[int, AtLeast(0)] = 2
    n_pooling_layers: Annotated[int, AtLeast(1)] = 1
    causal: bool = False
    dropout: Annotated[float, Between(0, 1, high_open=True)] = 0.0


class Compressor(nn.Module):
    """Base class: tokens of a region in, latents out.

    Attributes:
        tokens: `learned` (transition tokens of width d_model) or `raw`
            (`nets.embeddings.RawFeatures`).
        learns: Whether it has an encoder worth pretraining by reconstruction.
    """

    tokens: str = "learned"
    learns: bool = False

    def __init__(self, config: CompressorConfig, *, d_model: int, n_heads: int, region_len: int):
        super().__init__()
        if not 1 <= config.n_latents <= region_len:
            raise CompressorError(
                f"compressor.n_latents is {config.n_latents}, but a region of {region_len} "
                f"transitions can only be compressed to 1 ... {region_len} latents; change "
                "compressor.n_latents."
            )
        if d_model % n_heads:
            raise CompressorError(
                f"model.d_model {d_model} is no multiple of model.n_heads {n_heads}; change one of "
                "them."
            )
        self.n_latents = config.n_latents
        self.region_len = region_len
        self.d_model = d_model

    def fit(self, tokens: Tensor, mask: Tensor) -> None:
        """Fit what is not learned by gradient, on tokens (N, T, F) of training regions."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Map tokens (B, T, D or F) and their mask (B, T), True = attend, to latents (B, M, D)."""
        raise NotImplementedError


def compressor_class(kind: str) -> type[Compressor]:
    """Return the class of a kind: a key of `KINDS` or an import path `module:Class`.

    Raises:
        CompressorError: If there is no such class.
    """
    path = KINDS.get(kind, kind)
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CompressorError(
            f"compressor.kind {kind!r} is neither one of {', '.join(KINDS)} nor an import path "
            f"module:Class that can be imported ({error})."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Compressor)):
        raise CompressorError(f"compressor.kind {kind!r} names no subclass of Compressor.")
    return found


def build_compressor(config: CompressorConfig, **sizes: Any) -> Compressor:
    """Build the compressor a config asks for; `sizes` are `Compressor`'s keyword arguments."""
    return compressor_class(config.kind)(config, **sizes)
