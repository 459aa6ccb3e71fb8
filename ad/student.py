"""The student, what is shipped: encoders, compressor, decoder in one `PreTrainedModel`.

`CADStudent.from_pretrained(path)` and `save_pretrained(path)` read and write `config.json` and
`model.safetensors`. Shapes: B batch, T steps, L region length, M latents, D width, P action
parameters.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ad.decoder import Decoder, DecoderConfig, DecoderState
from base.ranges import AtLeast
from compression.compressor import CompressorConfig, build_compressor, compressor_class
from compression.reconstruction import ReconstructionConfig, ReconstructionHead
from nets.actions import ActionDistribution
from nets.embeddings import RawFeatures, Regions, StepEncoder, TransitionEncoder
from nets.spaces import FieldSpec


@dataclass(frozen=True)
class ModelConfig:
    """Sizes shared by student and teacher.

    Attributes:
        d_model: Width D of tokens and latents.
        n_heads: Attention heads; must divide d_model.
    """

    d_model: Annotated[int, AtLeast(2)] = 64
    n_heads: Annotated[int, AtLeast(1)] = 4

    def __post_init__(self) -> None:
        """Refuse sizes that no layer can be built with."""
        if self.d_model % self.n_heads or self.d_model % 2:
            raise ValueError(
                f"d_model is {self.d_model} and n_heads {self.n_heads}, expected an even d_model "
                "that is a multiple of n_heads"
            )


@dataclass(frozen=True)
class StudentParts:
    """Everything a student is built from: the sections of a run's configuration that concern it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


class StudentConfig(PretrainedConfig):
    """What is stored in a student's `config.json`.

    Args:
        observation: Observation field, `FieldSpec.to_json()`.
        action: Action field, likewise.
        region_len: L, transitions in a region.
        parts: Nested settings, `dataclasses.asdict(StudentParts)`.
        provenance: Where the weights come from (method, split identity, task family); free form.
        kwargs: Passed to transformers.
    """

    model_type = "cad-student"

    def __init__(
        self,
        observation: dict[str, Any] | None = None,
        action: dict[str, Any] | None = None,
        region_len: int = 80,
        parts: dict[str, Any] | None = None,
        provenance: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.observation = observation or FieldSpec("classes", (), (2,)).to_json()
        self.action = action or FieldSpec("classes", (), (2,)).to_json()
        self.region_len = region_len
        self.parts = parts or asdict(StudentParts())
        self.provenance = provenance or {}
        super().__init__(**kwargs)

    @property
    def student_parts(self) -> StudentParts:
        """The nested settings as dataclasses."""
        return StudentParts(
            ModelConfig(**self.parts["model"]),
            CompressorConfig(**self.parts["compressor"]),
            ReconstructionConfig(**self.parts["reconstruction"]),
            DecoderConfig(**self.parts["decoder"]),
        )


class CADStudent(PreTrainedModel):
    """Compressor and decoder with their token encoders.

    The transition encoder belongs to the compressor Cθ: it is frozen with it.
    """

    config_class = StudentConfig
    base_model_prefix = "student"

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config)
        parts = config.student_parts
        observation = FieldSpec.from_json(config.observation)
        action = FieldSpec.from_json(config.action)
        sizes = {
            "d_model": parts.model.d_model,
            "n_heads": parts.model.n_heads,
            "region_len": config.region_len,
        }
        self.actions = ActionDistribution(action)
        self.raw_features = RawFeatures(observation, action)
        is_raw = compressor_class(parts.compressor.kind).tokens == "raw"
        extra = {"n_features": self.raw_features.width} if is_raw else {}
        self.compressor = build_compressor(parts.compressor, **sizes, **extra)
        self.transition_encoder = TransitionEncoder(observation, action, parts.model.d_model)
        self.reconstruction = ReconstructionHead(observation, action, parts.reconstruction, **sizes)
        self.step_encoder = StepEncoder(observation, action, parts.model.d_model)
        self.decoder = Decoder(parts.decoder, n_outputs=self.actions.n_parameters, **sizes)
        self.no_context = nn.Parameter(
            torch.randn(parts.compressor.n_latents, parts.model.d_model) * 0.02
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keep what each module's constructor drew."""

    @property
    def region_len(self) -> int:
        """L."""
        return self.config.region_len

    def compressor_tokens(self, context: Regions) -> Tensor:
        """Return what this student's compressor reads of regions: (B, T, D) or raw (B, T, F)."""
        if self.compressor.tokens == "raw":
            return self.raw_features(context)
        return self.transition_encoder(context)

    def compress(self, context: Regions, has_context: Tensor | None = None) -> Tensor:
        """Return latents (B, M, D) of completed regions.

        Args:
            context: Previous regions.
            has_context: (B,) bool; where False the learned "no context" latents are returned
                instead.
        """
        latents = self.compressor(self.compressor_tokens(context), context.mask)
        if has_context is None:
            return latents
        return torch.where(has_context[:, None, None], latents, self.empty_latents(len(latents)))

    def empty_latents(self, batch: int) -> Tensor:
        """Return the learned "no context" latents (B, M, D)."""
        return self.no_context.expand(batch, -1, -1)

    def decode(self, query: Regions, latents: Tensor) -> Tensor:
        """Return action parameters (B, T, P) at every step of current regions."""
        return self.decoder(self.step_encoder(query), latents)

    def forward(
        self, context: Regions, has_context: Tensor, query: Regions
    ) -> tuple[Tensor, Tensor]:
        """Return action parameters (B, T, P) and latents (B, M, D)."""
        latents = self.compress(context, has_context)
        return self.decode(query, latents), latents

    def start(self, latents: Tensor, state: DecoderState | None = None) -> DecoderState:
        """Begin acting in a new region; see `Decoder.start`."""
        return self.decoder.start(latents, state)

    def step(self, token: Tensor, state: DecoderState) -> Tensor:
        """Return action parameters (B, P) for the next step token (B, 1, D)."""
        return self.decoder.step(token, state)

    def compressor_parameters(self) -> list[nn.Parameter]:
        """Parameters of Cθ: compressor and transition encoder."""
        return [*self.compressor.parameters(), *self.transition_encoder.parameters()]
