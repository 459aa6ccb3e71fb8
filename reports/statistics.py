"""Statistics over training seeds, tasks and in-context episodes, as pure functions of arrays.

Shape letters: S training seeds, T tasks, K in-context episodes. Scores are `(S, T)` and normalised
(0 random, 1 optimal). Which results they are computed from is not decided here.
"""

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

LEVEL = 0.95  # coverage aimed at
BOOTSTRAP_SEEDS = 8  # below, resampling seeds gives hardly more than their range
N_RESAMPLES = 2000
T, BOOTSTRAP, RANGE, NOTHING = "t", "bootstrap", "range", ""


class Interval(NamedTuple):
    """Bounds and what they are: "t", "bootstrap", or "" and nan where none can be given."""

    low: float
    high: float
    kind: str


class Band(NamedTuple):
    """Pointwise bounds and what they are: "range", "bootstrap", or "" and nan without seeds."""

    low: Floats
    high: Floats
    kind: str


def normalized_return(
    returns: ArrayLike, random_return: ArrayLike, optimal_return: ArrayLike
) -> Floats:
    """(R - R_random) / (R_optimal - R_random); nan where a reference is nan or optimal <= random.

    The three arguments broadcast.
    """
    returns = np.asarray(returns, dtype=np.float64)
    random_return = np.asarray(random_return, dtype=np.float64)
    gap = np.asarray(optimal_return, dtype=np.float64) - random_return
    return (returns - random_return) / np.where(gap > 0, gap, np.nan)


def iqm(scores: ArrayLike, axis: int | None = None) -> Floats:
    """Interquartile mean: the mean of the middle half (arXiv 2108.13264)."""
    scores = np.asarray(scores, dtype=np.float64)
    if axis is None:
        scores, axis = scores.ravel(), 0
    return np.asarray(stats.trim_mean(scores, 0.25, axis=axis))


def optimality_gap(scores: ArrayLike) -> float:
    """How far scores stay below 1 on average; scores above it count as reaching it."""
    return float((1.0 - np.minimum(np.asarray(scores, dtype=np.float64), 1.0)).mean())


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> float:
    """Mean over tasks of P(X > Y) + P(X = Y) / 2, X and Y drawn from the seeds of either method.

    Args:
        scores: `(S, T)` of the method.
        others: `(S', T)` of the method it is compared with; S' may differ from S.
    """
    scores = np.asarray(scores, dtype=np.float64)
    others = np.asarray(others, dtype=np.float64)
    pairs = scores[:, None, :] - others[None, :, :]  # (S, S', T)
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def seed_interval(values: ArrayLike) -> Interval:
    """A 95 % interval of the mean over training seeds, the unit of replication.

    Below `BOOTSTRAP_SEEDS` seeds Student's t-interval of the values, which is not cut off where the
    quantity ends; from there on the percentile bootstrap of whole seeds, one draw of seeds serving
    all tasks.

    Args:
        values: `(S,)` one number of each training seed, e.g. its mean over tasks.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size < 2 or not np.isfinite(values).all():
        return Interval(np.nan, np.nan, NOTHING)
    if values.size >= BOOTSTRAP_SEEDS:
        low, high = _bootstrap(values)
        return Interval(float(low), float(high), BOOTSTRAP)
    half = stats.t.ppf((1 + LEVEL) / 2, values.size - 1) * stats.sem(values)
    return Interval(float(values.mean() - half), float(values.mean() + half), T)


def seed_band(curves: ArrayLike) -> Band:
    """What to shade around the mean of curves `(S, K)`.

    Below `BOOTSTRAP_SEEDS` seeds the range of the seeds, which is no interval of confidence: three
    seeds' range holds the true mean three times in four. From there on the bootstrap, pointwise.
    """
    curves = np.asarray(curves, dtype=np.float64)
    if len(curves) < 2:
        unknown = np.full(curves.shape[1:], np.nan)
        return Band(unknown, unknown, NOTHING)
    if len(curves) >= BOOTSTRAP_SEEDS:
        return Band(*_bootstrap(curves), BOOTSTRAP)
    return Band(curves.min(axis=0), curves.max(axis=0), RANGE)


def _bootstrap(values: Floats) -> tuple[Floats, Floats]:
    """Percentile bounds of the mean over the first axis, whole entries of it drawn anew."""
    found = stats.bootstrap(
        (values,), np.mean, axis=0, n_resamples=N_RESAMPLES, method="percentile", rng=0
    )
    return found.confidence_interval.low, found.confidence_interval.high


def running_mean(returns: ArrayLike, window: int) -> Floats:
    """Means of `window` consecutive episodes, `(..., K)` -> `(..., K - window + 1)`.

    A history shorter than the window is one window.
    """
    returns = np.asarray(returns, dtype=np.float64)
    window = min(window, returns.shape[-1])
    return sliding_window_view(returns, window, axis=-1).mean(axis=-1)


def episodes_to(returns: ArrayLike, level: float, *, hold: int = 5) -> Floats:
    """The first episode, from 1, that reaches a level from which it is held.

    Nothing is smoothed: the episode itself reaches the level, and so does the mean of the `hold`
    episodes that begin with it, so that one lucky episode is no arrival.

    Args:
        returns: `(..., K)` of consecutive episodes.
        level: that is to be reached, absolute.
        hold: episodes that are to keep it on average; all there are, where there are fewer.

    Returns:
        `(...)`; inf where it is never reached.
    """
    returns = np.asarray(returns, dtype=np.float64)
    held = running_mean(returns, hold)  # (..., K - hold + 1)
    arrived = (held >= level) & (returns[..., : held.shape[-1]] >= level)
    return np.where(arrived.any(axis=-1), arrived.argmax(axis=-1) + 1.0, np.inf)


def final_minus_best(returns: ArrayLike, *, final_episodes: int = 10) -> Floats:
    """Mean of the last `final_episodes` minus the best running mean of that width; at most 0.

    Args:
        returns: `(..., K)` of consecutive episodes.
        final_episodes: width of both means.

    Returns:
        `(...)`.
    """
    means = running_mean(returns, final_episodes)
    return means[..., -1] - means.max(axis=-1)
