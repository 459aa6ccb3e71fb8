"""Statistics against slow obvious references and scipy."""

import numpy as np
import pytest
from scipy import stats

from reports import statistics
from reports.statistics import Bootstrap


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


def test_statistics_reduce_all_axes_or_one(scores):
    for statistic in (statistics.iqm, statistics.mean, statistics.median):
        assert statistic(scores) == pytest.approx(float(statistic(scores.ravel())))
        by_row = [float(statistic(row)) for row in scores]
        np.testing.assert_allclose(statistic(scores, axis=1), by_row)


def test_optimality_gap_does_not_reward_scores_above_the_threshold():
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


def slow_interval(scores, statistic, n_resamples, generator, whole_seeds=False):
    n_seeds, n_tasks = scores.shape
    values = []
    for _ in range(n_resamples):
        shared = generator.integers(n_seeds, size=n_seeds)
        columns = []
        for task in range(n_tasks):
            drawn = shared if whole_seeds else generator.integers(n_seeds, size=n_seeds)
            columns.extend(scores[drawn, task])
        values.append(float(statistic(np.array(columns))))
    return np.quantile(values, [0.025, 0.975])


@pytest.mark.parametrize("whole_seeds", [False, True])
def test_interval_agrees_with_the_obvious_loop(scores, whole_seeds):
    # A shift that all tasks of a seed share tells the two ways of drawing apart.
    shifted = scores + np.linspace(-0.5, 0.5, 5)[:, None]
    expected = slow_interval(
        shifted, statistics.iqm, 1000, np.random.default_rng(3), whole_seeds=whole_seeds
    )
    interval = statistics.stratified_bootstrap_interval(
        shifted, statistics.iqm, Bootstrap(n_resamples=4000, whole_seeds=whole_seeds)
    )
    np.testing.assert_allclose(interval, expected, atol=0.03)


def test_interval_of_one_task_agrees_with_scipy(scores):
    column = scores[:, :1]
    expected = stats.bootstrap(
        (column.ravel(),), np.mean, n_resamples=6000, method="percentile", rng=0
    ).confidence_interval
    interval = statistics.stratified_bootstrap_interval(
        column, statistics.mean, Bootstrap(n_resamples=6000)
    )
    np.testing.assert_allclose(interval, [expected.low, expected.high], atol=0.02)


def test_one_seed_has_no_interval():
    interval = statistics.stratified_bootstrap_interval(np.ones((1, 4)))
    assert np.isnan(interval).all()


def test_resampling_in_chunks_changes_nothing(scores, monkeypatch):
    curves = np.stack([scores, scores**2], axis=-1)
    whole = statistics.bootstrap_distribution(curves, bootstrap=Bootstrap(n_resamples=50))
    monkeypatch.setattr(statistics, "CHUNK_VALUES", curves.size * 7)
    chunked = statistics.bootstrap_distribution(curves, bootstrap=Bootstrap(n_resamples=50))
    np.testing.assert_array_equal(whole, chunked)


def test_band_is_the_interval_of_every_point(scores):
    curves = np.stack([scores, 2 * scores + 1], axis=-1)
    low, high = statistics.bootstrap_band(curves)
    for point in range(2):
        interval = statistics.stratified_bootstrap_interval(curves[:, :, point])
        assert (low[point], high[point]) == pytest.approx(interval)


def test_paired_difference_removes_what_both_methods_share(scores):
    difference = statistics.paired_difference(scores + 0.25, scores)
    assert difference == pytest.approx((0.25, 0.25, 0.25))
    with pytest.raises(ValueError, match="one shape"):
        statistics.paired_difference(scores, scores[:2])


def test_performance_profile_counts_the_scores_that_reach_each_threshold(scores):
    profile = statistics.performance_profile([[0.0, 0.5], [0.5, 1.0]], [0.0, 0.1, 0.5, 1.0, 1.1])
    np.testing.assert_array_equal(profile, [1.0, 0.75, 0.75, 0.25, 0.0])
    thresholds = np.linspace(0, 1, 11)
    profile = statistics.performance_profile(scores, thresholds)
    for threshold, share in zip(thresholds, profile, strict=True):
        counted = sum(score >= threshold for row in scores for score in row)
        assert share == counted / scores.size


def slow_episodes_to_fraction(returns, fraction, window, final_episodes):
    final = np.mean(returns[-final_episodes:])
    for start in range(len(returns) - window + 1):
        if final > 0 and np.mean(returns[start : start + window]) >= fraction * final:
            return start + 1
    return np.nan


def test_episodes_to_fraction_agrees_with_the_obvious_loop():
    generator = np.random.default_rng(4)
    returns = generator.normal(size=(6, 3, 40)).cumsum(axis=-1)
    result = statistics.episodes_to_fraction(returns, 0.9, window=4, final_episodes=8)
    for index in np.ndindex(6, 3):
        expected = slow_episodes_to_fraction(returns[index], 0.9, 4, 8)
        np.testing.assert_equal(result[index], expected)


def test_episodes_to_fraction_dates_a_jump_where_it_happens():
    returns = np.r_[np.zeros(12), np.ones(20)]
    assert statistics.episodes_to_fraction(returns) == 13
    assert np.isnan(statistics.episodes_to_fraction(np.zeros(30)))


def test_final_minus_best_sees_a_collapse():
    returns = np.r_[np.zeros(5), np.ones(10), np.full(10, 0.25)]
    assert statistics.final_minus_best(returns) == pytest.approx(-0.75)
    assert statistics.final_minus_best(np.linspace(0, 1, 30)) == 0
