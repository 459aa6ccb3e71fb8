"""The full-context teacher: marker-based AD over raw previous regions and the current one.

The sequence is `<compress> X </compress>` for each of R previous regions (R = 1 for the teacher,
more for long-context AD), then `<compress>` and the current region's step tokens. Every token has a
type (0 transition, 1 start, 2 end); the action head is read at the current region's steps, the
token-type head predicts the next token's type everywhere. L_T = CE(action) + 0.1 · CE(token type).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ad.decoder import DecoderState
from ad.objectives import Triple, masked_mean
from ad.student import ModelConfig
from base.ranges import AtLeast, Between
from nets.actions import ActionDistribution
from nets.embeddings import Regions, StepEncoder, TransitionEncoder
from nets.spaces import FieldSpec
from nets.transformer import Transformer

TRANSITION, START, END = 0, 1, 2


@dataclass(frozen=True)
class TeacherConfig:
    """Settings of a raw-context model.

    Attributes:
        n_layers: Blocks.
        n_context_regions: R, raw previous regions it sees.
        dropout: Probability on residual branches.
        token_type_weight: Weight of the token-type loss.
    """

    n_layers: Annotated[int, AtLeast(1)] = 4
    n_context_regions: Annotated[int, AtLeast(1)] = 1
    dropout: Annotated[float, Between(0, 1, high_open=True)] = 0.0
    token_type_weight: Annotated[float, AtLeast(0)] = 0.1


class TeacherModelConfig(PretrainedConfig):
    """What is stored in a teacher's `config.json`; fields as in `ad.student.StudentConfig`."""

    model_type = "cad-teacher"

    def __init__(
        self,
        observation: dict[str, Any] | None = None,
        action: dict[str, Any] | None = None,
        region_len: int = 80,
        model: dict[str, Any] | None = None,
        teacher: dict[str, Any] | None = None,
        provenance: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.observation = observation or FieldSpec("classes", (), (2,)).to_json()
        self.action = action or FieldSpec("classes", (), (2,)).to_json()
        self.region_len = region_len
        self.model = model or asdict(ModelConfig())
        self.teacher = teacher or asdict(TeacherConfig())
        self.provenance = provenance or {}
        super().__init__(**kwargs)


class TeacherModel(PreTrainedModel):
    """A causal transformer over raw regions and markers."""

    config_class = TeacherModelConfig
    base_model_prefix = "teacher"

    def __init__(self, config: TeacherModelConfig) -> None:
        super().__init__(config)
        model, settings = ModelConfig(**config.model), TeacherConfig(**config.teacher)
        observation = FieldSpec.from_json(config.observation)
        action = FieldSpec.from_json(config.action)
        width, region = model.d_model, config.region_len
        self.n_context_regions = settings.n_context_regions
        self.actions = ActionDistribution(action)
        self.transition_encoder = TransitionEncoder(observation, action, width)
        self.step_encoder = StepEncoder(observation, action, width)
        self.token_types = nn.Embedding(3, width)
        self.no_context = nn.Parameter(torch.randn(width) * 0.02)
        self.sequence_len = settings.n_context_regions * (region + 2) + 1 + region
        self.positions = nn.Parameter(torch.randn(self.sequence_len, width) * width**-0.5)
        self.layers = Transformer(width, model.n_heads, settings.n_layers, dropout=settings.dropout)
        self.action_head = nn.Linear(width, self.actions.n_parameters)
        self.token_type_head = nn.Linear(width, 3)
        nn.init.normal_(self.token_types.weight, std=width**-0.5)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keep what each module's constructor drew."""

    @property
    def region_len(self) -> int:
        """L."""
        return self.config.region_len

    @property
    def context_len(self) -> int:
        """Tokens before the current region's first step: R (L + 2) + 1."""
        return self.sequence_len - self.region_len

    def token_type_targets(self) -> Tensor:
        """Return the types (sequence_len,) of all tokens of a full sequence."""
        region = [START] + [TRANSITION] * self.region_len + [END]
        types = region * self.n_context_regions + region[:-1]
        return torch.tensor(types, device=self.positions.device)

    def context_tokens(self, context: Regions, has_context: Tensor) -> Tensor:
        """Return the tokens before the current region's steps, without positions.

        Args:
            context: Fields (B, R, L, ...).
            has_context: (B, R) bool; the tokens of a missing region, and of the padding of a short
                one, are one learned vector.

        Returns:
            (B, R (L + 2) + 1, D).
        """
        batch, regions = has_context.shape
        tokens = self.transition_encoder(context.map(lambda field: field.flatten(0, 1)))
        tokens = tokens + self.token_types.weight[TRANSITION]
        start = self.token_types.weight[START].expand(batch * regions, 1, -1)
        end = self.token_types.weight[END].expand(batch * regions, 1, -1)
        tokens = torch.cat([start, tokens, end], dim=1).view(batch, regions, -1, start.shape[-1])
        present = F.pad(context.mask, (1, 1), value=True) & has_context[..., None]  # (B, R, L + 2)
        tokens = torch.where(present[..., None], tokens, self.no_context)
        return torch.cat([tokens.flatten(1, 2), start[:batch]], dim=1)

    def hidden(self, batch: Triple) -> Tensor:
        """Return hidden states (B, sequence_len, D) of a batch with R context regions."""
        context = batch.context.map(lambda field: field[:, -self.n_context_regions :])
        has_context = batch.has_context[:, -self.n_context_regions :]
        before = self.context_tokens(context, has_context)
        steps = self.step_encoder(batch.query) + self.token_types.weight[TRANSITION]
        x = torch.cat([before, steps], dim=1)
        return self.layers(x + self.positions[: x.shape[1]], is_causal=True)

    def forward(self, batch: Triple) -> Tensor:
        """Return action parameters (B, L, P) at the current region's steps."""
        return self.action_head(self.hidden(batch)[:, self.context_len :])

    def start(
        self, context: Regions, has_context: Tensor, state: DecoderState | None = None
    ) -> DecoderState:
        """Begin acting in a new region: run the raw context through the caches.

        Args:
            context: Fields (B, R, L, ...).
            has_context: (B, R) bool.
            state: A state whose buffers are reused.
        """
        tokens = self.context_tokens(context, has_context)
        caches = state.caches if state else self.layers.new_caches(len(tokens), self.sequence_len)
        for cache in caches:
            cache.rewind()
        self.layers(tokens + self.positions[: self.context_len], is_causal=True, caches=caches)
        return DecoderState([], caches)

    def step(self, token: Tensor, state: DecoderState) -> Tensor:
        """Return action parameters (B, P) for the next step token (B, 1, D)."""
        x = token + self.token_types.weight[TRANSITION] + self.positions[state.caches[0].length]
        return self.action_head(self.layers(x, caches=state.caches)[:, 0])


class TeacherObjective(nn.Module):
    """L_T: cross-entropy of actions plus 0.1 x cross-entropy of token types."""

    def __init__(self, teacher: TeacherModel, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.teacher = teacher
        self.label_smoothing = label_smoothing

    def forward(self, batch: Triple) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and metrics (detached scalars) of a batch."""
        teacher, query = self.teacher, batch.query
        hidden = teacher.hidden(batch)
        parameters = teacher.action_head(hidden[:, teacher.context_len :])
        nll = teacher.actions.nll(parameters, query.actions, self.label_smoothing)
        nll = masked_mean(nll, query.mask)
        targets = teacher.token_type_targets()[1:].expand(len(hidden), -1)
        types = F.cross_entropy(
            teacher.token_type_head(hidden[:, :-1]).flatten(0, 1), targets.flatten()
        )
        loss = nll + teacher.config.teacher["token_type_weight"] * types
        return loss, {
            "loss": loss.detach(),
            "action_nll": nll.detach(),
            "token_type_nll": types.detach(),
        }
