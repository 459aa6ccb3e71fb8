"""The reconstruction head: raw fields of a region, read back from its latents.

A light transformer decoder from position queries, cross-attending to the latents. It predicts raw
fields, never embeddings: reconstructing something trainable collapses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base.ranges import AtLeast
from nets.embeddings import Regions
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
        self.position_queries = nn.Parameter(torch.randn(region_len, d_model) * d_model**-0.5)
        self.layers = Transformer(d_model, n_heads, config.n_layers, cross_attention=True)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(d_model, _n_outputs(spec)) for name, spec in self.specs.items()}
        )

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        """Map latents (B, M, D) to raw predictions per field, each (B, L, outputs)."""
        queries = self.position_queries.expand(len(latents), -1, -1)
        hidden = self.layers(queries, memory=self.layers.project_memory(latents))
        return {name: head(hidden) for name, head in self.heads.items()}

    def loss(self, latents: Tensor, regions: Regions) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction loss L_rec (cross-entropy or mean squared error, mean per field).

        Args:
            latents: (B, M, D).
            regions: The regions they came from.

        Returns:
            The scalar loss, summed over fields, and per field its accuracy (classes: share of
            values right in all axes) or mean squared error (real fields), as `rec_<field>`.
        """
        metrics = {}
        total = latents.new_zeros(())
        weights = regions.mask.float() / regions.mask.sum().clamp_min(1)
        for name, outputs in self(latents).items():
            losses, score = _field_loss(self.specs[name], outputs, getattr(regions, name))
            total = total + (losses * weights).sum()
            metrics[f"rec_{name}"] = (score * weights).sum().detach()
        return total, metrics


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
