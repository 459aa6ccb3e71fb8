"""The stages that learn from the student's own rollouts, on a run of the smallest size."""

import csv
import json
import shutil
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file

from ad import on_policy
from pipelines.cli import run_main
from pipelines.config import RunConfig
from pipelines.plan import plan
from training.config import load_config

pytestmark = pytest.mark.slow

CONFIG = """
region_len: 10
trackers: []
methods: [student]
family: {target: "tasks.darkroom:DarkRoomFamily", kwargs: {size: 3, horizon: 5}}
split: {seed: 0, n_validation: 1, n_test: 2}
collect: {styles: [posterior_sampling], n_streams: 3, n_regions: 4, n_workers: 1}
model: {d_model: 16, n_heads: 2}
compressor: {n_latents: 2, n_layers: 1}
memory: {kind: accumulate, n_regions: 2}
decoder: {n_layers: 1, dropout: 0.1}
teacher: {n_layers: 1}
pretrain: {enabled: false}
distill: {optim: {updates: 2, batch_size: 4, log_every: 1}}
finetune: {enabled: false}
policy_gradient:
  enabled: true
  optim: {updates: 5, batch_size: 6, learning_rate: 1.0e-2, log_every: 1, checkpoint_every: 2}
  rollouts: {n_tasks: 2, n_streams: 2, n_regions: 3}
on_policy:
  enabled: true
  optim: {updates: 5, batch_size: 6, learning_rate: 1.0e-2, log_every: 1, checkpoint_every: 2}
  rollouts: {n_tasks: 2, n_streams: 2, n_regions: 3}
  loss: {target: bayes}
validation: {n_episodes: 4, n_seeds: 1}
evaluate: {n_episodes: 4, n_seeds: 2, final_episodes: 2, n_offline: 8, reading_updates: 2}
"""


class KilledError(Exception):
    """What stands for the end of a process."""


def stage(name, config, *overrides):
    run_main(import_module(f"pipelines.{name}").main, ["--config", str(config), *overrides])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A configuration whose student is distilled in the run directory of its folder."""
    path = tmp_path_factory.mktemp("rollouts") / "micro.yaml"
    path.write_text(CONFIG + f"run_dir: {path.parent / 'run'}\n")
    for name in ("collect", "build_triples", "distill"):
        stage(name, path)
    return path


def test_stages_learn_from_rollouts_go_on_after_a_kill_and_are_evaluated(config, monkeypatch):
    seed_dir = config.parent / "run/seed_0"
    _learns(config, monkeypatch, seed_dir / "student", "policy_gradient", "distill")
    _learns(config, monkeypatch, seed_dir / "student", "on_policy", "policy_gradient")
    with (seed_dir / "student/on_policy/log.csv").open() as log:
        assert all(float(row["bayes_kl"]) > 0 for row in list(csv.DictReader(log))[1:])
    stage("evaluate", config)
    metrics = json.loads((seed_dir / "evaluate/student/metrics.json").read_text())
    assert metrics["train_updates"] == 2 + 5 + 5


def _learns(config, monkeypatch, student, name, earlier):
    """Run a stage that is killed in its third rollout, then again."""
    folder = student / name
    live, count = on_policy.live, []

    def killed(*args, **kwargs):
        count.append(1)
        if len(count) == 3:
            raise KilledError
        return live(*args, **kwargs)

    monkeypatch.setattr(on_policy, "live", killed)
    with pytest.raises(KilledError):
        stage(name, config)
    assert not (folder / "meta.json").exists()
    monkeypatch.undo()
    stage(name, config)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["result"]["updates"] == 5
    with (folder / "log.csv").open() as log:
        rows = list(csv.DictReader(log))
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 4, 5]  # what it starts from is judged
    before = load_file(student / earlier / "model/model.safetensors")
    after = load_file(folder / "checkpoints/000005/model.safetensors")
    assert all(f"student.{key}" in after for key in before)
    assert any(not torch.equal(value, after[f"student.{key}"]) for key, value in before.items())


@pytest.mark.parametrize("target", ["teacher", "optimal", "monte_carlo"])
def test_every_target_is_learned_from_own_rollouts_and_from_histories(config, tmp_path, target):
    run_dir = tmp_path / "run"
    for name in ("collect", "triples"):
        shutil.copytree(config.parent / "run" / name, run_dir / name)
    changes = [f"run_dir={run_dir}", "policy_gradient.enabled=false", "monte_carlo.n_episodes=50"]
    changes += [f"on_policy.loss.target={target}", f"distill.loss.target={target}"]
    changes += ["distill.loss.beta=1", "distill.loss.alpha=0"]
    if target == "teacher":
        stage("train_teacher", config, *changes)
    else:
        changes.append(f"train_teacher.target={target}")
    for name in ("distill", "on_policy", "evaluate"):
        stage(name, config, *changes)
    for name in ("distill", "on_policy"):
        with (run_dir / "seed_0/student" / name / "log.csv").open() as log:
            assert float(list(csv.DictReader(log))[-1][f"{target}_kl"]) > 0
    metrics = json.loads((run_dir / "seed_0/evaluate/student/metrics.json").read_text())
    assert (metrics["teacher_kl"] is None) == (target != "teacher")


def test_what_a_target_is_made_by_is_part_of_what_is_learned(config):
    def hashes(*overrides):
        stages = plan(load_config(RunConfig, config, overrides))
        return {stage.name.split("/")[-1]: stage.inputs for stage in stages}

    before = hashes()
    noisier, counted = hashes("posterior.noise=0.3"), hashes("monte_carlo.n_episodes=3")
    assert before["on_policy"] != noisier["on_policy"]
    assert before["on_policy"] == counted["on_policy"]
    of_task = "on_policy.loss.target=monte_carlo"
    assert hashes(of_task)["on_policy"] != hashes(of_task, "monte_carlo.n_episodes=3")["on_policy"]


def test_a_stage_that_is_left_out_says_which_key_turns_it_on(config, capsys):
    with pytest.raises(SystemExit):
        stage("policy_gradient", config, "policy_gradient.enabled=false")
    assert "policy_gradient.enabled=false; set it to true" in capsys.readouterr().err
