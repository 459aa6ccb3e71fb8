"""IDT, the in-context decision transformer: decisions over chunks of steps, actions within them.

After Huang et al. 2024 (arXiv 2405.20692). Three parts: *making decisions*, a causal transformer
over the observation at the start of every chunk of c steps and what has become of the earlier ones;
*decisions to go*, a small causal transformer over the steps of one chunk behind its decision; and
*reviewing decisions*, which makes one token of a chunk that is over, from its observations, actions
and rewards. The sequence is 2 / c times as long as that of a token a step. Returns to go, which the
paper conditions on, are left out: histories that improve take their place, as for every raw-context
model here. Shapes: B rows, n streams, R regions, L region length, c chunk length, K = L / c chunks
of a region, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ad.model import InContextModel, Output, Triple, build_step_encoder, seeded_part
from nets.actions import ActionDistribution
from nets.attention import KeyValueCache
from nets.embeddings import FieldEncoder
from nets.matching import match
from nets.regions import Regions, Steps, stack_regions
from nets.scaling import FieldScaling
from nets.spaces import FieldSpec
from nets.transformer import Transformer
from teacher.model import TeacherError, TeacherModelConfig, check_transitions

CHUNK_LEN = 5
"""c at most, without being told: the largest such that divides a region."""
LEAST_LAYERS = 3


@dataclass
class IDTState:
    """What an IDT keeps while acting.

    Attributes:
        regions: The last R completed regions, the newest last.
        high: Caches of what decisions are made from.
        low: Caches of the open chunk.
        lived: Tokens (n, 1, D) of the open chunk's steps that are over, its reviews to be.
        waiting: The last step's observation, encoded, whose action is not known yet.
        time: Steps in the open region.
    """

    regions: list[Regions]
    high: list[KeyValueCache]
    low: list[KeyValueCache]
    lived: list[Tensor]
    waiting: Tensor | None = None
    time: int = 0

    @property
    def n_bytes(self) -> int:
        """Bytes of keys and values at full length."""
        return sum(cache.n_bytes for cache in [*self.high, *self.low])


class IDT(InContextModel):
    """Makes a decision every c steps, and takes the actions that follow from it."""

    config_class = TeacherModelConfig
    base_model_prefix = "idt"

    def __init__(self, config: TeacherModelConfig) -> None:
        super().__init__(config)
        model, settings, width = config.sizes, config.settings, config.sizes.d_model
        self.chunk_len = _chunk_len(config)
        self.n_chunks = config.region_len // self.chunk_len
        fields = FieldSpec.from_json(config.observation), FieldSpec.from_json(config.action)
        self.n_context_regions = settings.n_context_regions
        self.actions = ActionDistribution(fields[1], squash=model.squash_actions)
        self.scaling = FieldScaling(*fields)
        self.step_encoder = build_step_encoder(model, *fields)
        with seeded_part("transition_encoder"):
            self.observation = FieldEncoder(fields[0], width)
            self.action = FieldEncoder(fields[1], width)
            self.scalars = nn.Linear(2, width)  # reward, end of the episode
        self.kinds = nn.Parameter(torch.randn(2, width) * width**-0.5)  # asked, reviewed
        self.no_context = nn.Parameter(torch.randn(width) * 0.02)
        n_tokens = 2 * self.n_chunks * (self.n_context_regions + 1)
        self.positions = nn.Parameter(torch.randn(n_tokens, width) * width**-0.5)
        self.places = nn.Parameter(torch.randn(self.chunk_len + 1, width) * width**-0.5)
        blocks = {"d_model": width, "n_heads": model.n_heads, "dropout": settings.dropout}
        self.review = Transformer(n_layers=1, **blocks)
        self.decide = Transformer(n_layers=settings.n_layers - 2, **blocks)
        self.act = Transformer(n_layers=1, **blocks)
        self.action_head = nn.Linear(width, self.actions.n_parameters)
        if model.init == "matched":
            self.observation.load_state_dict(self.step_encoder.observation.state_dict())
            for name in ("review", "decide", "act"):
                with seeded_part(f"matched {name}"):
                    match(getattr(self, name))
        self.post_init()

    @property
    def context_tokens(self) -> int:
        """2 (R + 1) L / c, and the c + 1 of a chunk."""
        return len(self.positions) + self.chunk_len + 1

    def fit_statistics(self, regions: Regions) -> None:
        """Fit the scaling on training regions (N, L, ...)."""
        self.scaling.fit(regions)

    def forward(self, batch: Triple) -> Output:
        """Return action parameters (B, L, P) at the current steps."""
        past = self._past(*batch.nearest(self.n_context_regions))
        now, n_past = self._chunks(batch.query), past.shape[1]
        x = torch.cat([past, now], dim=1)
        decisions = self.decide(x + self.positions, is_causal=True)[:, n_past::2]  # (B, K, D)
        steps = self.step_encoder(self.scaling.steps(Steps.of(batch.query)))
        chunks = steps.unflatten(1, (self.n_chunks, self.chunk_len)).flatten(0, 1)  # (B K, c, D)
        x = torch.cat([decisions.flatten(0, 1)[:, None], chunks], dim=1) + self.places
        hidden = self.act(x, is_causal=True)[:, 1:].reshape(steps.shape)
        return Output(self.action_head(hidden), hidden=hidden)

    def start(self, n: int) -> IDTState:
        """Return n streams that have lived nothing."""
        high = self.decide.new_caches(n, len(self.positions))
        low = self.act.new_caches(n, self.chunk_len + 1)
        absent = self.no_context.expand(n, 2 * self.n_chunks * self.n_context_regions, -1)
        return self._begin(absent, IDTState([], high, low, []))

    def take(self, region: Regions, state: IDTState) -> IDTState:
        """Keep a completed region (n, L, ...), forget the oldest."""
        return replace(state, regions=[*state.regions, region][-self.n_context_regions :])

    def border(self, region: Regions, state: IDTState) -> IDTState:
        """Review a completed region (n, L, ...), and begin the next."""
        state = self.take(region, state)
        missing = self.n_context_regions - len(state.regions)
        # Those that are missing are not read, whatever stands in their place.
        context = stack_regions([state.regions[0]] * missing + state.regions)
        present = torch.arange(self.n_context_regions, device=region.mask.device) >= missing
        return self._begin(self._past(context, present.expand(len(region.mask), -1)), state)

    def step(self, steps: Steps, state: IDTState) -> Tensor:
        """Return action parameters (n, P) for the next step; every c-th makes a decision."""
        steps = self.scaling.steps(steps)
        if state.waiting is not None:  # what followed is known now
            scalars = torch.stack([steps.previous_rewards, steps.starts.float()], dim=-1)
            acted = self.action(steps.previous_actions) + self.scalars(scalars)
            state.lived.append(state.waiting + acted)
        state.waiting = seen = self.observation(steps.observations)
        if state.time % self.chunk_len == 0:
            if state.time:
                lived = torch.cat(state.lived, dim=1)
                there = torch.ones(lived.shape[:2], dtype=torch.bool, device=lived.device)
                self._decide(self._reviewed(lived, there)[:, None] + self.kinds[1], state)
                state.lived = []
            decision = self._decide(seen + self.kinds[0], state)
            for cache in state.low:
                cache.rewind()
            self.act(decision + self.places[0], caches=state.low)
        state.time += 1
        token = self.step_encoder(steps) + self.places[state.low[0].length]
        return self.action_head(self.act(token, caches=state.low)[:, 0])

    def _begin(self, past: Tensor, state: IDTState) -> IDTState:
        for cache in state.high:
            cache.rewind()
        self.decide(past + self.positions[: past.shape[1]], is_causal=True, caches=state.high)
        return IDTState(state.regions, state.high, state.low, [])

    def _decide(self, token: Tensor, state: IDTState) -> Tensor:
        """Add a token (n, 1, D) to what decisions are made from; return what is decided."""
        return self.decide(token + self.positions[state.high[0].length], caches=state.high)

    def _past(self, context: Regions, has_context: Tensor) -> Tensor:
        """Return the tokens (B, 2 R K, D) of past regions (B, R, L, ...)."""
        tokens = self._chunks(context.map(lambda field: field.flatten(0, 1)))  # (B R, 2 K, D)
        there = context.mask.unflatten(2, (self.n_chunks, self.chunk_len)).any(3)  # (B, R, K)
        there = (there & has_context[..., None]).repeat_interleave(2, dim=2).flatten(1)
        return torch.where(there[..., None], tokens.reshape(*there.shape, -1), self.no_context)

    def _chunks(self, regions: Regions) -> Tensor:
        """Return what is asked and what was reviewed of every chunk in turn, (B, 2 K, D)."""
        scaled, shape = self.scaling.regions(regions), (self.n_chunks, self.chunk_len)
        seen = self.observation(scaled.observations)
        scalars = torch.stack([scaled.rewards, regions.ended.float()], dim=-1)
        lived = seen + self.action(scaled.actions) + self.scalars(scalars)  # (B, L, D)
        mask = regions.mask.unflatten(1, shape).flatten(0, 1)
        reviewed = self._reviewed(lived.unflatten(1, shape).flatten(0, 1), mask)
        asked = seen[:, :: self.chunk_len]  # (B, K, D)
        pairs = torch.stack([asked, reviewed.view_as(asked)], dim=2) + self.kinds
        return pairs.flatten(1, 2)

    def _reviewed(self, lived: Tensor, mask: Tensor) -> Tensor:
        """Return one token (N, D) of chunks (N, c, D); of those without a step, whatever."""
        attend = mask | ~mask.any(1, keepdim=True)
        hidden = self.review(lived + self.places[1:], mask=attend)
        return (hidden * attend[..., None]).sum(1) / attend.sum(1, keepdim=True)


def _chunk_len(config: TeacherModelConfig) -> int:
    settings = config.settings
    usual = max(c for c in range(1, CHUNK_LEN + 1) if config.region_len % c == 0)
    kwargs = {"chunk_len": usual, **settings.kwargs}
    chunk_len = kwargs.pop("chunk_len")
    if kwargs:
        raise TeacherError(f"teacher.kwargs: IDT knows chunk_len alone, got {settings.kwargs}.")
    if type(chunk_len) is not int or chunk_len < 1 or config.region_len % chunk_len:
        raise TeacherError(
            f"teacher.kwargs.chunk_len is {chunk_len!r}, but a region of {config.region_len} steps "
            f"is to be cut into equal chunks; give a divisor of {config.region_len}."
        )
    check_transitions(settings, "IDT reviews chunks of transitions")
    if config.longest_region > config.region_len:
        raise TeacherError(
            "sampling.jitter is above 0, but IDT cuts regions of one length into chunks; set it to "
            "0, or leave idt out."
        )
    if settings.sees != "region":
        raise TeacherError(
            f"teacher.sees is {settings.sees!r}, but IDT decides for steps that follow each other; "
            "set it to region, or name the method idt, which does."
        )
    if settings.n_layers < LEAST_LAYERS:
        raise TeacherError(
            f"teacher.n_layers is {settings.n_layers}, but IDT needs {LEAST_LAYERS} at least: one "
            "to review, one to act, the others to decide."
        )
    return chunk_len
