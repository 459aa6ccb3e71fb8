"""The student, what is shipped: encoders, compressor, memory, decoder in one `PreTrainedModel`.

`CADStudent.from_pretrained(path)` and `save_pretrained(path)` read and write `config.json` and
`model.safetensors`. Shapes: B batch, T steps, L region length, R regions, M latents, D width,
P action parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ad.decoder import Decoder, DecoderState
from ad.model import (
    InContextModel,
    Output,
    Triple,
    build_step_encoder,
    seeded_part,
)
from ad.parts import beside_part, beside_parts, with_parts
from ad.student_config import StudentConfig
from compression.at_test import AtTest, NumberFormat
from compression.bottleneck import build_bottleneck
from compression.compressor import build_compressor, compressor_class
from compression.latents import Latents, check_latents
from compression.memory import build_memory
from compression.nested import random_prefixes
from compression.prediction import PredictionHead
from compression.reconstruction import (
    ReconstructionHead,
    build_reconstruction,
)
from nets.actions import ActionDistribution
from nets.embeddings import RawFeatures
from nets.matching import match, match_tokens
from nets.regions import Regions, Steps, padded
from nets.scaling import FieldScaling
from nets.spaces import FieldSpec
from nets.tokens import TOKENISATIONS


@dataclass
class StudentState:
    """What a student keeps while acting: its memory over regions and the current region's caches.

    Attributes:
        memory: Of `compression.memory`.
        decoder: Keys and values of latents and steps.
    """

    memory: Any
    decoder: DecoderState

    @property
    def n_bytes(self) -> int:
        """Bytes the decoder attends to, at full length; latents are held as keys and values."""
        return self.decoder.n_bytes


class CADStudent(InContextModel):
    """Compressor and decoder with their token encoders.

    The transition encoder and the bottleneck belong to the compressor Cθ: they are frozen with it.
    """

    config_class = StudentConfig
    base_model_prefix = "student"

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config)
        parts = config.student_parts
        observation = FieldSpec.from_json(config.observation)
        action = FieldSpec.from_json(config.action)
        width, n_latents = parts.model.d_model, parts.compressor.n_latents
        longest = self.longest_region
        region = {"d_model": width, "region_len": longest}
        tokens = TOKENISATIONS[parts.compressor.tokenisation]
        sizes = {**region, "n_heads": parts.model.n_heads}
        self.actions = ActionDistribution(action, squash=parts.model.squash_actions)
        self.scaling = FieldScaling(observation, action)
        self.raw_features = RawFeatures(observation, action)
        self.nested = parts.compressor.nested
        self.reads_raw = compressor_class(parts.compressor.kind).tokens == "raw"
        extra = {"n_features": self.raw_features.width} if self.reads_raw else {}
        with seeded_part("compressor"):
            read = longest if self.reads_raw else tokens.n_tokens(longest)
            self.compressor = build_compressor(
                parts.compressor, **{**sizes, "region_len": read}, **extra
            )
        with seeded_part("bottleneck"):
            self.bottleneck = build_bottleneck(parts.compressor, width)
        with seeded_part("transition_encoder"):
            self.transition_encoder = tokens(observation, action, width)
        with seeded_part("memory"):
            self.memory = build_memory(parts.memory, n_latents=n_latents, **region)
        self.memory.position(parts.compressor.latent_positions)
        with seeded_part("reconstruction"):
            self.reconstruction = build_reconstruction(
                observation, action, parts.reconstruction, n_latents=n_latents, **sizes
            )
        self.step_encoder = build_step_encoder(parts.model, observation, action, parts.decoder.sees)
        with seeded_part("decoder"):
            self.part_len = parts.compressor.online
            outputs = {"n_outputs": self.actions.n_parameters, "chunk_len": self.part_len}
            rotary = parts.compressor.latent_positions == "rotary"
            places = self.memory.places() if rotary else None
            self.decoder = Decoder(parts.decoder, places=places, **outputs, **sizes)
        if self.part_len:  # tells a region being filled from those before it
            self.unfinished = nn.Parameter(torch.randn(width) * 0.02)
        if parts.model.init == "matched":
            match_tokens(self.step_encoder, self.transition_encoder)
            for name in ("compressor", "bottleneck", "memory", "reconstruction", "decoder"):
                with seeded_part(f"matched {name}"):
                    match(getattr(self, name))
            addresses = self.compressor.addresses()
            if addresses is not None and not self.bottleneck.keeps_address:
                self.memory.place(addresses)
        self.n_context_regions = self.memory.n_regions
        self.n_latents = n_latents
        self.sees = parts.decoder.sees
        self.n_steps = parts.decoder.n_steps(min(self.part_len or longest, longest))
        self.post_init()

    @property
    def context_tokens(self) -> int:
        """Latent tokens read + L, or + n with `compressor.online`, or + 1 where a step is alone."""
        read = self.memory_regions + bool(self.part_len)
        return read * (self.n_latents or 0) + self.n_steps

    @property
    def memory_regions(self) -> int:
        """Regions whose worth of latents an action reads."""
        return self.memory.n_tokens // self.compressor.n_latents

    @property
    def compressor_modules(self) -> list[nn.Module]:
        """Cθ: compressor, bottleneck, and the transition encoder where it is read."""
        encoder = [] if self.reads_raw else [self.transition_encoder]
        return [self.compressor, self.bottleneck, *encoder]

    @property
    def idle_modules(self) -> list[nn.Module]:
        """The reconstruction head, and the transition encoder where raw features are read."""
        return [self.reconstruction, *([self.transition_encoder] if self.reads_raw else [])]

    def cut_down(self, *, n_shown: int | None, number: NumberFormat | None) -> None:
        """From now on show fewer latents, or coarser numbers; it can no longer be trained.

        Args:
            n_shown: Latents of a region that are shown; None for all.
            number: Format that they are rounded to; None for none.
        """
        self.bottleneck = AtTest(self.bottleneck, n_shown=n_shown, number=number)
        self.n_latents = n_shown or self.n_latents

    def compressor_parameters(self) -> list[nn.Parameter]:
        """Parameters of Cθ."""
        return [p for module in self.compressor_modules for p in module.parameters()]

    def fit_statistics(self, regions: Regions) -> None:
        """Fit scaling, and compressors without gradients, on training regions (N, L, ...)."""
        self.scaling.fit(regions)
        with torch.no_grad():
            self.compressor.fit(*self.compressor_tokens(regions))

    @torch.no_grad()
    def fit_bottleneck(self, regions: Regions) -> None:
        """Fit the bottleneck to the compressor as it is, on training regions (N, L, ...)."""
        self.eval()
        parts = [self.compressor(*self.compressor_tokens(r)).values for r in regions.chunks()]
        self.bottleneck.fit(Latents(torch.cat(parts)))

    def compressor_tokens(self, regions: Regions) -> tuple[Tensor, Tensor]:
        """Return what this student's compressor reads of regions, and its mask.

        Tokens (B, N, D) of T transitions, N as `compressor.tokenisation` makes them, or raw
        features (B, T, F).
        """
        scaled = self.scaling.regions(regions)
        if self.reads_raw:
            return self.raw_features(scaled), regions.mask
        return self.transition_encoder.read(scaled)

    def compress(self, regions: Regions, present: Tensor | None = None) -> Latents:
        """Return latents (B, M, D) of completed regions (B, T, ...).

        With nested latents, a student in training mode shows a random prefix of each row's: also
        where Cθ is frozen, for it is whoever reads them that has to cope with fewer.

        Args:
            regions: Fields (B, T, ...).
            present: (B,) bool; rows that stand for no region count in no loss, code or bit.
        """
        latents = self.compressor(*self.compressor_tokens(regions))
        rows = (len(regions.mask), self.compressor.n_latents, self.compressor.d_model)
        check_latents(self.compressor, latents, rows)
        if self.nested and self.training:
            latents = random_prefixes(latents)
        if present is None or not self.bottleneck.counts:
            return self._limited(latents, rows)
        shown = (latents.shown * present[:, None]).bool()
        limited = self._limited(replace(latents, mask=shown), rows)
        # Whoever reads a row that stands for nothing does so unseen, but must find something.
        return replace(limited, mask=limited.shown.bool() | ~present[:, None])

    def _limited(self, latents: Latents, rows: tuple[int, int, int]) -> Latents:
        limited = self.bottleneck(latents)
        check_latents(self.bottleneck, limited, rows)
        return limited

    def _recalled(self, state: Any, n: int) -> Latents:
        """What the memory shows in n rows: (n, `n_tokens`, D)."""
        read = self.memory.read(state)
        check_latents(self.memory, read, (n, self.memory.n_tokens, self.compressor.d_model))
        return read

    def reconstruct(
        self, latents: Latents, regions: Regions, head: ReconstructionHead | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L_rec of regions read from their latents, and each field's score.

        Fields are weighted by 1 / marginal uncertainty: guessing costs 1 (`FieldScaling`).

        Args:
            latents: (B, M, D).
            regions: Those they came from, (B, L, ...).
            head: Another head than the student's own.
        """
        head = head or self.reconstruction
        return head.loss(latents, self._raw_targets(regions), self.scaling.weights())

    def _raw_targets(self, regions: Regions) -> Regions:
        """Return regions as heads read them back: scaled, of full length."""
        return self.scaling.regions(padded(regions, self.longest_region))

    def new_prediction_head(self) -> PredictionHead:
        """Return a head for `predict`, which is no part of the student."""
        parts, specs = self.config.student_parts, self.reconstruction.specs
        head = PredictionHead(
            specs["observations"],
            specs["actions"],
            d_model=parts.model.d_model,
            n_heads=parts.model.n_heads,
            region_len=self.longest_region,
            n_latents=parts.compressor.n_latents,
        )
        if parts.model.init == "matched":
            match(head)
            for name in ("observation", "action"):
                encoder = getattr(self.transition_encoder, name)
                getattr(head, name).load_state_dict(encoder.state_dict())
        return head

    def predict(
        self, latents: Latents, regions: Regions, head: PredictionHead
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L_pred of later regions from latents, weighted as L_rec, and each field's score.

        Args:
            latents: (B, M, D) of earlier regions.
            regions: Those predicted, (B, L, ...).
            head: What predicts.
        """
        return head.loss(latents, self._raw_targets(regions), self.scaling.weights())

    def decode(self, query: Regions, latents: Latents) -> Tensor:
        """Return action parameters (B, T, P) at every step of current regions.

        Args:
            query: Current regions.
            latents: What the memory holds, (B, N, D).
        """
        return self.decoder.action_head(self.decode_hidden(query, latents))

    def decode_hidden(self, query: Regions, latents: Latents) -> Tensor:
        """Return what the actions are read from, (B, T, D), arguments as of `decode`."""
        tokens = self.step_encoder(self.scaling.steps(Steps.of(query)))
        return self.decoder.hidden(tokens, latents)

    def forward(self, batch: Triple) -> Output:
        """Compress every previous region, lead the memory over them, decode the current one."""
        regions, places, present = batch.each_once(self.n_context_regions)
        n_regions = len(present)
        if self.part_len:
            regions, present = with_parts(regions, present, batch.query, self.part_len)
        # What is not there is compressed too, unread: an empty mask would leave nothing to attend.
        regions.mask = regions.mask | ~present[:, None]
        every = self.compress(regions, present)
        _, has_context = batch.nearest(self.n_context_regions)
        state, nearest = self.memory.start(len(places)), every
        for k in range(self.n_context_regions):
            nearest = _at(every, places[:, k])
            state = self.memory.update(state, nearest, has_context[:, k])
        shown = self._recalled(state, len(places))
        if self.part_len:
            parts = _at(every, torch.arange(n_regions, len(present), device=present.device))
            n_steps = batch.query.mask.shape[1]
            shown = beside_parts(shown, parts, self._placed, self.part_len, n_steps)
        hidden = self.decode_hidden(batch.query, shown)
        parameters = self.decoder.action_head(hidden)
        return Output(parameters, nearest, every.losses, every.metrics, hidden=hidden)

    def _placed(self, part: Tensor) -> Tensor:
        """Return latents (n, M, D) of a region being filled as the decoder reads them."""
        return self.memory.placed(part) + self.unfinished

    def _begin(
        self,
        memory: Any,
        n: int,
        decoder: DecoderState | None = None,
        part: Latents | None = None,
    ) -> StudentState:
        """Begin a region of n streams, or the steps after a part, with what is read from now on."""
        shown = self._recalled(memory, n)
        at = 0 if decoder is None or part is None else decoder.at
        if self.part_len:
            shown = beside_part(shown, part, self._placed, self.compressor.n_latents)
        return StudentState(memory, self.decoder.start(shown, decoder, at))

    def start(self, n: int) -> StudentState:
        """Return n streams that have seen no region."""
        return self._begin(self.memory.start(n), n)

    def step(self, steps: Steps, state: StudentState) -> Tensor:
        """Return action parameters (n, P) for the next step."""
        token = self.step_encoder(self.scaling.steps(steps))
        return self.decoder.step(token, state.decoder)

    def border(self, region: Regions, state: StudentState) -> StudentState:
        """Compress a completed region (n, L, ...), drop it, and begin the next."""
        return self.remember(self.compress(region), state)

    def part(self, region: Regions, state: StudentState) -> StudentState:
        """Compress a region being filled as far as it is, (n, t, ...), and drop its steps."""
        return self.remember_part(self.compress(region), state)

    def remember_part(self, latents: Latents, state: StudentState) -> StudentState:
        """Show the latents (n, M, D) of a region being filled to the steps that follow."""
        return self._begin(state.memory, len(latents.values), state.decoder, latents)

    def remember(
        self, latents: Latents, state: StudentState, present: Tensor | None = None
    ) -> StudentState:
        """Take a region's latents (n, M, D) into the memory, where `present`; begin the next."""
        if present is None:
            present = latents.values.new_ones(len(latents.values), dtype=torch.bool)
        memory = self.memory.update(state.memory, latents, present)
        return self._begin(memory, len(latents.values), state.decoder)


def _at(latents: Latents, places: Tensor) -> Latents:
    """Return the latents (B, M, D) of regions `places` (B,) of those of (U, M, D)."""
    mask = None if latents.mask is None else latents.mask[places]
    return Latents(latents.values[places], mask, bits=latents.bits)
