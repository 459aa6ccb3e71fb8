"""Batches of triples (X, q, Y), gathered by index from a table of regions.

A batch is a pure function of (seed, step): which rows, how far back their context lies. Every
process draws the same global batch and takes its own share, so any number of processes trains on
the same data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
import torch

from ad.model import Shared, Triple
from base.ranges import AtLeast, Between
from base.seeding import derive
from nets.regions import REGION_FIELDS, Regions, blanked


class Table(Protocol):
    """What is needed of `histories.triples.RegionTable`."""

    columns: dict[str, np.ndarray]
    region: np.ndarray
    stream: np.ndarray
    task: np.ndarray


@dataclass(frozen=True)
class SamplingConfig:
    """How triples are drawn.

    Attributes:
        history_stride: Largest s: the nearest previous region lies 1 ... s regions back, drawn per
            row; older ones lie consecutively before it. Larger strides make the improvement inside
            one sample steeper.
        max_region: Regions of a history used as current ones, from its start; 0 uses all.
        window: Consecutive regions of one history that are drawn together while training on
            actions, each a current one: what they read of the past is computed once for all. They
            count as so many rows of `batch_size`.
        jitter: j; in training a region has 1 - j ... 1 + j times `region_len` transitions, the
            borders between a history's regions being moved anew for every update. A model may then
            act in regions of any such length (`evaluate.region_len`).
    """

    history_stride: Annotated[int, Between(1, 1_000_000)] = 8
    max_region: Annotated[int, AtLeast(0)] = 0
    window: Annotated[int, Between(1, 100_000)] = 1
    jitter: Annotated[float, Between(0, 1, high_open=True)] = 0.0

    def reach(self, region_len: int) -> int:
        """Return how many steps a border may be moved to either side, j L / 2 at most."""
        return int(self.jitter * region_len / 2 + 1e-9)

    def longest(self, region_len: int) -> int:
        """Return the most transitions that a region may have, (1 + j) L at most."""
        return region_len + 2 * self.reach(region_len)


@dataclass(frozen=True)
class Cut:
    """Where the regions of all histories begin and how long they are, in one update.

    Attributes:
        begins: (N,) first transition of every row, all rows being laid end to end.
        lengths: (N,) transitions.
    """

    begins: np.ndarray
    lengths: np.ndarray


class TripleSource:
    """Draws and gathers batches of triples.

    Args:
        table: Regions; the rows of one stream are consecutive, ascending.
        sampling: Strides and regions used.
        batch_size: Rows of the global batch of one update.
        n_context_regions: R, previous regions per row.
        max_stride: Farthest the nearest previous region may lie back, whatever the sampling says.
        seed: Of the drawing.
        device: Where batches go; on a GPU the whole table is kept there.
        rank: This process.
        world_size: All processes.
        accumulation_steps: Micro-batches per update.
        first_region: First region of a history used as a current one.
        extra: (rows, L, ...) arrays by name, handed on with the current regions.

    Raises:
        ValueError: The batch cannot be shared out, no region is left to be a current one, or
            borders are to be moved between regions that are not all full.
    """

    def __init__(
        self,
        table: Table,
        sampling: SamplingConfig,
        *,
        batch_size: int,
        n_context_regions: int = 1,
        max_stride: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        accumulation_steps: int = 1,
        first_region: int = 0,
        extra: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        shares, window = world_size * accumulation_steps, sampling.window
        if batch_size % (shares * window):
            windows = f" x windows of {window} regions" if window > 1 else ""
            raise ValueError(
                f"batch_size {batch_size} is no multiple of {world_size} processes x "
                f"{accumulation_steps} accumulation steps{windows}; change batch_size"
            )
        self.table = table
        self.extra = dict(extra or {})
        self.sampling = sampling
        self.batch_size = batch_size
        self.n_context_regions = n_context_regions
        self.max_stride = max_stride or sampling.history_stride
        self.seed = seed
        self.device = torch.device(device)
        self.rank, self.world_size, self.accumulation_steps = rank, world_size, accumulation_steps
        limit = sampling.max_region or int(table.region.max()) + 1
        self.rows = np.flatnonzero((table.region >= first_region) & (table.region < limit))
        if not len(self.rows):
            raise ValueError(
                f"histories have {limit} region(s) in use, but {first_region + 1} are needed; "
                "collect more regions, or raise sampling.max_region"
            )
        self.firsts = _first_rows(table.region[self.rows], self.rows, window)
        self.region_len = table.columns["mask"].shape[1]
        self.reach = sampling.reach(self.region_len)
        if self.reach and not np.asarray(table.columns["mask"]).all():
            raise ValueError(
                f"sampling.jitter is {sampling.jitter}, but some regions of these histories have "
                f"fewer than {self.region_len} transitions: borders can be moved between regions "
                "of one length only; set it to 0, or divide the histories by "
                "collect.marker_rule=fixed"
            )
        self._on_device: dict[str, torch.Tensor] | None = None
        if self.device.type != "cpu":
            self._on_device = {
                name: torch.from_numpy(np.array(table.columns[name])).to(self.device)
                for name in REGION_FIELDS
            }

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows (B,) and strides (B,) of the global batch of an update.

        Those of a window stand side by side and have one stride, so that their contexts overlap.
        """
        rng = np.random.default_rng(derive(self.seed, "batch", step))
        window = self.sampling.window
        n = self.batch_size // window
        firsts = self.firsts[rng.integers(len(self.firsts), size=n)]
        strides = rng.integers(1, self.sampling.history_stride + 1, size=n)
        strides = np.minimum(strides, self.max_stride)
        if window > 1:  # one that reaches before the start is shortened for the whole window
            strides = np.minimum(strides, np.maximum(self.table.region[firsts], 1))
        rows = firsts[:, None] + np.arange(window)
        return rows.ravel(), strides.repeat(window)

    def cut(self, step: int) -> Cut | None:
        """Return how an update divides all histories into regions; None for as they are stored.

        A border between two regions of a history lies up to `reach` steps from where it is stored;
        a history's first and last border stay.
        """
        if not self.reach:
            return None
        rng = np.random.default_rng(derive(self.seed, "cut", step))
        n_rows = len(self.table.region)
        moved = rng.integers(-self.reach, self.reach + 1, size=n_rows)
        first = np.asarray(self.table.region) == 0
        begins = np.arange(n_rows) * self.region_len + np.where(first, 0, moved)
        ends = np.append(begins[1:], n_rows * self.region_len)
        return Cut(begins, ends - begins)

    def __call__(self, step: int, micro: int = 0) -> Triple:
        """Return this process' share of micro-batch `micro` of update `step`."""
        rows, strides = self.draw(step)
        shares = self.world_size * self.accumulation_steps
        share = slice(self.rank * self.accumulation_steps + micro, None, shares)
        window = self.sampling.window
        rows, strides = (each.reshape(-1, window)[share].ravel() for each in (rows, strides))
        return self.gather(rows, strides, self.cut(step))

    def gather(self, rows: np.ndarray, strides: np.ndarray, cut: Cut | None = None) -> Triple:
        """Return the triples of current regions `rows` (B,), the nearest context `strides` back.

        A stride that reaches before the history's start is shortened to it: only region 0 has no
        context at all. Of a context of several regions, those before the history's start are
        absent.

        Args:
            rows: (B,) of the table.
            strides: (B,).
            cut: How histories are divided; None for as they are stored.
        """
        region = self.table.region[rows]
        strides = np.minimum(strides, np.maximum(region, 1))
        # As in acting: the nearest region, and those that came right before it.
        back = strides[:, None] + np.arange(self.n_context_regions - 1, -1, -1)  # (B, R)
        has_context = back <= region[:, None]
        context_rows = np.where(has_context, rows[:, None] - back, 0)
        context = self._regions(context_rows, cut)
        present = torch.from_numpy(has_context).to(self.device)
        if not has_context.all():
            context = context.map(lambda field: blanked(field, present))
        shared = None
        if self.sampling.window > 1:
            shared = self._shared(context_rows, has_context, cut)
        told = self.extra
        if cut is None:
            told = {name: each[rows] for name, each in told.items()}
        else:
            places, _ = self._places(rows, cut)
            told = {name: _transitions(each)[places] for name, each in told.items()}
        told = {name: torch.from_numpy(each).to(self.device) for name, each in told.items()}
        return Triple(context, present, self._regions(rows, cut), shared, told)

    def _shared(self, rows: np.ndarray, present: np.ndarray, cut: Cut | None) -> Shared:
        """Return context rows (B, R) each once, without those that are not there."""
        used = np.unique(rows[present])
        if not len(used):  # nothing is there: one stands for nothing
            regions = self._regions(rows[:1, 0], cut).map(torch.zeros_like)
            return Shared(regions, torch.zeros(rows.shape, dtype=torch.int64, device=self.device))
        places = np.where(present, np.searchsorted(used, rows), 0)
        return Shared(self._regions(used, cut), torch.from_numpy(places).to(self.device))

    def _places(self, rows: np.ndarray, cut: Cut) -> tuple[np.ndarray, np.ndarray]:
        """Return where the transitions of rows lie, all rows being laid end to end, and their mask.

        Both are (*rows, `longest`); behind a region's end places repeat its first.
        """
        steps = np.arange(self.sampling.longest(self.region_len))
        mask = steps < cut.lengths[rows][..., None]
        return np.where(mask, steps, 0) + cut.begins[rows][..., None], mask

    def _regions(self, rows: np.ndarray, cut: Cut | None) -> Regions:
        if cut is not None:
            return self._cut_regions(*self._places(rows, cut))
        if self._on_device is not None:
            index = torch.from_numpy(rows).to(self.device)
            return Regions(**{name: self._on_device[name][index] for name in REGION_FIELDS})
        return Regions(
            **{name: torch.from_numpy(self.table.columns[name][rows]) for name in REGION_FIELDS}
        )

    def _cut_regions(self, places: np.ndarray, mask: np.ndarray) -> Regions:
        """Return transitions `places` of all rows end to end, zero where the mask is False."""
        there = torch.from_numpy(mask).to(self.device)
        if self._on_device is not None:
            index = torch.from_numpy(places).to(self.device)
            found = {name: self._on_device[name].flatten(0, 1)[index] for name in REGION_FIELDS}
        else:
            columns = self.table.columns
            found = {
                name: torch.from_numpy(_transitions(columns[name])[places])
                for name in REGION_FIELDS
            }
        return Regions(**{name: blanked(field, there) for name, field in found.items()})


def _transitions(column: np.ndarray) -> np.ndarray:
    """Return a column (N, L, ...) with all rows end to end, (N L, ...)."""
    return column.reshape(-1, *column.shape[2:])


def _first_rows(region: np.ndarray, rows: np.ndarray, window: int) -> np.ndarray:
    """Return the first rows of the windows that streams are cut into.

    From a stream's start on, so that every region is in as many; a last one that would reach beyond
    the end overlaps the one before.

    Args:
        region: (N,) of the rows that may be current ones.
        rows: (N,) themselves, streams one after the other.
        window: Regions in one.
    """
    if window == 1:
        return rows
    starts = np.flatnonzero(region == 0)
    lengths = np.diff(np.append(starts, len(region)))
    if (shortest := int(lengths.min())) < window:
        raise ValueError(
            f"sampling.window is {window}, but a history has only {shortest} regions to draw from; "
            "make it smaller"
        )
    last = (starts + lengths - window).repeat(lengths)  # where a stream's last window may begin
    begins = np.minimum(np.flatnonzero(region % window == 0), last[region % window == 0])
    return rows[np.unique(begins)]
