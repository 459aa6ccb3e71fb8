"""A raw-context model that reads every region by itself, so that a region is read once for all.

No region of the context attends to another; the current region's steps attend, in every block, to
all R of them. A region's keys and values are then the same whichever current region they serve: in
training those of a window of consecutive regions are computed once (`Triple.shared`), while acting
a border reads one region, not R. Positions are those inside a region; how far back a region lies is
added to its keys, the one thing that depends on who reads it. Shapes as in `teacher.model`: K is a
head's width, U regions of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ad.model import Output, Triple
from nets.attention import KeyValueCache
from nets.regions import Regions, Steps, padded
from teacher.model import END, START, TRANSITION, TeacherModel, TeacherModelConfig

KeysValues = tuple[Tensor, Tensor]
MARKERS = (START, END)


@dataclass
class _Kept:
    """Stands for a cache: keeps a pass's keys and values, with gradient."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Keep and return them."""
        self.keys, self.values = keys, values
        return keys, values


@dataclass
class _Behind:
    """Stands for a cache: puts a pass's keys and values behind others, with gradient."""

    before: KeysValues

    def append(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Return (B, H, T_before + T, K) both."""
        return torch.cat([self.before[0], keys], 2), torch.cat([self.before[1], values], 2)


@dataclass
class ApartState:
    """What the model keeps while acting.

    Attributes:
        caches: Each block's keys and values, those of the R regions first.
    """

    caches: list[KeyValueCache]

    @property
    def n_bytes(self) -> int:
        """Bytes of the keys and values at full length."""
        return sum(cache.n_bytes for cache in self.caches)


class RegionsApart(TeacherModel):
    """As `TeacherModel`, but each region of the context is read by itself."""

    def __init__(self, config: TeacherModelConfig) -> None:
        super().__init__(config)
        width, blocks = self.positions.shape[1], self.layers.blocks
        heads: int = blocks[0].attention.n_heads
        self.positions = nn.Parameter(torch.randn(self.region_tokens + 2, width) * width**-0.5)
        # No region's: added to the keys of the R-th, ..., the nearest region, in each block.
        shape = (len(blocks), self.n_context_regions, heads, 1, width // heads)
        self.region_keys = nn.Parameter(torch.randn(shape) * 0.02)

    def forward(self, batch: Triple) -> Output:
        """Return action parameters (B, L, P) at the current steps, and the token-type loss."""
        regions, places, present = batch.each_once(self.n_context_regions)
        _, has_context = batch.nearest(self.n_context_regions)
        tokens = torch.cat([self._region_tokens(regions, present), self._absent()])  # (U + 1, ...)
        read, kept = self._read(tokens)
        places = torch.where(has_context, places, len(regions.mask))  # the last stands for none
        before = [self._placed(i, *one, places) for i, one in enumerate(kept)]
        steps = self._step_tokens(Steps.of(batch.query))
        start = self.token_types.weight[START].expand(len(steps), 1, -1)
        x = torch.cat([start, steps], 1)  # (B, 1 + L, D)
        n_own = x.shape[1]
        hidden = self.layers(
            x + self.positions[self._places(n_own)],
            mask=self._attended(before[0][0].shape[2], n_own),
            caches=[_Behind(one) for one in before],
        )
        parameters = self.action_head(hidden[:, 1:])
        return Output(parameters, losses={"token_type_nll": self._token_types(read[:-1], hidden)})

    def start(self, n: int) -> ApartState:
        """Return n streams without a region."""
        state = ApartState(self.layers.new_caches(n, self.sequence_len))
        _, kept = self._read(self._absent())
        places = torch.zeros(n, self.n_context_regions, dtype=torch.long, device=kept[0][0].device)
        for i, cache in enumerate(state.caches):
            cache.append(*self._placed(i, *kept[i], places))
        return self._begin_region(state)

    def border(self, region: Regions, state: ApartState) -> ApartState:
        """Read a completed region (n, L, ...), forget the oldest, and begin the next."""
        return self._begin_region(self.take(region, state))

    def take(self, region: Regions, state: ApartState) -> ApartState:
        """Read a completed region (n, L, ...), forget the oldest."""
        present = torch.ones(len(region.mask), dtype=torch.bool, device=region.mask.device)
        _, kept = self._read(self._region_tokens(region, present))
        one, before = self.region_tokens + 2, self.context_len - 1
        for i, cache in enumerate(state.caches):
            farther = (
                self.region_keys[i, :-1, :, 0] - self.region_keys[i, 1:, :, 0]
            )  # (R - 1, H, K)
            farther = farther.transpose(0, 1).repeat_interleave(one, 1)
            keys = cache.keys[:, :, one:before] + farther
            values = cache.values[:, :, one:before].clone()
            cache.rewind()
            cache.append(keys, values)
            cache.append(kept[i][0] + self.region_keys[i, -1], kept[i][1])
        return state

    def step(self, steps: Steps, state: ApartState) -> Tensor:
        """Return action parameters (n, P) for the next step."""
        if self.sees == "step":
            for cache in state.caches:
                cache.rewind(self.context_len)
        place = state.caches[0].length - (self.context_len - 1)
        x = self._step_tokens(steps) + self.positions[place]
        return self.action_head(self.layers(x, caches=state.caches)[:, 0])

    def _begin_region(self, state: ApartState) -> ApartState:
        for cache in state.caches:
            cache.rewind(self.context_len - 1)
        marker = self.token_types.weight[START] + self.positions[0]
        self.layers(marker.expand(len(state.caches[0].keys), 1, -1), caches=state.caches)
        return state

    def _region_tokens(self, regions: Regions, present: Tensor) -> Tensor:
        """Return the tokens (U, L + 2, D) of regions between markers, without positions."""
        regions = padded(regions, self.longest_region)
        tokens, there = self.transition_encoder.read(self.scaling.regions(regions))
        tokens = tokens + self.token_types.weight[TRANSITION]
        start, end = (self.token_types.weight[kind].expand(len(tokens), 1, -1) for kind in MARKERS)
        tokens = torch.cat([start, tokens, end], dim=1)
        there = F.pad(there, (1, 1), value=True) & present[:, None]
        return torch.where(there[..., None], tokens, self.no_context)

    def _absent(self) -> Tensor:
        """Return the tokens (1, L + 2, D) that stand for a region that is not there."""
        return self.no_context.expand(1, self.region_tokens + 2, -1)

    def _read(self, tokens: Tensor) -> tuple[Tensor, list[KeysValues]]:
        """Read regions (U, L + 2, D): hidden states, every block's keys and values."""
        kept = [_Kept() for _ in self.layers.blocks]
        x = tokens + self.positions[: tokens.shape[1]]
        hidden = self.layers(x, is_causal=True, caches=kept)
        return hidden, [(one.keys, one.values) for one in kept]  # pyright: ignore

    def _placed(self, block: int, keys: Tensor, values: Tensor, places: Tensor) -> KeysValues:
        """Return keys and values (B, H, R (L + 2), K) of the regions `places` (B, R)."""
        gathered = keys[places] + self.region_keys[block]  # (B, R, H, L + 2, K)
        return gathered.transpose(1, 2).flatten(2, 3), values[places].transpose(1, 2).flatten(2, 3)

    def _places(self, n_own: int) -> Tensor:
        """Return the positions (n_own,) of the current region's tokens."""
        places = torch.arange(n_own, device=self.positions.device)
        return places if self.sees == "region" else places.clamp_max(1)

    def _attended(self, n_before: int, n_own: int) -> Tensor:
        """Return which keys the current region's tokens attend to, (1, n_own, all)."""
        own = torch.ones(n_own, n_own, dtype=torch.bool, device=self.positions.device).tril()
        if self.sees == "step":
            places = torch.arange(n_own, device=own.device)
            own = own & ((places == places[:, None]) | (places == 0))
        return F.pad(own, (n_before, 0), value=True)[None]

    def _token_types(self, regions: Tensor, current: Tensor) -> Tensor:
        """Return the loss of predicting the type of the next token, in regions and current ones."""
        after = torch.tensor(
            [TRANSITION] * self.region_tokens + [END], device=self.positions.device
        )
        hidden, wanted = [], []
        n_current = 1 if self.sees == "step" else current.shape[1] - 1
        for tokens in (regions[:, :-1], current[:, :n_current]):
            hidden.append(tokens.flatten(0, 1))
            wanted.append(after[: tokens.shape[1]].expand(len(tokens), -1).flatten())
        return F.cross_entropy(self.token_type_head(torch.cat(hidden)), torch.cat(wanted))
