"""Variants of the method, several at once, through every stage's real command."""

import csv
import json
from importlib import import_module

import pytest

from pipelines.cli import run_main

pytestmark = pytest.mark.slow

CONFIG = """
region_len: 10
trackers: []
methods: [student, teacher]
family: {target: "tasks.darkroom:DarkRoomFamily", kwargs: {size: 3, horizon: 5}}
split: {seed: 0, n_validation: 1, n_test: 2}
collect: {styles: [posterior_sampling], n_streams: 3, n_regions: 4, n_workers: 1}
model: {d_model: 16, n_heads: 2}
compressor: {n_latents: 2, n_layers: 1}
decoder: {n_layers: 1}
teacher: {n_layers: 1, n_context_regions: 2}
train_teacher: {optim: {updates: 2, batch_size: 4, log_every: 1}}
pretrain: {optim: {updates: 2, batch_size: 4, log_every: 1}}
distill: {optim: {updates: 2, batch_size: 4, log_every: 1}, loss: {beta: 1}}
finetune: {optim: {updates: 2, batch_size: 4, log_every: 1}, loss: {gamma: 0.1}}
on_policy:
  enabled: true
  optim: {updates: 4, batch_size: 6, log_every: 1, checkpoint_every: 2}
  rollouts: {n_tasks: 2, n_streams: 2, n_regions: 3}
  loss: {gamma: 0.1}
validation: {n_episodes: 4, n_seeds: 1}
evaluate: {n_episodes: 8, n_seeds: 2, final_episodes: 2, n_offline: 8, reading_updates: 2}
"""

VARIANTS = {
    "filled in parts": """
sampling: {jitter: 0.4}
compressor: {n_latents: 2, n_layers: 1, online: 4, tokenisation: step, latent_positions: fixed}
memory: {kind: retrieval, n_regions: 2}
""",
    "prefix": """
sampling: {jitter: 0.4, window: 2}
compressor: {n_latents: 2, n_layers: 1, tokenisation: interleaved, latent_positions: none}
memory: {kind: accumulate, n_regions: 2}
decoder: {n_layers: 1, reads: prefix}
teacher: {n_layers: 1, n_context_regions: 2, tokenisation: step}
""",
    "two kinds of rooms": """
family:
  target: tasks.mixture:MixtureFamily
  kwargs:
    families:
      - {target: "tasks.darkroom:DarkRoomFamily", kwargs: {size: 3, horizon: 5}}
      - target: tasks.key_to_door:KeyToDoorFamily
        kwargs: {n_goals: 1, size: 3, horizon: 5, n_tasks: 9}
split: {seed: 0, n_validation: 4, n_test: 6}
sampling: {jitter: 0.4}
compressor: {n_latents: 2, n_layers: 1, latent_positions: rotary}
memory: {kind: accumulate, n_regions: 2}
""",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_go_through_every_stage(variant, tmp_path):
    base, path = tmp_path / "base.yaml", tmp_path / "variant.yaml"
    base.write_text(CONFIG)
    path.write_text(f"base: base.yaml\nrun_dir: {tmp_path / 'run'}\n{VARIANTS[variant]}")

    def stage(name, *overrides):
        run_main(import_module(f"pipelines.{name}").main, ["--config", str(path), *overrides])

    for name in ("collect", "build_triples"):
        stage(name)
    stage("train_teacher", "method=teacher")
    for name in ("pretrain_compressor", "distill", "finetune", "on_policy", "evaluate", "probe"):
        stage(name)
    stage("evaluate", "evaluate.name=longer", "evaluate.region_len=14")
    stage("evaluate", "method=teacher", "evaluate.name=shorter", "evaluate.region_len=6")
    for name, length in (("evaluate", 10), ("evaluate_longer", 14), ("evaluate_shorter", 6)):
        method = "teacher" if name == "evaluate_shorter" else "student"
        text = (tmp_path / f"run/seed_0/{name}/{method}/metrics.json").read_text()
        assert json.loads(text)["region_len"] == length
    stage("compare")
    groups = tmp_path / "run/comparison/groups.csv"
    assert groups.exists() == (variant == "two kinds of rooms")
    if groups.exists():
        with groups.open() as file:
            found = {row["group"] for row in csv.DictReader(file) if row["method"] == "student"}
        assert found == {"all", "darkroom", "key_to_door"}
