"""Losses beside the actions': the return to go, and what comes next, decoded several steps ahead.

Both are read from the hidden states that actions are read from, by heads that belong to the
objective and are thrown away after the stage: nothing that acts grows. Shapes: B rows, L region
length, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from compression.reconstruction import fields_loss, n_outputs
from nets.embeddings import FieldEncoder
from nets.regions import Regions
from nets.scaling import FieldScaling
from nets.spaces import FieldSpec

LEAST_VARIANCE = 1e-6


def returns_to_go(regions: Regions, discount: float = 1.0) -> Tensor:
    """Return the discounted rewards (B, L) from each step to its episode's or region's end.

    Args:
        regions: Fields (B, L, ...); padding pays nothing.
        discount: Per step, 0 ... 1.
    """
    rewards = regions.rewards.float() * regions.mask
    goes_on = (~regions.ended).float()
    found, later = [], torch.zeros_like(rewards[:, 0])
    for time in range(rewards.shape[1] - 1, -1, -1):
        later = rewards[:, time] + discount * goes_on[:, time] * later
        found.append(later)
    return torch.stack(found[::-1], dim=1)


class ReturnHead(nn.Module):
    """A linear read-out of the return to go.

    Args:
        d_model: Width D of hidden states.
        discount: Of rewards, per step.
    """

    def __init__(self, d_model: int, discount: float) -> None:
        super().__init__()
        self.discount = discount
        self.head = nn.Linear(d_model, 1)

    def loss(self, hidden: Tensor, regions: Regions) -> Tensor:
        """Return the squared error, a scalar in variances of the batch: guessing costs 1.

        Args:
            hidden: (B, L, D).
            regions: Current ones, real fields as they are.
        """
        target, mask = returns_to_go(regions, self.discount), regions.mask.float()
        of_steps = mask / mask.sum().clamp_min(1)
        mean = (target * of_steps).sum()
        deviation = ((target - mean).square() * of_steps).sum().clamp_min(LEAST_VARIANCE).sqrt()
        scaled = (target - mean) / deviation
        return ((self.head(hidden)[..., 0] - scaled).square() * of_steps).sum()


class AheadHead(nn.Module):
    """Decodes rewards and next observations step after step, given the actions that are taken.

    A gated recurrent unit begins with a step's hidden state and is told one action after the other.

    Args:
        observation: Observation field.
        action: Action field.
        d_model: Width D of hidden states.
        n_ahead: Steps that are decoded.
    """

    def __init__(
        self, observation: FieldSpec, action: FieldSpec, *, d_model: int, n_ahead: int
    ) -> None:
        super().__init__()
        self.n_ahead = n_ahead
        self.specs = {"rewards": FieldSpec("vector", (1,)), "next_observations": observation}
        self.action = FieldEncoder(action, d_model)
        self.cell = nn.GRUCell(d_model, d_model)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(d_model, n_outputs(spec)) for name, spec in self.specs.items()}
        )

    def loss(
        self, hidden: Tensor, regions: Regions, scaling: FieldScaling
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of all steps ahead, 1 for guessing, and the scores of each.

        Steps beyond an episode's or the region's end are not asked for.

        Args:
            hidden: (B, L, D).
            regions: Current ones, real fields as they are.
            scaling: Of the fields.

        Returns:
            The scalar loss, and per step and field its score (`fields_loss`) as
            `ahead_<step>_<field>`.
        """
        scaled, weights = scaling.regions(regions), scaling.weights()
        state, total, metrics = hidden.flatten(0, 1), hidden.new_zeros(()), {}
        for ahead, reached in enumerate(reached_after(regions, self.n_ahead)):
            there = later(scaled, ahead)
            told = self.action(there.actions).flatten(0, 1)
            state = self.cell(told, state)
            outputs = {
                name: head(state).unflatten(0, hidden.shape[:2])
                for name, head in self.heads.items()
            }
            asked = replace(there, mask=reached)
            loss, scores = fields_loss(self.specs, outputs, asked, weights, f"ahead_{ahead + 1}")
            total, metrics = total + loss / self.n_ahead, metrics | scores
        return total, metrics


def reached_after(regions: Regions, n_steps: int) -> list[Tensor]:
    """Return, for 0 ... n_steps - 1, where the step so many later is one of the episode's (B, L).

    A region's end cuts an episode short.
    """
    found, reached = [], regions.mask
    for ahead in range(n_steps):
        there = later(regions, ahead)
        reached = reached & there.mask
        found.append(reached)
        reached = reached & ~there.ended
    return found


def later(regions: Regions, n_steps: int) -> Regions:
    """Return at every step what is `n_steps` later in its region, masked beyond the end."""

    def moved(field: Tensor) -> Tensor:
        return torch.cat([field[:, n_steps:], torch.zeros_like(field[:, :n_steps])], dim=1)

    return regions.map(moved)
