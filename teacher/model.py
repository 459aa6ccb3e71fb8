"""The full-context teacher: marker-based AD over raw previous regions and the current one.

The sequence is `<compress> X </compress>` for each of R previous regions (R = 1 for the teacher,
more for long-context AD), then `<compress>` and the current region's step tokens. Every token has a
type (0 transition, 1 start, 2 end); the action head is read at the current region's steps, the
token-type head predicts the next token's type everywhere. L_T = CE(action) + 0.1 · CE(token type).
With `sees: step` every step of the current region stands right behind `<compress>`, unseen by the
others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ad.losses import auxiliary_loss, masked_mean
from ad.model import (
    InContextConfig,
    InContextModel,
    ModelConfig,
    Output,
    Triple,
    build_step_encoder,
    seeded_part,
)
from ad.objectives import LABELS_NAME
from ad.queries import Questions, answers
from base.errors import UserError
from base.imports import ImportPathError, import_object
from base.ranges import AtLeast, Between
from nets.actions import ActionDistribution
from nets.attention import KeyValueCache
from nets.embeddings import Sees
from nets.matching import match, match_tokens
from nets.regions import Regions, Steps, padded, stack_regions
from nets.scaling import FieldScaling
from nets.spaces import FieldSpec
from nets.tokens import TOKENISATIONS, Tokenisation
from nets.transformer import Transformer
from training.config import config_of

TRANSITION, START, END = 0, 1, 2


class TeacherError(UserError):
    """A raw-context model that cannot be built as asked."""


@dataclass(frozen=True)
class TeacherConfig:
    """Settings of a raw-context model.

    Attributes:
        target: Import path `module:Class` of an `ad.model.InContextModel` that is built from a
            `TeacherModelConfig`.
        n_layers: Blocks.
        n_context_regions: R, raw previous regions it sees.
        dropout: Probability on residual branches.
        token_type_weight: Weight of the token-type loss.
        sees: What it has besides the previous regions: `region`, the current one up to now, or
            `step`, the current observation alone, as a student may (`decoder.sees`).
        tokenisation: What it reads of previous regions, as `compressor.tokenisation`.
        kwargs: Settings of the target's own, checked by its class.
    """

    target: str = "teacher.model:TeacherModel"
    n_layers: Annotated[int, Between(1, 1000)] = 4
    n_context_regions: Annotated[int, AtLeast(1)] = 1
    dropout: Annotated[float, Between(0, 1, high_open=True)] = 0.0
    token_type_weight: Annotated[float, AtLeast(0)] = 0.1
    sees: Sees = "region"
    tokenisation: Tokenisation = "transition"
    kwargs: dict[str, Any] = field(default_factory=dict)


class TeacherModelConfig(InContextConfig):
    """What is stored in a teacher's `config.json`; see `InContextConfig`."""

    model_type = "cad-teacher"

    def __init__(
        self,
        observation: dict[str, Any] | None = None,
        action: dict[str, Any] | None = None,
        region_len: int = 80,
        model: dict[str, Any] | None = None,
        teacher: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.model = model or asdict(ModelConfig())
        self.teacher = teacher or asdict(TeacherConfig())
        super().__init__(observation, action, region_len, **kwargs)

    @property
    def sizes(self) -> ModelConfig:
        """`model` as a dataclass; raises ConfigError where a value is out of its range."""
        return config_of(ModelConfig, self.model, "config.json: model")

    @property
    def settings(self) -> TeacherConfig:
        """`teacher` as a dataclass; raises ConfigError likewise."""
        return config_of(TeacherConfig, self.teacher, "config.json: teacher")

    @property
    def foreign_code(self) -> dict[str, str]:
        """None: nothing is imported that config.json names; whoever loads it knows the class."""
        return {}


@dataclass
class RawState:
    """What a raw-context model keeps while acting.

    Attributes:
        regions: The last R completed regions, the newest last.
        caches: Each block's keys and values of all tokens so far.
    """

    regions: list[Regions]
    caches: list[KeyValueCache]

    @property
    def n_bytes(self) -> int:
        """Bytes of the keys and values at full length."""
        return sum(cache.n_bytes for cache in self.caches)


class TeacherModel(InContextModel):
    """A causal transformer over raw regions and markers."""

    config_class = TeacherModelConfig
    base_model_prefix = "teacher"

    def __init__(self, config: TeacherModelConfig) -> None:
        super().__init__(config)
        model, settings = config.sizes, config.settings
        observation = FieldSpec.from_json(config.observation)
        action = FieldSpec.from_json(config.action)
        width, region = model.d_model, self.longest_region
        self.n_context_regions = settings.n_context_regions
        self.actions = ActionDistribution(action, squash=model.squash_actions)
        self.scaling = FieldScaling(observation, action)
        with seeded_part("transition_encoder"):
            tokens = TOKENISATIONS[settings.tokenisation]
            self.transition_encoder = tokens(observation, action, width)
        self.step_encoder = build_step_encoder(model, observation, action, settings.sees)
        self.token_types = nn.Embedding(3, width)
        self.no_context = nn.Parameter(torch.randn(width) * 0.02)
        self.sees = settings.sees
        self.region_tokens = tokens.n_tokens(region)
        self.context_len = settings.n_context_regions * (self.region_tokens + 2) + 1
        self.sequence_len = self.context_len + (region if self.sees == "region" else 1)
        self.build_positions()
        self.layers: Any = self.build_layers(config)
        self.action_head = nn.Linear(width, self.actions.n_parameters)
        self.token_type_head = nn.Linear(width, 3)
        nn.init.normal_(self.token_types.weight, std=width**-0.5)
        if model.init == "matched":
            match_tokens(self.step_encoder, self.transition_encoder)
            with seeded_part("matched layers"):
                match(self.layers)
        self.post_init()

    def build_positions(self) -> None:
        """Draw what is added to the tokens of a sequence, (sequence_len, D)."""
        width = self.config.sizes.d_model
        self.positions = nn.Parameter(torch.randn(self.sequence_len, width) * width**-0.5)

    def build_layers(self, config: TeacherModelConfig) -> nn.Module:
        """Build the causal blocks; raises TeacherError where `teacher.kwargs` are not known."""
        model, settings = config.sizes, config.settings
        if settings.kwargs:
            raise TeacherError(f"teacher.kwargs: this model knows none, got {settings.kwargs}.")
        return Transformer(
            model.d_model, model.n_heads, settings.n_layers, dropout=settings.dropout
        )

    @property
    def context_tokens(self) -> int:
        """R (N + 2) + 1 + L, or + 1 for a step alone; of L transitions N = L tokens are made."""
        return self.sequence_len

    @property
    def idle_modules(self) -> list[nn.Module]:
        """The token-type head."""
        return [self.token_type_head]

    def fit_statistics(self, regions: Regions) -> None:
        """Fit the scaling on training regions (N, L, ...)."""
        self.scaling.fit(regions)

    def token_type_targets(self) -> Tensor:
        """Return the types (sequence_len,) of all tokens of a full sequence."""
        region = [START] + [TRANSITION] * self.region_tokens + [END]
        types = region * self.n_context_regions + [START] + [TRANSITION] * self.longest_region
        return torch.tensor(types[: self.sequence_len], device=self.no_context.device)

    def tokens_before(self, context: Regions, has_context: Tensor) -> Tensor:
        """Return the tokens before the current region's steps, without positions.

        Args:
            context: Fields (B, R, L, ...).
            has_context: (B, R) bool; the tokens of a missing region, and of the padding of a short
                one, are one learned vector.

        Returns:
            (B, R (N + 2) + 1, D), N tokens being made of L transitions.
        """
        batch, regions = has_context.shape
        flat = padded(context.map(lambda field: field.flatten(0, 1)), self.longest_region)
        tokens, there = self.transition_encoder.read(self.scaling.regions(flat))
        there = there.unflatten(0, (batch, regions))
        tokens = tokens + self.token_types.weight[TRANSITION]
        start = self.token_types.weight[START].expand(batch * regions, 1, -1)
        end = self.token_types.weight[END].expand(batch * regions, 1, -1)
        tokens = torch.cat([start, tokens, end], dim=1).view(batch, regions, -1, start.shape[-1])
        present = F.pad(there, (1, 1), value=True) & has_context[..., None]  # (B, R, L + 2)
        tokens = torch.where(present[..., None], tokens, self.no_context)
        return torch.cat([tokens.flatten(1, 2), start[:batch]], dim=1)

    def hidden(self, batch: Triple) -> Tensor:
        """Return hidden states (B, R (L + 2) + 1 + L, D) of a batch with at least R regions."""
        before = self.tokens_before(*batch.nearest(self.n_context_regions))
        steps = self._step_tokens(Steps.of(batch.query))
        x = torch.cat([before, steps], dim=1)
        if self.sees == "region":
            return self.layers(x + self.positions[: x.shape[1]], is_causal=True)
        places = torch.arange(x.shape[1], device=x.device)
        attend = (places <= places[:, None]) & (places < self.context_len)  # (T, T)
        attend = attend | (places == places[:, None])
        x = x + self.positions[places.clamp_max(self.context_len)]
        return self.layers(x, mask=attend[None])

    def forward(self, batch: Triple) -> Output:
        """Return action parameters (B, L, P) at the current steps, and the token-type loss."""
        hidden = self.hidden(batch)
        targets = self.token_type_targets()[1 : hidden.shape[1] + 1].expand(len(hidden), -1)
        logits = self.token_type_head(hidden[:, : targets.shape[1]])
        types = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        of_steps = hidden[:, self.context_len :]
        losses = {"token_type_nll": types}
        return Output(self.action_head(of_steps), losses=losses, hidden=of_steps)

    def start(self, n: int) -> RawState:
        """Return n streams without a region."""
        absent = self.no_context.expand(n, self.n_context_regions * (self.region_tokens + 2), -1)
        marker = self.token_types.weight[START].expand(n, 1, -1)
        state = RawState([], self.layers.new_caches(n, self.sequence_len))
        return self._begin(torch.cat([absent, marker], dim=1), state)

    def border(self, region: Regions, state: RawState) -> RawState:
        """Keep a completed region (n, L, ...) raw, and run the context through the caches anew."""
        state = self.take(region, state)
        regions = state.regions
        missing = self.n_context_regions - len(regions)
        # Those that are missing are not read, whatever stands in their place.
        context = stack_regions([regions[0]] * missing + regions)
        present = torch.arange(self.n_context_regions, device=region.mask.device) >= missing
        before = self.tokens_before(context, present.expand(len(region.mask), -1))
        return self._begin(before, state)

    def take(self, region: Regions, state: RawState) -> RawState:
        """Keep a completed region (n, L, ...) raw."""
        return RawState([*state.regions, region][-self.n_context_regions :], state.caches)

    def step(self, steps: Steps, state: RawState) -> Tensor:
        """Return action parameters (n, P) for the next step."""
        if self.sees == "step":
            for cache in state.caches:
                cache.rewind(self.context_len)
        x = self._step_tokens(steps) + self.positions[state.caches[0].length]
        return self.action_head(self.layers(x, caches=state.caches)[:, 0])

    def _step_tokens(self, steps: Steps) -> Tensor:
        tokens = self.step_encoder(self.scaling.steps(steps))
        return tokens + self.token_types.weight[TRANSITION]

    def _begin(self, before: Tensor, state: RawState) -> RawState:
        for cache in state.caches:
            cache.rewind()
        before = before + self.positions[: self.context_len]
        self.layers(before, is_causal=True, caches=state.caches)
        return state


def check_transitions(settings: TeacherConfig, because: str) -> None:
    """Refuse other tokens than transitions; raises TeacherError."""
    if settings.tokenisation != "transition":
        raise TeacherError(
            f"teacher.tokenisation is {settings.tokenisation!r}, but {because}; set it to "
            "transition."
        )


def teacher_class(target: str) -> type[InContextModel]:
    """Return the class that an import path `module:Class` names.

    Raises:
        TeacherError: There is none, or it is no in-context model.
    """
    try:
        found = import_object(target)
    except ImportPathError as error:
        raise TeacherError(f"teacher.target must be an import path: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, InContextModel)):
        raise TeacherError(f"teacher.target {target!r} names no subclass of InContextModel.")
    return found


class RawContextObjective(nn.Module):
    """Cross-entropy of actions, and a raw-context model's own losses.

    Where a batch brings labels (`ad.objectives.LABELS_NAME`), the divergence from these stands in
    place of the cross-entropy.

    Args:
        teacher: The module trained.
        label_smoothing: Of the cross-entropy.
        weights: Of the model's own losses by name; 1 where not named.
    """

    def __init__(
        self,
        teacher: InContextModel,
        label_smoothing: float = 0.0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.label_smoothing = label_smoothing
        self.weights = dict(weights or {})
        self.n_context_regions = teacher.n_context_regions
        self.questions = Questions(FieldSpec.from_json(teacher.config.observation), [teacher])

    def forward(self, batch: Triple) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and metrics (detached scalars) of a batch."""
        teacher, query = self.teacher, batch.query
        asked, places = self.questions.ask(batch)
        output = teacher(asked)
        parameters = answers(output.parameters, places)
        mask = query.mask if output.mask is None else output.mask
        nll = teacher.actions.nll(parameters, query.actions, self.label_smoothing)
        metrics = {"action_nll": masked_mean(nll, mask), **output.losses}
        loss = metrics["action_nll"]
        if LABELS_NAME in batch.extra:
            kl = teacher.actions.kl(batch.extra[LABELS_NAME], parameters)
            loss = metrics["label_kl"] = masked_mean(kl, mask)
        loss = loss + auxiliary_loss(output.losses, 0.0, self.weights)
        metrics["loss"] = loss
        return loss, {name: value.detach() for name, value in metrics.items()}
