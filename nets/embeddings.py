"""Tokens from raw transitions: one encoder per field, summed into a token.

Two tokenisations (one token a step in both): `TransitionEncoder` for completed transitions
(s, a, r, s', flags), what a compressor reads; `StepEncoder` for acting steps (s_t, a_{t-1},
r_{t-1}, episode start, on request s_{t-1}), at which a_t is predicted. Shapes: B batch, T steps,
D width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets.regions import Regions, Steps
from nets.spaces import FieldSpec

Sees = Literal["region", "step"]
"""What is known of the current region: all before a step and what it observes, or that alone."""


class FieldEncoder(nn.Module):
    """Encoder of one field, scaled by `nets.scaling`, into (B, T, D).

    Classes: one embedding per axis, summed (never one per joint cell: coordinates must generalise).
    Vectors: linear. Images: a small CNN. Parts: the sum of an encoder of each.

    Args:
        spec: The field.
        d_model: Width D.
    """

    def __init__(self, spec: FieldSpec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.offsets: Tensor
        if spec.kind == "classes":
            starts = [sum(spec.n_classes[:i]) for i in range(len(spec.n_classes))]
            self.register_buffer("offsets", torch.tensor(starts))
            self.table = nn.Embedding(sum(spec.n_classes), d_model)
            nn.init.normal_(self.table.weight, std=d_model**-0.5)
        elif spec.kind == "parts":
            self.encoders = nn.ModuleList(FieldEncoder(part, d_model) for _, part in spec.parts)
        elif spec.kind == "vector":
            self.linear = nn.Linear(spec.shape[0], d_model)
        else:
            self.cnn = nn.Sequential(
                nn.Conv2d(spec.shape[2], 16, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1),
                nn.GELU(),
                nn.AdaptiveAvgPool2d(4),
                nn.Flatten(),
                nn.Linear(32 * 16, d_model),
            )

    def forward(self, values: Tensor) -> Tensor:
        """Encode (B, T, *shape) scaled values to (B, T, D)."""
        if self.spec.kind == "parts":
            pieces = [within(*part) for part in self.spec.split(values)]
            found = [encode(piece) for encode, piece in zip(self.encoders, pieces, strict=True)]
            return torch.stack(found).sum(0)
        if self.spec.kind == "classes":
            if not self.spec.shape:
                return self.table(values.long())
            return self.table(values.long() + self.offsets).sum(-2)
        if self.spec.kind == "vector":
            return self.linear(values.float())
        batch, steps = values.shape[:2]
        images = values.flatten(0, 1).movedim(-1, 1).float()  # (B*T, C, H, W)
        return self.cnn(images).view(batch, steps, -1)


def within(spec: FieldSpec, values: Tensor) -> Tensor:
    """Return a part's values, classes as indices that exist: where nothing is, a row is zeros."""
    if spec.kind != "classes":
        return values
    most = torch.tensor(spec.n_classes, device=values.device) - 1
    return values.long().clamp_min(0).minimum(most.reshape(spec.shape))


class TransitionEncoder(nn.Module):
    """One token per completed transition: the sum of s, a, r, s' and flag encodings.

    Args:
        observation: Observation field.
        action: Action field.
        d_model: Width D.
    """

    def __init__(self, observation: FieldSpec, action: FieldSpec, d_model: int) -> None:
        super().__init__()
        self.observation = FieldEncoder(observation, d_model)
        self.next_observation = FieldEncoder(observation, d_model)
        self.action = FieldEncoder(action, d_model)
        self.scalars = nn.Linear(3, d_model)  # reward, terminated, truncated

    @staticmethod
    def n_tokens(n_transitions: int) -> int:
        """Return T."""
        return n_transitions

    def read(self, regions: Regions) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T, D) of regions (B, T, ...) and their mask (B, T)."""
        return self(regions), regions.mask

    def forward(self, regions: Regions) -> Tensor:
        """Return tokens (B, T, D)."""
        scalars = torch.stack(
            [regions.rewards, regions.terminated.float(), regions.truncated.float()], dim=-1
        )
        return (
            self.observation(regions.observations)
            + self.next_observation(regions.next_observations)
            + self.action(regions.actions)
            + self.scalars(scalars)
        )


class StepEncoder(nn.Module):
    """One token per step: s_t, the action and reward before it, and whether an episode starts.

    At the first step of a region there is no action before it: its encoding is left out. The same
    holds offline and while acting, so nothing but the latents carries anything over a region's
    border.

    Args:
        observation: Observation field.
        action: Action field.
        d_model: Width D.
        previous_observation: Whether a token also holds s_{t-1}. What an observation led to then
            stands in one token; without it, in two neighbouring ones.
        sees: `step` encodes s_t alone, whatever else is asked for.
    """

    def __init__(
        self,
        observation: FieldSpec,
        action: FieldSpec,
        d_model: int,
        *,
        previous_observation: bool = False,
        sees: Sees = "region",
    ) -> None:
        super().__init__()
        self.sees = sees
        self.observation = FieldEncoder(observation, d_model)
        self.before = None
        if sees == "region":
            self.action = FieldEncoder(action, d_model)
            self.scalars = nn.Linear(2, d_model)  # reward before, episode start
            if previous_observation:
                self.before = FieldEncoder(observation, d_model)

    def match(self) -> None:
        """Let s_{t-1} begin encoded as s_t is (`nets.matching`)."""
        if self.before is not None:
            self.before.load_state_dict(self.observation.state_dict())

    def forward(self, steps: Steps) -> Tensor:
        """Return tokens (B, T, D): step t sees s_t, a_{t-1}, r_{t-1} and on request s_{t-1}."""
        observed = self.observation(steps.observations)
        if self.sees == "step":
            return observed
        known = (~steps.first).to(steps.previous_rewards.dtype)[:, None]
        before = self.action(steps.previous_actions)
        if self.before is not None:
            before = before + self.before(steps.previous_observations)
        before = before * known
        scalars = torch.stack([steps.previous_rewards, steps.starts.float()], dim=-1)
        return observed + before + self.scalars(scalars)


class RawFeatures(nn.Module):
    """Scaled transitions as fixed feature vectors (B, T, F): one-hot classes, numbers as they are.

    What PCA is fitted on: learned embeddings would change under it.
    """

    def __init__(self, observation: FieldSpec, action: FieldSpec) -> None:
        super().__init__()
        self.observation = observation
        self.action = action

    @staticmethod
    def width_of(spec: FieldSpec) -> int:
        """Number of features of one field."""
        if spec.kind == "parts":
            return sum(RawFeatures.width_of(part) for _, part in spec.parts)
        if spec.kind == "classes":
            return sum(spec.n_classes)
        return math.prod(spec.shape)

    @property
    def width(self) -> int:
        """F, features per transition."""
        return 2 * self.width_of(self.observation) + self.width_of(self.action) + 3

    @staticmethod
    def _features(spec: FieldSpec, values: Tensor) -> Tensor:
        if spec.kind == "parts":
            pieces = [(part, within(part, piece)) for part, piece in spec.split(values)]
            return torch.cat([RawFeatures._features(*each) for each in pieces], dim=-1)
        if spec.kind != "classes":
            return values.flatten(2).float()
        axes = values.long().reshape(*values.shape[:2], len(spec.n_classes))
        hots = [F.one_hot(axes[..., i], n) for i, n in enumerate(spec.n_classes)]
        return torch.cat(hots, dim=-1).float()

    def forward(self, regions: Regions) -> Tensor:
        """Return features (B, T, F)."""
        scalars = torch.stack(
            [regions.rewards, regions.terminated.float(), regions.truncated.float()], dim=-1
        )
        return torch.cat(
            [
                self._features(self.observation, regions.observations),
                self._features(self.observation, regions.next_observations),
                self._features(self.action, regions.actions),
                scalars,
            ],
            dim=-1,
        )
