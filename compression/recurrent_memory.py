"""Memory that recurs: m latents for the whole past, which every region changes.

How a region changes them is `memory.kwargs.update`. Training leads it over the last
`memory.n_regions` rounds, gradients through all of them; acting goes on for as long as there are
regions. Shapes: B rows or streams, M latents of a region, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compression.compressor import CompressorError
from compression.latents import Latents
from compression.memory import Memory, MemoryConfig
from nets.positions import LatentPositions, settle, sinusoids, spread

FIRST_GATE = 1.0
"""Bias of gates at the start: more of what is remembered stays than goes."""


class Replace(nn.Module):
    """S' = Z: nothing is remembered beyond a region. The floor of the others."""

    def __init__(self, d_model: int) -> None:
        super().__init__()

    def forward(self, state: Tensor, latents: Tensor) -> Tensor:
        """Map state S and latents Z, both (B, M, D), to the next state."""
        return latents


class Residual(nn.Module):
    """S' = LayerNorm(S + W Z), W = 1 at first; the norm is what keeps the sum bounded."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.take = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        with torch.no_grad():
            self.take.weight.copy_(torch.eye(d_model))
            self.take.bias.zero_()

    def forward(self, state: Tensor, latents: Tensor) -> Tensor:
        """Map state S and latents Z, both (B, M, D), to the next state."""
        return self.norm(state + self.take(latents))


class Gate(nn.Module):
    """S' = g S + (1 - g) Z, g = sigmoid(W [S; Z]): no number leaves the range of S and Z."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * d_model, d_model)
        nn.init.constant_(self.gate.bias, FIRST_GATE)

    def forward(self, state: Tensor, latents: Tensor) -> Tensor:
        """Map state S and latents Z, both (B, M, D), to the next state."""
        keep = self.gate(torch.cat([state, latents], dim=-1)).sigmoid()
        return keep * state + (1 - keep) * latents


class GRU(nn.Module):
    """A gated recurrent unit (Cho et al. 2014, arXiv 1406.1078), S its state and Z its input.

    Candidates lie in (-1, 1), so that S shrinks into that range and stays.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(d_model, d_model)
        with torch.no_grad():  # the update gate z keeps S where it is 1; rows are r, z, n
            self.cell.bias_ih[d_model : 2 * d_model] += FIRST_GATE

    def forward(self, state: Tensor, latents: Tensor) -> Tensor:
        """Map state S and latents Z, both (B, M, D), to the next state."""
        return self.cell(latents.flatten(0, 1), state.flatten(0, 1)).view_as(state)


UPDATES: dict[str, type[nn.Module]] = {
    "replace": Replace,
    "residual": Residual,
    "gate": Gate,
    "gru": GRU,
}


@dataclass
class Remembered:
    """State of `Recurrent`.

    Attributes:
        values: (n, M, D).
        shown: (n, M) bool, latents that a region has written to.
    """

    values: Tensor
    shown: Tensor


class Recurrent(Memory):
    """m latents for the whole past; each region's latent j changes the j-th of them.

    The first region's latents are the first state. A latent that a region hides
    (`compressor.nested`) changes nothing. A row that has seen no region reads learned "no context"
    latents.
    """

    settings = {"update": "gate"}  # noqa: RUF012

    @classmethod
    def check(cls, config: MemoryConfig) -> dict[str, Any]:
        """Return its settings, unless there is no such update or it could not be learned."""
        kwargs = super().check(config)
        if kwargs["update"] not in UPDATES:
            raise CompressorError(
                f"memory.kwargs.update is {kwargs['update']!r}, expected one of "
                f"{', '.join(UPDATES)}; change memory.kwargs.update."
            )
        if config.n_regions < 2 and kwargs["update"] != "replace":
            raise CompressorError(
                "memory.n_regions is 1, but memory.kind=recurrent learns its update from regions "
                "that follow each other; set memory.n_regions to 2 or more, the rounds of training."
            )
        return kwargs

    @classmethod
    def regions_read(cls, config: MemoryConfig) -> int:
        """One: m latents for the whole past."""
        return 1

    @classmethod
    def regions_kept(cls, config: MemoryConfig) -> None:
        """All there were."""

    def __init__(
        self, config: MemoryConfig, *, n_latents: int, d_model: int, region_len: int
    ) -> None:
        super().__init__(config, n_latents=n_latents, d_model=d_model, region_len=region_len)
        self.n_latents = n_latents
        self.positions = nn.Parameter(0.1 * sinusoids(spread(n_latents, region_len), d_model))
        self.no_context = nn.Parameter(torch.randn(n_latents, d_model) * 0.02)
        self.change = UPDATES[self.kwargs["update"]](d_model)

    def position(self, kind: LatentPositions) -> None:
        """Learn the positions of what is remembered, keep them, or leave them out."""
        settle(self, "positions", kind)

    def placed(self, values: Tensor) -> Tensor:
        """Return latents (n, M, D) with their positions."""
        return values + self.positions

    @property
    def n_tokens(self) -> int:
        """M, after however many regions."""
        return self.n_latents

    def start(self, n: int) -> Remembered:
        """Return `n` rows without a region."""
        values = self.no_context.detach().new_zeros(n, *self.no_context.shape)
        return Remembered(values, torch.zeros(values.shape[:2], dtype=torch.bool).to(values.device))

    def update(self, state: Remembered, latents: Latents, present: Tensor) -> Remembered:
        """Let a region's latents change what is remembered."""
        written = present[:, None] & latents.shown.bool()  # (n, M)
        changed = torch.where(
            state.shown[..., None], self.change(state.values, latents.values), latents.values
        )
        values = torch.where(written[..., None], changed, state.values)
        return Remembered(values, state.shown | written)

    def read(self, state: Remembered) -> Latents:
        """Return what is remembered, those latents masked that no region has written to."""
        has_any = state.shown.any(1)[:, None]  # (n, 1)
        values = torch.where(has_any[..., None], state.values + self.positions, self.no_context)
        return Latents(values, state.shown | ~has_any)
