"""Memory that retrieves: the last region, and those k of the regions before it that are most alike.

What is alike is the latents: the squared distance of two regions', all M of them side by side. With
`pick: random` the same number is drawn instead, which tells what retrieving by likeness is worth.
Shapes: n rows or streams, N regions kept, k picked, M latents of a region, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compression.compressor import CompressorError
from compression.latents import Latents
from compression.memory import Accumulate, LastRegions, MemoryConfig
from compression.neighbours import squared_distances

PICKS = ("similar", "random")


@dataclass(kw_only=True)
class Retrieved(LastRegions):
    """State of `Retrieval`: the regions kept, and which of them are read beside the newest.

    Attributes:
        picked: (n, k) int64, places among the N kept.
        found: (n, k) bool, whether there were so many.
    """

    picked: Tensor
    found: Tensor


class Retrieval(Accumulate):
    """The previous region's latents, and those of the k regions before it most like it.

    `memory.n_regions` regions are led over in training; while acting, the last `capacity` are kept
    to pick from, as many unless more are asked for. Which are picked is settled at a border, and no
    gradient goes through it. Retrieved latents carry positions, and a vector that tells them from
    the previous region's; how long ago they were is not told.
    """

    settings = {"k": 1, "pick": "similar", "capacity": 0}  # noqa: RUF012
    by_age = False

    @classmethod
    def check(cls, config: MemoryConfig) -> dict[str, Any]:
        """Return its settings, unless there could be no k regions to pick."""
        kwargs = super().check(config)
        k, pick, capacity = kwargs["k"], kwargs["pick"], kwargs["capacity"]
        if pick not in PICKS:
            raise CompressorError(
                f"memory.kwargs.pick is {pick!r}, expected one of {', '.join(PICKS)}; change "
                "memory.kwargs.pick."
            )
        if not 1 <= k < config.n_regions:
            raise CompressorError(
                f"memory.kwargs.k is {k}, but of memory.n_regions={config.n_regions} regions one "
                f"is the previous one: expected 1 ... {config.n_regions - 1}; raise "
                "memory.n_regions to 2 or more, or lower k."
            )
        if capacity and capacity < config.n_regions:
            raise CompressorError(
                f"memory.kwargs.capacity is {capacity}, less than memory.n_regions="
                f"{config.n_regions}, over which it is led in training; raise it, or leave it at 0."
            )
        return kwargs

    @classmethod
    def regions_read(cls, config: MemoryConfig) -> int:
        """1 + k."""
        return 1 + cls.check(config)["k"]

    @classmethod
    def regions_kept(cls, config: MemoryConfig) -> int:
        """`capacity`, or `n_regions`."""
        return cls.check(config)["capacity"] or config.n_regions

    @classmethod
    def draws(cls, config: MemoryConfig) -> bool:
        """Whether regions are picked at random."""
        return cls.check(config)["pick"] == "random"

    def __init__(self, config: MemoryConfig, **sizes: Any) -> None:
        super().__init__(config, **sizes)
        self.n_picked = self.kwargs["k"]
        self.retrieved = nn.Parameter(torch.randn(self.no_context.shape[1]) * 0.02)

    def start(self, n: int) -> Retrieved:
        """Return `n` rows without a region."""
        kept = super().start(n)
        nothing = torch.zeros(n, self.n_picked, dtype=torch.long, device=kept.values.device)
        return Retrieved(kept.values, kept.present, picked=nothing, found=nothing.bool())

    def update(self, state: Retrieved, latents: Latents, present: Tensor) -> Retrieved:
        """Keep this region, forget the oldest, and pick those that are read beside it."""
        kept = super().update(state, latents, present)
        picked, found = self._pick(kept)
        there = present[:, None]
        return Retrieved(
            kept.values,
            kept.present,
            kept.shown,
            picked=torch.where(there, picked, state.picked),
            found=torch.where(there, found, state.found),
        )

    def _pick(self, kept: LastRegions) -> tuple[Tensor, Tensor]:
        """Return k of the regions before the newest, (n, k), and whether there were so many."""
        values = kept.values.detach()
        if kept.shown is not None:
            values = values * kept.shown[..., None]
        older = kept.present[:, :-1]
        if self.kwargs["pick"] == "random":
            apart = torch.rand(older.shape, device=older.device)
        else:
            flat = values.flatten(2)
            apart = squared_distances(flat[:, -1], flat[:, :-1])  # (n, N - 1)
        apart = apart.masked_fill(~older, float("inf"))
        least = apart.topk(self.n_picked, dim=1, largest=False)
        return least.indices, least.values.isfinite()

    def read(self, state: Retrieved) -> Latents:
        """Return the latents of the k picked regions and of the newest, masked where none is."""
        picked, found = state.picked, state.found
        rows = torch.arange(len(picked), device=picked.device)[:, None]
        there = state.values[rows, picked] + self.positions + self.retrieved  # (n, k, M, D)
        has_any = state.present[:, -1:, None]
        newest = torch.where(has_any, state.values[:, -1] + self.positions, self.no_context)
        shown = torch.ones_like(state.values[..., 0], dtype=torch.bool)
        shown = shown if state.shown is None else state.shown
        mask = torch.cat(
            [shown[rows, picked] & found[..., None], (shown[:, -1] | ~has_any[..., 0])[:, None]], 1
        )
        values = torch.cat([there, newest[:, None]], dim=1)
        return Latents(values.flatten(1, 2), mask.flatten(1, 2))
