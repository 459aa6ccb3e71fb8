"""Scaling of raw numbers by statistics of training regions, stored with the model.

Continuous observations, continuous actions and rewards come in any unit. Tokens, raw features and
the reconstruction's targets all see them with mean 0 and standard deviation 1, and each field's
reconstruction loss is divided by what guessing from its marginal alone would cost, so that a loss
weight means the same on every task family.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from nets.regions import Regions, Steps
from nets.spaces import FieldSpec

LEAST_STD = 1e-6
LEAST_UNCERTAINTY = 1e-3
"""Nats (or variance) below which a field is taken for constant: nothing there to reconstruct."""


class FieldScaling(nn.Module):
    """Mean and standard deviation of each real field; marginal uncertainty of every field.

    Before `fit`, bounded vectors are scaled by their bounds and everything else is left alone.

    Args:
        observation: Observation field.
        action: Action field.

    Attributes:
        uncertainty: (6,) what is not known of a field without looking, in the order of `FIELDS`:
            marginal entropy in nats, mean over axes, for classes; variance after scaling for
            numbers.
    """

    FIELDS = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")

    def __init__(self, observation: FieldSpec, action: FieldSpec) -> None:
        super().__init__()
        self.specs = {
            "observations": observation,
            "actions": action,
            "rewards": FieldSpec("vector", ()),
            "next_observations": observation,
            "terminated": FieldSpec("classes", (), (2,)),
            "truncated": FieldSpec("classes", (), (2,)),
        }
        self.uncertainty: Tensor
        self.register_buffer("uncertainty", torch.ones(len(self.FIELDS)))
        for name in ("observations", "actions", "rewards"):
            spec = self.specs[name]
            if spec.kind in ("vector", "parts"):
                mean, std = _begin(spec)
                self.register_buffer(f"{name}_mean", mean)
                self.register_buffer(f"{name}_std", std)

    @torch.no_grad()
    def fit(self, regions: Regions) -> None:
        """Take the statistics of training regions, fields (N, T, ...)."""
        for name in ("observations", "actions", "rewards"):
            if self.specs[name].kind in ("vector", "parts"):
                values = getattr(regions, name)[regions.mask].double()  # (n, ...)
                std = values.std(0, correction=0)
                std = torch.where(std > LEAST_STD, std, 1.0)
                real = _real(self.specs[name])
                mean_kept, std_kept = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
                mean_kept.copy_(torch.where(real.to(values.device), values.mean(0), mean_kept))
                std_kept.copy_(torch.where(real.to(values.device), std, std_kept))
        scaled = self.regions(regions)
        for i, name in enumerate(self.FIELDS):
            values = getattr(scaled, name)[scaled.mask]
            self.uncertainty[i] = _uncertainty(self.specs[name], values)

    def regions(self, regions: Regions) -> Regions:
        """Return regions with real fields scaled."""
        return replace(
            regions,
            observations=self._scaled("observations", regions.observations),
            actions=self._scaled("actions", regions.actions),
            rewards=self._scaled("rewards", regions.rewards),
            next_observations=self._scaled("observations", regions.next_observations),
        )

    def steps(self, steps: Steps) -> Steps:
        """Return steps with real fields scaled."""
        return replace(
            steps,
            observations=self._scaled("observations", steps.observations),
            previous_observations=self._scaled("observations", steps.previous_observations),
            previous_actions=self._scaled("actions", steps.previous_actions),
            previous_rewards=self._scaled("rewards", steps.previous_rewards),
        )

    def weights(self) -> dict[str, Tensor]:
        """Return each field's weight in L_rec: 1 / uncertainty, 0 for what never varies."""
        known = self.uncertainty > LEAST_UNCERTAINTY
        weights = torch.where(known, 1 / self.uncertainty.clamp_min(LEAST_UNCERTAINTY), 0.0)
        return dict(zip(self.FIELDS, weights, strict=True))

    def _scaled(self, name: str, values: Tensor) -> Tensor:
        spec = self.specs[name]
        if spec.kind == "image":
            return _pixels(spec, values)
        if spec.kind == "classes":
            if not spec.start:
                return values
            most = values.new_tensor(spec.n_classes, dtype=torch.long) - 1
            indices = spec.indices(values).clamp_min(0).minimum(most)  # what is absent is 0
            return indices.reshape(values.shape)
        return (values.float() - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_std")


def _uncertainty(spec: FieldSpec, values: Tensor) -> Tensor:
    """Return a field's marginal entropy (nats, mean over axes) or variance; values (n, ...)."""
    if spec.kind == "parts":
        return torch.stack([_uncertainty(*part) for part in spec.split(values)]).mean()
    if spec.kind != "classes":
        return values.double().var(0, correction=0).mean()
    axes = values.long().reshape(len(values), len(spec.n_classes))
    entropies = []
    for i, n in enumerate(spec.n_classes):
        shares = torch.bincount(axes[:, i], minlength=n) / max(len(values), 1)
        entropies.append(torch.special.entr(shares.double()).sum())
    return torch.stack(entropies).mean()


def _begin(spec: FieldSpec) -> tuple[Tensor, Tensor]:
    """Return what numbers are shifted and divided by before anything is fitted, (*shape)."""
    if spec.kind == "parts":
        pairs = [_begin(part) for _, part in spec.parts]
        mean, std = (torch.cat([pair[i].reshape(-1) for pair in pairs]) for i in (0, 1))
        return mean, std
    if spec.kind == "classes":
        start = torch.tensor(spec.start or (0,)).float()
        return start.expand(spec.shape or (1,)).clone(), torch.ones(spec.shape or (1,))
    if spec.kind == "image":
        low, high = torch.tensor(spec.low or (0.0,)), torch.tensor(spec.high or (255.0,))
        return low.expand(spec.shape).clone(), (high - low).expand(spec.shape).clone()
    low, high = torch.tensor(spec.low or -1.0), torch.tensor(spec.high or 1.0)
    half = ((high - low) / 2).clamp_min(LEAST_STD)
    return ((low + high) / 2).expand(spec.shape).clone(), half.expand(spec.shape).clone()


def _real(spec: FieldSpec) -> Tensor:
    """Return which numbers of a value are scaled by statistics, bool (*shape)."""
    if spec.kind == "parts":
        return torch.cat([_real(part).reshape(-1) for _, part in spec.parts])
    return torch.full(spec.shape, spec.kind == "vector")


def _pixels(spec: FieldSpec, values: Tensor) -> Tensor:
    """Return an image's pixels between 0 and 1."""
    low, high = (*spec.low, 0.0)[0], (*spec.high, 255.0)[0]
    return (values.float() - low) / (high - low)
