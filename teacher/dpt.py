"""DPT, the decision-pretrained transformer: from a set of transitions to the optimal action.

After Lee et al. 2023 (arXiv 2306.14892). The transitions of past regions are a set: there are no
positions, and what came first is not known. The query is an observation alone; the label is the
action that is optimal there in the task (`train_teacher.target: optimal`), not the one recorded.
While acting the set grows at borders; it holds the last R regions. Shapes: B rows, n streams, R
regions, L region length, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ad.model import InContextModel, Output, Triple, build_step_encoder, seeded_part
from nets.actions import ActionDistribution
from nets.embeddings import TransitionEncoder
from nets.matching import match, match_tokens
from nets.regions import Regions, Steps, stack_regions
from nets.scaling import FieldScaling
from nets.spaces import FieldSpec
from nets.transformer import Transformer
from teacher.model import RawState, TeacherError, TeacherModelConfig, check_transitions


class DPT(InContextModel):
    """A transformer without positions over transitions; queries see them, and not each other."""

    config_class = TeacherModelConfig
    base_model_prefix = "dpt"
    sees = "step"

    def __init__(self, config: TeacherModelConfig) -> None:
        super().__init__(config)
        model, settings = config.sizes, config.settings
        observation = FieldSpec.from_json(config.observation)
        action = FieldSpec.from_json(config.action)
        if settings.kwargs:
            raise TeacherError(f"teacher.kwargs: DPT knows none, got {settings.kwargs}.")
        if settings.sees != "step":
            raise TeacherError(
                f"teacher.sees is {settings.sees!r}, but DPT's query is an observation alone; set "
                "it to step, or name the method dpt, which does."
            )
        check_transitions(settings, "DPT reads a set of transitions")
        self.n_context_regions = settings.n_context_regions
        self.actions = ActionDistribution(action, squash=model.squash_actions)
        self.scaling = FieldScaling(observation, action)
        with seeded_part("transition_encoder"):
            self.transition_encoder = TransitionEncoder(observation, action, model.d_model)
        self.step_encoder = build_step_encoder(model, observation, action, "step")
        # What is asked and what was lived are told apart by one vector, not by a position.
        self.query = nn.Parameter(torch.randn(model.d_model) * model.d_model**-0.5)
        self.layers = Transformer(
            model.d_model, model.n_heads, settings.n_layers, dropout=settings.dropout
        )
        self.action_head = nn.Linear(model.d_model, self.actions.n_parameters)
        if model.init == "matched":
            match_tokens(self.step_encoder, self.transition_encoder)
            with seeded_part("matched layers"):
                match(self.layers)
        self.post_init()

    @property
    def context_tokens(self) -> int:
        """R L + 1."""
        return self.n_context_regions * self.longest_region + 1

    def fit_statistics(self, regions: Regions) -> None:
        """Fit the scaling on training regions (N, L, ...)."""
        self.scaling.fit(regions)

    def forward(self, batch: Triple) -> Output:
        """Return action parameters (B, L, P) at the current observations, each by itself."""
        context, has_context = batch.nearest(self.n_context_regions)
        tokens = self._lived(context.map(lambda field: field.flatten(1, 2)))  # (B, R L, D)
        queries = self._asked(Steps.of(batch.query))
        x = torch.cat([tokens, queries], dim=1)
        n_lived, n = tokens.shape[1], x.shape[1]
        present = torch.zeros(len(x), 1, n, dtype=torch.bool, device=x.device)
        present[..., :n_lived] = (context.mask & has_context[..., None]).flatten(1)[:, None]
        itself = torch.eye(n, dtype=torch.bool, device=x.device)
        hidden = self.layers(x, mask=present | itself)
        asked = hidden[:, n_lived:]
        return Output(self.action_head(asked), hidden=asked)

    def start(self, n: int) -> RawState:
        """Return n streams that have lived nothing."""
        return RawState([], self.layers.new_caches(n, self.context_tokens))

    def take(self, region: Regions, state: RawState) -> RawState:
        """Keep a completed region (n, L, ...), forget the oldest."""
        return RawState([*state.regions, region][-self.n_context_regions :], state.caches)

    def border(self, region: Regions, state: RawState) -> RawState:
        """Take a completed region (n, L, ...) into the set."""
        state = self.take(region, state)
        for cache in state.caches:
            cache.rewind()
        lived = stack_regions(state.regions).map(lambda field: field.flatten(1, 2))
        mask = lived.mask[:, None] | torch.eye(lived.mask.shape[1], dtype=torch.bool).to(lived.mask)
        self.layers(self._lived(lived), mask=mask, caches=state.caches)
        return state

    def step(self, steps: Steps, state: RawState) -> Tensor:
        """Return action parameters (n, P) for the next observation."""
        for cache in state.caches:
            cache.rewind(sum(region.mask.shape[1] for region in state.regions))
        return self.action_head(self.layers(self._asked(steps), caches=state.caches)[:, 0])

    def _lived(self, regions: Regions) -> Tensor:
        return self.transition_encoder(self.scaling.regions(regions))

    def _asked(self, steps: Steps) -> Tensor:
        return self.step_encoder(self.scaling.steps(steps)) + self.query
