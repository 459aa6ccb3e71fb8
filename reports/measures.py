"""What is measured of one method: gap recovered, the worst task, search, pace, loss at borders.

Every quantity is defined here and nowhere else; columns, figures and the test of a column call it.
Shape letters as in `reports.scores`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reports import statistics
from reports.records import NO_CONTEXT, TEACHER
from reports.scores import MethodScores

Floats = NDArray[np.float64]

SOLVED_THRESHOLD = 0.8  # of the way from random to optimal
FOUND_THRESHOLD = 0.1  # far above what random acting gets, far below what knowing the task gets
NEAR_OPTIMAL = 0.9
MIN_GAP = 0.05  # a share of a smaller gap between teacher and no context would be noise
FIRST_EPISODES = 10


@dataclass(frozen=True)
class Gap:
    """The gap recovered: (method - none) / (teacher - none), of mean normalised final returns.

    Attributes:
        share: over the training seeds that all three have together; nan where there is none, or
            where teacher and no context lie less than `MIN_GAP` apart.
        by_seed: of each of these seeds; without those whose own gap is that small.
    """

    share: float
    by_seed: dict[int, float]


NO_GAP = Gap(np.nan, {})


def gap_recovered(method: MethodScores, methods: Sequence[MethodScores]) -> Gap:
    """Where a method stands between no context (0) and the teacher (1)."""
    if method.record.is_rollout:
        return NO_GAP  # not trained, so no seed of it is one of theirs
    floor = _counterpart(method, [m for m in methods if m.method == NO_CONTEXT])
    ceiling = _counterpart(method, [m for m in methods if m.record.group == TEACHER])
    if floor is None or ceiling is None:
        return NO_GAP
    levels = [
        dict(zip(m.seeds, m.seed_scores.tolist(), strict=True)) for m in (method, floor, ceiling)
    ]
    common = [seed for seed in method.seeds if all(seed in level for level in levels)]
    if not common:
        return NO_GAP
    by_seed = {seed: _share(*(level[seed] for level in levels)) for seed in common}
    means = (float(np.mean([level[seed] for seed in common])) for level in levels)
    known = {seed: share for seed, share in by_seed.items() if np.isfinite(share)}
    return Gap(_share(*means), known)


def _share(level: float, floor: float, ceiling: float) -> float:
    gap = ceiling - floor
    return (level - floor) / gap if gap >= MIN_GAP else np.nan


def _counterpart(method: MethodScores, candidates: Sequence[MethodScores]) -> MethodScores | None:
    """The candidate of the same run, or else the only one, or that which a sweep's points share."""
    runs = {result.run_dir for result in method.results}
    same_run = [m for m in candidates if runs & {result.run_dir for result in m.results}]
    shared = [m for m in candidates if m.label == m.method]
    chosen = same_run or (shared if _has_rivals(candidates) else candidates)
    return chosen[0] if chosen and not _has_rivals(chosen) else None


def _has_rivals(methods: Sequence[MethodScores]) -> bool:
    """Whether one method is there several times, from several runs or points."""
    return len({m.method for m in methods}) < len(methods)


def worst_task(method: MethodScores) -> tuple[str, float]:
    """Name and mean final return, over all training seeds, of the task with the lowest."""
    means = method.task_scores.mean(axis=0)  # (T,)
    worst = int(np.nanargmin(means))
    return method.results[0].tasks[worst].name, float(means[worst])


def episodes_to_level(method: MethodScores) -> Floats:
    """`(S,)` episode from which the curve over tasks and streams is near optimal, inf if never."""
    return statistics.episodes_to(method.seed_curves, NEAR_OPTIMAL)


def tasks_to_level(method: MethodScores) -> float:
    """Share of cells whose own curve, over their streams, gets near optimal."""
    return float(np.isfinite(statistics.episodes_to(method.curves, NEAR_OPTIMAL)).mean())


def first_return(method: MethodScores) -> float:
    """Mean return of the first `FIRST_EPISODES` episodes; nan where there are fewer."""
    if method.n_episodes < FIRST_EPISODES:
        return np.nan
    return float(method.episodes[..., :FIRST_EPISODES].mean())


def found_by(method: MethodScores, episode: int) -> float:
    """Share of streams that clearly beat random acting in one of the first episodes.

    Args:
        method: the method.
        episode: how many episodes; nan where there are fewer.
    """
    if method.n_episodes < episode:
        return np.nan
    return float((method.episodes[..., :episode] > FOUND_THRESHOLD).any(axis=-1).mean())


def cells_visited(method: MethodScores) -> float:
    """Distinct observations in each of the first episodes; nan where they were not counted."""
    counts = [result.cells_visited for result in method.results]
    known = [count[..., :FIRST_EPISODES] for count in counts if count is not None]
    return float(np.mean(known)) if len(known) == len(counts) else np.nan


def found_at_last(method: MethodScores) -> tuple[float, float]:
    """Share of streams that have the task in the final episodes, and their mean final return.

    A stream has it where at least half of its final episodes clearly beat random acting.
    """
    final = method.episodes[..., -method.final_episodes :]
    found = (final > FOUND_THRESHOLD).mean(axis=-1) >= 0.5  # (S, T', V)
    levels = final.mean(axis=-1)[found]
    return float(found.mean()), float(levels.mean()) if levels.size else np.nan


@dataclass(frozen=True)
class Border:
    """Return of a region's first episode beside that of the others, late in the context.

    Attributes:
        after: `(S,)` mean return of the first episode to begin in each region, from the second on.
        inside: `(S,)` that of the other episodes.
    """

    after: Floats
    inside: Floats

    @property
    def loss(self) -> Floats:
        """`(S,)` what is lost in the first episode after a border."""
        return self.inside - self.after


def late(method: MethodScores) -> slice:
    """The second half of the episodes, and at least the final ones: what borders are judged on."""
    return slice(-max(method.final_episodes, -(-method.n_episodes // 2)), None)


def border(method: MethodScores) -> Border | None:
    """The return at the border, of `late` episodes; None where one of the two kinds is absent."""
    episodes, first = method.episodes[..., late(method)], method.is_border[..., late(method)]
    axes = (1, 2, 3)
    if not first.any(axis=axes).all() or first.all(axis=axes).any():
        return None
    after = episodes.mean(axis=axes, where=first)
    return Border(after, episodes.mean(axis=axes, where=~first))


def by_position(method: MethodScores) -> Floats:
    """Mean return of the 1st, 2nd, ... episode to begin in a region, of `late` episodes.

    The first region, which no context precedes, is left out.

    Returns:
        `(S, P)`, nan where no episode of a seed has that position.
    """
    n = method.n_episodes
    # Position of an episode = how many since the latest one that began a region.
    begins = np.where(method.is_border, np.arange(n), -1)
    since = np.arange(n) - np.maximum.accumulate(begins, axis=-1)
    kept = (method.regions > 0)[..., late(method)]
    positions = np.where(kept, since[..., late(method)], -1)
    values = method.episodes[..., late(method)]
    if not kept.any():
        return np.empty((len(values), 0))
    found = []
    for position in range(positions.max() + 1):
        here = positions == position
        counts = here.sum(axis=(1, 2, 3))
        total = np.where(here, values, 0.0).sum(axis=(1, 2, 3))
        found.append(np.where(counts > 0, total / np.maximum(counts, 1), np.nan))
    return np.stack(found, axis=1)
