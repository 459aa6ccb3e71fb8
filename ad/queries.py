"""What models that see a step alone are asked: every observation of a row once.

Their answer depends on the context and the observation, so that steps that show the same one get
the same: of a family of few observations each is asked about once, and its answer handed to all
steps that show it, which dropout then treats alike. Shapes: B batch, T steps, S observations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from ad.losses import ObjectiveError
from ad.model import InContextModel, Triple
from nets.regions import Regions
from nets.spaces import FieldSpec

MOST_QUERIES = 1024
"""The most observations that all are asked about in every update."""


def all_observations(spec: FieldSpec) -> Tensor:
    """Return every observation (S, ...) of a field of classes, the last axis going fastest.

    Raises:
        ObjectiveError: The field is of another kind, or there are more than `MOST_QUERIES`.
    """
    if not _are_few(spec):
        found = f"one of {prod(spec.n_classes)}" if spec.kind == "classes" else f"a {spec.kind}"
        raise ObjectiveError(
            f"loss.queries=all needs an observation of at most {MOST_QUERIES} classes in all, but "
            f"this family's is {found}; set loss.queries to visited."
        )
    axes = torch.meshgrid(*(torch.arange(n) for n in spec.n_classes), indexing="ij")
    indices = torch.stack(axes, -1).reshape(-1, len(spec.n_classes))
    return spec.classes(indices)


def _are_few(spec: FieldSpec) -> bool:
    return spec.kind == "classes" and prod(spec.n_classes) <= MOST_QUERIES


def places_among_all(spec: FieldSpec, values: Tensor) -> Tensor:
    """Return where each of the observations (B, T, ...) stands in `all_observations`, (B, T)."""
    axes = spec.indices(values).clamp_min(0)  # padding is zeros, whatever classes begin with
    place = torch.zeros_like(axes[..., 0])
    for axis, n in enumerate(spec.n_classes):
        place = place * n + axes[..., axis]
    return place


class Questions(nn.Module):
    """Which steps models are asked about.

    Args:
        spec: The observation.
        models: All that are asked; where one of them sees more than a step, all steps are.
        every: Ask about all observations, be they more than there are steps.

    Raises:
        ObjectiveError: `every`, and there are too many, or they cannot be counted.
        ValueError: `every`, and a model sees more than a step.
    """

    observations: Tensor | None

    def __init__(
        self, spec: FieldSpec, models: Iterable[InContextModel], *, every: bool = False
    ) -> None:
        super().__init__()
        # A model that compresses the region while it is being filled reads its steps besides.
        alone = all(model.sees == "step" and not model.part_len for model in models)
        if every and not alone:
            raise ValueError("queries is all, which needs models that see a step alone")
        self._spec, self._every = spec, every
        observations = all_observations(spec) if every or (alone and _are_few(spec)) else None
        self.register_buffer("observations", observations, persistent=False)

    def ask(self, batch: Triple) -> tuple[Triple, Tensor | None]:
        """Return the batch to give to models, and whose answers are whose.

        Returns:
            A batch whose current regions show all S observations, and the place (B, T) of each
            step's; or the batch as it is and None, where steps are too few to be worth it.
        """
        query, observations = batch.query, self.observations
        if observations is None or not (self._every or len(observations) < query.mask.shape[1]):
            return batch, None
        places = places_among_all(self._spec, query.observations)
        return replace(batch, query=_standing_at(observations, query)), places


def answers(values: Tensor, places: Tensor | None) -> Tensor:
    """Return what each step is answered (B, T, P), of answers (B, S, P) and `places` (B, T)."""
    return values if places is None else values.take_along_dim(places[..., None], 1)


def _standing_at(observations: Tensor, like: Regions) -> Regions:
    """Return regions (B, S, ...) in which every row stands at all observations (S, ...)."""
    batch, n_queries = len(like.mask), len(observations)

    def empty(field: Tensor) -> Tensor:
        return field.new_zeros(batch, n_queries, *field.shape[2:])

    asked = observations.to(like.observations).expand(batch, *observations.shape)
    return replace(like.map(empty), observations=asked, mask=empty(like.mask) | True)
