"""Statistics against slow obvious references, simulation and scipy."""

import numpy as np
import pytest
from scipy import stats

from reports import statistics
from reports.statistics import seed_band, seed_interval


@pytest.fixture
def scores():
    return np.random.default_rng(0).normal(0.5, 0.3, size=(5, 7))


def test_normalized_return_maps_references_to_zero_and_one():
    random, optimal = np.array([1.0, 2.0, 3.0]), np.array([11.0, np.nan, 3.0])
    result = statistics.normalized_return([[1, 5, 3], [11, 5, 9], [6, 5, 3]], random, optimal)
    np.testing.assert_allclose(result[:, 0], [0, 1, 0.5])
    assert np.isnan(result[:, 1:]).all()  # no optimal return; optimal no better than random


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 11])
def test_iqm_is_the_mean_of_the_middle_half(n):
    values = np.random.default_rng(n).normal(size=n)
    middle = sorted(values)[n // 4 : n - n // 4]
    assert statistics.iqm(values) == pytest.approx(sum(middle) / len(middle))


def test_iqm_reduces_all_axes_or_one(scores):
    assert statistics.iqm(scores) == pytest.approx(float(statistics.iqm(scores.ravel())))
    np.testing.assert_allclose(statistics.iqm(scores, axis=1), list(map(statistics.iqm, scores)))


def test_optimality_gap_does_not_reward_scores_above_one():
    assert statistics.optimality_gap([0.5, 1.0, 3.0]) == pytest.approx(0.5 / 3)


def test_probability_of_improvement_equals_mann_whitney(scores):
    others = np.random.default_rng(1).normal(0.3, 0.3, size=(4, 7)).round(1)
    rounded = scores.round(1)  # ties
    expected = [
        stats.mannwhitneyu(rounded[:, task], others[:, task]).statistic / (5 * 4)
        for task in range(7)
    ]
    result = statistics.probability_of_improvement(rounded, others)
    assert result == pytest.approx(np.mean(expected))


# --- intervals over training seeds ---

N_EXPERIMENTS = 2000


def coverage(bounds):
    """Share of intervals that hold 0.9, the true mean."""
    return np.mean([low <= 0.9 <= high for low, high in bounds])


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_t_interval_of_few_seeds_holds_the_true_mean_as_often_as_it_says(n_seeds):
    seeds = np.random.default_rng(n_seeds).normal(0.9, 0.05, size=(N_EXPERIMENTS, n_seeds))
    intervals = [seed_interval(values) for values in seeds]
    assert {interval.kind for interval in intervals} == {"t"}
    assert 0.93 <= coverage(interval[:2] for interval in intervals) <= 0.97


def test_range_of_three_seeds_is_no_95_percent_interval_and_is_called_range():
    seeds = np.random.default_rng(7).normal(0.9, 0.05, size=(N_EXPERIMENTS, 3))
    bands = [seed_band(values[:, None]) for values in seeds]
    assert {band.kind for band in bands} == {"range"}
    assert 0.71 <= coverage((band.low[0], band.high[0]) for band in bands) <= 0.79


def test_t_interval_is_that_of_scipy_and_is_not_cut_off():
    values = np.array([0.99, 0.90, 1.0])
    interval = seed_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval[:2] == pytest.approx((expected.low, expected.high))
    assert interval.high > 1


def slow_bootstrap(scores, generator):
    """Bounds of the mean over (seed, task), whole seeds drawn with replacement."""
    n_seeds = len(scores)
    means = [scores[generator.integers(n_seeds, size=n_seeds)].mean() for _ in range(4000)]
    return np.quantile(means, [0.025, 0.975])


def test_from_eight_seeds_on_whole_seeds_are_drawn():
    generator = np.random.default_rng(3)
    # A shift that all tasks of a seed share tells drawing seeds from drawing cells.
    scores = generator.normal(0.5, 0.1, size=(8, 7)) + np.linspace(-0.5, 0.5, 8)[:, None]
    interval = seed_interval(scores.mean(axis=1))
    assert interval.kind == "bootstrap"
    np.testing.assert_allclose(interval[:2], slow_bootstrap(scores, generator), atol=0.02)
    assert seed_interval(scores.mean(axis=1)[:7]).kind == "t"


def test_band_is_the_interval_of_every_point_from_eight_seeds_on():
    curves = np.random.default_rng(5).normal(size=(9, 4))
    band = seed_band(curves)
    assert band.kind == "bootstrap"
    for point in range(4):
        interval = seed_interval(curves[:, point])
        assert (band.low[point], band.high[point]) == pytest.approx(interval[:2], abs=0.06)
    assert (band.low < curves.mean(axis=0)).all()


def test_seeds_that_agree_have_an_interval_of_no_width():
    assert seed_interval(np.full(3, 0.5))[:2] == (0.5, 0.5)
    assert seed_interval(np.full(9, 0.5))[:2] == (0.5, 0.5)


def test_one_seed_has_no_interval_and_no_band():
    assert seed_interval([0.5]).kind == ""
    assert np.isnan(seed_interval([0.5])[:2]).all()
    for band in (seed_band(np.ones((1, 4))), seed_band(np.ones((0, 4)))):
        assert band.kind == ""
        assert np.isnan(band.low).all()


# --- pace ---


def slow_episodes_to(returns, level, hold):
    for start in range(len(returns) - hold + 1):
        if returns[start] >= level and np.mean(returns[start : start + hold]) >= level:
            return start + 1
    return np.inf


def test_episodes_to_agrees_with_the_obvious_loop():
    returns = np.random.default_rng(4).normal(size=(6, 3, 40)).cumsum(axis=-1)
    result = statistics.episodes_to(returns, 0.9, hold=4)
    assert np.isinf(result).any()
    assert np.isfinite(result).any()
    for index in np.ndindex(6, 3):
        assert result[index] == slow_episodes_to(returns[index], 0.9, 4)


def test_the_level_is_absolute_and_one_lucky_episode_is_no_arrival():
    assert statistics.episodes_to(np.r_[np.zeros(12), np.ones(20)], 0.9) == 13
    assert statistics.episodes_to(np.full(30, 0.85), 0.9) == np.inf  # 90 % of its own final level
    lucky = np.zeros(30)
    lucky[4], lucky[20:] = 1, 1
    assert statistics.episodes_to(lucky, 0.9) == 21
    assert statistics.episodes_to(np.ones(3), 0.9) == 1  # fewer episodes than are to hold it


def test_final_minus_best_sees_a_collapse():
    returns = np.r_[np.zeros(5), np.ones(10), np.full(10, 0.25)]
    assert statistics.final_minus_best(returns) == pytest.approx(-0.75)
    assert statistics.final_minus_best(np.linspace(0, 1, 30)) == 0
