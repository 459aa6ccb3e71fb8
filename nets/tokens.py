"""How a completed region becomes the tokens that a compressor reads.

`transition`: one token for each transition (`nets.embeddings.TransitionEncoder`). `step`: one for
each observation, with the action and reward before it. `interleaved`: observation, action and
reward in turn. Each has encoders `observation` and `action`, says by `n_tokens` how many tokens a
region makes, and `read`s regions. Shapes: B batch, T transitions, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from nets.embeddings import FieldEncoder, StepEncoder, TransitionEncoder
from nets.regions import Regions, Steps, padded
from nets.spaces import FieldSpec

Tokenisation = Literal["transition", "step", "interleaved"]


class StepTokens(StepEncoder):
    """T + 1 tokens of T transitions: s_t with a_{t-1} and r_{t-1}, and what the last one led to.

    Of an episode that ends before the region does, the last observation is not read.
    """

    def __init__(self, observation: FieldSpec, action: FieldSpec, d_model: int) -> None:
        super().__init__(observation, action, d_model)

    @staticmethod
    def n_tokens(n_transitions: int) -> int:
        """Return T + 1."""
        return n_transitions + 1

    def read(self, regions: Regions) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T + 1, D) of regions (B, T, ...) and their mask (B, T + 1)."""
        n_steps = regions.mask.shape[1]
        behind = regions.mask.sum(1)  # (B,)
        rows = torch.arange(len(behind), device=behind.device)
        longer = padded(regions, n_steps + 1)
        observations, mask = longer.observations.clone(), longer.mask.clone()
        last = (behind - 1).clamp_min(0)
        observations[rows, behind] = regions.next_observations[rows, last].to(observations)
        mask[rows, behind] = True
        return self(Steps.of(replace(longer, observations=observations))), mask


class InterleavedTokens(nn.Module):
    """3 T tokens of T transitions: s_t, a_t, and r_t with the flags, each with its kind added.

    What the last transition of an episode, or of the region, led to is not read.

    Args:
        observation: Observation field.
        action: Action field.
        d_model: Width D.
    """

    def __init__(self, observation: FieldSpec, action: FieldSpec, d_model: int) -> None:
        super().__init__()
        self.observation = FieldEncoder(observation, d_model)
        self.action = FieldEncoder(action, d_model)
        self.scalars = nn.Linear(3, d_model)  # reward, terminated, truncated
        self.kinds = nn.Parameter(torch.randn(3, d_model) * d_model**-0.5)

    @staticmethod
    def n_tokens(n_transitions: int) -> int:
        """Return 3 T."""
        return 3 * n_transitions

    def read(self, regions: Regions) -> tuple[Tensor, Tensor]:
        """Return tokens (B, 3 T, D) of regions (B, T, ...) and their mask (B, 3 T)."""
        scalars = [regions.rewards, regions.terminated.float(), regions.truncated.float()]
        parts = [
            self.observation(regions.observations),
            self.action(regions.actions),
            self.scalars(torch.stack(scalars, dim=-1)),
        ]
        tokens = torch.stack(parts, dim=2) + self.kinds  # (B, T, 3, D)
        return tokens.flatten(1, 2), regions.mask.repeat_interleave(3, dim=1)


TOKENISATIONS: dict[str, type[TransitionEncoder] | type[StepTokens] | type[InterleavedTokens]] = {
    "transition": TransitionEncoder,
    "step": StepTokens,
    "interleaved": InterleavedTokens,
}
