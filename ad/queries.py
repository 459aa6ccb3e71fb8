"""Queries beyond the visited steps: every observation that a family of few has."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ad.losses import ObjectiveError
from nets.regions import Regions
from nets.spaces import FieldSpec

MOST_QUERIES = 1024
"""The most observations that all are asked about in every update."""


def all_observations(spec: FieldSpec) -> Tensor:
    """Return every observation (S, ...) of a field of classes.

    Raises:
        ObjectiveError: The field is of another kind, or there are more than `MOST_QUERIES`.
    """
    if spec.kind != "classes" or (count := prod(spec.n_classes)) > MOST_QUERIES:
        found = f"a {spec.kind}" if spec.kind != "classes" else f"one of {count}"
        raise ObjectiveError(
            f"loss.queries=all needs an observation of at most {MOST_QUERIES} classes in all, but "
            f"this family's is {found}; set loss.queries to visited."
        )
    axes = torch.meshgrid(*(torch.arange(n) for n in spec.n_classes), indexing="ij")
    indices = torch.stack(axes, -1).reshape(-1, len(spec.n_classes))
    return spec.classes(indices)


def asked_at(observations: Tensor, like: Regions) -> Regions:
    """Return regions (B, S, ...) in which every row stands at all observations (S, ...)."""
    batch, n_queries = len(like.mask), len(observations)

    def empty(field: Tensor) -> Tensor:
        return field.new_zeros(batch, n_queries, *field.shape[2:])

    asked = observations.to(like.observations).expand(batch, *observations.shape)
    return replace(like.map(empty), observations=asked, mask=empty(like.mask) | True)
