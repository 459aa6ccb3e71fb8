"""What every model that acts in context offers: one call offline, a few while acting.

    output = model(triple)                    all positions of the current regions at once
    state = model.start(n)                    n streams begin with an empty context
    parameters = model.step(steps, state)     the next step of the current region, kept in `state`
    state = model.border(region, state)       a completed region becomes context, a new one begins
    state = model.part(region, state)         one being filled is compressed so far, if it ever is

Student, baselines and raw-context models differ in what they make of a completed region; nobody
outside a model knows what its state holds. Shapes: B rows, n streams, T steps, L region length,
P action parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ad.loading import load_pretrained
from base.ranges import Between
from base.seeding import derive
from compression.latents import Latents
from nets.actions import ActionDistribution
from nets.embeddings import Sees, StepEncoder
from nets.regions import Regions, Steps
from nets.spaces import FieldSpec


@dataclass(frozen=True)
class ModelConfig:
    """Sizes shared by student and teacher.

    Attributes:
        d_model: Width D of tokens and latents.
        n_heads: Attention heads; must divide d_model.
        init: `independent` weights, or `matched` ones, with which attention finds equal contents
            from the first update on (`nets.matching`).
        previous_observation: Whether a step token also holds the observation before; not where a
            step is seen alone.
        squash_actions: Whether Gaussian actions of a bounded Box are squashed to its bounds by
            tanh, instead of drawn in the space's own units and clipped.
    """

    d_model: Annotated[int, Between(2, 65536)] = 64
    n_heads: Annotated[int, Between(1, 1024)] = 4
    init: Literal["independent", "matched"] = "independent"
    previous_observation: bool = False
    squash_actions: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that no layer can be built with."""
        if self.d_model % self.n_heads or self.d_model % 2:
            raise ValueError(
                f"d_model is {self.d_model} and n_heads {self.n_heads}, expected an even d_model "
                "that is a multiple of n_heads"
            )


@dataclass
class Shared:
    """The context regions of a batch each once, where rows have some in common.

    Attributes:
        regions: Fields (U, L, ...).
        places: (B, R) int64, where in `regions` each row's lie; of those that are not there, any.
    """

    regions: Regions
    places: Tensor


@dataclass
class Triple:
    """A batch of (X, q, Y): previous regions, whether there are any, and current regions.

    Attributes:
        context: The R previous regions per row, consecutive, nearest last: fields (B, R, L, ...).
            Fields of a region that is not there are zero and its mask is False.
        has_context: (B, R) bool.
        query: Current regions: fields (B, L, ...); their actions are the targets Y.
        shared: `context` once more, without repetitions; None where nobody has looked for any.
        extra: (B, L, ...) by name, what else an objective is told of the current regions.
    """

    context: Regions
    has_context: Tensor
    query: Regions
    shared: Shared | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def nearest(self, n_regions: int) -> tuple[Regions, Tensor]:
        """Return the nearest previous regions (B, n_regions, L, ...) and which are there."""
        context = self.context.map(lambda field: field[:, -n_regions:])
        return context, self.has_context[:, -n_regions:]

    def each_once(self, n_regions: int) -> tuple[Regions, Tensor, Tensor]:
        """Return the nearest previous regions of all rows, each once if that is known.

        Returns:
            Fields (U, L, ...); where each row's lie among them, (B, n_regions); and which of the U
            are there at all, (U,) bool.
        """
        context, has_context = self.nearest(n_regions)
        if self.shared is None:
            every = torch.arange(has_context.numel(), device=has_context.device)
            flat = context.map(lambda field: field.flatten(0, 1))
            return flat, every.view_as(has_context), has_context.flatten()
        used, places = self.shared.places[:, -n_regions:].unique(return_inverse=True)
        regions = self.shared.regions.map(lambda field: field[used])
        return regions, places, regions.mask.any(1)

    @property
    def previous(self) -> Regions:
        """The nearest previous region of every row: fields (B, L, ...)."""
        return self.context.map(lambda field: field[:, -1])

    @property
    def has_previous(self) -> Tensor:
        """(B,) bool, whether there is one."""
        return self.has_context[:, -1]


@dataclass
class Output:
    """What a model makes of a batch.

    Attributes:
        parameters: (B, L, P) action parameters at every step of the current regions.
        latents: Of the nearest previous regions, where the model compresses; rows without one hold
            nothing meaningful.
        losses: Auxiliary losses by name, scalars with gradient.
        metrics: Further scalars to log.
        mask: (B, L) bool, steps that were predicted at all; None for all of the current regions'.
        hidden: (B, L, D), what the actions are read from; None where a model does not say.
    """

    parameters: Tensor
    latents: Latents | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    hidden: Tensor | None = None


class State(Protocol):
    """What a model keeps while acting; only its size is anybody else's business."""

    @property
    def n_bytes(self) -> int:
        """Bytes held, all streams together, at full length."""
        ...


class InContextConfig(PretrainedConfig):
    """What the `config.json` of every model that acts in context holds.

    Args:
        observation: Observation field, `FieldSpec.to_json()`.
        action: Action field, likewise.
        region_len: L, transitions in a region.
        longest_region: The most transitions of a region it can be given; 0 for L.
        provenance: Where the weights come from (method, split identity, task family); free form.
        kwargs: Passed to transformers.
    """

    def __init__(
        self,
        observation: dict[str, Any] | None = None,
        action: dict[str, Any] | None = None,
        region_len: int = 80,
        *,
        longest_region: int = 0,
        provenance: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.observation = observation or FieldSpec("classes", (), (2,)).to_json()
        self.action = action or FieldSpec("classes", (), (2,)).to_json()
        self.region_len, self.longest_region = region_len, longest_region
        self.provenance = provenance or {}
        super().__init__(**kwargs)


class InContextModel(PreTrainedModel):
    """Base class of student and raw-context models.

    Attributes:
        actions: The action distribution.
        n_context_regions: R, previous regions a row of a batch must bring.
        max_stride: Farthest the nearest previous region may lie back in training; None for as far
            as the sampling says.
        n_latents: m, latents a region is compressed to; None where nothing is compressed.
        sees: What it knows of the current region besides its context.
        part_len: n, steps after which `part` is to be told of the region being filled; 0 for never.
    """

    actions: ActionDistribution
    n_context_regions: int = 1
    max_stride: int | None = None
    n_latents: int | None = None
    sees: Sees = "region"
    part_len: int = 0

    @classmethod
    def from_pretrained(
        cls, path: Any, *args: Any, trust_model_code: bool = False, **kwargs: Any
    ) -> Any:
        """Load what `save_pretrained` wrote; arguments as in transformers.

        Args:
            path: Folder, or a name on the hub.
            args: Passed to transformers.
            trust_model_code: Whether config.json may name classes of somebody's own to import.
            kwargs: Passed to transformers.

        Raises:
            ModelError: It is damaged, incomplete, or names code that is not trusted.
        """
        load = super().from_pretrained
        trust = {"trust_model_code": trust_model_code}
        return load_pretrained(load, cls.config_class, path, *args, **trust, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        """Keep what each module's constructor drew."""

    @property
    def region_len(self) -> int:
        """L, transitions of a region unless others are asked for."""
        return self.config.region_len

    @property
    def longest_region(self) -> int:
        """The most transitions of a region it can be given, L or more (`sampling.jitter`)."""
        return self.config.longest_region or self.config.region_len

    @property
    def context_tokens(self) -> int:
        """Most tokens that a step attends to."""
        raise NotImplementedError

    @property
    def idle_modules(self) -> list[nn.Module]:
        """Parts that acting does not use: heads that only losses read, encoders of other tokens."""
        return []

    @property
    def n_acting_parameters(self) -> int:
        """Parameters that take part in acting."""
        idle = {id(p) for module in self.idle_modules for p in module.parameters()}
        return sum(p.numel() for p in self.parameters() if id(p) not in idle)

    def fit_statistics(self, regions: Regions) -> None:
        """Fit what is not learned by gradient on regions (N, L, ...) of training tasks."""

    def forward(self, batch: Triple) -> Output:
        """Map a batch to action parameters at every step of its current regions."""
        raise NotImplementedError

    def start(self, n: int) -> Any:
        """Return the state of n streams with an empty context, their first region begun."""
        raise NotImplementedError

    def step(self, steps: Steps, state: Any) -> Tensor:
        """Return action parameters (n, P) for the next step (n, 1, ...), kept in `state`."""
        raise NotImplementedError

    def border(self, region: Regions, state: Any) -> Any:
        """Take a completed region (n, L, ...) into the context and begin the next.

        Buffers of `state` may be used again: it is not valid afterwards.
        """
        raise NotImplementedError

    def part(self, region: Regions, state: Any) -> Any:
        """Take in the region being filled as far as it is, (n, t, ...), t a multiple of `part_len`.

        Buffers of `state` may be used again: it is not valid afterwards.
        """
        raise NotImplementedError

    def take(self, region: Regions, state: Any) -> Any:
        """As `border`, but another completed region follows before anything is acted on.

        Worth its own code where beginning a region costs more than keeping one.
        """
        return self.border(region, state)


@contextmanager
def seeded_part(name: str) -> Iterator[None]:
    """Draw a part's initial weights from (seed last set, name) alone.

    So that parts of one name and size begin alike in every model of one training seed, whatever
    else the model has.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(torch.initial_seed(), "weights", name))
        yield


def build_step_encoder(
    model: ModelConfig, observation: FieldSpec, action: FieldSpec, sees: Sees = "region"
) -> StepEncoder:
    """Build what encodes the steps of the current region, alike in every model of a seed."""
    with seeded_part("step_encoder"):
        return StepEncoder(
            observation,
            action,
            model.d_model,
            previous_observation=model.previous_observation,
            sees=sees,
        )
