"""Results of what has no training seed, and lies beside the seeds' folders."""

import json
import shutil

import pytest
from reports_data import write_method, write_run

from reports.results import ResultsError, load_results, training_seeds


def write_reference(run_dir, name, folder="references"):
    written = write_method(run_dir, name, 99)
    metrics = json.loads((written / "metrics.json").read_text())
    (written / "metrics.json").write_text(json.dumps(metrics | {"training_seed": None}))
    shutil.move(written, run_dir / folder / name)
    shutil.rmtree(run_dir / "seed_99")


def test_references_are_one_rollout_whatever_seeds_are_asked_for(tmp_path):
    write_run(tmp_path, methods=("student", "none"), seeds=(0, 1), source=False)
    for name in ("random", "optimal"):
        write_reference(tmp_path, name)
    for wanted in (None, [1]):
        results = load_results([tmp_path], wanted)
        assert [r.training_seed for r in results if r.method in ("random", "optimal")] == [None] * 2
        assert training_seeds(results) == ([0, 1] if wanted is None else wanted)


def test_runs_compared_share_their_references(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        write_run(tmp_path / name, methods=("student",), seeds=(seed,), source=False)
        write_reference(tmp_path / name, "random")
    found = load_results([tmp_path / "a", tmp_path / "b"])
    assert [(r.label, r.training_seed) for r in found] == [
        ("student", 0),
        ("student", 1),
        ("random", None),
    ]


def test_references_of_another_evaluation_stay_apart(tmp_path):
    write_run(tmp_path, methods=("student",), seeds=(0,), source=False)
    write_reference(tmp_path, "random", "references_argmax")
    assert [result.method for result in load_results([tmp_path])] == ["student"]
    shutil.move(tmp_path / "seed_0/evaluate", tmp_path / "seed_0/evaluate_argmax")
    found = load_results([tmp_path], folder="evaluate_argmax")
    assert [result.method for result in found] == ["student", "random"]


def test_a_reference_with_a_training_seed_was_misplaced(tmp_path):
    written = write_method(tmp_path, "random", 0)
    shutil.move(written, tmp_path / "references/random")
    with pytest.raises(ResultsError, match="has training_seed 0 but lies"):
        load_results([tmp_path])
