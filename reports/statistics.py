"""Statistics over training seeds, tasks and in-context episodes, as pure functions of arrays.

Shape letters: S training seeds, T tasks, K in-context episodes. Scores are `(S, T)` and normalised
(0 random, 1 optimal). Which results they are computed from is not decided here.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

CHUNK_VALUES = 8_000_000  # resampled scores held at once: 64 MB


class Statistic(Protocol):
    """A function that reduces one axis, or all values when the axis is None."""

    def __call__(self, scores: ArrayLike, axis: int | None = None) -> Floats:
        """Reduce `scores` over `axis`."""
        ...


class Interval(NamedTuple):
    """Bounds of an interval; both nan where none can be given."""

    low: float
    high: float


class Difference(NamedTuple):
    """A mean paired difference and the bounds of its interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Bootstrap:
    """How bootstrap intervals are drawn.

    Training seeds are drawn with replacement apart within each task, the stratum, as rliable does
    (Agarwal et al. 2021, arXiv 2108.13264). That takes one seed's scores on two tasks for
    independent. With `whole_seeds` one draw of seeds serves all tasks, which keeps the luck that
    all tasks of a seed share, at the price of fewer distinct samples.

    Attributes:
        level: coverage aimed at.
        n_resamples: number of bootstrap samples.
        seed: of the draws; equal seeds, equal intervals.
        whole_seeds: draw seeds once for all tasks.
    """

    level: float = 0.95
    n_resamples: int = 2000
    seed: int = 0
    whole_seeds: bool = False


DEFAULT_BOOTSTRAP = Bootstrap()


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


def mean(scores: ArrayLike, axis: int | None = None) -> Floats:
    """Arithmetic mean."""
    return np.asarray(np.mean(np.asarray(scores, dtype=np.float64), axis=axis))


def median(scores: ArrayLike, axis: int | None = None) -> Floats:
    """Median."""
    return np.asarray(np.median(np.asarray(scores, dtype=np.float64), axis=axis))


def optimality_gap(scores: ArrayLike, axis: int | None = None, *, threshold: float = 1.0) -> Floats:
    """How far scores stay below `threshold` on average; scores above it count as reaching it."""
    shortfall = threshold - np.minimum(np.asarray(scores, dtype=np.float64), threshold)
    return np.asarray(shortfall.mean(axis=axis))


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


def bootstrap_distribution(
    scores: ArrayLike, statistic: Statistic = iqm, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP
) -> Floats:
    """The statistic of every bootstrap sample, `(n_resamples, ...)`.

    Args:
        scores: `(S, T, ...)`; trailing axes (episodes) are resampled together and reduced apart.
        statistic: reduces the S * T scores of one sample.
        bootstrap: how samples are drawn.
    """
    scores = np.asarray(scores, dtype=np.float64)
    n_seeds, n_tasks, *trailing = scores.shape
    generator = np.random.default_rng(bootstrap.seed)
    chunk = max(1, CHUNK_VALUES // max(1, scores.size))
    parts = []
    for start in range(0, bootstrap.n_resamples, chunk):
        n = min(chunk, bootstrap.n_resamples - start)
        n_strata = 1 if bootstrap.whole_seeds else n_tasks
        drawn = generator.integers(n_seeds, size=(n, n_seeds, n_strata))
        samples = scores[drawn, np.arange(n_tasks)]  # (n, S, T, ...)
        parts.append(statistic(samples.reshape(n, n_seeds * n_tasks, *trailing), axis=1))
    return np.concatenate(parts)


def bootstrap_band(
    curves: ArrayLike, statistic: Statistic = iqm, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP
) -> tuple[Floats, Floats]:
    """Pointwise percentile bounds `(K,)` and `(K,)` of curves `(S, T, K)`.

    All nan with one training seed, which says nothing about training seeds, or without tasks.
    """
    curves = np.asarray(curves, dtype=np.float64)
    n_seeds, n_tasks, n_points = curves.shape
    if n_seeds < 2 or n_tasks == 0:
        return np.full(n_points, np.nan), np.full(n_points, np.nan)
    tail = (1 - bootstrap.level) / 2
    distribution = bootstrap_distribution(curves, statistic, bootstrap)  # (n_resamples, K)
    low, high = np.quantile(distribution, [tail, 1 - tail], axis=0)
    return low, high


def stratified_bootstrap_interval(
    scores: ArrayLike, statistic: Statistic = iqm, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP
) -> Interval:
    """Percentile bootstrap interval of a statistic of scores `(S, T)` over training seeds.

    Both bounds are nan with one training seed, which says nothing about training seeds, or without
    tasks.
    """
    scores = np.asarray(scores, dtype=np.float64)
    low, high = bootstrap_band(scores[:, :, None], statistic, bootstrap)
    return Interval(float(low[0]), float(high[0]))


def paired_difference(
    scores: ArrayLike, reference: ArrayLike, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP
) -> Difference:
    """Mean of scores - reference, cell by cell, with its stratified bootstrap interval.

    Args:
        scores: `(S, T)` of the method.
        reference: `(S, T)` of the method it is compared with: same seeds, same tasks, same order.
        bootstrap: how samples are drawn.

    Raises:
        ValueError: the shapes differ, so the scores are not paired.
    """
    scores = np.asarray(scores, dtype=np.float64)
    reference = np.asarray(reference, dtype=np.float64)
    if scores.shape != reference.shape:
        raise ValueError(f"paired scores need one shape, got {scores.shape} and {reference.shape}")
    differences = scores - reference
    interval = stratified_bootstrap_interval(differences, mean, bootstrap)
    return Difference(float(mean(differences)), *interval)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Share of (seed, task) scores that reach each threshold, `(n_thresholds,)`.

    Agarwal et al. (arXiv 2108.13264, section 4.2) count scores above a threshold. Here a score
    equal to it counts too, so that the profile at the threshold of `tasks_solved` is that share.
    """
    return reached(scores, thresholds).mean(axis=(0, 1))


def reached(scores: ArrayLike, thresholds: ArrayLike) -> Floats:
    """1 where a score `(S, T)` is at least the threshold, else 0; `(S, T, n_thresholds)`."""
    scores = np.asarray(scores, dtype=np.float64)
    return (scores[..., None] >= np.asarray(thresholds, dtype=np.float64)).astype(np.float64)


def running_mean(returns: ArrayLike, window: int) -> Floats:
    """Means of `window` consecutive episodes, `(..., K)` -> `(..., K - window + 1)`.

    A history shorter than the window is one window.
    """
    returns = np.asarray(returns, dtype=np.float64)
    window = min(window, returns.shape[-1])
    return sliding_window_view(returns, window, axis=-1).mean(axis=-1)


def episodes_to_fraction(
    returns: ArrayLike, fraction: float = 0.9, *, window: int = 5, final_episodes: int = 10
) -> Floats:
    """The first episode, from 1, from which `window` episodes average `fraction` of the final.

    Args:
        returns: `(..., K)` of consecutive episodes, 0 being the level of no skill (normalised).
        fraction: of the final return that is to be reached.
        window: episodes averaged, the episode that is counted being the first of them, so that a
            jump is dated where it happens.
        final_episodes: the final return is the mean of the last so many episodes.

    Returns:
        `(...)`; nan where the final return is not above 0 or no window reaches the level.
    """
    returns = np.asarray(returns, dtype=np.float64)
    final = returns[..., -final_episodes:].mean(axis=-1)  # (...)
    reached = running_mean(returns, window) >= fraction * final[..., None]  # (..., K - window + 1)
    first = reached.argmax(axis=-1) + 1.0
    return np.where(reached.any(axis=-1) & (final > 0), first, np.nan)


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
