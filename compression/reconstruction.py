"""The reconstruction head: raw fields of a region, read back from its latents.

A light transformer decoder from position queries, cross-attending to the latents. It predicts raw
fields, never embeddings: reconstructing something trainable collapses. Real fields are expected
scaled (`nets.scaling`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base.ranges import AtLeast
from compression.latents import Latents
from nets.positions import sinusoids, spread
from nets.regions import Regions
from nets.spaces import FieldSpec
from nets.transformer import Transformer


@dataclass(frozen=True)
class ReconstructionConfig:
    """Settings of the reconstruction head.

    Attributes:
        n_layers: Decoder layers.
    """

    n_layers: Annotated[int, AtLeast(1)] = 1


class ReconstructionHead(nn.Module):
    """Predicts s, a, r, s', terminated, truncated at every position of a region.

    Args:
        observation: Observation field.
        action: Action field.
        config: Depth.
        d_model: Width D.
        n_heads: Heads.
        region_len: L.
        n_latents: M.
    """

    def __init__(
        self,
        observation: FieldSpec,
        action: FieldSpec,
        config: ReconstructionConfig,
        *,
        d_model: int,
        n_heads: int,
        region_len: int,
        n_latents: int,
    ) -> None:
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
        self.latent_positions = nn.Parameter(
            0.1 * sinusoids(spread(n_latents, region_len), d_model)
        )
        self.position_queries = nn.Parameter(torch.randn(region_len, d_model) * d_model**-0.5)
        self.layers = Transformer(d_model, n_heads, config.n_layers, cross_attention=True)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(d_model, _n_outputs(spec)) for name, spec in self.specs.items()}
        )

    def forward(self, latents: Latents) -> dict[str, Tensor]:
        """Map latents (B, M, D) to raw predictions per field, each (B, L, outputs)."""
        queries = self.position_queries.expand(len(latents.values), -1, -1)
        memory = self.layers.project_memory(latents.values + self.latent_positions)
        hidden = self.layers(queries, memory=memory, memory_mask=latents.mask)
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
        metrics = {}
        total, n_fields = latents.values.new_zeros(()), latents.values.new_zeros(())
        of_steps = regions.mask.float() / regions.mask.sum().clamp_min(1)
        for name, outputs in self(latents).items():
            losses, score = _field_loss(self.specs[name], outputs, getattr(regions, name))
            weight = total.new_ones(()) if weights is None else weights[name]
            total = total + weight * (losses * of_steps).sum()
            n_fields = n_fields + (weight > 0)
            metrics[f"rec_{name}"] = (score * of_steps).sum().detach()
        return total / n_fields.clamp_min(1), metrics


def _n_outputs(spec: FieldSpec) -> int:
    if spec.kind == "classes":
        return sum(spec.n_classes)
    return math.prod(spec.shape)


def _field_loss(spec: FieldSpec, outputs: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return a field's loss and score (B, T): accuracy of classes, squared error of numbers."""
    if spec.kind != "classes":
        scale = 255.0 if spec.kind == "image" else 1.0
        error = (outputs - values.reshape(outputs.shape).float() / scale).square().mean(-1)
        return error, error.detach()
    indices = values.long().reshape(*values.shape[:2], len(spec.n_classes))
    loss = outputs.new_zeros(values.shape[:2])
    right = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    for i, logits in enumerate(outputs.split(spec.n_classes, dim=-1)):
        cross_entropy = F.cross_entropy(
            logits.flatten(0, 1), indices[..., i].flatten(), reduction="none"
        )
        loss = loss + cross_entropy.view(loss.shape) / len(spec.n_classes)
        right &= logits.argmax(-1) == indices[..., i]
    return loss, right.float()
