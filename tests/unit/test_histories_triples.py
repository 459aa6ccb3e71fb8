"""Region tables: rows equal the histories, views without copies, refusals."""

import dataclasses
import shutil
import tracemalloc

import h5py
import numpy as np
import pyarrow as pa
import pytest
from histories_data import SETTINGS, WALK, collect_small, small_family, small_split

from histories.collection import collect
from histories.regions import MarkerRule, markers_for, region_bounds
from histories.store import HistoryFileError, open_histories
from histories.table import check_tables
from histories.triples import RegionTable, TriplesError, build_triples, load_tables
from tasks.darkroom import DarkRoomFamily
from tasks.splits import SPLIT_PARTS, make_split


@pytest.fixture(scope="module")
def histories_path(tmp_path_factory):
    return collect_small(tmp_path_factory.mktemp("collect")).path


def test_rows_are_the_recorded_regions(histories_path, tmp_path):
    summary = build_triples(histories_path, tmp_path)
    assert summary.n_rows == {"train": 5 * 12, "validation": 2 * 12, "test": 2 * 12}
    tables = load_tables(tmp_path)
    with open_histories(histories_path) as reader:
        for part, table in tables.items():
            assert sorted(table.tasks) == list(getattr(reader.split, part))
            assert table.region_len == 10
            assert table.columns["mask"].all()
            batch = table.gather(table.rows())
            for row in range(len(table)):
                arrays = reader.arrays(int(table.task[row]))
                start = 10 * table.region[row]
                for name, column in batch.items():
                    if name != "mask":
                        expected = arrays[name][table.stream[row], start : start + 10]
                        assert (column[row] == expected).all()
                        assert column.dtype == expected.dtype


def test_rows_of_a_stream_are_consecutive_and_regions_ascend(histories_path, tmp_path):
    build_triples(histories_path, tmp_path)
    table = RegionTable.load(tmp_path / "train")
    row = np.arange(len(table))
    first = row - table.region
    assert (table.region[first] == 0).all()
    assert (table.task[first] == table.task).all()
    assert (table.stream[first] == table.stream).all()
    assert table.rows(max_region=1).tolist() == row[table.region <= 1].tolist()


def test_tables_of_more_tasks_take_no_more_memory(tmp_path):
    settings = dataclasses.replace(SETTINGS, n_streams=20, n_regions=40)
    peaks = []
    for size in (3, 6):  # 9 tasks, 36 tasks
        family = DarkRoomFamily(size=size, horizon=5)
        split = make_split(family.tasks(), seed=0, n_validation=1, n_test=1)
        out = tmp_path / str(size)
        path = collect(family, split, settings, out, {"walk": WALK}, progress=False).path
        build_triples(path, out / "warm")  # imports
        arrow = pa.total_allocated_bytes()
        tracemalloc.start()
        build_triples(path, out / "triples")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert pa.total_allocated_bytes() <= arrow
        files = [p for p in (out / "triples").rglob("*") if p.is_file()]
        assert {p.name for p in files} == {"regions.arrow", "meta.json"}
    assert peaks[1] < 1.3 * peaks[0]
    assert peaks[1] < max(p.stat().st_size for p in files) / 2


def test_columns_are_views_of_the_mapped_file(histories_path, tmp_path):
    build_triples(histories_path, tmp_path)
    arrow = pa.total_allocated_bytes()
    table = RegionTable.load(tmp_path / "test")
    assert pa.total_allocated_bytes() == arrow
    for column in table.columns.values():
        assert not column.flags.owndata
        assert not column.flags.writeable
    assert table.gather(np.array([3, 1]))["observations"].flags.writeable
    assert table.style_names == ("walk",)
    assert table.columns["terminated"].dtype == bool


@pytest.mark.parametrize(
    ("rule", "width"),
    [(MarkerRule("fixed", 7), 7), (MarkerRule("episode", episodes_per_region=3), 15)],
)
def test_another_rule_divides_anew_and_pads(histories_path, tmp_path, rule, width):
    build_triples(histories_path, tmp_path, rule=rule)
    table = RegionTable.load(tmp_path / "test")
    assert table.region_len == width
    lengths = table.columns["mask"].sum(-1)
    with open_histories(histories_path) as reader:
        arrays = reader.arrays(int(table.task[0]))
    ended = arrays["terminated"] | arrays["truncated"]
    markers = markers_for(rule.name, ended, rule.region_len, rule.episodes_per_region)
    starts, expected = region_bounds(markers[0])
    assert lengths[: len(expected)].tolist() == expected.tolist()
    assert expected[-1] < width
    last = len(expected) - 1
    rewards = table.columns["rewards"][last]
    assert rewards[: expected[-1]].tolist() == arrays["rewards"][0, starts[-1] :].tolist()
    assert (table.columns["observations"][last, expected[-1] :] == 0).all()


def test_region_len_alone_divides_anew(histories_path, tmp_path):
    build_triples(histories_path, tmp_path, region_len=8)
    table = RegionTable.load(tmp_path / "train")
    assert table.region_len == 8
    assert table.columns["mask"].sum(-1)[:5].tolist() == [8] * 5
    assert len(table) == 5 * 3 * 5


def test_a_region_longer_than_its_row_is_refused(histories_path, tmp_path):
    rule = MarkerRule("episode", episodes_per_region=3)
    with pytest.raises(TriplesError, match="region_len=15"):
        build_triples(histories_path, tmp_path, rule=rule, region_len=10)


def test_built_tables_are_left_alone(histories_path, tmp_path):
    assert build_triples(histories_path, tmp_path).built
    assert not build_triples(histories_path, tmp_path).built
    assert build_triples(histories_path, tmp_path, region_len=5).built
    shutil.rmtree(tmp_path / "test")
    assert build_triples(histories_path, tmp_path, region_len=5).built
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(SPLIT_PARTS)


def test_another_split_can_be_given(histories_path, tmp_path):
    split = small_split(seed=1)
    build_triples(histories_path, tmp_path, split=split)
    tables = load_tables(tmp_path)
    assert {table.split_identity for table in tables.values()} == {split.identity}


def test_foreign_and_overlapping_splits_are_refused(histories_path, tmp_path):
    foreign = make_split(DarkRoomFamily(3, horizon=9).tasks(), seed=0, n_validation=2, n_test=2)
    with pytest.raises(TriplesError, match="other tasks"):
        build_triples(histories_path, tmp_path, split=foreign)
    split = small_split()
    overlapping = dataclasses.replace(split, test=split.train[:2])
    with pytest.raises(TriplesError, match="both in train and in test"):
        build_triples(histories_path, tmp_path, split=overlapping)
    beyond = dataclasses.replace(split, test=(40,))
    with pytest.raises(TriplesError, match="lacks task 40"):
        build_triples(histories_path, tmp_path, split=beyond)


def test_tables_of_different_splits_do_not_mix(histories_path, tmp_path):
    build_triples(histories_path, tmp_path / "a")
    build_triples(histories_path, tmp_path / "b", split=small_split(seed=1))
    train = RegionTable.load(tmp_path / "a" / "train")
    with pytest.raises(TriplesError, match="different splits"):
        check_tables({"train": train, "test": RegionTable.load(tmp_path / "b" / "test")})
    with pytest.raises(TriplesError, match="holds the train tasks"):
        check_tables({"test": train})
    renamed = dataclasses.replace(train, part="test")
    with pytest.raises(TriplesError, match="both in the train and the test table"):
        check_tables({"train": train, "test": renamed})


def test_damaged_tables(histories_path, tmp_path):
    with pytest.raises(TriplesError, match="run the build_triples stage"):
        RegionTable.load(tmp_path / "train")
    build_triples(histories_path, tmp_path)
    arrow = tmp_path / "train" / "regions.arrow"
    arrow.write_bytes(arrow.read_bytes()[:1000])
    with pytest.raises(TriplesError, match=r"pipelines\.build_triples again"):
        RegionTable.load(tmp_path / "train")
    (tmp_path / "train" / "meta.json").write_text("{")
    with pytest.raises(TriplesError, match="damaged"):
        RegionTable.load(tmp_path / "train")


def test_styles_can_be_chosen(tmp_path):
    settings = dataclasses.replace(SETTINGS, source_seeds=(0, 1))
    path = collect_small(tmp_path, settings).path
    build_triples(path, tmp_path / "all", styles=["walk"])
    assert set(RegionTable.load(tmp_path / "all" / "train").source_seed) == {0, 1}
    with pytest.raises(TriplesError, match="no history of styles"):
        build_triples(path, tmp_path / "none", styles=["ppo"])


def replaced(group, name, values):
    del group[name]
    group[name] = values


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda g: replaced(g, "actions", g["actions"][()] + 17), "actions holds"),
        (lambda g: replaced(g, "observations", g["observations"][()] - 9), "observations holds"),
        (lambda g: replaced(g, "actions", g["actions"][()] * 1.0), "actions must be"),
        (lambda g: replaced(g, "actions", g["actions"][:, :-1]), "actions must be"),
        (lambda g: replaced(g, "rewards", g["rewards"][()] * np.float32("nan")), "must be finite"),
        (lambda g: replaced(g, "truncated", g["truncated"][()] & False), "an episode of"),
        (lambda g: replaced(g, "n_transitions", g["n_transitions"][()] * 99), "n_transitions"),
        (lambda g: replaced(g, "style", g["style"][:1]), "is damaged"),
        (lambda g: g.attrs.__setitem__("params", "{"), "is damaged"),
    ],
)
def test_histories_that_nobody_could_collect_are_refused(histories_path, tmp_path, change, told):
    path = tmp_path / "histories.h5"
    shutil.copy(histories_path, path)
    with h5py.File(path, "r+") as file:
        change(file["tasks/00004"])
    with pytest.raises(HistoryFileError, match=told) as error:
        build_triples(path, tmp_path / "triples", family=small_family())
    assert str(path) in str(error.value)
    assert not (tmp_path / "triples").exists()


def test_histories_of_another_family_are_refused(histories_path, tmp_path):
    other = DarkRoomFamily(size=4, horizon=5)
    with pytest.raises(TriplesError, match="this run's family has"):
        build_triples(histories_path, tmp_path, family=other)
