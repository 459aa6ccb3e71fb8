"""Collecting: what is written, going on after a kill, ranks, refusals, curves."""

import csv
import dataclasses
from threading import Thread

import numpy as np
import pytest
from histories_data import SETTINGS, WALK, collect_small, small_family, small_split, walk

from histories.collection import CollectError
from histories.curves import Curve, curve_table, curve_warning, region_returns
from histories.regions import MarkerRule, RegionError
from histories.sources import Source, SourceError
from histories.store import open_histories
from histories.triples import RegionTable, build_triples


def source_that_fails(job):
    raise AssertionError("a finished job was made again")


def test_a_collection_holds_every_task_and_field(tmp_path):
    summary = collect_small(tmp_path)
    assert (summary.n_jobs, summary.n_done_before, summary.n_env_steps) == (9, 0, 9 * 3 * 40)
    family = small_family()
    with open_histories(summary.path) as reader:
        assert reader.task_indices() == list(range(9))
        assert reader.split == small_split()
        assert reader.observation_space == family.observation_space
        assert reader.settings["region_len"] == 10
        for task in family.tasks():
            arrays = reader.arrays(task.index)
            assert reader.task(task.index) == task
            assert arrays["observations"].shape == (3, 40, 2)
            assert arrays["style"].tolist() == ["walk"] * 3
            random, optimal = reader.references(task.index)
            assert random == pytest.approx(family.random_return(task))
            assert optimal == family.optimal_return(task)


def test_recorded_next_observations_are_true(tmp_path):
    with open_histories(collect_small(tmp_path).path) as reader:
        arrays = reader.arrays(0)
    ended = arrays["terminated"] | arrays["truncated"]
    inside = ~ended[:, :-1]
    following = arrays["observations"][:, 1:]
    assert (arrays["next_observations"][:, :-1][inside] == following[inside]).all()
    assert (following[~inside] == 1).all()  # the centre: reset observations
    assert (arrays["next_observations"][:, :-1][~inside] != 1).any()


def test_a_killed_run_goes_on(tmp_path):
    first = collect_small(tmp_path)
    whole = first.path.read_bytes()
    first.path.unlink()
    (tmp_path / "parts" / "walk-0-00004.h5").unlink()
    torn = tmp_path / "parts" / "walk-0-00005.h5"
    torn.write_bytes(torn.read_bytes()[:500])
    again = collect_small(tmp_path)
    assert (again.n_done_before, again.n_env_steps) == (7, 2 * 3 * 40)
    with open_histories(again.path) as reader:
        assert reader.task_indices() == list(range(9))
    assert len(again.path.read_bytes()) == len(whole)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_finished_collection_is_left_alone_even_without_parts(tmp_path):
    path = collect_small(tmp_path).path
    modified = path.stat().st_mtime_ns
    for part in (tmp_path / "parts").iterdir():
        part.unlink()
    summary = collect_small(tmp_path, sources={"walk": Source(source_that_fails)})
    assert summary.n_env_steps == 0
    assert path.stat().st_mtime_ns == modified


def test_another_split_is_assembled_from_the_same_parts(tmp_path):
    collect_small(tmp_path)
    summary = collect_small(tmp_path, split=small_split(seed=1))
    assert summary.n_env_steps == 0
    with open_histories(summary.path) as reader:
        assert reader.split == small_split(seed=1)


@pytest.mark.parametrize(
    ("change", "source"),
    [
        ({"n_streams": 4}, WALK),
        ({"regions": {"walk": 3}}, WALK),
        ({}, Source(walk, {"steps": (4, 4, 4, 4)})),
        ({}, Source(walk, uses_split=True)),
    ],
)
def test_parts_of_other_settings_are_refused(tmp_path, change, source):
    collect_small(tmp_path)
    settings = dataclasses.replace(SETTINGS, **change)
    with pytest.raises(CollectError, match="other settings; delete"):
        collect_small(tmp_path, settings, sources={"walk": source})


def test_ranks_share_the_jobs(tmp_path):
    other = Thread(target=collect_small, args=(tmp_path,), kwargs={"rank": 1, "world_size": 2})
    other.start()
    summary = collect_small(tmp_path, rank=0, world_size=2, poll_seconds=0.01)
    other.join()
    assert summary.n_env_steps == 5 * 3 * 40
    with open_histories(summary.path) as reader:
        assert reader.task_indices() == list(range(9))


def test_styles_and_seeds_lie_side_by_side(tmp_path):
    settings = dataclasses.replace(SETTINGS, source_seeds=(0, 1))
    summary = collect_small(tmp_path, settings)
    with open_histories(summary.path) as reader:
        arrays = reader.arrays(2)
    assert arrays["source_seed"].tolist() == [0, 0, 0, 1, 1, 1]
    assert (arrays["actions"][0] != arrays["actions"][3]).any()


def test_impossible_settings(tmp_path):
    for change, error in (
        ({"styles": ("ppo",)}, CollectError),
        ({"n_streams": 0}, CollectError),
        ({"regions": {"walk": 0}}, CollectError),
        ({"marker_rule": "weekly"}, RegionError),
    ):
        with pytest.raises(error):
            collect_small(tmp_path, dataclasses.replace(SETTINGS, **change))


def test_tasks_played_together_are_the_same_after_a_kill_and_known_by_rank(tmp_path):
    sources = {"walk": Source(walk, streams_per_job=7)}  # two tasks of three streams
    summary = collect_small(tmp_path, sources=sources)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    assert len(whole) == 5  # a file each for two tasks, the last for one
    assert (summary.n_jobs, summary.n_env_steps) == (9, 9 * 3 * 40)
    summary.path.unlink()
    (tmp_path / "parts" / "walk-0-00004.h5").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    again = collect_small(tmp_path, sources=sources)
    assert (again.n_done_before, again.n_env_steps) == (7, 2 * 3 * 40)
    after = {path.name: path for path in (tmp_path / "parts").iterdir()}
    assert {name: path.read_bytes() for name, path in after.items()} == whole
    assert {name: after[name].stat().st_mtime_ns for name in times} == times


def test_styles_may_differ_in_length_and_streams(tmp_path):
    settings = dataclasses.replace(
        SETTINGS, styles=("walk", "short"), regions={"short": 2}, streams={"short": 5}
    )
    path = collect_small(tmp_path, settings, sources={"walk": WALK, "short": WALK}).path
    with open_histories(path) as reader:
        arrays = reader.arrays(3)
    assert arrays["style"].tolist() == ["walk"] * 3 + ["short"] * 5
    assert arrays["n_transitions"].tolist() == [40] * 3 + [20] * 5
    assert (arrays["actions"][3:6, :20] == arrays["actions"][:3, :20]).all()
    assert not arrays["observations"][3:, 20:].any()
    with (tmp_path / "learning_curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(row["style"] == "short" for row in rows) == 9 * 2
    for rule in (None, MarkerRule("fixed", 8), MarkerRule("episode", episodes_per_region=3)):
        build_triples(path, tmp_path / "triples", rule=rule)
        table = RegionTable.load(tmp_path / "triples" / "train")
        length = {None: 10, "fixed": 8, "episode": 15}[rule and rule.name]
        short = table.style == table.style_names.index("short")
        assert short.sum() == 5 * 5 * -(-20 // length)
        assert (~short).sum() == 5 * 3 * -(-40 // length)
        assert table.columns["mask"][short].sum() == 5 * 5 * 20


def test_a_source_that_returns_too_little_is_told(tmp_path):
    with pytest.raises(SourceError, match="list of 1 histories, one per task, got 0"):
        collect_small(tmp_path, sources={"walk": Source(no_walk)})
    with pytest.raises(SourceError, match="got History"):
        collect_small(tmp_path, sources={"walk": Source(first_walk)})


def no_walk(job):
    return []


def first_walk(job):
    return walk(job)[0]


def test_learning_curves_file(tmp_path):
    summary = collect_small(tmp_path)
    with (tmp_path / "learning_curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 * 4
    assert set(rows[0]) == {"task", "split", "style", "source_seed", "region", "mean_return"}
    with open_histories(summary.path) as reader:
        arrays = reader.arrays(1)
    # two episodes of five steps in a region of ten
    expected = arrays["rewards"].reshape(3, 4, 2, 5).sum(-1).mean((0, 2))
    found = [float(row["mean_return"]) for row in rows if row["task"] == "1"]
    assert found == pytest.approx(expected.tolist())


def test_curves_are_the_same_when_the_file_is_there_already(tmp_path):
    settings = dataclasses.replace(
        SETTINGS, styles=("walk", "short"), regions={"short": 2}, source_seeds=(0, 1)
    )
    sources = {"walk": WALK, "short": Source(walk, {"steps": (4, 4, 1, 0)}, streams_per_job=6)}
    curves = []
    for _ in range(2):  # as it is assembled, then from the file
        collect_small(tmp_path, settings, sources=sources)
        curves.append((tmp_path / "learning_curves.csv").read_text())
    assert curves[0] == curves[1]
    assert len(set(curves[0].splitlines())) == 1 + 9 * 2 * (4 + 2)


def test_the_printed_table_of_many_tasks_shows_means(tmp_path, monkeypatch):
    summary = collect_small(tmp_path)
    assert curve_table(summary.curves).row_count == 9
    monkeypatch.setattr("histories.curves.MOST_ROWS", 8)
    table = curve_table(summary.curves)
    shown = [[str(cell) for cell in column.cells] for column in table.columns]
    assert shown[0] == ["mean of 2", "mean of 5", "mean of 2"]
    assert shown[1] == ["test", "train", "validation"]
    with open_histories(summary.path) as reader:
        rewards = [reader.arrays(index)["rewards"] for index in reader.split.train]
    # two episodes of five steps in the last region of ten
    assert float(shown[7][1]) == pytest.approx(
        np.mean([array[:, -10:].sum() / 6 for array in rewards]), abs=0.005
    )


def test_region_returns_count_an_episode_where_it_finishes():
    rewards = np.array([[1.0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 5]])
    ended = np.array([[0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 1]], dtype=bool)
    markers = np.array([[1, 2, 1, 2, 1, 2]] * 2)
    returns = region_returns(rewards, ended, markers)
    assert returns.tolist() == [2.0, 0.0, 4.0]  # (2), (0), (3 and 5)
    empty = region_returns(rewards, np.zeros_like(ended), markers)
    assert np.isnan(empty).all()


@pytest.mark.parametrize(
    ("returns", "style", "word"),
    [
        ([0, 5, 10, 9], "ppo", None),
        ([0, 5, 10, 6], "ppo", "collapsed"),
        ([0, 1, 1.5, 1], "ppo", "flat"),
        ([0, 1, 1.5, 1], "random", None),
        ([0, 5, 10, np.nan], "ppo", None),
    ],
)
def test_curve_warnings(returns, style, word):
    curve = Curve(3, "goal=(0,0)", "train", style, 0, np.array(returns, float), 0.0, 10.0)
    warning = curve_warning(curve)
    assert (warning is None) if word is None else warning.startswith(f"{word}: task 3 goal=(0,0)")
