"""Every stage on a run of the smallest size: what it writes, what it skips, what it refuses.

Most stages run in this process through `run_main`, as `python -m pipelines.<stage>` would run them.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from base.hashes import hashes_of, signed
from pipelines import fitting
from pipelines.cli import run_main
from pipelines.config import RunConfig
from pipelines.methods import TRAINED, through, untrained_of
from pipelines.opening import open_run
from pipelines.plan import plan
from pipelines.stages import STAGES
from tasks.darkroom import DarkRoomFamily
from training.config import load_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STUDENTS = through("distill")
REFERENCES = untrained_of(DarkRoomFamily(size=3, horizon=5))
CONTROLS = ["student_zeroed", "student_shuffled", "student_no_context"]
CONFIG = """
region_len: 10
trackers: []
family: {target: "tasks.darkroom:DarkRoomFamily", kwargs: {size: 3, horizon: 5}}
split: {seed: 0, n_validation: 1, n_test: 2}
collect: {styles: [noise_expert, ppo], n_streams: 3, n_regions: 4, n_workers: 1}
source: {batch_size: 30, n_epochs: 1, net_arch: [4]}
sampling: {history_stride: 2}
model: {d_model: 16, n_heads: 2}
compressor: {n_latents: 2, n_layers: 1}
decoder: {n_layers: 1}
teacher: {n_layers: 1}
long_context: {n_layers: 1, n_context_regions: 2}
train_teacher:
  optim: {updates: 3, batch_size: 4, log_every: 1, validate_every: 1, checkpoint_every: 2}
pretrain: {optim: {updates: 2, batch_size: 4, log_every: 1}}
distill:
  freeze_compressor: true
  optim: {updates: 2, batch_size: 4, log_every: 1}
  loss: {alpha: 0.5, beta: 0.5, tau: 2.0}
finetune:
  optim: {updates: 2, batch_size: 4, log_every: 1}
  loss: {alpha: 0.5, beta: 0.5, gamma: 0.1}
validation: {n_episodes: 4, n_seeds: 1}
evaluate: {n_episodes: 4, n_seeds: 2, final_episodes: 2, n_offline: 8, reading_updates: 2}
"""


def stage(name, config, *overrides):
    run_main(import_module(f"pipelines.{name}").main, ["--config", str(config), *overrides])


def refused(capsys, name, config, *overrides):
    """Run a stage that has to end with a user's mistake; return what it says."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        stage(name, config, *overrides)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert "Traceback" not in told
    return told


def run_everything(config, run_dir):
    at = f"run_dir={run_dir}"
    stage("collect", config, at)
    stage("build_triples", config, at)
    for method in through("train_teacher"):
        stage("train_teacher", config, at, f"method={method}")
    for method in ("student", "mean_pooling_encoded"):
        stage("pretrain_compressor", config, at, f"method={method}")
    for method in STUDENTS:
        stage("distill", config, at, f"method={method}")
        stage("finetune", config, at, f"method={method}")
    for method in (*TRAINED, *REFERENCES):
        stage("evaluate", config, at, f"method={method}")
    stage("cost", config, at)


def written(folder):
    """Every result's content and time; names of temporary files must not be among them."""
    every = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file()}
    files = {name: p for name, p in every.items() if name.parts[0] != ".locks"}
    assert not [name for name in files if "tmp" in str(name)]
    return {name: (p.stat().st_mtime_ns, p.stat().st_size) for name, p in files.items()}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "micro.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run directory in which every stage but the comparison is done."""
    run_dir = tmp_path_factory.mktemp("runs") / "micro"
    run_everything(config, run_dir)
    return run_dir


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of its histories and tables, for other configurations of what comes after."""
    for name in ("collect", "triples"):
        shutil.copytree(finished / name, tmp_path / "run" / name)
    return tmp_path / "run"


def test_collecting_writes_histories_of_every_task(finished):
    with h5py.File(finished / "collect/histories.h5") as file:
        assert len(file["tasks"]) == 9
        assert file["tasks/00000/actions"].shape == (6, 40)
    with (finished / "collect/learning_curves.csv").open() as curves:
        assert {row["split"] for row in csv.DictReader(curves)} == {"train", "validation", "test"}
    for part in ("train", "validation", "test"):
        assert (finished / "triples" / part / "regions.arrow").is_file()


def test_training_writes_a_model_a_log_and_its_facts(finished):
    for folder in ("teacher", "student/pretrain", "student/distill", "pca/finetune"):
        stage_dir = finished / "seed_0" / folder
        assert (stage_dir / "model/model.safetensors").is_file()
        meta = json.loads((stage_dir / "meta.json").read_text())
        assert meta["result"]["updates"] == (3 if folder == "teacher" else 2)
        assert meta["train_peak_mb"] > 0
        with (stage_dir / "log.csv").open() as log:
            steps = [row["step"] for row in csv.DictReader(log)]
        first = 0 if folder.endswith("finetune") else 1  # what it starts from is judged too
        assert steps == [str(i) for i in range(first, meta["result"]["updates"] + 1)]
        card = (stage_dir / "model/README.md").read_text()
        assert f"best of {meta['result']['updates']} updates" in card.replace("Best", "best")
    assert not (finished / "seed_0/pca/pretrain").exists()


def test_distilling_leaves_a_frozen_compressor_and_finetuning_trains_it(finished):
    pretrained, distilled = (
        load_file(finished / "seed_0/student" / name / "model/model.safetensors")
        for name in ("pretrain", "distill")
    )
    last = load_file(finished / "seed_0/student/finetune/checkpoints/000002/model.safetensors")
    tuned = {name.removeprefix("student."): tensor for name, tensor in last.items()}

    def same(a, b, prefix):
        names = [name for name in a if name.startswith(prefix)]
        return names and all(a[name].equal(b[name]) for name in names)

    assert same(pretrained, distilled, "compressor.")
    assert same(pretrained, distilled, "transition_encoder.")
    assert not same(pretrained, distilled, "decoder.")
    assert not same(distilled, tuned, "compressor.")


def test_evaluation_writes_returns_and_metrics(finished):
    folders = {path.name for path in (finished / "seed_0/evaluate").iterdir()}
    assert folders == {*TRAINED, *CONTROLS}
    references = {path.name for path in (finished / "references").iterdir()}
    assert references == set(REFERENCES)
    for name in folders | references:
        folder = finished / ("references" if name in references else "seed_0/evaluate") / name
        returns = np.load(folder / "eval_result.npy")
        assert returns.shape == (2, 2, 4)
        assert returns.dtype == np.float32
        assert ((returns >= 0) & (returns <= 5)).all()
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["method"] == metrics["method_record"]["name"] == name
        assert metrics["training_seed"] == (None if name in references else 0)
        assert metrics["region_len"] == 10
        assert (metrics["n_parameters_acting"] is None) == (name in references)
        assert [task["index"] for task in metrics["tasks"]] == sorted(
            task["index"] for task in metrics["tasks"]
        )
        if name == "optimal":
            best = [task["optimal_return"] for task in metrics["tasks"]]
            assert (returns == np.array(best)[:, None, None]).all()
    expected = {
        "student": (2, 12, 5.0),
        "teacher": (None, 23, 1.0),
        "long_context": (None, 35, 1.0),
    }
    for name, (n_latents, tokens, ratio) in expected.items():
        metrics = json.loads((finished / f"seed_0/evaluate/{name}/metrics.json").read_text())
        assert metrics["n_latents"] == n_latents
        assert metrics["context_tokens"] == tokens
        assert metrics["compression_ratio"] == ratio
        assert 0 <= metrics["action_accuracy_recorded"] <= 1
        assert (metrics["teacher_kl"] > 0) == (name != "teacher")
        assert metrics["train_updates"] == {"student": 6}.get(name, 3)


def test_a_second_evaluation_stands_beside_the_first(finished, config):
    at = f"run_dir={finished}"
    before = written(finished / "seed_0/evaluate")
    stage("evaluate", config, at, "evaluate.name=argmax", "evaluate.temperature=0")
    metrics = json.loads((finished / "seed_0/evaluate_argmax/student/metrics.json").read_text())
    assert not metrics["sampled"]
    assert written(finished / "seed_0/evaluate") == before


def test_a_teacher_more_or_less_makes_no_evaluation_stale(copy, config, capsys):
    without = ["distill.loss.beta=0", "finetune.enabled=false", "method=truncation"]
    alone, both = "methods=[truncation]", "methods=[truncation,teacher]"
    at = (f"run_dir={copy}", *without)
    stage("distill", config, *at, alone)
    stage("evaluate", config, *at, alone)
    stage("train_teacher", config, *at, "method=teacher", both)
    stage("evaluate", config, *at, both, "evaluate.name=second")
    metrics = [
        json.loads((copy / f"seed_0/{name}/truncation/metrics.json").read_text())
        for name in ("evaluate", "evaluate_second")
    ]
    assert metrics[0].pop("teacher_kl", None) is None
    assert metrics[1].pop("teacher_kl") > 0
    assert metrics[0]["normalized_final"] == metrics[1]["normalized_final"]
    before = written(copy / "seed_0")
    for name, methods, told in (
        ("", alone, "is done\n"),
        ("", both, "is done, before there was a teacher"),
        ("second", both, "is done\n"),
        ("second", alone, "is done, with a teacher that methods does not list now"),
    ):
        capsys.readouterr()
        overrides = [*at, methods, *([f"evaluate.name={name}"] if name else [])]
        stage("evaluate", config, *overrides)
        assert told in capsys.readouterr().out
        open_run(load_config(RunConfig, config, overrides), "ship").require("evaluate")
    assert written(copy / "seed_0") == before
    told = refused(capsys, "evaluate", config, *at, alone, "evaluate.n_episodes=5")
    assert "was made from other inputs" in told


def test_recorded_and_demonstrated_contexts_are_given(finished, config, capsys):
    at = (f"run_dir={finished}", "evaluate.name=recall")
    asked = ("evaluate.recall_regions=[2,0]", "evaluate.prompt_skills=[0.25,1]")
    more = "evaluate.prompt_episodes=3"
    for method in ("student", "teacher", "sliding_window", "random"):
        stage("evaluate", config, *at, *asked, more, f"method={method}")
    for name in ("student", "teacher", "sliding_window", *CONTROLS):
        folder = finished / "seed_0/evaluate_recall" / name
        metrics = json.loads((folder / "metrics.json").read_text())
        returns = np.load(folder / "recall.npy")
        assert returns.shape == (2, 2, 2)
        assert [entry["region"] for entry in metrics["recall"]] == [2, 0]
        for i, entry in enumerate(metrics["recall"]):
            assert entry["return"] == pytest.approx(returns[..., i].mean(), abs=1e-6)
            assert 0 <= entry["accuracy"] <= 1
        for key in ("return", "accuracy"):
            assert metrics[f"recall_{key}"] == metrics["recall"][0][key]
        assert [entry["skill"] for entry in metrics["prompted"]] == [0.25, 1]
        assert metrics["prompted"][1]["demonstrated"] == pytest.approx(1)
        assert len(np.load(folder / "prompted.npy")) == 2
    own, kept = (
        np.load(finished / "seed_0/evaluate_recall" / name / "recall.npy")
        for name in ("student", "student_no_context")
    )
    assert (own[..., 1] == kept[..., 1]).all()
    assert (kept[..., 0] == kept[..., 1]).all()
    folder = finished / "references_recall/random"
    assert json.loads((folder / "metrics.json").read_text())["recall"] is None
    assert not (folder / "recall.npy").exists()
    at = (f"run_dir={finished}", "evaluate.name=longer")
    told = refused(capsys, "evaluate", config, *at, "evaluate.recall_regions=[9]")
    assert "contexts of 9 regions" in told


def test_what_sources_reached_stands_beside_every_return(finished, config):
    at = ("evaluate.normalise=source", "evaluate.name=by_source", "method=random")
    stage("evaluate", config, f"run_dir={finished}", *at)
    metrics = json.loads((finished / "references_by_source/random/metrics.json").read_text())
    for task in metrics["tasks"]:
        assert task["random_return"] < task["source_return"] <= task["optimal_return"]


def test_a_trained_run_is_evaluated_with_coarser_latents(finished, config, capsys):
    at = (f"run_dir={finished}", "evaluate.name=int8", "evaluate.number=int8")
    stage("evaluate", config, *at)
    plain, coarse = (
        json.loads((finished / f"seed_0/{name}/student/metrics.json").read_text())
        for name in ("evaluate", "evaluate_int8")
    )
    m, width = coarse["n_latents"], 16
    assert coarse["latent_bits"] == m * (8 * width + 16) < plain["latent_bits"] == m * width * 32
    told = refused(capsys, "evaluate", config, *at, "method=teacher")
    assert "teacher has none" in told
    told = refused(capsys, "evaluate", config, *at[:1], "evaluate.n_shown=1")
    assert "compressor.nested=true" in told


def test_a_stage_refuses_a_method_it_is_not_for(finished, config, capsys):
    at = f"run_dir={finished}"
    assert "not for method=teacher" in refused(capsys, "distill", config, at, "method=teacher")
    assert "not for method=pca" in refused(capsys, "train_teacher", config, at, "method=pca")


def test_comparing_writes_a_table_of_all_methods(finished, config, capsys):
    stage("compare", config, f"run_dir={finished}")
    assert "student" in capsys.readouterr().out
    with (finished / "comparison/table.csv").open() as table:
        rows = list(csv.DictReader(table))
    order = ["student", "teacher", "long_context", "dpt", "idt", "previous_region"]
    order += [
        "whole_history",
        "sliding_window",
        "truncation",
        "mean_pooling",
        "mean_pooling_encoded",
        "pca",
        "none",
        *CONTROLS,
    ]
    order += ["random", "optimal", "posterior_sampling", "coverage"]
    assert [row["method"] for row in rows] == order
    for column in ("mean", "gap_recovered", "context_tokens", "compression_ratio"):
        assert column in rows[0], list(rows[0])
    assert 0 <= float(rows[0]["reconstruction_accuracy"]) <= 1
    assert (finished / "comparison/learning_curves.png").stat().st_size > 1000
    shutil.rmtree(finished / "comparison")


def test_a_dry_run_says_what_is_done_and_writes_nothing(finished, config, tmp_path, capsys):
    run = import_module("pipelines.run").main
    before = sorted(finished.rglob("*"))
    flags = {"dry_run": ""}
    capsys.readouterr()
    for where, done in ((finished, "done"), (tmp_path / "nowhere", "to do")):
        run_main(run, ["--config", str(config), "--dry-run", f"run_dir={where}"], flags=flags)
        told = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        stages = plan(load_config(RunConfig, config))
        assert [line.split()[0] for line in told[: len(stages)]] == [s.name for s in stages]
        assert all(line.endswith(f" {done}") for line in told[: len(stages)])
    assert sorted(finished.rglob("*")) == before
    assert not (tmp_path / "nowhere").exists()


def test_a_second_run_does_nothing(finished, config, capsys):
    before = written(finished)
    run_everything(config, finished)
    assert written(finished) == before
    told = capsys.readouterr().out
    trained = len(through("train_teacher")) + 2 + 2 * len(STUDENTS)
    assert told.count("is done") == 2 + trained + len(TRAINED) + len(REFERENCES) + 1


def test_another_configuration_is_refused_and_changes_nothing(finished, config, capsys):
    before = written(finished)
    for name in ("collect", "train_teacher", "distill", "evaluate"):
        told = refused(capsys, name, config, f"run_dir={finished}", "model.d_model=32")
        assert "model.d_model = 16, but now model.d_model is 32" in told
        assert "another run_dir" in told
    assert written(finished) == before


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["compressor.n_latent=4"], "did you mean 'n_latents'?"),
        (["method=studnet"], "got 'studnet' (str) (did you mean 'student'?)"),
        (["evaluate.part=train"], "evaluating on training tasks says nothing about unseen ones"),
        (["compressor.n_latents=11"], "compressor.n_latents is 11"),
        (["model.n_heads=3"], "multiple of n_heads"),
        (["compressor.kind=nobody:Knows"], "compressor.kind 'nobody:Knows'"),
        (["method=pca", "model.d_model=128"], "lower compressor.n_latents"),
        (["family.kwargs.size=1"], "leave nothing to train on"),
        (["region_len=ten"], "region_len: expected int of at least 1, got 'ten'"),
        (["distill.loss.tau=0"], "distill.loss.tau: expected float of more than 0, got 0"),
        (["distill.optim.accumulation_steps=3"], "no multiple of accumulation_steps 3"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    config, tmp_path, capsys, overrides, expected
):
    for name in ("collect", "distill"):
        told = refused(capsys, name, config, f"run_dir={tmp_path / 'new'}", *overrides)
        assert expected in told
    assert not (tmp_path / "new").exists()


def test_hashes_are_known_before_anything_runs(config, finished):
    stages = plan(load_config(RunConfig, config, [f"methods=[{','.join(TRAINED)}]"]))
    planned = {folder: stage.inputs for stage in stages for folder in stage.folders}
    found = {
        str(path.parent.relative_to(finished)): json.loads(path.read_text()).get("inputs")
        for path in finished.rglob("meta.json")
    }
    stages = {folder: inputs for folder, inputs in found.items() if inputs}
    evaluated_again = ("/evaluate_", "references_")
    kept = {f: i for f, i in stages.items() if not any(name in f for name in evaluated_again)}
    assert kept == planned


def test_no_run_dir_is_refused(config, capsys):
    assert "run_dir is empty" in refused(capsys, "collect", config)
    assert "is no" in refused(capsys, "compare", config, "run_dir=/nowhere/at/all")


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("build_triples", "pipelines.collect"),
        ("train_teacher", "pipelines.build_triples"),
        ("pretrain_compressor", "pipelines.build_triples"),
        ("distill", "pipelines.build_triples"),
        ("finetune", "pipelines.build_triples"),
        ("evaluate", "pipelines.finetune"),
    ],
)
def test_a_missing_stage_is_named_with_its_command(config, tmp_path, capsys, name, needs):
    told = refused(capsys, name, config, f"run_dir={tmp_path / 'new'}")
    assert f"-m {needs} --config" in told
    assert "is not finished" in told


@pytest.mark.parametrize(
    ("name", "overrides", "needs"),
    [
        ("distill", [], "pipelines.train_teacher"),
        ("distill", ["distill.loss.beta=0"], "pipelines.pretrain_compressor"),
        ("finetune", ["finetune.loss.beta=0"], "pipelines.distill"),
        ("finetune", ["finetune.loss.beta=0", "method=pca"], "method=pca"),
    ],
)
def test_a_stage_names_what_it_lacks(copy, config, capsys, name, overrides, needs):
    told = refused(capsys, name, config, f"run_dir={copy}", *overrides)
    assert needs in told


def test_a_compressor_without_an_encoder_is_not_pretrained(copy, config, capsys):
    told = refused(capsys, "pretrain_compressor", config, f"run_dir={copy}", "method=truncation")
    assert "'truncation' has no encoder to pretrain" in told


@pytest.mark.parametrize("damage", ["cut", "foreign", "missing"])
def test_damaged_histories_are_refused(finished, config, tmp_path, capsys, damage):
    histories = tmp_path / "histories.h5"
    content = (finished / "collect/histories.h5").read_bytes()
    if damage != "missing":
        histories.write_bytes(content[: len(content) // 2] if damage == "cut" else b"hello")
    at = f"run_dir={tmp_path / 'new'}"
    told = refused(capsys, "build_triples", config, at, f"histories={histories}")
    assert str(histories) in told


def test_histories_of_another_run_can_be_used(finished, config, tmp_path):
    histories = finished / "collect/histories.h5"
    at = f"run_dir={tmp_path / 'new'}"
    stage("collect", config, at, f"histories={histories}")
    stage("build_triples", config, at, f"histories={histories}")
    for part in ("train", "test"):
        name = f"triples/{part}/regions.arrow"
        assert (tmp_path / "new" / name).read_bytes() == (finished / name).read_bytes()


def test_pca_of_too_few_regions_is_refused(copy, config, capsys):
    # 6 training tasks x 6 streams x 4 regions = 144 regions for 10 x 16 components
    settings = ("method=pca", "compressor.n_latents=10", "distill.loss.beta=0")
    told = refused(capsys, "distill", config, f"run_dir={copy}", *settings)
    assert "pca needs at least 160 training regions, one per component, but got 144" in told


def test_a_damaged_model_is_named(finished, config, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    (run_dir / "seed_0/none/finetune/model/model.safetensors").write_bytes(b"hello")
    stage("evaluate", config, f"run_dir={run_dir}", "method=none")  # done: nothing is loaded
    shutil.rmtree(run_dir / "seed_0/evaluate/none")
    told = refused(capsys, "evaluate", config, f"run_dir={run_dir}", "method=none")
    assert "none/finetune/model/model.safetensors" in told
    assert "run pipelines.finetune again" in told
    sign_again(run_dir / "seed_0/none/finetune")
    told = refused(capsys, "evaluate", config, f"run_dir={run_dir}", "method=none")
    assert "none/finetune/model cannot be loaded" in told


def sign_again(stage_dir):
    """Let a stage's files pass for those it left behind."""
    file = stage_dir / "meta.json"
    meta = json.loads(file.read_text())
    del meta["checksum"]
    meta["files"] = hashes_of(stage_dir, meta["files"])
    file.write_text(json.dumps(signed(meta)))


@pytest.mark.parametrize(
    ("folder", "name", "key"),
    [
        ("student/pretrain", "distill", "parts.compressor.n_pooling_layers"),
        ("student/pretrain", "distill", "parts.reconstruction.n_layers"),
        ("student/distill", "finetune", "parts.decoder.dropout"),
        ("student/distill", "finetune", "parts.model.n_heads"),
        ("student/finetune", "evaluate", "region_len"),
        ("teacher", "distill", "teacher.dropout"),
    ],
)
def test_a_model_that_differs_in_any_part_is_refused(
    finished, config, tmp_path, capsys, folder, name, key
):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    made = "evaluate/student" if name == "evaluate" else f"student/{name}"
    shutil.rmtree(run_dir / "seed_0" / made)
    file = run_dir / "seed_0" / folder / "model/config.json"
    content = json.loads(file.read_text())
    *path, last = key.split(".")
    part = content
    for step in path:
        part = part[step]
    part[last] = {"n_heads": 1, "dropout": 0.5}.get(last, part[last] + 1)
    file.write_text(json.dumps(content))
    sign_again(run_dir / "seed_0" / folder)
    told = refused(capsys, name, config, f"run_dir={run_dir}")
    assert f"was trained with {key.removeprefix('parts.')} = {part[last]!r}, but" in told


def test_a_pretrained_compressor_serves_any_decoder(finished, config, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    for name in ("config.yaml", "seed_0/student/distill", "seed_0/student/finetune"):
        path = run_dir / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    for name in ("pretrain_compressor", "distill", "finetune"):
        stage(name, config, f"run_dir={run_dir}", "decoder.n_layers=3")
    assert "pretrain is done" in capsys.readouterr().out
    pretrained, distilled = (
        load_file(run_dir / "seed_0/student" / name / "model/model.safetensors")
        for name in ("pretrain", "distill")
    )
    assert [name for name in distilled if "decoder.layers.blocks.2" in name]
    assert not [name for name in pretrained if "decoder.layers.blocks.2" in name]
    for part in ("compressor.", "transition_encoder."):
        names = [name for name in pretrained if name.startswith(part)]
        assert names
        assert all(pretrained[name].equal(distilled[name]) for name in names)


class ReachedError(Exception):
    """Training would begin now."""


def test_methods_of_one_seed_draw_the_same_batches(finished, config, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    drawn = {}

    def fit(objective, batches, *args, **kwargs):
        rows = np.concatenate([batches.draw(step)[0] for step in range(3)])
        drawn.setdefault(name, {})[method] = rows.tolist(), torch.initial_seed()
        raise ReachedError

    monkeypatch.setattr(fitting, "fit", fit)
    stages = {"train_teacher": ("teacher", "long_context"), "distill": ("student", "pca", "none")}
    stages["finetune"] = ("student", "truncation")
    for name, methods in stages.items():
        for method in methods:
            changed = load_config(RunConfig, config, [f"run_dir={run_dir}", f"method={method}"])
            meta = run_dir / STAGES[name].folders(changed)[0] / "meta.json"
            meta.rename(meta.with_suffix(".kept"))
            with pytest.raises(ReachedError):
                import_module(f"pipelines.{name}").main(changed)
            meta.with_suffix(".kept").rename(meta)
    for name in stages:
        first, *others = drawn[name].values()
        assert all(other == first for other in others)
    assert drawn["distill"]["student"] == drawn["train_teacher"]["teacher"]
    assert drawn["distill"]["student"][0] != drawn["finetune"]["student"][0]


def test_a_stage_done_from_other_inputs_is_refused(copy, config, capsys):
    at = f"run_dir={copy}"
    stage("train_teacher", config, at)
    (copy / "config.yaml").unlink()  # as if the directory had never been claimed
    told = refused(capsys, "train_teacher", config, at, "train_teacher.optim.updates=4")
    assert "was made from other inputs" in told


def test_one_seed_one_teacher_whatever_method_was_named(copy, config, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    stage("train_teacher", config, f"run_dir={copy}")
    stage("train_teacher", config, f"run_dir={other}", "method=teacher")
    first, second = (load_file(d / "seed_0/teacher/model/model.safetensors") for d in (copy, other))
    assert all(first[name].equal(second[name]) for name in first)


def test_two_processes_train_as_one(copy, config, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(copy, alone)
    updates = "train_teacher.optim={updates: 4, batch_size: 4, log_every: 1, accumulation_steps: 2}"
    stage("train_teacher", config, f"run_dir={alone}", updates)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["-m", "pipelines.train_teacher", "--config", str(config)]
    done = subprocess.run(
        [*command, f"run_dir={copy}", updates],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "train_teacher: 2 processes" in done.stdout
    losses = []
    for folder, processes in ((alone, 1), (copy, 2)):
        meta = json.loads((folder / "seed_0/teacher/meta.json").read_text())
        assert meta["processes"] == processes
        with (folder / "seed_0/teacher/log.csv").open() as log:
            losses.append([float(row["action_nll"]) for row in csv.DictReader(log)])
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_a_killed_training_goes_on_to_the_same_weights(copy, config, tmp_path):
    updates = "train_teacher.optim={updates: 60, batch_size: 4, log_every: 5, checkpoint_every: 2}"
    dropout = "teacher.dropout=0.2"
    whole = tmp_path / "whole"
    shutil.copytree(copy, whole)
    stage("train_teacher", config, f"run_dir={whole}", updates, dropout)
    stage_dir = copy / "seed_0/teacher"
    command = [sys.executable, "-m", "pipelines.train_teacher", "--config", str(config)]
    process = subprocess.Popen(
        [*command, f"run_dir={copy}", updates, dropout],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(stage_dir.glob("checkpoints/0*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (stage_dir / "meta.json").exists()
    stopped_at = max(int(path.name) for path in stage_dir.glob("checkpoints/0*"))
    assert 0 < stopped_at < 60
    stage("train_teacher", config, f"run_dir={copy}", updates, dropout)
    weights, again = (
        load_file(folder / "seed_0/teacher/model/model.safetensors") for folder in (whole, copy)
    )
    assert weights.keys() == again.keys()
    assert all(weights[name].equal(again[name]) for name in weights)
