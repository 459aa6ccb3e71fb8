"""Histories from elsewhere: understood, completed where it is certain, else refused; and back."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from datasets import load_from_disk
from histories_data import WALK, collect_small, small_family, small_split

from histories.collection import CollectSettings
from histories.completion import ImportConfig
from histories.exports import ExportConfig, ExportError, export_histories
from histories.foreign import Foreign, ImportHistoriesError
from histories.imports import import_histories
from histories.regions import MarkerRule
from histories.schema import FIELDS
from histories.store import HistoryFileError, open_histories
from histories.task_names import TaskNames
from tasks.bandits import BernoulliBanditFamily
from tasks.darkroom import DarkRoomFamily
from tasks.family import Task
from tasks.splits import make_split

RULE = MarkerRule("rollout", 10, 2)
THEIRS = {"observations": "states", "next_observations": "next_states"}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A collected file of two styles of different lengths."""
    settings = CollectSettings(
        styles=("walk", "short"),
        n_streams=3,
        n_regions=4,
        regions={"short": 2},
        region_len=10,
        episodes_per_region=2,
    )
    folder = tmp_path_factory.mktemp("own")
    return collect_small(folder, settings, sources={"walk": WALK, "short": WALK}).path


def arrays_of(path):
    with open_histories(path) as reader:
        return {reader.task(i).name: reader.arrays(i) for i in reader.task_indices()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for task, arrays in first.items():
        assert arrays.keys() == second[task].keys()
        for name, array in arrays.items():
            assert name == "style" or array.dtype == second[task][name].dtype, name
            np.testing.assert_array_equal(array, second[task][name], err_msg=f"{task} {name}")


def write_theirs(path, own, *, left_out=("terminated", "truncated"), reset=False, name=None):
    """The layout of others: groups called 0, 1, ...; `(T, S, ...)`; wide dtypes."""
    with h5py.File(path, "w") as file:
        for index, (task, arrays) in enumerate(arrays_of(own).items()):
            group = file.create_group(str(index) if name is None else name(task, index))
            walks = arrays["style"] == "walk"
            for field in FIELDS:
                if field in left_out:
                    continue
                values = arrays[field][walks]
                if reset and field == "next_observations":
                    ended = (arrays["terminated"] | arrays["truncated"])[walks]
                    values[:, :-1][ended[:, :-1]] = arrays["observations"][walks][:, 1:][
                        ended[:, :-1]
                    ]
                wide = np.float64 if field == "rewards" else np.int64
                group[THEIRS.get(field, field)] = np.swapaxes(values, 0, 1).astype(wide)
    return path


def imported(tmp_path, source, family=None, split=None, rule=RULE, **config):
    family = family or small_family()
    out = tmp_path / "imported.h5"
    summary = import_histories(
        out,
        family,
        split or small_split(),
        rule,
        ImportConfig(source=str(source), **config),
        {"target": "tasks.darkroom:DarkRoomFamily", "kwargs": {}},
    )
    return summary


def walks_of(own):
    """What a file of the first style alone holds."""
    return {
        task: {n: a[arrays["style"] == "walk"] for n, a in arrays.items()}
        for task, arrays in arrays_of(own).items()
    }


def test_a_file_of_ours_is_checked_and_copied(own, tmp_path):
    summary = imported(tmp_path, own, format="cad")
    assert (summary.n_tasks, summary.n_streams, summary.n_transitions) == (9, 54, 9 * 3 * 60)
    assert_equal(arrays_of(own), arrays_of(summary.path))
    with open_histories(summary.path) as reader, open_histories(own) as before:
        assert reader.split == before.split
        assert reader.references(4) == before.references(4)
        assert reader.settings["imported"]["format"] == "cad"
    again = imported(tmp_path, own, format="cad")
    assert not again.made
    with pytest.raises(ImportHistoriesError, match="exists and was made otherwise"):
        imported(tmp_path, own, format="cad", style="else")
    with h5py.File(summary.path) as file:
        place = file["tasks/00004/rewards"].id.get_chunk_info(0).byte_offset
    content = bytearray(summary.path.read_bytes())
    content[place + 3] ^= 4
    summary.path.write_bytes(content)
    with pytest.raises(HistoryFileError, match="is damaged"):
        imported(tmp_path, own, format="cad")


def test_what_time_first_files_leave_out_is_replayed(own, tmp_path):
    source = write_theirs(tmp_path / "theirs.hdf5", own, reset=True)
    summary = imported(tmp_path, source, tasks="index", style="walk")
    assert_equal(walks_of(own), arrays_of(summary.path))
    told = " ".join(summary.told)
    assert "terminated and truncated, every record being met (9 groups)" in told
    assert "true last observations, where reset ones were recorded" in told


def test_without_next_observations_and_markers_they_are_made(own, tmp_path):
    left_out = ("terminated", "truncated", "next_observations", "compress_markers")
    source = write_theirs(tmp_path / "theirs.hdf5", own, left_out=left_out)
    summary = imported(tmp_path, source, tasks="index", style="walk")
    assert_equal(walks_of(own), arrays_of(summary.path))


def test_streams_first_and_a_mapping(own, tmp_path):
    source = tmp_path / "theirs.hdf5"
    write_theirs(tmp_path / "first.hdf5", own, name=lambda task, index: f"room{8 - index}")
    with h5py.File(tmp_path / "first.hdf5") as file, h5py.File(source, "w") as turned:
        for name, group in file.items():
            for field, values in group.items():
                turned[f"{name}/{field}"] = np.swapaxes(values[()], 0, 1)
    mapping = {f"room{8 - index}": index for index in range(9)}
    summary = imported(tmp_path, source, format="stream_first", mapping=mapping, style="walk")
    assert_equal(walks_of(own), arrays_of(summary.path))


def test_attributes_or_names_tell_the_task(own, tmp_path):
    source = write_theirs(tmp_path / "theirs.hdf5", own, name=lambda task, index: str(8 - index))
    with pytest.raises(ImportHistoriesError, match=r"group 0 \(no attributes\) is no task of the"):
        imported(tmp_path, source, style="walk")
    tasks = small_family().tasks()
    with h5py.File(source, "a") as file:
        for index, task in enumerate(tasks):
            file[str(8 - index)].attrs["goal"] = task.params["goal"]
    assert_equal(walks_of(own), arrays_of(imported(tmp_path, source, style="walk").path))


def test_the_wrong_task_does_not_replay(own, tmp_path):
    source = write_theirs(tmp_path / "theirs.hdf5", own)
    mapping = {str(index): 8 - index for index in range(9)}
    with pytest.raises(ImportHistoriesError, match=r"rewards of stream \d, step \d+ are .*another"):
        imported(tmp_path, source, mapping=mapping)
    with pytest.raises(ImportHistoriesError, match="lacks 8 of the 9 tasks of the split, first"):
        imported(tmp_path, source, mapping={"0": 0})
    with pytest.raises(ImportHistoriesError, match=r"expected the name or the index \(0 ... 8\)"):
        imported(tmp_path, source, mapping={"0": 9})
    with pytest.raises(ImportHistoriesError, match="groups 0 and 1 are both task"):
        imported(tmp_path, source, mapping={"0": 0, "1": 0}, replay=False, dones="truncated")


def test_axes_exchanged_are_noticed(own, tmp_path):
    source = write_theirs(tmp_path / "theirs.hdf5", own)
    with pytest.raises(ImportHistoriesError, match=r"along the axis of streams .*time_first"):
        imported(tmp_path, source, format="stream_first", tasks="index")


def test_ends_every_episode_len_where_observations_break_there_alone(own, tmp_path):
    source = write_theirs(tmp_path / "theirs.hdf5", own)
    summary = imported(tmp_path, source, tasks="index", style="walk", replay=False)
    assert_equal(walks_of(own), arrays_of(summary.path))
    assert any("where alone observations break (9 groups)" in line for line in summary.told)


def test_uncertain_ends_are_refused_until_stated(own, tmp_path):
    source = write_theirs(tmp_path / "theirs.hdf5", own, reset=True)
    stated = {"tasks": "index", "style": "walk", "replay": False}
    with pytest.raises(ImportHistoriesError, match=r"state import_histories.ends=episode_len if"):
        imported(tmp_path, source, **stated)
    stated["ends"] = "episode_len"
    with pytest.raises(ImportHistoriesError, match=r"next observation is that of the reset"):
        imported(tmp_path, source, **stated)
    summary = imported(tmp_path, source, **stated, terminal="recorded")
    assert any("as stated: ends every 5 steps" in line for line in summary.told)
    assert (arrays_of(summary.path)["goal=(0,0)"]["truncated"][:, 4::5]).all()


def test_a_break_elsewhere_contradicts_episode_len(own, tmp_path):
    source = write_theirs(tmp_path / "theirs.hdf5", own)
    with h5py.File(source, "a") as file:
        file["3/states"][7, 1] = 2 - file["3/states"][7, 1]
        file["3/states"][8, 1] = (file["3/states"][8, 1] + 1) % 3
    with pytest.raises(ImportHistoriesError, match=r"group 3 .*do not end every 5 steps"):
        imported(tmp_path, source, tasks="index", replay=False, ends="episode_len")
    with pytest.raises(ImportHistoriesError, match=r"observations of stream 1, step [78] are"):
        imported(tmp_path, source, tasks="index")


def test_dones_do_not_tell_how_episodes_end(own, tmp_path):
    source = write_theirs(tmp_path / "theirs.hdf5", own, left_out=("terminated",))
    with h5py.File(source, "a") as file:
        for group in file.values():
            group.move("truncated", "dones")
    stated = {"tasks": "index", "style": "walk"}
    with pytest.raises(ImportHistoriesError, match=r"state import_histories.dones=terminated"):
        imported(tmp_path, source, **stated, replay=False)
    summary = imported(tmp_path, source, **stated, replay=False, dones="by_length")
    assert_equal(walks_of(own), arrays_of(summary.path))
    summary.path.unlink()
    assert_equal(walks_of(own), arrays_of(imported(tmp_path, source, **stated).path))
    summary.path.unlink()
    with h5py.File(source, "a") as file:
        file["2/dones"][3, 0] = 1
    with pytest.raises(ImportHistoriesError, match=r"dones of stream 0, step 3 is True in the"):
        imported(tmp_path, source, **stated)


class BothEnds(DarkRoomFamily):
    """Its episodes terminate as they are truncated."""

    def make_vector_env(self, tasks):
        env = super().make_vector_env(tasks)
        step = env.step

        def both(actions):
            observations, rewards, _, truncated, infos = step(actions)
            return observations, rewards, truncated, truncated, infos

        env.step = both
        return env


@pytest.mark.parametrize("left_out", [(), ("terminated", "truncated")])
def test_an_end_of_both_kinds_is_a_termination(own, tmp_path, left_out):
    theirs = write_theirs(tmp_path / "theirs.hdf5", own, left_out=left_out)
    if not left_out:
        with h5py.File(theirs, "a") as file:
            for group in file.values():
                group["terminated"][:] = group["truncated"][:]
    summary = imported(tmp_path, theirs, BothEnds(size=3, horizon=5), tasks="index")
    for arrays in arrays_of(summary.path).values():
        assert arrays["terminated"].sum() == 3 * 40 / 5
        assert not arrays["truncated"].any()


def test_markers_are_those_of_the_settings(own, tmp_path):
    source = write_theirs(tmp_path / "theirs.hdf5", own)
    rule = replace(RULE, region_len=20)
    with pytest.raises(ImportHistoriesError, match=r"cut regions of 10 steps, but .* of 20 steps"):
        imported(tmp_path, source, tasks="index", rule=rule)
    summary = imported(tmp_path, source, tasks="index", rule=rule, markers="anew")
    markers = arrays_of(summary.path)["goal=(0,0)"]["compress_markers"][0]
    assert (np.flatnonzero(markers == 2) == [19, 39]).all()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("actions", 5, "holds 5, which is none of"),
        ("actions", 300, "actions hold 300, which int8, as stored, does not"),
        ("rewards", np.nan, "rewards must be finite"),
        ("states", -1, "holds -1, which is none of"),
    ],
)
@pytest.mark.parametrize("replay", [True, False])
def test_values_that_are_none_of_their_space(own, tmp_path, field, value, expected, replay):
    source = write_theirs(tmp_path / "theirs.hdf5", own)
    with h5py.File(source, "a") as file:
        values = file[f"0/{field}"]
        values[0, 0] = value
    stated = {"tasks": "index", "replay": replay, "ends": "episode_len"}
    with pytest.raises(ImportHistoriesError, match=f"group 0 .*{expected}"):
        imported(tmp_path, source, **stated)


def test_files_that_are_none(own, tmp_path):
    (tmp_path / "text").write_text("no")
    for source, config, expected in (
        (tmp_path / "nowhere", {}, "which does not exist"),
        (tmp_path / "text", {}, "is no HDF5 file"),
        (tmp_path, {"format": "minari"}, "holds no Minari dataset"),
        (tmp_path, {"format": "datasets"}, "by datasets.load_from_disk cannot be read"),
        (own, {"format": "parquet"}, "is 'parquet', expected one of cad, time_first"),
        (own, {"format": "nowhere:read"}, "is 'nowhere:read', expected one of"),
    ):
        with pytest.raises(ImportHistoriesError, match=expected):
            imported(tmp_path, source, **config)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["observations"] = np.zeros(3)
    with pytest.raises(ImportHistoriesError, match="no group with states, actions and rewards"):
        imported(tmp_path, tmp_path / "other.h5")


def test_an_environment_that_draws_is_not_replayed(tmp_path):
    family = BernoulliBanditFamily(n_tasks=6, n_arms=3, horizon=5)
    split = make_split(family.tasks(), seed=0, n_validation=1, n_test=1)
    path = tmp_path / "bandit.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for index in range(6):
            file[f"{index}/states"] = np.zeros((20, 2), dtype=np.int64)
            file[f"{index}/actions"] = rng.integers(3, size=(20, 2))
            file[f"{index}/rewards"] = rng.integers(2, size=(20, 2)).astype(float)
    stated = {"tasks": "index", "ends": "episode_len"}
    with pytest.raises(ImportHistoriesError, match="has no next observations, and cannot be"):
        imported(tmp_path, path, family, split, **stated)
    with h5py.File(path, "a") as file:
        for index in range(6):
            file[f"{index}/next_states"] = np.zeros((20, 2), dtype=np.int64)
    summary = imported(tmp_path, path, family, split, **stated)
    assert any("environment draws" in line for line in summary.told)
    assert arrays_of(summary.path)[family.tasks()[0].name]["truncated"].sum() == 2 * 4


@pytest.mark.parametrize(
    "file_format", [pytest.param("minari", marks=pytest.mark.slow), "datasets"]
)
def test_exported_and_imported_again_is_the_same(own, tmp_path, monkeypatch, file_format):
    own = own.absolute()
    monkeypatch.chdir(tmp_path)
    target = Path("out")  # relative, as one types it
    export_histories(own, ExportConfig(file_format, str(target)))
    summary = imported(tmp_path, target, format=file_format)
    assert_equal(arrays_of(own), arrays_of(summary.path))
    with pytest.raises(ExportError, match="expected a folder that does not exist"):
        export_histories(own, ExportConfig(file_format, str(target)))


@pytest.mark.slow
def test_the_exports_open_with_the_libraries_they_are_for(own, tmp_path, monkeypatch):
    export_histories(own, ExportConfig("datasets", str(tmp_path / "rows")))
    rows = load_from_disk(str(tmp_path / "rows"))
    assert {part: len(rows[part]) for part in rows} == {
        "train": 5 * 36,
        "validation": 2 * 36,
        "test": 2 * 36,
    }
    first = rows["train"][0]
    assert len(first["observations"]) == len(first["rewards"]) + 1 == 6
    assert (
        json.loads(first["params"])["goal"] == small_family().tasks()[first["task"]].params["goal"]
    )

    minari = pytest.importorskip("minari")
    export_histories(own, ExportConfig("minari", str(tmp_path / "sets")))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    assert len(minari.list_local_datasets()) == 9
    dataset = minari.load_dataset("darkroom/task-00003-v0")
    assert dataset.total_episodes == 36
    assert dataset[0].truncations.tolist() == [False] * 4 + [True]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari misses authors and links
def test_a_minari_dataset_of_others_is_one_stream_in_the_order_of_ids(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    family, root = small_family(), tmp_path / "sets"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    for task in family.tasks():
        room, buffers = family.make_env(task), []
        for episode in range(4):
            buffer = {"observations": [room.reset()[0]], "actions": [], "rewards": []}
            for step in range(5):
                action = (episode + step) % 5
                observation, reward, _, truncated, _ = room.step(action)
                buffer["observations"].append(observation)
                buffer["actions"].append(action)
                buffer["rewards"].append(reward)
            ends = {"terminations": [False] * 5, "truncations": [False] * 4 + [truncated]}
            buffers.append(EpisodeBuffer(**buffer, **ends))
        minari.create_dataset_from_buffers(
            f"rooms/g{task.index}-v0",
            buffers,
            observation_space=family.observation_space,
            action_space=family.action_space,
        )
    mapping = {f"rooms/g{task.index}-v0": task.name for task in family.tasks()}
    summary = imported(tmp_path, root, format="minari", mapping=mapping)
    arrays = arrays_of(summary.path)["goal=(1,1)"]
    assert arrays["actions"].tolist() == [
        [(episode + step) % 5 for episode in range(4) for step in range(5)]
    ]
    assert set(arrays["style"]) == {"imported"}
    assert arrays["rewards"].dtype == np.float32


def test_names_of_tasks_by_parameters_alone():
    tasks = [Task(i, f"t{i}", {"env": "x", "level": i}) for i in range(3)]
    found = TaskNames(tasks).task_of(Foreign("any", {}, {"level": 2, "note": "hello"}))
    assert found is tasks[2]
    for attributes in ({"level": 2, "env": "other"}, {"level": 7}, {"note": 1}):
        with pytest.raises(ImportHistoriesError, match="is no task of the family"):
            TaskNames(tasks).task_of(Foreign("any", {}, attributes))
    assert TaskNames(tasks, "name").task_of(Foreign("t1", {}, {"level": 2})) is tasks[1]
