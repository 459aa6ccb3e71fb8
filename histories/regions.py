"""THE region and marker arithmetic, one step at a time or over a whole history.

A region is what lies between `<compress>` and `</compress>`. Markers: 1 on its first transition,
2 on its last, 0 between; a region of one transition carries 2. Recording, tables and acting
policies all count with `RegionCounter`, so that they cannot disagree.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from base.errors import UserError

MARKER_NONE, MARKER_START, MARKER_END = 0, 1, 2
RuleName = Literal["rollout", "fixed", "episode"]
MARKER_RULES: tuple[str, ...] = get_args(RuleName)


class RegionError(UserError):
    """A marker rule is unknown, its numbers are impossible, or an array is no marker array."""


@dataclass(frozen=True)
class MarkerRule:
    """When a region ends.

    Attributes:
        name: `rollout`: with the source algorithm's rollouts, which are `region_len` steps long;
            `fixed`: every `region_len` steps; `episode`: with every `episodes_per_region`-th
            episode of a stream.
        region_len: Transitions in a region, of the first two rules.
        episodes_per_region: Episodes in a region, of the third.
    """

    name: str = "rollout"
    region_len: int = 80
    episodes_per_region: int = 4

    def __post_init__(self) -> None:
        """Raises RegionError."""
        if self.name not in MARKER_RULES:
            raise RegionError(
                f"marker rule must be one of {', '.join(MARKER_RULES)}, got {self.name!r}"
            )
        if self.region_len < 1 or self.episodes_per_region < 1:
            raise RegionError(
                "region_len and episodes_per_region must be at least 1, got "
                f"{self.region_len} and {self.episodes_per_region}"
            )


class RegionCounter:
    """Counts `n` streams into regions, step by step.

    Attributes:
        steps_in_compression: `(n,)` int64, transitions in each stream's open region, 0 just after
            a region has ended.
    """

    def __init__(self, n: int, rule: MarkerRule) -> None:
        """Begin every stream at the start of a region."""
        self.rule = rule
        self.steps_in_compression = np.zeros(n, dtype=np.int64)
        self._episodes = np.zeros(n, dtype=np.int64)

    def step(self, ended: np.ndarray) -> np.ndarray:
        """Count one transition of every stream.

        Args:
            ended: `(n,)` bool, terminated or truncated with this transition.

        Returns:
            `(n,)` uint8 markers of this transition.
        """
        first = self.steps_in_compression == 0
        self.steps_in_compression += 1
        self._episodes += ended
        if self.rule.name == "episode":
            last = self._episodes >= self.rule.episodes_per_region
        else:
            last = self.steps_in_compression >= self.rule.region_len
        self.steps_in_compression[last] = 0
        self._episodes[last] = 0
        return np.where(last, MARKER_END, first * MARKER_START).astype(np.uint8)


def markers_for(
    rule: str,
    ended: np.ndarray,
    region_len: int = 80,
    episodes_per_region: int = 4,
) -> np.ndarray:
    """Markers of recorded streams.

    Args:
        rule: A name of `MARKER_RULES`.
        ended: `(streams, T)` or `(T,)` bool, `terminated | truncated`.
        region_len: See `MarkerRule`.
        episodes_per_region: See `MarkerRule`.

    Returns:
        uint8 of the shape of `ended`. A region that the history breaks off has no end marker.

    Raises:
        RegionError: As `MarkerRule`.
    """
    ended = np.asarray(ended, dtype=bool)
    streams = np.atleast_2d(ended)
    counter = RegionCounter(len(streams), MarkerRule(rule, region_len, episodes_per_region))
    markers = np.empty(streams.shape, dtype=np.uint8)
    for time in range(streams.shape[1]):
        markers[:, time] = counter.step(streams[:, time])
    return markers.reshape(ended.shape)


def region_bounds(markers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the regions of one stream lie.

    Args:
        markers: `(T,)`, every transition in a region, the last region possibly without its end.

    Returns:
        First transition and length of each region, both `(regions,)` int64.

    Raises:
        RegionError: Start and end markers do not alternate.
    """
    markers = np.asarray(markers)
    if len(markers) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    after_ends = np.flatnonzero(markers == MARKER_END) + 1
    starts = np.concatenate([[0], after_ends])
    starts = starts[starts < len(markers)]
    stops = np.append(starts[1:], len(markers))
    lengths = stops - starts
    marked = markers[starts]
    one_long = (lengths == 1) & (marked == MARKER_END)
    n_started = np.count_nonzero(markers == MARKER_START)
    if not np.all((marked == MARKER_START) | one_long) or n_started != np.count_nonzero(~one_long):
        raise RegionError(
            "compress markers must alternate between 1 (first transition of a region) and 2 "
            f"(last), got starts at {np.flatnonzero(markers == MARKER_START)[:5].tolist()} and "
            f"ends at {np.flatnonzero(markers == MARKER_END)[:5].tolist()} of {len(markers)}"
        )
    return starts.astype(np.int64), lengths.astype(np.int64)


def region_returns(rewards: np.ndarray, ended: np.ndarray, markers: np.ndarray) -> np.ndarray:
    """Mean undiscounted return of the episodes that finished in each region.

    Args:
        rewards: `(S, T)`.
        ended: `(S, T)` bool.
        markers: `(S, T)` compress markers.

    Returns:
        `(regions,)` float64, NaN where no episode finished.
    """
    is_end = markers == MARKER_END
    region = np.cumsum(is_end, axis=1) - is_end  # (S, T), ends belong to the region they close
    stream, time = np.nonzero(ended)  # ordered by stream, then time
    total = np.cumsum(rewards, axis=1, dtype=np.float64)[stream, time]
    same_stream = np.append(False, stream[1:] == stream[:-1]) if len(stream) else np.zeros(0, bool)
    previous = np.where(same_stream, np.append(0.0, total[:-1]), 0.0) if len(stream) else total
    finished_in = region[stream, time]
    n_regions = int(region.max()) + 1
    sums = np.bincount(finished_in, total - previous, n_regions)
    counts = np.bincount(finished_in, minlength=n_regions)
    return np.divide(sums, counts, out=np.full(n_regions, np.nan), where=counts > 0)
