"""Loading results, what is refused, and which number a column holds."""

import json

import numpy as np
import pytest
from reports.aggregate import (
    difference_rows,
    gap_recovered_by_seed,
    method_rows,
    stack_methods,
)
from reports_data import task_entries, write_method, write_run, write_source_curves

from base.errors import UserError
from reports.results import METHOD_ORDER, ResultsError, load_results, load_source_curves

COLUMNS = (
    "method n_latents seeds normalized_return ci_low ci_high gap_recovered tasks_solved "
    "context_tokens compression_ratio context_bytes ms_per_action train_targets_per_s "
    "train_peak_mb return_mean goals_found return_once_found episodes_to_90 final_minus_best "
    "first_episode_return action_accuracy_recorded action_accuracy_optimal teacher_kl "
    "train_updates train_seconds n_parameters return_normalized_mean return_normalized_median "
    "optimality_gap reconstruction_accuracy latent_bits"
)


def edit_metrics(path, **changed):
    metrics = json.loads((path / "metrics.json").read_text())
    (path / "metrics.json").write_text(json.dumps(metrics | changed))


def row_of(run_dir, method, **kwargs):
    rows = method_rows(load_results([run_dir], **kwargs))
    return next(row for row in rows if row.method == method)


def constant_returns(entries, level, n_evaluation_seeds=2, n_episodes=20):
    """Every episode at `level` of the way from random to optimal."""
    low = np.array([entry["random_return"] for entry in entries])[:, None, None]
    high = np.array([entry["optimal_return"] for entry in entries])[:, None, None]
    returns = low + level * (high - low) * np.ones((1, n_evaluation_seeds, n_episodes))
    return returns.astype(np.float32)


# --- loading ---


def test_loads_every_method_and_seed_in_order(tmp_path):
    methods = ("zebra", *reversed(METHOD_ORDER), "aardvark")
    write_run(tmp_path, methods=methods, seeds=(10, 2), source=False, n_episodes=5)
    results = load_results([tmp_path])
    assert list(dict.fromkeys(result.method for result in results)) == [
        *METHOD_ORDER,
        "aardvark",
        "zebra",
    ]
    assert [result.training_seed for result in results[:2]] == [2, 10]  # as numbers
    assert results[0].returns.shape == (8, 6, 5)
    assert {result.training_seed for result in load_results([tmp_path], seeds=[2])} == {2}


def test_leftovers_of_an_interrupted_write_are_passed_over(tmp_path):
    write_method(tmp_path, "student", 0)
    (tmp_path / "seed_0" / "evaluate" / ".teacher").mkdir()
    (tmp_path / "seed_0" / "evaluate" / "teacher.tmp123").mkdir()
    (tmp_path / "seed_old").mkdir()
    assert [result.method for result in load_results([tmp_path])] == ["student"]


def test_runs_with_other_seeds_are_one_method_and_rivals_are_named(tmp_path):
    write_method(tmp_path / "a", "student", 0)
    write_method(tmp_path / "b", "student", 1)
    results = load_results([tmp_path / "a", tmp_path / "b"])
    assert [result.label for result in results] == ["student", "student"]
    write_method(tmp_path / "b", "student", 0)
    results = load_results([tmp_path / "b", tmp_path / "a"])
    assert [(result.label, result.training_seed) for result in results] == [
        ("student@b", 0),
        ("student@b", 1),
        ("student@a", 0),
    ]


def test_runs_with_other_numbers_of_latents_are_rivals_whatever_their_seeds(tmp_path):
    write_method(tmp_path / "a", "student", 0, n_latents=4)
    write_method(tmp_path / "b", "student", 1, n_latents=8)
    results = load_results([tmp_path / "a", tmp_path / "b"])
    assert [result.label for result in results] == ["student@a", "student@b"]


def missing_returns(path):
    (path / "eval_result.npy").unlink()


def missing_metrics(path):
    (path / "metrics.json").unlink()


def damaged_returns(path):
    (path / "eval_result.npy").write_bytes(b"\x93NUMPY broken")


def pickled_returns(path):
    np.save(path / "eval_result.npy", np.array([{}], dtype=object), allow_pickle=True)


def damaged_metrics(path):
    (path / "metrics.json").write_text('{"format_version": 1,')


def metrics_not_a_mapping(path):
    (path / "metrics.json").write_text("[]")


def wrong_shape(path):
    np.save(path / "eval_result.npy", np.zeros((8, 6, 39), np.float32))


def infinite_return(path):
    returns = np.load(path / "eval_result.npy")
    returns[1, 2, 3] = np.inf
    np.save(path / "eval_result.npy", returns)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing_returns, r"eval_result.npy is missing"),
        (missing_metrics, r"metrics.json is missing"),
        (damaged_returns, r"eval_result.npy is damaged"),
        (pickled_returns, r"eval_result.npy is damaged"),
        (damaged_metrics, r"metrics.json is damaged"),
        (metrics_not_a_mapping, r"not a mapping"),
        (wrong_shape, r"has shape \(8, 6, 39\) but .* describes \(8, 6, 40\)"),
        (infinite_return, r"not finite"),
        (lambda path: edit_metrics(path, format_version=2), r"format version 2, .* reads 1"),
        (lambda path: edit_metrics(path, family=None), r"lacks family"),
        (lambda path: edit_metrics(path, tasks=[{"index": 0}]), r"metrics.json is damaged"),
        (lambda path: edit_metrics(path, method="pca"), r"method 'pca' but .* 'student'"),
        (lambda path: edit_metrics(path, training_seed=4), r"training_seed 4 but .* 0"),
        (lambda path: edit_metrics(path, final_episodes=41), r"final_episodes 41"),
    ],
)
def test_a_spoilt_result_is_named_in_one_sentence(tmp_path, spoil, message):
    spoil(write_method(tmp_path, "student", 0))
    with pytest.raises(ResultsError, match=message) as caught:
        load_results([tmp_path])
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split_identity": "other"}, "different split_identity"),
        ({"split_name": "other"}, "different split_name"),
        ({"part": "train"}, "different part"),
        ({"family": "key_to_door"}, "different family"),
        ({"n_episodes": 30}, "shapes disagree"),
        ({"n_evaluation_seeds": 3}, "shapes disagree"),
        ({"final_episodes": 5}, "shapes disagree"),
        ({"tasks": list(reversed(task_entries(8)))}, "different tasks"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(tmp_path, changed, message):
    write_method(tmp_path, "student", 0)
    write_method(tmp_path, "teacher", 0, **changed)
    with pytest.raises(ResultsError, match=message):
        load_results([tmp_path])


def test_nothing_found_is_said(tmp_path):
    with pytest.raises(ResultsError, match="does not exist"):
        load_results([tmp_path / "absent"])
    with pytest.raises(ResultsError, match="no run directory"):
        load_results([])
    with pytest.raises(ResultsError, match="no evaluated method under"):
        load_results([tmp_path])
    write_method(tmp_path, "student", 0)
    with pytest.raises(ResultsError, match="no evaluated method with seed 5"):
        load_results([tmp_path], seeds=[5])
    with pytest.raises(ResultsError, match=r"seeds \[5\] were asked for"):
        load_results([tmp_path], seeds=[0, 5])


def test_source_curves_are_those_of_ppo_on_the_compared_split(tmp_path):
    write_source_curves(tmp_path, task_entries(8), n_regions=6)
    write_method(tmp_path, "student", 0)
    tasks = load_results([tmp_path])[0].tasks
    curves = load_source_curves([tmp_path / "absent", tmp_path], tasks, "test")
    assert curves.returns.shape == (16, 6)
    np.testing.assert_array_equal(curves.task_indices, np.repeat(np.arange(8), 2))
    assert curves.returns.max() < 99  # rows of another split or style
    assert load_source_curves([tmp_path], tasks, "validation") is None
    (tmp_path / "collect" / "learning_curves.csv").write_text("task,region\n1,0\n")
    with pytest.raises(ResultsError, match=r"learning_curves.csv cannot be read"):
        load_source_curves([tmp_path], tasks, "test")


# --- aggregation ---


def test_columns_of_a_row(tmp_path):
    write_run(tmp_path, source=False)
    row = row_of(tmp_path, "student")
    assert " ".join(vars(row)) == COLUMNS
    assert (row.method, row.n_latents, row.seeds, row.context_tokens) == ("student", 8, 3, 88)
    assert row.train_seconds == pytest.approx(432.5)  # the mean over seeds
    assert row_of(tmp_path, "teacher").n_latents is None


def test_normalized_return_is_the_iqm_of_the_final_episodes(tmp_path):
    entries = task_entries(8)
    write_run(tmp_path, methods=("student",), source=False)
    cells = []
    for result in load_results([tmp_path]):
        for entry, returns in zip(entries, result.returns, strict=True):
            low, high = entry["random_return"], entry["optimal_return"]
            cells.append((returns[:, -10:].mean() - low) / (high - low))
    row = row_of(tmp_path, "student")
    assert row.normalized_return == pytest.approx(np.mean(sorted(cells)[6:18]))
    assert row.return_normalized_mean == pytest.approx(sum(cells) / 24)
    assert row.return_normalized_median == pytest.approx(sum(sorted(cells)[11:13]) / 2)
    assert row.optimality_gap == pytest.approx(sum(max(0, 1 - cell) for cell in cells) / 24)
    assert row.tasks_solved == pytest.approx(np.mean(np.array(cells) >= 0.8))
    assert row.ci_low < row.normalized_return < row.ci_high


def test_one_training_seed_has_no_interval(tmp_path):
    write_run(tmp_path, methods=("student",), seeds=(0,), source=False)
    row = row_of(tmp_path, "student")
    assert (row.ci_low, row.ci_high) == (None, None)


def test_gap_recovered(tmp_path):
    entries = task_entries(8)
    for method, level in {"student": 0.7, "teacher": 0.9, "none": 0.1, "pca": 0.3}.items():
        write_method(tmp_path, method, 0, returns=constant_returns(entries, level))
    rows = {row.method: row for row in method_rows(load_results([tmp_path]))}
    assert rows["student"].gap_recovered == pytest.approx(0.75, abs=1e-5)
    assert rows["pca"].gap_recovered == pytest.approx(0.25, abs=1e-5)
    assert rows["teacher"].gap_recovered == 1
    assert rows["none"].gap_recovered == 0


def test_gap_by_seed_pairs_method_teacher_and_no_context(tmp_path):
    entries = task_entries(8)
    levels = {"none": [0.1, 0.2, 0.5], "teacher": [0.9, 0.6, 0.52], "student": [0.5, 0.3, 0.5]}
    for method, by_seed in levels.items():
        for seed, level in enumerate(by_seed):
            write_method(tmp_path, method, seed, returns=constant_returns(entries, level))
    write_method(tmp_path, "student", 7, returns=constant_returns(entries, 0.4))
    methods = stack_methods(load_results([tmp_path]))
    shares = dict(gap_recovered_by_seed(methods[0], methods))
    # The third seed has no gap of its own, the last no teacher.
    assert shares == {0: pytest.approx(0.5, abs=1e-4), 1: pytest.approx(0.25, abs=1e-4)}


@pytest.mark.parametrize("teacher", [None, 0.14, 0.05])
def test_gap_recovered_is_not_given_without_a_gap(tmp_path, teacher):
    entries = task_entries(8)
    for method, level in {"student": 0.7, "none": 0.1, "teacher": teacher}.items():
        if level is not None:
            write_method(tmp_path, method, 0, returns=constant_returns(entries, level))
    assert row_of(tmp_path, "student").gap_recovered is None


def test_gap_of_rival_runs_is_taken_within_the_run(tmp_path):
    entries = task_entries(8)
    for run, teacher in {"a": 0.9, "b": 0.5}.items():
        for method, level in {"student": 0.5, "teacher": teacher, "none": 0.1}.items():
            returns = constant_returns(entries, level)
            write_method(tmp_path / run, method, 0, returns=returns)
    rows = {row.method: row for row in method_rows(load_results([tmp_path / "a", tmp_path / "b"]))}
    assert rows["student@a"].gap_recovered == pytest.approx(0.5, abs=1e-5)
    assert rows["student@b"].gap_recovered == pytest.approx(1.0, abs=1e-5)


def test_goals_found_are_counted_apart_from_the_return_once_found(tmp_path):
    entries = task_entries(4)
    returns = constant_returns(entries, 0.0, n_evaluation_seeds=2)
    optimal = constant_returns(entries, 1.0, n_evaluation_seeds=2)
    returns[:3, 0, 8:] = optimal[:3, 0, 8:]  # three streams of eight, from episode 9 on
    returns[3, 1, 14:16] = optimal[3, 1, 14:16]  # two lucky episodes are not a find
    write_method(tmp_path, "student", 0, returns=returns, tasks=entries)
    row = row_of(tmp_path, "student")
    assert row.goals_found == 3 / 8
    assert row.return_once_found == pytest.approx(1.0)
    assert row.episodes_to_90 == 9
    assert row.first_episode_return == pytest.approx(0.25)
    assert row.final_minus_best == pytest.approx(0.0, abs=0.06)


def test_a_method_that_learns_nothing_reaches_nothing(tmp_path):
    returns = constant_returns(task_entries(8), 0.02)
    write_method(tmp_path, "none", 0, returns=returns)
    row = row_of(tmp_path, "none")
    assert (row.episodes_to_90, row.return_once_found, row.goals_found) == (None, None, 0)


def test_tasks_without_an_optimum_count_only_in_the_raw_return(tmp_path):
    entries = task_entries(4)
    returns = constant_returns(entries, 0.5)
    entries[1] = entries[1] | {"optimal_return": None}
    returns[1] = 1000
    write_method(tmp_path, "student", 0, returns=returns, tasks=entries)
    row = row_of(tmp_path, "student")
    assert row.normalized_return == pytest.approx(0.5)
    assert row.return_mean > 250


def test_without_any_optimum_nothing_is_normalised(tmp_path):
    entries = [entry | {"optimal_return": None} for entry in task_entries(4)]
    write_method(tmp_path, "student", 0, tasks=entries)
    row = row_of(tmp_path, "student")
    assert row.normalized_return is None
    assert row.tasks_solved is None
    assert row.return_mean > 1


def test_differences_pair_the_seeds_both_have(tmp_path):
    entries = task_entries(8)
    for seed in (0, 1):
        shift = 0.1 * seed
        returns = constant_returns(entries, 0.6 + shift)
        write_method(tmp_path, "student", seed, returns=returns)
    for seed in (1, 2):
        returns = constant_returns(entries, 0.4 + 0.1 * seed)
        write_method(tmp_path, "pca", seed, returns=returns)
    methods = stack_methods(load_results([tmp_path]))
    (row,) = difference_rows(methods)
    assert (row.method, row.reference, row.seeds) == ("pca", "student", 1)
    assert row.mean_difference == pytest.approx(-0.2, abs=1e-5)
    assert np.isnan(row.ci_low)
    assert difference_rows(methods, "teacher") == []
