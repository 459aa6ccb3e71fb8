"""History files: schema, round trip, and one clear sentence for every kind of bad file."""

import random

import h5py
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from histories_data import collect_small, small_family, small_split, walk

from histories.regions import MarkerRule
from histories.schema import (
    FIELDS,
    History,
    HistoryError,
    check_history,
    space_from_spec,
    space_spec,
    storage_dtype,
)
from histories.sources import SourceJob
from histories.store import (
    HistoryFileError,
    open_histories,
    open_part,
    part_fingerprint,
    write_part,
)

SPACES = [
    Discrete(5),
    Discrete(300, start=-1),
    MultiDiscrete([9, 9]),
    MultiBinary(3),
    Box(-1.0, 1.0, (3,), np.float32),
    Box(np.array([-1.0, -np.inf]), np.array([1.0, np.inf]), dtype=np.float64),
    Box(0, 255, (4, 4, 3), np.uint8),
]


def make_history() -> History:
    family = small_family()
    tasks = family.tasks()[:1]
    return walk(SourceJob(family, tasks, (), "walk", 3, 2, 2, MarkerRule("fixed", 10)))[0]


@pytest.fixture
def path(tmp_path):
    return collect_small(tmp_path).path


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_space_description_round_trip(space):
    assert space_from_spec(space_spec(space)) == space


@pytest.mark.parametrize(
    ("space", "dtype"),
    [
        (Discrete(5), np.int8),
        (Discrete(128), np.int8),
        (Discrete(129), np.int16),
        (MultiDiscrete([9, 300]), np.int16),
        (Box(-1.0, 1.0, (3,), np.float64), np.float32),
        (Box(0, 255, (4, 4, 3), np.uint8), np.uint8),
    ],
    ids=str,
)
def test_storage_dtypes_are_small(space, dtype):
    assert storage_dtype(space) == dtype


def test_unstorable_spaces_are_refused():
    with pytest.raises(HistoryError, match="FlattenObservation"):
        storage_dtype(Dict({"a": Discrete(2)}))
    with pytest.raises(HistoryError, match="unknown space"):
        space_from_spec({"kind": "Text"})


def test_check_history():
    family, history = small_family(), make_history()
    spaces = (family.observation_space, family.action_space)
    check_history(history, *spaces)
    history.rewards[0, 0] = np.nan
    with pytest.raises(HistoryError, match="finite"):
        check_history(history, *spaces)
    history.actions = history.actions.astype(np.int64)
    with pytest.raises(HistoryError, match="actions must be"):
        check_history(history, *spaces)


@pytest.mark.parametrize("chunk_bytes", [1, 200, 2**20])
def test_part_round_trip(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr("histories.store.CHUNK_BYTES", chunk_bytes)
    path, family = tmp_path / "part.h5", small_family()
    spaces = family.observation_space, family.action_space
    short = History.empty(*spaces, 1, 7, style="walk", source_seed=3)
    histories = {7: make_history(), 4: make_history(), 5: short}
    histories[4].settings = {"steps": [1]}
    histories[4].actions[:] = 3 - histories[4].actions
    assert part_fingerprint(path) is None
    write_part(path, histories, "abc")
    assert part_fingerprint(path) == "abc"
    with open_part(path) as part:
        for index, history in histories.items():
            found = part.history(index)
            for name in FIELDS:
                assert (getattr(found, name) == getattr(history, name)).all()
                assert getattr(found, name).dtype == getattr(history, name).dtype
            assert (found.style, found.source_seed) == ("walk", 3)
            assert found.settings == history.settings
        with pytest.raises(HistoryFileError, match="damaged"):
            part.history(6)


def open_it(path):
    with open_histories(path) as reader:
        for index in reader.task_indices():
            reader.arrays(index)


def test_missing_file(tmp_path):
    with pytest.raises(HistoryFileError, match=r"absent.h5 does not exist; run the collect stage"):
        open_it(tmp_path / "absent.h5")


def test_foreign_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no histories here")
    with pytest.raises(HistoryFileError, match="no HDF5 file"):
        open_it(path)
    path.write_text("")
    with pytest.raises(HistoryFileError, match="empty"):
        open_it(path)


def test_foreign_hdf5_file(tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(HistoryFileError, match="not of format"):
        open_it(path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_truncated_file(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(HistoryFileError, match=r"histories.h5 is damaged or was cut short; delete"):
        open_it(path)


def everything(path):
    """All that a reader gets of a file."""
    with open_histories(path) as reader:
        head = reader.family_name, str(reader.observation_space), reader.split, reader.settings
        tasks = [
            (reader.task(index), reader.references(index), reader.source_return(index))
            for index in reader.task_indices()
        ]
        return head, tasks, [reader.arrays(index) for index in reader.task_indices()]


def test_zeros_anywhere_are_no_other_histories(path):
    content, expected = path.read_bytes(), everything(path)
    refused, places = 0, random.Random(0).sample(range(0, len(content), 64), 200)
    for start in places:
        path.write_bytes(content[:start] + bytes(64) + content[start + 64 :])
        try:
            np.testing.assert_equal(everything(path), expected)
        except HistoryFileError:
            refused += 1
    assert refused > len(places) / 2


def test_file_with_a_missing_field(path):
    with h5py.File(path, "a") as file:
        del file["tasks/00003/rewards"]
    with pytest.raises(HistoryFileError, match="damaged"):
        open_it(path)


@pytest.mark.parametrize(("version", "remedy"), [(0, "collect again"), (99, "update this code")])
def test_other_schema_versions(path, version, remedy):
    with h5py.File(path, "a") as file:
        file.attrs["schema_version"] = version
    with pytest.raises(HistoryFileError, match=f"schema version {version}.*{remedy}"):
        open_it(path)


def test_unknown_task(path):
    with open_histories(path) as reader, pytest.raises(HistoryFileError, match="no task 99"):
        reader.task(99)


def test_stored_split(path):
    with open_histories(path) as reader:
        assert reader.split == small_split()
