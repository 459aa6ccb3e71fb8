"""Prediction across regions: what is done and paid in a later one, from an earlier one's latents.

Used in pretraining alone, where it asks of latents what acting will ask of them, and nothing of
what a region holds besides. Every step of the later region stands by itself: no head that has seen
the steps before it could tell what the latents do not say.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compression.latents import Latents
from compression.reconstruction import fields_loss, n_outputs
from nets.embeddings import FieldEncoder
from nets.positions import sinusoids, spread
from nets.regions import Regions
from nets.spaces import FieldSpec
from nets.transformer import Transformer


class PredictionHead(nn.Module):
    """One block of cross-attention: a step's observation asks the latents for action and reward.

    Actions are predicted given the observation, rewards given observation and action.

    Args:
        observation: Observation field.
        action: Action field.
        d_model: Width D.
        n_heads: Heads.
        region_len: L.
        n_latents: M.
    """

    def __init__(
        self,
        observation: FieldSpec,
        action: FieldSpec,
        *,
        d_model: int,
        n_heads: int,
        region_len: int,
        n_latents: int,
    ) -> None:
        super().__init__()
        self.specs = {"actions": action, "rewards": FieldSpec("vector", (1,))}
        self.observation = FieldEncoder(observation, d_model)
        self.action = FieldEncoder(action, d_model)
        self.latent_positions = nn.Parameter(
            0.1 * sinusoids(spread(n_latents, region_len), d_model)
        )
        self.layers = Transformer(d_model, n_heads, 1, self_attention=False, cross_attention=True)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(d_model, n_outputs(spec)) for name, spec in self.specs.items()}
        )

    def forward(self, latents: Latents, regions: Regions) -> dict[str, Tensor]:
        """Map latents (B, M, D) and the steps of other regions to predictions (B, T, outputs)."""
        seen = self.observation(regions.observations)
        done = seen + self.action(regions.actions)
        memory = self.layers.project_memory(latents.values + self.latent_positions)
        hidden = self.layers(
            torch.cat([seen, done], dim=1), memory=memory, memory_mask=latents.mask
        )  # (B, 2 T, D)
        of_action, of_reward = hidden.chunk(2, dim=1)
        return {
            "actions": self.heads["actions"](of_action),
            "rewards": self.heads["rewards"](of_reward),
        }

    def loss(
        self, latents: Latents, regions: Regions, weights: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the prediction loss, 1 where no more is known than the marginals, and scores.

        Args:
            latents: Of earlier regions, (B, M, D).
            regions: Those predicted, real fields scaled; what their mask hides does not count.
            weights: Each field's weight, `FieldScaling.weights()`.

        Returns:
            The scalar loss, averaged over the fields with a weight above 0, and per field its
            accuracy (classes) or mean squared error (real fields), as `pred_<field>`.
        """
        return fields_loss(self.specs, self(latents, regions), regions, weights, "pred")
