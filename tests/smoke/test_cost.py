"""Measuring what acting costs, on models of the smallest size, through the stage's real command."""

import csv
import json
from importlib import import_module

import pytest

from pipelines.cli import run_main

pytestmark = pytest.mark.slow

REGION_LEN = 10
CONFIG = f"""
region_len: {REGION_LEN}
trackers: []
family: {{target: "tasks.darkroom:DarkRoomFamily", kwargs: {{size: 3, horizon: 5}}}}
split: {{seed: 0, n_validation: 1, n_test: 2}}
model: {{d_model: 16, n_heads: 2}}
compressor: {{n_latents: 2, n_layers: 1}}
decoder: {{n_layers: 1}}
teacher: {{n_layers: 1}}
long_context: {{n_layers: 1, n_context_regions: 2}}
"""
FLOAT, D_MODEL = 4, 16


def stage(config, *overrides):
    run_main(import_module("pipelines.cost").main, ["--config", str(config), *overrides])


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "micro.yaml"
    path.write_text(CONFIG)
    return path


def test_cost_of_each_policy_by_length_of_the_history(config, tmp_path, capsys):
    run_dir = tmp_path / "run"
    stage(config, f"run_dir={run_dir}")
    with (run_dir / "cost/cost.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = "method history_regions context_bytes ms_per_action ms_per_region n_streams"
    assert list(rows[0]) == columns.split()
    held = {(row["method"], int(row["history_regions"])): int(row["context_bytes"]) for row in rows}
    methods = ("student", "teacher", "long_context")
    lengths = (1, 2, 5, 10, 20, 35, 50)
    assert list(held) == [(method, n) for method in methods for n in lengths]
    per_token = 2 * D_MODEL * FLOAT  # key and value
    for n in lengths:
        assert held["student", n] == (2 + REGION_LEN) * per_token
        assert held["teacher", n] == (REGION_LEN + 2 + 1 + REGION_LEN) * per_token
        assert held["long_context", n] == (n * (REGION_LEN + 2) + 1 + REGION_LEN) * per_token
    assert all(float(row["ms_per_action"]) > 0 for row in rows)
    assert all(float(row["ms_per_region"]) > 0 for row in rows)
    meta = json.loads((run_dir / "cost/meta.json").read_text())
    assert meta["stage"] == "cost"

    before = (run_dir / "cost/cost.csv").stat().st_mtime_ns
    capsys.readouterr()
    stage(config, f"run_dir={run_dir}", "seed=3")
    assert "is done" in capsys.readouterr().out
    assert (run_dir / "cost/cost.csv").stat().st_mtime_ns == before


def test_models_of_other_sizes_are_refused(config, tmp_path, capsys):
    run_dir = tmp_path / "run"
    stage(config, f"run_dir={run_dir}")
    with pytest.raises(SystemExit) as ended:
        stage(config, f"run_dir={run_dir}", "model.d_model=32")
    assert ended.value.code == 2
    assert "model.d_model" in capsys.readouterr().err
