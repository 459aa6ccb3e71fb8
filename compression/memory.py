"""Memory over regions: what stays of a region's latents once the next region has begun.

One object serves training, where it is led over R consecutive regions, and acting, where it is
updated at every border. Shapes: B rows or streams, M latents of a region, D width, R regions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from base.ranges import AtLeast
from compression.compressor import CompressorError, check_kwargs, import_class
from compression.latents import Latents
from nets.positions import LatentPositions, settle, sinusoids, spread

MEMORIES = {
    "one_shot": "compression.memory:OneShot",
    "accumulate": "compression.memory:Accumulate",
    "recurrent": "compression.recurrent_memory:Recurrent",
    "retrieval": "compression.retrieval_memory:Retrieval",
}


@dataclass(frozen=True)
class MemoryConfig:
    """Settings of the memory over regions.

    Attributes:
        kind: `one_shot` (the previous region alone), `accumulate` (the latents of the last
            `n_regions` regions), `recurrent` (m latents for the whole past), `retrieval` (the
            previous region and those before it that are most like it), or the import path
            `module:Class` of a user's own.
        n_regions: R, regions it is led over in training; of `accumulate`, regions whose latents
            are kept; 1 of `one_shot`.
        kwargs: Settings of the kind's own, checked by its class; of `recurrent`, `update`: one of
            `replace`, `residual`, `gate`, `gru`; of `retrieval`, `k` regions beside the previous
            one, `pick`: `similar` or `random`, and `capacity`, regions kept to pick from while
            acting, 0 for `n_regions`.
    """

    kind: str = "one_shot"
    n_regions: Annotated[int, AtLeast(1)] = 1
    kwargs: dict[str, Any] = field(default_factory=dict)

    def n_tokens(self, n_latents: int) -> int:
        """Return the latent tokens a full memory shows, `n_latents` being kept of a region."""
        shipped = self.kind in MEMORIES  # a user's own is imported where it is built
        read = memory_class(self.kind).regions_read(self) if shipped else self.n_regions
        return read * n_latents


class Memory(nn.Module):
    """Base class. States are opaque to everybody else.

    Args:
        config: Settings.
        n_latents: M.
        d_model: D.
        region_len: L.

    Attributes:
        n_regions: R, regions it is led over in training.
        settings: Names and defaults of what `memory.kwargs` may hold.
    """

    settings: dict[str, Any] = {}  # noqa: RUF012  (read only, replaced by subclasses)

    @classmethod
    def check(cls, config: MemoryConfig) -> dict[str, Any]:
        """Return its own settings, defaults filled in.

        Raises:
            CompressorError: It cannot be built with these settings.
        """
        return check_kwargs("memory.kwargs", config.kwargs, cls.settings, "memory")

    @classmethod
    def regions_read(cls, config: MemoryConfig) -> int:
        """Return how many regions' worth of latents a full memory shows."""
        return config.n_regions

    @classmethod
    def regions_kept(cls, config: MemoryConfig) -> int | None:
        """Return how many regions its state depends on while acting; None for all there were."""
        return config.n_regions

    @classmethod
    def draws(cls, config: MemoryConfig) -> bool:
        """Return whether what is read is drawn anew every time."""
        return False

    def __init__(
        self, config: MemoryConfig, *, n_latents: int, d_model: int, region_len: int
    ) -> None:
        super().__init__()
        self.kwargs = self.check(config)
        self.n_regions = config.n_regions

    @property
    def n_tokens(self) -> int:
        """Most latent tokens that `read` returns for a row."""
        raise NotImplementedError

    def position(self, kind: LatentPositions) -> None:
        """Give a region's latents positions of this kind (`compressor.latent_positions`).

        Called once, when it is built; by default there are none, and nothing is done.
        """

    @classmethod
    def tells_places(cls) -> bool:
        """Return whether it knows which steps what it shows is about, as rotary positions need."""
        return False

    def places(self) -> Tensor:
        """Return where what it shows lies, (`n_tokens`,), in steps from the current region's first.

        Those of earlier regions are negative. Only of a memory that `tells_places`.
        """
        raise NotImplementedError

    def place(self, addresses: Tensor) -> None:
        """Let learned places of a region's latents begin as these, (M, D); by default none do."""

    def start(self, n: int) -> Any:
        """Return the state of `n` rows that have seen no region."""
        raise NotImplementedError

    def update(self, state: Any, latents: Latents, present: Tensor) -> Any:
        """Return the state after another region.

        Args:
            state: Before it; it is not changed.
            latents: Of the region, (n, M, D).
            present: (n,) bool, False for rows that have no such region: their state stays.
        """
        raise NotImplementedError

    def read(self, state: Any) -> Latents:
        """Return what the decoder attends to, (n, `n_tokens`, D)."""
        raise NotImplementedError

    def placed(self, values: Tensor) -> Tensor:
        """Return one region's latents (n, M, D) as they are read: with positions, if it has any.

        For a region still being filled (`compressor.online`), which no memory holds.
        """
        return values


@dataclass
class LastRegions:
    """State of `Accumulate` and `OneShot`: latents of the last R regions, the newest last.

    Attributes:
        values: (n, R, M, D); what is absent is not read.
        present: (n, R) bool.
        shown: (n, R, M) bool, which latents of a region count; None where all do.
    """

    values: Tensor
    present: Tensor
    shown: Tensor | None = None


class Accumulate(Memory):
    """The latents of the last R regions side by side, each with its position and region index.

    A row that has seen no region reads learned "no context" latents. Positions of latents are
    spread over the region they came from.

    Attributes:
        by_age: Whether it is told how long ago a region was.
    """

    by_age = True

    def __init__(
        self, config: MemoryConfig, *, n_latents: int, d_model: int, region_len: int
    ) -> None:
        super().__init__(config, n_latents=n_latents, d_model=d_model, region_len=region_len)
        self.n_latents, self.region_len = n_latents, region_len
        self.n_read = self.regions_read(config)
        self.positions = nn.Parameter(0.1 * sinusoids(spread(n_latents, region_len), d_model))
        self.region_index = None
        self.n_kept = self.regions_kept(config) or 1
        if self.n_kept > 1 and self.by_age:
            self.region_index = nn.Parameter(torch.randn(self.n_kept, 1, d_model) * 0.02)
        self.no_context = nn.Parameter(torch.randn(n_latents, d_model) * 0.02)

    @property
    def n_tokens(self) -> int:
        """M of each region read."""
        return self.n_read * self.n_latents

    def position(self, kind: LatentPositions) -> None:
        """Learn the positions of a region's latents, keep them, or leave them out."""
        settle(self, "positions", kind)

    @classmethod
    def tells_places(cls) -> bool:
        """Whether regions stand in their order."""
        return cls.by_age

    def places(self) -> Tensor:
        """Return the centres of the parts of each region, the newest ending at step 0."""
        begins = torch.arange(-self.n_read, 0) * self.region_len
        return (begins[:, None] + spread(self.n_latents, self.region_len)).flatten()

    def place(self, addresses: Tensor) -> None:
        """Let learned positions of a region's latents begin as `addresses`, (M, D)."""
        if isinstance(self.positions, nn.Parameter):
            self.positions.data.copy_(addresses)

    def placed(self, values: Tensor) -> Tensor:
        """Return latents (n, M, D) with their positions."""
        return values + self.positions

    def start(self, n: int) -> LastRegions:
        """Return `n` rows without a region."""
        values = self.no_context.detach().new_zeros(n, self.n_kept, *self.no_context.shape)
        return LastRegions(
            values, torch.zeros(values.shape[:2], dtype=torch.bool).to(values.device)
        )

    def update(self, state: LastRegions, latents: Latents, present: Tensor) -> LastRegions:
        """Forget the oldest region and keep this one."""
        values = torch.cat([state.values[:, 1:], latents.values[:, None]], dim=1)
        kept = torch.cat([state.present[:, 1:], present[:, None]], dim=1)
        shown = None
        if latents.mask is not None:
            before = torch.ones_like(values[..., 0], dtype=torch.bool)
            before = before if state.shown is None else state.shown
            after = torch.cat([before[:, 1:], latents.mask[:, None]], dim=1)
            shown = torch.where(present[:, None, None], after, before)
        return LastRegions(
            torch.where(present[:, None, None, None], values, state.values),
            torch.where(present[:, None], kept, state.present),
            shown,
        )

    def read(self, state: LastRegions) -> Latents:
        """Return the latents of the last R regions, masked where there is none."""
        placed = state.values + self.positions
        placed = placed if self.region_index is None else placed + self.region_index
        has_any = state.present[:, -1:, None]  # (n, 1, 1): the newest slot is filled first
        newest = torch.where(has_any, placed[:, -1], self.no_context)
        if self.n_regions == 1 and state.shown is None:
            return Latents(newest)
        values = torch.cat([placed[:, :-1], newest[:, None]], dim=1)
        mask = state.present[..., None].expand(values.shape[:3])
        mask = mask if state.shown is None else mask & state.shown
        mask = torch.cat([mask[:, :-1], mask[:, -1:] | ~has_any], dim=1)
        return Latents(values.flatten(1, 2), mask.flatten(1, 2))


class OneShot(Accumulate):
    """The previous region alone."""

    @classmethod
    def check(cls, config: MemoryConfig) -> dict[str, Any]:
        """Refuse more than the one region that is kept."""
        if config.n_regions > 1:
            raise CompressorError(
                f"memory.n_regions is {config.n_regions}, but memory.kind=one_shot keeps one "
                "region; set it to 1, or memory.kind to accumulate"
            )
        return super().check(config)


def memory_class(kind: str) -> type[Memory]:
    """Return the class of a kind: a key of `MEMORIES` or an import path `module:Class`.

    Raises:
        CompressorError: There is no such class.
    """
    return import_class("memory.kind", kind, MEMORIES, Memory)


def build_memory(config: MemoryConfig, **sizes: Any) -> Memory:
    """Build the memory a config asks for; `sizes` are `Memory`'s keyword arguments.

    Raises:
        CompressorError: There is no such kind.
    """
    return memory_class(config.kind)(config, **sizes)
