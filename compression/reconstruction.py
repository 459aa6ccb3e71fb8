"""The reconstruction head's interface: raw fields of a region, read back from its latents.

A head turns latents into one hidden state per position; raw fields are predicted from it, never
embeddings: reconstructing something trainable collapses. Real fields are expected scaled
(`nets.scaling`). The heads themselves stand in files of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base.ranges import Between
from compression.compressor import import_class
from compression.latents import Latents
from nets.embeddings import within
from nets.regions import Regions
from nets.spaces import FieldSpec

HEADS = {
    "attention": "compression.attention_head:AttentionHead",
    "patch": "compression.patch_head:PatchHead",
}


@dataclass(frozen=True)
class ReconstructionConfig:
    """Settings of the reconstruction head.

    Attributes:
        kind: `attention` (positions ask the latents), `patch` (each latent is projected to the
            positions of its part of the region), or the import path `module:Class` of a user's own.
        n_layers: Decoder layers.
    """

    kind: str = "attention"
    n_layers: Annotated[int, Between(1, 1000)] = 1


class ReconstructionHead(nn.Module):
    """Predicts s, a, r, s', terminated, truncated at every position of a region. Base class.

    Subclasses are built as `Head(observation, action, config, *, d_model, n_heads, region_len,
    n_latents)` and have `hidden`.

    Args:
        observation: Observation field.
        action: Action field.
        d_model: Width D of hidden states.
    """

    def __init__(self, observation: FieldSpec, action: FieldSpec, *, d_model: int) -> None:
        super().__init__()
        flag = FieldSpec("classes", (), (2,))
        reward = FieldSpec("vector", (1,))
        self.specs = {
            "observations": observation,
            "actions": action,
            "rewards": reward,
            "next_observations": observation,
            "terminated": flag,
            "truncated": flag,
        }
        self.heads = nn.ModuleDict(
            {name: nn.Linear(d_model, n_outputs(spec)) for name, spec in self.specs.items()}
        )

    def hidden(self, latents: Latents) -> Tensor:
        """Map latents (B, M, D) to hidden states (B, L, D); what the mask hides is not read."""
        raise NotImplementedError

    def forward(self, latents: Latents) -> dict[str, Tensor]:
        """Map latents (B, M, D) to raw predictions per field, each (B, L, outputs)."""
        hidden = self.hidden(latents)
        return {name: head(hidden) for name, head in self.heads.items()}

    def loss(
        self, latents: Latents, regions: Regions, weights: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction loss L_rec: cross-entropy or mean squared error per field, then averaged.

        Args:
            latents: (B, M, D).
            regions: The regions they came from, real fields scaled.
            weights: Each field's weight, `FieldScaling.weights()`; with them a loss of 1 is what
                guessing from the marginals costs. None for 1 each.

        Returns:
            The scalar loss, averaged over the fields with a weight above 0, and per field its
            accuracy (classes: share of values right in all axes) or mean squared error (real
            fields), as `rec_<field>`.
        """
        return fields_loss(self.specs, self(latents), regions, weights, "rec")


def build_reconstruction(
    observation: FieldSpec, action: FieldSpec, config: ReconstructionConfig, **sizes: int
) -> ReconstructionHead:
    """Build the head a config asks for; `sizes` are d_model, n_heads, region_len and n_latents.

    Raises:
        CompressorError: There is no such kind.
    """
    cls = import_class("reconstruction.kind", config.kind, HEADS, ReconstructionHead)
    return cls(observation, action, config, **sizes)


def n_outputs(spec: FieldSpec) -> int:
    """Return how many numbers a prediction of a field has."""
    if spec.kind == "parts":
        return sum(n_outputs(part) for _, part in spec.parts)
    if spec.kind == "classes":
        return sum(spec.n_classes)
    return math.prod(spec.shape)


def fields_loss(
    specs: Mapping[str, FieldSpec],
    outputs: Mapping[str, Tensor],
    regions: Regions,
    weights: Mapping[str, Tensor] | None,
    prefix: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean loss of some fields of regions, and each one's score as `<prefix>_<field>`.

    Args:
        specs: The fields.
        outputs: Their predictions, (B, T, `n_outputs(spec)`).
        regions: What is predicted, (B, T, ...), real fields scaled.
        weights: As in `ReconstructionHead.loss`.
        prefix: Of the scores' names.
    """
    metrics = {}
    total, n_fields = torch.zeros(()).to(regions.rewards), torch.zeros(()).to(regions.rewards)
    of_steps = regions.mask.float() / regions.mask.sum().clamp_min(1)
    for name, predicted in outputs.items():
        losses, score = _field_loss(specs[name], predicted, getattr(regions, name))
        weight = total.new_ones(()) if weights is None else weights[name]
        total = total + weight * (losses * of_steps).sum()
        n_fields = n_fields + (weight > 0)
        metrics[f"{prefix}_{name}"] = (score * of_steps).sum().detach()
    return total / n_fields.clamp_min(1), metrics


def _field_loss(spec: FieldSpec, outputs: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return a field's loss and score (B, T): accuracy of classes, squared error of numbers.

    Of parts, the means over them.
    """
    if spec.kind == "parts":
        predicted = outputs.split([n_outputs(part) for _, part in spec.parts], dim=-1)
        pairs = zip(predicted, spec.split(values), strict=True)
        found = [_field_loss(part, own, within(part, true)) for own, (part, true) in pairs]
        losses, scores = (torch.stack(each).mean(0) for each in zip(*found, strict=True))
        return losses, scores
    if spec.kind != "classes":
        error = (outputs - values.reshape(outputs.shape).float()).square().mean(-1)
        return error, error.detach()
    indices = values.long().reshape(*values.shape[:2], len(spec.n_classes))
    loss = outputs.new_zeros(values.shape[:2])
    right = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    for i, logits in enumerate(outputs.split(spec.n_classes, dim=-1)):
        cross_entropy = F.cross_entropy(
            logits.flatten(0, 1), indices[..., i].flatten(), reduction="none"
        )
        loss = loss + cross_entropy.view(loss.shape) / len(spec.n_classes)
        right = right & (logits.argmax(-1) == indices[..., i])
    return loss, right.float()
