"""Histories of others through the commands: imported, trained on, exported, imported again."""

import json

import h5py
import numpy as np
import pytest
from test_stages import CONFIG, refused, stage

from histories.schema import FIELDS
from histories.store import open_histories

pytestmark = pytest.mark.slow

THEIRS = {"observations": "states", "next_observations": "next_states"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a configuration, a collected run, and its histories as others lay them out."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "micro.yaml").write_text(CONFIG)
    stage("collect", folder / "micro.yaml", f"run_dir={folder}/run", "collect.styles=[ppo]")
    with h5py.File(folder / "theirs.hdf5", "w") as file:
        for name, group in collected(folder / "run/collect/histories.h5").items():
            for field in set(FIELDS) - {"terminated", "truncated"}:
                values = np.swapaxes(group[field], 0, 1)
                file[f"{name}/{THEIRS.get(field, field)}"] = values.astype(np.float64)
    return folder


def collected(path):
    with open_histories(path) as reader:
        return {index: reader.arrays(index) for index in reader.task_indices()}


def test_imported_histories_are_trained_on(place, run_stage, capsys):
    config, mine = place / "micro.yaml", f"histories={place}/mine.h5"
    source = f"import_histories.source={place}/theirs.hdf5"
    told = refused(capsys, "build_triples", config, f"run_dir={place}/imported", mine)
    assert "pipelines.import_histories" in told
    told = refused(capsys, "import_histories", config, source)
    assert "histories is empty" in told
    told = refused(capsys, "import_histories", config, source, mine)
    assert "state import_histories.mapping" in told
    assert not (place / "mine.h5").exists()
    done = run_stage("import_histories", config, source, mine, "import_histories.tasks=index")
    assert done.returncode == 0, done.stderr
    assert "replayed: terminated and truncated, every record being met (9 groups)" in done.stdout
    assert [p.name for p in place.iterdir() if p.name.startswith(".")] == []
    before, after = collected(place / "run/collect/histories.h5"), collected(place / "mine.h5")
    for index, arrays in before.items():
        for field in FIELDS:
            np.testing.assert_array_equal(arrays[field], after[index][field])
    at = f"run_dir={place}/imported"
    for name in ("collect", "build_triples", "train_teacher", "pretrain_compressor", "distill"):
        stage(name, config, at, mine)
    meta = json.loads((place / "imported/seed_0/student/distill/meta.json").read_text())
    assert meta["result"]["updates"] == 2
    capsys.readouterr()
    stage("import_histories", config, source, mine, "import_histories.tasks=index")
    assert capsys.readouterr().out.endswith("mine.h5 is done\n")


@pytest.mark.parametrize("form", ["datasets", "minari"])
def test_exported_and_imported_again(place, capsys, form):
    config, target = place / "micro.yaml", place / f"as_{form}"
    to = (f"export_histories.target={target}", f"export_histories.format={form}")
    assert "is no file" in refused(capsys, "export_histories", config, *to)
    stage("export_histories", config, f"run_dir={place}/run", *to)
    again = place / f"from_{form}.h5"
    source = (f"import_histories.source={target}", f"import_histories.format={form}")
    stage("import_histories", config, f"histories={again}", *source)
    before, after = collected(place / "run/collect/histories.h5"), collected(again)
    assert before.keys() == after.keys()
    for index, arrays in before.items():
        for field, array in arrays.items():
            np.testing.assert_array_equal(array, after[index][field])
    told = refused(capsys, "export_histories", config, f"run_dir={place}/run", *to)
    assert "expected a folder that does not exist" in told
