"""The interface behind which every compressor stands, learned or baseline, and how one is built.

A compressor maps the tokens of a completed region to latents: `(tokens (B, T, D), mask (B, T)) ->
Latents (B, M, D)`. Where the tokens come from is the student's business: learned transition tokens,
or, for compressors with `tokens = "raw"`, fixed raw features. A bottleneck after it
(`compression.bottleneck`) may limit what the latents can hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Tensor, nn

from base.errors import UserError
from base.imports import ImportPathError, import_object
from base.ranges import AtLeast, Between
from compression.latents import Latents
from nets.positions import LatentPositions
from nets.tokens import Tokenisation

KINDS = {
    "query_pooling": "compression.query_pooling:QueryPooling",
    "patches": "compression.patches:Patches",
    "strided": "compression.strided:Strided",
    "hybrid": "compression.hybrid:Hybrid",
    "key_slots": "compression.key_slots:KeySlots",
    "mean_pooling": "compression.mean_pooling:MeanPooling",
    "mean_pooling_encoded": "compression.mean_pooling:EncodedMeanPooling",
    "truncation": "compression.truncation:Truncation",
    "pca": "compression.pca:PCACompressor",
    "none": "compression.truncation:NoContext",
}


class CompressorError(UserError):
    """A compressor, bottleneck or memory that cannot be built as asked."""


@dataclass(frozen=True)
class CompressorConfig:
    """Settings of a compressor.

    Attributes:
        kind: A key of `KINDS`, or the import path `module:Class` of a user's own compressor.
        n_latents: m, the number of latents; at most the region length.
        n_layers: Encoder layers, where the kind has an encoder; of `patches`, layers over the
            latents.
        n_pooling_layers: Layers in which the latent queries attend to the hidden states; of
            `strided`, steps from L states to m; of `key_slots`, layers behind the slots.
        causal: Whether the encoder is causal instead of bidirectional.
        dropout: Probability on residual branches.
        nested: Whether training hides the last latents of a row at random, so that any prefix of
            the m latents works.
        bottleneck: What limits the latents: `continuous` (nothing), `gaussian` (noise of fixed
            size), `vib` (noise of learned size), `fsq`, `vq` or `transform` (codes), or the import
            path `module:Class` of a user's own.
        tokenisation: What an encoder of regions reads: a token for each `transition`, for each
            `step` (an observation and what was before it), or `interleaved` ones of observation,
            action and reward.
        online: n; every n steps a region that is still being filled is compressed as far as it is,
            and its steps so far are dropped; the next n steps read those latents. 0 compresses
            whole regions alone.
        latent_positions: What tells latents apart besides their contents, in the latent queries
            and in the memory: positions spread over the region, `learned` from there on or `fixed`
            there, or `none`. With `rotary` the decoder's attention turns keys and queries by
            them, so that it sees how far back a latent lies.
        kwargs: Settings of the kind's own, checked by its class.
        bottleneck_kwargs: Settings of the bottleneck's own, checked by its class.
    """

    kind: str = "query_pooling"
    n_latents: Annotated[int, AtLeast(1)] = 8
    n_layers: Annotated[int, Between(0, 1000)] = 2
    n_pooling_layers: Annotated[int, Between(1, 1000)] = 1
    causal: bool = False
    dropout: Annotated[float, Between(0, 1, high_open=True)] = 0.0
    nested: bool = False
    bottleneck: str = "continuous"
    tokenisation: Tokenisation = "transition"
    online: Annotated[int, AtLeast(0)] = 0
    latent_positions: LatentPositions = "learned"
    kwargs: dict[str, Any] = field(default_factory=dict)
    bottleneck_kwargs: dict[str, Any] = field(default_factory=dict)


class Compressor(nn.Module):
    """Base class: tokens of a region in, latents out.

    Args:
        config: Settings; a class with settings of its own names them in `settings`.
        d_model: Width D.
        n_heads: Heads.
        region_len: Longest region, L, in tokens.

    Attributes:
        tokens: `learned` (transition tokens of width d_model) or `raw`
            (`nets.embeddings.RawFeatures`); then `n_features` is given too.
        learns: Whether it has an encoder worth pretraining by reconstruction.
        settings: Names and defaults of what `compressor.kwargs` may hold.
    """

    tokens: str = "learned"
    learns: bool = False
    settings: dict[str, Any] = {}  # noqa: RUF012  (read only, replaced by subclasses)

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
        self.kwargs = check_kwargs("compressor.kwargs", config.kwargs, self.settings)
        self.n_latents = config.n_latents
        self.region_len = region_len
        self.d_model = d_model

    def fit(self, tokens: Tensor, mask: Tensor) -> None:
        """Fit what is not learned by gradient, on tokens (N, T, F) of training regions."""

    def addresses(self) -> Tensor | None:
        """Return by what latents seek their contents, (M, D); None where nothing is sought.

        Matched memories add them to what they read: codes of few bits carry no address.
        """
        return None

    def forward(self, tokens: Tensor, mask: Tensor) -> Latents:
        """Map tokens (B, T, D or F) and their mask (B, T), True = attend, to latents (B, M, D).

        Padding trails a region's transitions; a row of the mask is never all False.
        """
        raise NotImplementedError


def check_kwargs(
    key: str, given: dict[str, Any], known: dict[str, Any], noun: str = "compressor"
) -> dict[str, Any]:
    """Return settings of a class's own with its defaults filled in.

    Raises:
        CompressorError: A key that the class does not know, or a value of another type.
    """
    for name, value in given.items():
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise CompressorError(
                f"{key}.{name}: this {noun} has no such setting; it knows: {allowed}."
            )
        kind = type(known[name])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise CompressorError(
                f"{key}.{name}: expected {kind.__name__}, got {value!r}; change {key}.{name}."
            )
    return {**known, **given}


def import_class(key: str, kind: str, kinds: dict[str, str], base: type) -> type:
    """Return the class of a kind: a key of `kinds` or an import path `module:Class`.

    Args:
        key: Of the configuration, for the message.
        kind: What was asked for.
        kinds: Import paths by short name.
        base: What the class must be derived from.

    Raises:
        CompressorError: If there is no such class.
    """
    try:
        found = import_object(kinds.get(kind, kind))
    except ImportPathError as error:
        raise CompressorError(
            f"{key} {kind!r} is neither one of {', '.join(kinds)} nor an import path: {error}."
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CompressorError(f"{key} {kind!r} names no subclass of {base.__name__}.")
    return found


def compressor_class(kind: str) -> type[Compressor]:
    """Return the class of a kind: a key of `KINDS` or an import path `module:Class`.

    Raises:
        CompressorError: If there is no such class.
    """
    return import_class("compressor.kind", kind, KINDS, Compressor)


def build_compressor(config: CompressorConfig, **sizes: Any) -> Compressor:
    """Build the compressor a config asks for; `sizes` are `Compressor`'s keyword arguments."""
    return compressor_class(config.kind)(config, **sizes)
