"""Loading results, what is refused, and which number a column holds."""

import json
from pathlib import Path

import numpy as np
import pytest
from reports_data import (
    HORIZON,
    RECORDS,
    REGION_LEN,
    record_entry,
    task_entries,
    write_method,
    write_run,
    write_source_curves,
)

from base.errors import UserError
from reports import columns, measures
from reports.cost import CostRow, load_cost
from reports.curves import reference_levels
from reports.differences import difference_rows, reference_method
from reports.notes import notes
from reports.result_files import ResultsError
from reports.results import load_results
from reports.rows import method_rows
from reports.scores import stack_methods
from reports.source_curves import load_source_curves
from reports.training_logs import load_stage_logs
from training.run_dir import mark_done


def edit_metrics(path, **changed):
    metrics = json.loads((path / "metrics.json").read_text())
    (path / "metrics.json").write_text(json.dumps(metrics | changed))


def scores_of(run_dirs, **kwargs):
    """Stacked results by label."""
    run_dirs = run_dirs if isinstance(run_dirs, list) else [run_dirs]
    return {method.label: method for method in stack_methods(load_results(run_dirs, **kwargs))}


def rows_of(run_dirs, **kwargs):
    """Values of every row by label."""
    return {row.label: row.values for row in method_rows(list(scores_of(run_dirs).values()))}


def row_of(run_dir, method):
    return rows_of(run_dir)[method]


def constant_returns(entries, level, n_evaluation_seeds=2, n_episodes=20):
    """Every episode at `level` of the way from random to optimal."""
    low = np.array([entry["random_return"] for entry in entries])[:, None, None]
    high = np.array([entry["optimal_return"] for entry in entries])[:, None, None]
    returns = low + level * (high - low) * np.ones((1, n_evaluation_seeds, n_episodes))
    return returns.astype(np.float32)


# --- loading ---


def test_loads_every_method_and_seed_in_the_order_of_their_records(tmp_path):
    methods = ("zebra", *reversed(RECORDS), "aardvark")
    write_run(tmp_path, methods=methods, seeds=(10, 2), source=False, n_episodes=5)
    results = load_results([tmp_path])
    order = list(RECORDS)
    order[8:8] = ["aardvark", "zebra"]  # baselines stand before controls
    assert list(dict.fromkeys(result.method for result in results)) == order
    assert [result.training_seed for result in results[:2]] == [2, 10]  # as numbers
    assert results[0].returns.shape == results[0].starts.shape == (8, 6, 5)
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


def missing_starts(path):
    (path / "episode_starts.npy").unlink()


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
        (missing_starts, r"episode_starts.npy is missing: delete .* and run pipelines.evaluate"),
        (damaged_returns, r"eval_result.npy is damaged"),
        (pickled_returns, r"eval_result.npy is damaged"),
        (damaged_metrics, r"metrics.json is damaged"),
        (metrics_not_a_mapping, r"not a mapping"),
        (wrong_shape, r"has shape \(8, 6, 39\) but .* describes \(8, 6, 40\)"),
        (infinite_return, r"not finite"),
        (lambda path: edit_metrics(path, format_version=2), r"format version 2, .* reads 1"),
        (lambda path: edit_metrics(path, family=None), r"lacks family"),
        (lambda path: edit_metrics(path, method_record=None), r"lacks method_record: delete"),
        (
            lambda path: edit_metrics(path, region_len=None),
            r"lacks region_len: delete .* and run pipelines.evaluate",
        ),
        (
            lambda path: edit_metrics(path, method_record=record_entry("pca") | {"group": "ours"}),
            r"damaged \(ValueError\(.group 'ours' is none of student, teacher",
        ),
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


def test_source_curves_are_those_of_every_style_on_the_compared_split(tmp_path):
    write_source_curves(tmp_path, task_entries(8), n_regions=6)
    write_method(tmp_path, "student", 0)
    tasks = load_results([tmp_path])[0].tasks
    path = tmp_path / "collect" / "learning_curves.csv"
    with path.open("a") as file:
        file.write(f"{tasks[2].index},test,mine:sticky_play,0,0,1.5\n")
        file.write(f"{tasks[2].index},test,mine:sticky_play,0,1,\n")
    curves, sticky = load_source_curves([tmp_path / "absent", tmp_path], tasks, "test")
    assert (curves.style, curves.title) == ("ppo", "source PPO")
    assert (sticky.title, sticky.returns.tolist()) == ("source sticky play", [[1.5]])
    assert sticky.task_indices.tolist() == [2]
    assert curves.returns.shape == (16, 6)
    np.testing.assert_array_equal(curves.task_indices, np.repeat(np.arange(8), 2))
    assert curves.returns.max() < 99  # rows of another split, and of random play
    assert load_source_curves([tmp_path], tasks, "validation") == []
    path.write_text("task,region\n1,0\n")
    with pytest.raises(ResultsError, match=r"learning_curves.csv cannot be read"):
        load_source_curves([tmp_path], tasks, "test")


TABLES = {
    "cost/cost.csv": lambda run: load_cost([run]),
    "collect/learning_curves.csv": lambda run: load_source_curves([run], (), "test"),
    "seed_0/teacher/log.csv": lambda run: load_stage_logs([run]),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("")])
def test_a_table_that_is_not_as_its_stage_wrote_it_is_refused(tmp_path, name, damage):
    path = tmp_path / name
    (path.parent / "model").mkdir(parents=True)
    path.write_text(f"step,loss,split,{','.join(CostRow.__dataclass_fields__)}\n")
    mark_done(path.parent, "a stage", "inputs", seconds=1, results=("cost.csv",))
    TABLES[name](tmp_path)
    damage(path)
    with pytest.raises(ResultsError, match=rf"{path} is missing or not as it was written.*delete"):
        TABLES[name](tmp_path)


# --- columns ---


def level_of(entries, returns):
    """Normalised final returns of the tasks, slowly."""
    levels = []
    for entry, of_task in zip(entries, returns, strict=True):
        low, high = entry["random_return"], entry["optimal_return"]
        levels.append((of_task[:, -10:].mean() - low) / (high - low))
    return levels


def test_every_column_has_a_name_of_its_own_and_a_meaning():
    names = [column.name for column in columns.COLUMNS]
    assert len(set(names)) == len(names)
    assert all(column.title and column.description for column in columns.COLUMNS)


def test_what_evaluation_measured_is_taken_over(tmp_path):
    write_run(tmp_path, source=False)
    row = row_of(tmp_path, "student")
    assert (row["n_latents"], row["seeds"], row["context_tokens"]) == (8, 3, 88)
    assert (row["n_parameters_acting"], row["memory_regions"]) == (765432, 1)
    assert row["latent_bits"] == 2048 * 8
    assert row["train_seconds"] == pytest.approx(432.5)  # the mean over seeds
    assert row_of(tmp_path, "teacher")["n_latents"] is None


def test_headline_is_of_the_final_episodes_of_all_cells(tmp_path):
    entries = task_entries(8)
    write_run(tmp_path, methods=("student",), source=False)
    by_seed = [level_of(entries, result.returns) for result in load_results([tmp_path])]
    cells = sorted(level for levels in by_seed for level in levels)
    row = row_of(tmp_path, "student")
    assert row["mean"] == pytest.approx(sum(cells) / 24)
    assert row["iqm"] == pytest.approx(np.mean(cells[6:18]))
    assert row["median"] == pytest.approx(sum(cells[11:13]) / 2)
    assert row["optimality_gap"] == pytest.approx(sum(max(0, 1 - cell) for cell in cells) / 24)
    assert row["tasks_solved"] == pytest.approx(np.mean(np.array(cells) >= 0.8))
    of_tasks = [sum(levels) / 3 for levels in zip(*by_seed, strict=True)]
    assert row["worst_task"] == pytest.approx(min(of_tasks))
    assert row["worst_task_name"] == entries[int(np.argmin(of_tasks))]["name"]
    assert row["interval_low"] < row["mean"] < row["interval_high"]
    assert row["interval_kind"] == "t"
    shown = [f"{seed}: {sum(levels) / 8:.3f}" for seed, levels in enumerate(by_seed)]
    assert row["mean_by_seed"] == ", ".join(shown)


def test_one_training_seed_has_no_interval(tmp_path):
    write_run(tmp_path, methods=("student",), seeds=(0,), source=False)
    row = row_of(tmp_path, "student")
    assert (row["interval_low"], row["interval_high"], row["interval_kind"]) == (None, None, None)


def test_eight_training_seeds_have_a_bootstrap_interval(tmp_path):
    write_run(tmp_path, methods=("student",), seeds=range(8), source=False, n_episodes=12)
    assert row_of(tmp_path, "student")["interval_kind"] == "bootstrap"


def test_what_is_only_rolled_out_has_no_seeds_however_often_it_was(tmp_path):
    for seed in (0, 1, 2):
        for method in ("random", "posterior_sampling", "student"):
            write_method(tmp_path, method, seed)
    rows = rows_of(tmp_path)
    for method in ("random", "posterior_sampling"):
        for column in ("seeds", "interval_low", "interval_kind", "mean_by_seed", "gap_recovered"):
            assert rows[method][column] is None
    assert rows["posterior_sampling"]["mean"] > rows["random"]["mean"]


def test_gap_recovered(tmp_path):
    entries = task_entries(8)
    for method, level in {"student": 0.7, "teacher": 0.9, "none": 0.1, "pca": 0.3}.items():
        write_method(tmp_path, method, 0, returns=constant_returns(entries, level))
    rows = rows_of(tmp_path)
    assert rows["student"]["gap_recovered"] == pytest.approx(0.75, abs=1e-5)
    assert rows["pca"]["gap_recovered"] == pytest.approx(0.25, abs=1e-5)
    assert rows["teacher"]["gap_recovered"] == 1
    assert rows["none"]["gap_recovered"] == 0


def test_gap_is_recovered_on_the_seeds_that_all_three_have(tmp_path):
    entries = task_entries(8)
    levels = {"none": [0.1, 0.2, 0.5], "teacher": [0.9, 0.6, 0.52], "student": [0.5, 0.3, 0.5]}
    for method, by_seed in levels.items():
        for seed, level in enumerate(by_seed):
            write_method(tmp_path, method, seed, returns=constant_returns(entries, level))
    write_method(tmp_path, "student", 7, returns=constant_returns(entries, 0.9))
    write_method(tmp_path, "none", 8, returns=constant_returns(entries, 0.9))
    methods = scores_of(tmp_path)
    gap = measures.gap_recovered(methods["student"], list(methods.values()))
    # Over seeds 0, 1 and 2: seed 7 has no teacher, seed 8 no student.
    assert gap.share == pytest.approx((1.3 - 0.8) / (2.02 - 0.8), abs=1e-4)
    # The third seed has no gap of its own.
    assert gap.by_seed == {0: pytest.approx(0.5, abs=1e-4), 1: pytest.approx(0.25, abs=1e-4)}
    assert row_of(tmp_path, "student")["gap_by_seed"] == "0: 0.500, 1: 0.250"


def test_the_teacher_is_the_method_of_that_group_whatever_its_name(tmp_path):
    entries = task_entries(8)
    record = {"name": "big", "title": "big", "group": "teacher", "order": 1}
    write_method(tmp_path, "big", 0, returns=constant_returns(entries, 0.9), method_record=record)
    for method, level in {"student": 0.5, "teacher": 1.0, "none": 0.1}.items():
        baseline = record_entry(method) | ({"group": "baseline"} if method == "teacher" else {})
        returns = constant_returns(entries, level)
        write_method(tmp_path, method, 0, returns=returns, method_record=baseline)
    assert row_of(tmp_path, "student")["gap_recovered"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("teacher", [None, 0.14, 0.05])
def test_gap_recovered_is_not_given_without_a_gap(tmp_path, teacher):
    entries = task_entries(8)
    for method, level in {"student": 0.7, "none": 0.1, "teacher": teacher}.items():
        if level is not None:
            write_method(tmp_path, method, 0, returns=constant_returns(entries, level))
    assert row_of(tmp_path, "student")["gap_recovered"] is None


def test_gap_of_rival_runs_is_taken_within_the_run(tmp_path):
    entries = task_entries(8)
    for run, teacher in {"a": 0.9, "b": 0.5}.items():
        for method, level in {"student": 0.5, "teacher": teacher, "none": 0.1}.items():
            returns = constant_returns(entries, level)
            write_method(tmp_path / run, method, 0, returns=returns)
    rows = rows_of([tmp_path / "a", tmp_path / "b"])
    assert rows["student@a"]["gap_recovered"] == pytest.approx(0.5, abs=1e-5)
    assert rows["student@b"]["gap_recovered"] == pytest.approx(1.0, abs=1e-5)


def jump(entries, episode, level=1.0, n_episodes=40):
    """Nothing before an episode, counted from 1, then `level`."""
    returns = constant_returns(entries, 0.0, n_episodes=n_episodes)
    returns[..., episode - 1 :] = constant_returns(entries, level)[..., :1]
    return returns


def test_episodes_to_the_level_count_the_seeds_that_never_reach_it(tmp_path):
    entries = task_entries(8)
    for method, arrivals in {"student": (9, 21, None), "teacher": (9, None, None)}.items():
        for seed, episode in enumerate(arrivals):
            level = 0.85 if episode is None else 1.0  # 0.9 of its own end, not of the optimum
            write_method(tmp_path, method, seed, returns=jump(entries, episode or 5, level))
    rows = rows_of(tmp_path)
    assert (rows["student"]["episodes_to_0.9"], rows["student"]["never_to_0.9"]) == (21, 0)
    assert (rows["teacher"]["episodes_to_0.9"], rows["teacher"]["never_to_0.9"]) == (np.inf, 1)
    assert rows["student"]["tasks_to_0.9"] == pytest.approx(2 / 3)


def test_episodes_to_the_level_are_those_of_the_curve_over_all_tasks(tmp_path):
    entries = task_entries(8)
    returns = jump(entries, 3)
    returns[0] = jump(entries, 30)[0]  # one of eight holds the mean at 0.875
    write_method(tmp_path, "student", 0, returns=returns)
    returns = jump(entries, 3)
    returns[0] = constant_returns(entries, 0.0, n_episodes=40)[0]
    write_method(tmp_path, "pca", 0, returns=returns)
    rows = rows_of(tmp_path)
    assert rows["student"]["episodes_to_0.9"] == 30
    assert rows["student"]["tasks_to_0.9"] == 1
    assert rows["pca"]["episodes_to_0.9"] == np.inf
    assert rows["pca"]["tasks_to_0.9"] == 7 / 8


def test_search_is_measured_in_the_first_episodes(tmp_path):
    entries = task_entries(4)
    returns = constant_returns(entries, 0.0, n_episodes=20)
    optimal = constant_returns(entries, 1.0, n_episodes=20)
    for stream, episode in enumerate((4, 9, 10, 14)):  # from 0
        returns[stream, 0, episode] = optimal[stream, 0, episode]
    visited = np.full(returns.shape, 7.0)
    visited[..., :10] = 3.0
    write_method(tmp_path, "student", 0, tasks=entries, returns=returns, visited=visited)
    write_method(tmp_path, "pca", 0, tasks=entries, returns=returns)
    rows = rows_of(tmp_path)
    found = [rows["student"][f"found_by_{episode}"] for episode in (5, 10, 20)]
    assert found == [1 / 8, 2 / 8, 4 / 8]
    assert rows["student"]["return_first_10"] == pytest.approx(2 / 80)
    assert (rows["student"]["cells_visited"], rows["pca"]["cells_visited"]) == (3.0, None)


def test_fewer_episodes_than_a_column_speaks_of_leave_it_empty(tmp_path):
    write_method(tmp_path, "student", 0, n_episodes=9)
    row = row_of(tmp_path, "student")
    assert row["found_by_5"] is not None
    assert (row["found_by_10"], row["return_first_10"]) == (None, None)


def test_goals_found_are_counted_apart_from_the_return_once_found(tmp_path):
    entries = task_entries(4)
    returns = constant_returns(entries, 0.0, n_evaluation_seeds=2)
    optimal = constant_returns(entries, 1.0, n_evaluation_seeds=2)
    returns[:3, 0, 8:] = optimal[:3, 0, 8:]  # three streams of eight, from episode 9 on
    returns[3, 1, 14:16] = optimal[3, 1, 14:16]  # two lucky episodes are not a find
    write_method(tmp_path, "student", 0, returns=returns, tasks=entries)
    row = row_of(tmp_path, "student")
    assert row["goals_found"] == 3 / 8
    assert row["return_once_found"] == pytest.approx(1.0)
    assert row["raw_first_episode"] == pytest.approx(0.25)
    assert row["final_minus_best"] == pytest.approx(0.0, abs=0.06)


# --- borders ---


def slow_border(entries, returns, starts, first_episode):
    """Mean return of the first episode of each region, and of the others, one by one."""
    after, inside = [], []
    for task, entry in enumerate(entries):
        low, high = entry["random_return"], entry["optimal_return"]
        for stream in range(returns.shape[1]):
            for episode in range(first_episode, returns.shape[2]):
                region, before = (
                    starts[task, stream, e] // REGION_LEN for e in (episode, episode - 1)
                )
                score = (returns[task, stream, episode] - low) / (high - low)
                (after if region > before else inside).append(score)
    return np.mean(after), np.mean(inside)


def test_border_columns_set_the_first_episode_of_a_region_apart(tmp_path):
    entries = task_entries(4)
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 40, size=(4, 3, 40))  # episodes end early, regions are skipped
    starts = np.cumsum(lengths, axis=-1) - lengths
    returns = generator.random((4, 3, 40)) * 10
    write_method(tmp_path, "student", 0, tasks=entries, returns=returns, starts=starts)
    row = row_of(tmp_path, "student")
    after, inside = slow_border(entries, returns, starts, 20)  # the second half
    assert row["return_after_border"] == pytest.approx(after)
    assert row["return_inside"] == pytest.approx(inside)
    assert row["border_loss"] == pytest.approx(inside - after)


def test_every_fourth_episode_follows_a_border_where_all_take_as_long(tmp_path):
    entries = task_entries(8)
    assert REGION_LEN == 4 * HORIZON
    returns = constant_returns(entries, 0.9, n_episodes=12)
    returns[..., 4::4] = constant_returns(entries, 0.7)[..., :1]
    returns[..., 0] = constant_returns(entries, 0.0)[..., 0]  # the first region has no border
    write_method(tmp_path, "teacher", 0, returns=returns)
    row = row_of(tmp_path, "teacher")
    assert row["border_loss"] == pytest.approx(0.2, abs=1e-5)
    positions = measures.by_position(scores_of(tmp_path)["teacher"])
    np.testing.assert_allclose(positions, [[0.7, 0.9, 0.9, 0.9]], atol=1e-5)


def test_without_a_border_late_in_the_context_there_is_no_border_column(tmp_path):
    write_method(tmp_path, "student", 0, n_episodes=4)
    row = row_of(tmp_path, "student")
    assert (row["return_after_border"], row["border_loss"]) == (None, None)


# --- what cannot be normalised, and differences ---


def test_tasks_without_an_optimum_count_only_in_the_raw_return(tmp_path):
    entries = task_entries(4)
    returns = constant_returns(entries, 0.5)
    entries[1] = entries[1] | {"optimal_return": None}
    returns[1] = 1000
    write_method(tmp_path, "student", 0, returns=returns, tasks=entries)
    row = row_of(tmp_path, "student")
    assert row["mean"] == pytest.approx(0.5)
    assert row["worst_task"] == pytest.approx(0.5)
    assert row["raw_return"] > 250


def test_without_any_optimum_nothing_is_normalised(tmp_path):
    entries = [entry | {"optimal_return": None} for entry in task_entries(4)]
    write_method(tmp_path, "student", 0, tasks=entries)
    row = row_of(tmp_path, "student")
    for column in ("mean", "tasks_solved", "worst_task", "border_loss", "episodes_to_0.9"):
        assert row[column] is None
    assert row["raw_return"] > 1


def by_source(entries, reached):
    return [entry | {"optimal_return": None, "source_return": reached} for entry in entries]


def test_where_no_optimum_is_known_sources_normalise_and_it_is_said(tmp_path):
    entries = by_source(task_entries(4), 10.25)
    entries[3] = entries[3] | {"source_return": 0.1}  # no better than random
    returns = np.full((4, 6, 40), 5.25, dtype=np.float32)
    write_method(tmp_path, "student", 0, returns=returns, tasks=entries)
    row = row_of(tmp_path, "student")
    assert row["mean"] == pytest.approx(0.5)
    assert row["normalised_by"] == "best source"
    told = " ".join(notes(list(scores_of(tmp_path).values())))
    assert "1 the best mean return of a region that sources" in told
    assert "1 of 4 tasks have no known optimal return, nor a source better than random" in told
    levels = reference_levels(list(scores_of(tmp_path).values()))
    assert [level.label for level in levels] == ["random", "best source"]


def test_the_best_source_has_a_row_of_its_own(tmp_path):
    entries = by_source(task_entries(4), 10.25)
    entries[0]["source_return"] = 12.25
    for method in ("student", "random"):
        write_method(tmp_path, method, 0, tasks=entries)
    assert list(scores_of(tmp_path)) == ["student", "random", "best_source"]
    row = row_of(tmp_path, "best_source")
    assert row["mean"] == row["worst_task"] == pytest.approx(1.0)
    assert row["raw_return"] == pytest.approx(10.75)
    assert row["seeds"] is None
    assert row["context_tokens"] is None
    entries[1]["source_return"] = None  # a task that nobody has learned
    for method in ("student", "random"):
        write_method(tmp_path / "other", method, 0, tasks=entries)
    assert list(scores_of(tmp_path / "other")) == ["student", "random"]


def test_some_optima_and_some_sources_are_told_apart(tmp_path):
    entries = task_entries(4)
    entries[0] = by_source(entries, 9.0)[0]
    write_method(tmp_path, "student", 0, tasks=entries)
    assert row_of(tmp_path, "student")["normalised_by"] == "optimal, best source"
    told = " ".join(notes(list(scores_of(tmp_path).values())))
    assert "(0 random, 1 optimal; in 1 tasks of unknown optimum 1 the best" in told


def test_results_of_other_sources_are_not_compared(tmp_path):
    for name, reached in (("a", 9.0), ("b", 10.0)):
        entries = by_source(task_entries(4), reached)
        write_method(tmp_path / name, "student", 0, tasks=entries)
    with pytest.raises(ResultsError, match="normalised by different returns"):
        load_results([tmp_path / "a", tmp_path / "b"])


def test_differences_pair_the_seeds_both_have(tmp_path):
    entries = task_entries(8)
    for seed in (0, 1):
        returns = constant_returns(entries, 0.6 + 0.1 * seed)
        write_method(tmp_path, "student", seed, returns=returns)
    for seed in (1, 2):
        returns = constant_returns(entries, 0.4 + 0.1 * seed)
        write_method(tmp_path, "pca", seed, returns=returns)
    methods = scores_of(tmp_path)
    (row,) = difference_rows(list(methods.values()), methods["student"])
    assert (row.label, row["reference"], row["seeds"]) == ("pca", "student", 1)
    assert row["mean_difference"] == pytest.approx(-0.2, abs=1e-5)
    assert row["interval_low"] is None
    assert row["difference_by_seed"] == "1: −0.200"
    assert row["probability_of_improvement"] == 0
    assert difference_rows(list(methods.values()), None) == []


def test_nothing_that_is_only_rolled_out_is_in_the_differences(tmp_path):
    write_run(tmp_path, source=False, n_episodes=12, seeds=(0,))
    methods = stack_methods(load_results([tmp_path]))
    labels = [row.label for row in difference_rows(methods, reference_method(methods))]
    assert labels == list(RECORDS)[1:10]


def test_reference_is_the_student_or_else_the_teacher(tmp_path):
    write_run(tmp_path, source=False, n_episodes=5, seeds=(0,))
    methods = stack_methods(load_results([tmp_path]))
    assert reference_method(methods) is methods[0]
    assert reference_method(methods[1:]).label == "teacher"
    assert reference_method(methods[3:]) is methods[3]
    assert reference_method(methods[-2:]) is None
