"""AD over the last W raw steps, without regions or borders: what most of the field compares with.

A causal transformer reads the last W steps of the stream. In training they are W consecutive steps
of a history at a random phase; while acting the window moves on with every step, so all of it is
computed anew each time, as its positions move. Shapes: B batch, W window, L region length, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ad.model import InContextModel, Output, Triple, build_step_encoder, seeded_part
from nets.actions import ActionDistribution
from nets.matching import match
from nets.regions import Regions, Steps, join_regions
from nets.scaling import FieldScaling
from nets.spaces import FieldSpec
from nets.transformer import Transformer
from teacher.model import TeacherError, TeacherModelConfig, check_transitions


@dataclass
class WindowState:
    """The last steps of every stream, raw.

    Attributes:
        steps: Fields (n, at most W, ...), None before the first.
        before: Observation, action, reward and end (n, 1, ...) right before the next step, where a
            region has just ended; None elsewhere.
    """

    steps: Steps | None = None
    before: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of the fields held now."""
        fields = [] if self.steps is None else list(vars(self.steps).values())
        return sum(field.numel() * field.element_size() for field in fields)


class SlidingWindow(InContextModel):
    """A causal transformer over the last W raw steps, W being `teacher.kwargs.window`."""

    config_class = TeacherModelConfig
    base_model_prefix = "sliding_window"
    max_stride = 1  # the steps of a window are consecutive

    def __init__(self, config: TeacherModelConfig) -> None:
        super().__init__(config)
        model, settings = config.sizes, config.settings
        observation = FieldSpec.from_json(config.observation)
        action = FieldSpec.from_json(config.action)
        width = model.d_model
        window = settings.kwargs.get("window")
        if set(settings.kwargs) != {"window"} or type(window) is not int or window < 1:
            raise TeacherError(
                f"teacher.kwargs of a sliding window: expected window, a whole number of at least "
                f"1, and nothing else, got {settings.kwargs}."
            )
        if settings.sees != "region":
            raise TeacherError(
                f"teacher.sees is {settings.sees!r}, but a sliding window is made of the steps "
                "before the current one; expected region."
            )
        check_transitions(settings, "a sliding window has the steps themselves")
        self.window: int = window
        shortest = 2 * config.region_len - self.longest_region
        self.n_context_regions = max(1, -(-self.window // shortest) - 1)
        self.actions = ActionDistribution(action, squash=model.squash_actions)
        self.scaling = FieldScaling(observation, action)
        self.step_encoder = build_step_encoder(model, observation, action)
        self.positions = nn.Parameter(torch.randn(self.window, width) * width**-0.5)
        self.layers = Transformer(width, model.n_heads, settings.n_layers, dropout=settings.dropout)
        self.action_head = nn.Linear(width, self.actions.n_parameters)
        if model.init == "matched":
            self.step_encoder.match()
            with seeded_part("matched layers"):
                match(self.layers)
        self.post_init()

    @property
    def context_tokens(self) -> int:
        """W."""
        return self.window

    def fit_statistics(self, regions: Regions) -> None:
        """Fit the scaling on training regions (N, L, ...)."""
        self.scaling.fit(regions)

    def forward(self, batch: Triple) -> Output:
        """Predict the current regions' actions from windows that end at, or in training before, L.

        In training the windows of a batch end 0 ... (R + 1) L - W steps before the current region
        does, at a phase drawn per batch; the steps after them are not predicted (`Output.mask`).
        """
        query_len = batch.query.mask.shape[1]
        context, _ = batch.nearest(self.n_context_regions)
        joined = join_regions(context.map(lambda field: field.flatten(1, 2)), batch.query)
        n_steps = joined.mask.shape[1]
        room = min(max(n_steps - self.window, 0), query_len - 1)
        shift = int(torch.randint(room + 1, ())) if self.training else 0
        joined = joined.map(lambda field: field[:, : n_steps - shift])
        # Steps that are there come first, in order: a window begins with what a stream began with.
        order = (~joined.mask).long().argsort(dim=1, stable=True)  # (B, S)
        lengths = joined.mask.sum(1)  # (B,)
        start = (lengths - self.window).clamp_min(0)
        size = min(self.window, joined.mask.shape[1])
        places = start[:, None] + torch.arange(size, device=start.device)  # (B, W)
        rows = order.gather(1, places.clamp_max(order.shape[1] - 1))
        window = joined.map(lambda field: _gathered(field, rows))
        hidden = self._hidden(Steps.of(window))
        # Where in its window each step of the current region stands; those cut off stand nowhere.
        kept = query_len - shift
        n_query = batch.query.mask[:, :kept].sum(1)
        first = lengths - start - n_query  # (B,)
        at = first[:, None] + torch.arange(query_len, device=first.device)
        mask = batch.query.mask & (torch.arange(query_len, device=at.device) < kept) & (at >= 0)
        found = _gathered(self.action_head(hidden), at.clamp(0, size - 1))
        return Output(found, mask=mask)

    def start(self, n: int) -> WindowState:
        """Return n streams that have seen nothing."""
        return WindowState()

    def step(self, steps: Steps, state: WindowState) -> Tensor:
        """Return action parameters (n, P) for the next step, from the last W of them."""
        if state.before is not None:  # the region before ends, the window goes on
            observations, actions, rewards, ended = state.before
            steps = Steps(
                steps.observations,
                observations,
                actions,
                rewards,
                ended,
                torch.zeros_like(steps.first),
            )
            state.before = None
        if state.steps is not None:
            joined = {
                name: torch.cat([vars(state.steps)[name], field], dim=min(field.ndim - 1, 1))
                for name, field in vars(steps).items()
            }
            window = slice(-self.window, None)
            first = joined.pop("first")[window]
            steps = Steps(**{name: f[:, window] for name, f in joined.items()}, first=first)
        state.steps = steps
        return self.action_head(self._hidden(_from_nothing(steps))[:, -1])

    def border(self, region: Regions, state: WindowState) -> WindowState:
        """Nothing ends: take note of what was before the next step."""
        last = region.map(lambda field: field[:, -1:])
        before = (last.observations, last.actions, last.rewards, last.ended)
        return WindowState(state.steps, before)

    def _hidden(self, steps: Steps) -> Tensor:
        x = self.step_encoder(self.scaling.steps(steps))
        return self.layers(x + self.positions[: x.shape[1]], is_causal=True)


def _from_nothing(steps: Steps) -> Steps:
    """Return a window as `Steps.of` would make it: nothing known from before its first step."""
    first = torch.arange(len(steps.first), device=steps.first.device) == 0
    return Steps(
        steps.observations,
        steps.previous_observations,
        steps.previous_actions,
        steps.previous_rewards * ~first,
        steps.starts | first,
        first,
    )


def _gathered(field: Tensor, rows: Tensor) -> Tensor:
    """Return (B, W, ...) entries `rows` (B, W) of a field (B, T, ...)."""
    index = rows.view(*rows.shape, *[1] * (field.ndim - 2)).expand(-1, -1, *field.shape[2:])
    return field.gather(1, index)
