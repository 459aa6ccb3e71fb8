"""Two training seeds as one model: the same files, inputs and weights as one after the other."""

import csv
import json
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file

from pipelines import run, train_teacher
from pipelines.config import RunConfig
from pipelines.fitting import train_together
from pipelines.plan import plan
from training.config import load_config
from training.loop import DivergedError

pytestmark = pytest.mark.slow

CONFIG = """
region_len: 10
n_workers: 1
trackers: []
seeds: [0, 1]
methods: [student, teacher, none]
family: {target: "tasks.darkroom:DarkRoomFamily", kwargs: {size: 3, horizon: 5}}
split: {seed: 0, n_validation: 1, n_test: 2}
collect: {styles: [noise_expert], n_streams: 3, n_regions: 4, n_workers: 1}
model: {d_model: 16, n_heads: 2}
compressor: {n_latents: 2, n_layers: 1, dropout: 0.1}
decoder: {n_layers: 1, dropout: 0.1}
teacher: {n_layers: 1, dropout: 0.1}
train_teacher: {optim: {updates: 3, batch_size: 4, log_every: 1, validate_every: 1}}
pretrain: {optim: {updates: 2, batch_size: 4}}
distill: {optim: {updates: 3, batch_size: 4}, loss: {alpha: 0.5, beta: 0.5}}
finetune: {optim: {updates: 2, batch_size: 4}, loss: {gamma: 0.1}}
validation: {n_episodes: 4, n_seeds: 1}
evaluate: {n_episodes: 4, n_seeds: 2, final_episodes: 2, n_offline: 8, reading_updates: 2}
"""
STAGES = ("teacher", "student/pretrain", "student/distill", "student/finetune", "none/finetune")


@pytest.fixture
def config(tmp_path):
    (tmp_path / "two.yaml").write_text(CONFIG)
    return load_config(RunConfig, tmp_path / "two.yaml", [f"run_dir={tmp_path / 'stacked'}"])


def check_equal(mine, theirs):
    for name, tensor in load_file(mine / "model/model.safetensors").items():
        if not name.endswith("kv.bias"):  # a softmax is blind to its keys' bias: rounding moves it
            other = load_file(theirs / "model/model.safetensors")[name]
            torch.testing.assert_close(tensor, other, atol=1e-5, rtol=1e-3, msg=name)


def test_a_run_of_stacked_seeds_is_that_of_seeds_one_by_one(config, tmp_path):
    run.main(replace(config, stack_seeds=True))
    stacked, apart = tmp_path / "stacked", tmp_path / "apart"
    logs = {str(p.relative_to(stacked / "logs")) for p in (stacked / "logs").rglob("*.log")}
    assert {"seeds_0_1/student/distill.log", "seed_1/student/evaluate.log"} <= logs
    assert "seed_0/student/distill.log" not in logs
    for stage in plan(config):
        if stage.module not in ("evaluate", "cost", "collect", "build_triples"):
            meta = json.loads((stacked / stage.folders[0] / "meta.json").read_text())
            assert meta["inputs"] == stage.inputs
            assert meta["result"]["trained_with"] == 2
    run.main(replace(config, run_dir=str(apart), stack_seeds=False))
    for seed in ("seed_0", "seed_1"):
        for stage in STAGES:
            check_equal(stacked / seed / stage, apart / seed / stage)
            names = [
                {str(p.relative_to(root / seed / stage)) for p in (root / seed / stage).rglob("*")}
                for root in (stacked, apart)
            ]
            assert names[0] == names[1]
    table = list(csv.DictReader((stacked / "comparison/table.csv").open()))
    assert {row["method"]: row["seeds"] for row in table}["student"] == "2"
    times = {p: p.stat().st_mtime_ns for p in stacked.glob("seed_*/**/model.safetensors")}
    run.main(config)  # not stacked, for that is no part of what a stage depends on
    assert times == {p: p.stat().st_mtime_ns for p in stacked.glob("seed_*/**/model.safetensors")}


def test_a_seed_that_diverges_does_not_take_the_others_along(config, tmp_path):
    for stage in ("collect", "build_triples"):
        import_module(f"pipelines.{stage}").main(config)

    def prepare(seed):
        opened, training = train_teacher.prepare(replace(config, method="teacher", seed=seed))
        build = training.build

        def poisoned():
            objective, model, slow = build()
            model.action_head.bias.data.fill_(torch.nan)
            return objective, model, slow

        return opened, replace(training, build=poisoned if seed == 1 else build)

    with pytest.raises(DivergedError, match="seed_1"):
        train_together([prepare(seed) for seed in (0, 1, 2)])
    done = [(tmp_path / f"stacked/seed_{s}/teacher/meta.json").exists() for s in (0, 1, 2)]
    assert done == [True, False, True]


def test_seeds_that_cannot_be_one_model_are_trained_one_by_one(config, tmp_path, capsys):
    config = replace(config, compressor=replace(config.compressor, bottleneck="vq"))
    for stage in ("collect", "build_triples"):
        import_module(f"pipelines.{stage}").main(config)
    pretrain = import_module("pipelines.pretrain_compressor")
    train_together([pretrain.prepare(replace(config, seed=seed)) for seed in (0, 1)])
    assert "one after the other, for" in capsys.readouterr().out
    for seed in (0, 1):
        folder = tmp_path / f"stacked/seed_{seed}/student/pretrain"
        assert "trained_with" not in json.loads((folder / "meta.json").read_text())["result"]
