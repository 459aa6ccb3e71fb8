"""Codes that are fitted to a student distilled without them, through the stages' real commands."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file
from test_stages import CONFIG, refused, stage

from pipelines import finetune
from pipelines.config import RunConfig
from pipelines.plan import plan
from training.config import load_config

pytestmark = pytest.mark.slow

FITTED = """
methods: [student]
run_dir: run
compressor:
  n_latents: 2
  n_layers: 1
  bottleneck: transform
  bottleneck_kwargs: {bits: 6}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = CONFIG.replace("compressor: {n_latents: 2, n_layers: 1}\n", FITTED)
    (tmp_path / "fitted.yaml").write_text(text)
    return "fitted.yaml"


@pytest.mark.parametrize("kind", ["transform", "vq"])
def test_codes_come_behind_what_was_distilled_with_plain_latents(config, tmp_path, kind):
    kwargs = {"codebook_size": 4, "width": 2, "fitted": True} if kind == "vq" else {"bits": 6}
    more = [f"compressor.bottleneck={kind}", f"compressor.bottleneck_kwargs={json.dumps(kwargs)}"]
    stage("run", config, *more)
    trained = tmp_path / "run/seed_0/student"
    saved = {
        name: json.loads((trained / name / "model/config.json").read_text())["parts"]["compressor"]
        for name in ("pretrain", "distill", "finetune")
    }
    assert [parts["bottleneck"] for parts in saved.values()] == ["continuous", "continuous", kind]
    with (tmp_path / "run/comparison/table.csv").open() as table:
        rows = {row["method"]: row for row in csv.DictReader(table)}
    assert float(rows["student"]["latent_bits"]) == (4 if kind == "vq" else 6)

    run, training = finetune.prepare(load_config(RunConfig, config, [*more, "run_dir=run"]))
    begun = training.build()[1]
    distilled = load_file(trained / "distill/model/model.safetensors")
    for name, weight in distilled.items():
        assert torch.equal(begun.state_dict()[name].cpu(), weight), name
    others = set(begun.state_dict()) - set(distilled)
    assert others
    assert all(name.startswith("bottleneck.") for name in others)
    assert begun.bottleneck.code.from_code.abs().sum() > 0
    assert run.root.name == "run"


def test_all_rates_share_what_was_distilled(config):
    def inputs(*overrides):
        stages = plan(load_config(RunConfig, config, list(overrides)))
        return {s.module: s.inputs for s in stages if s.config.method == "student"}

    one, other = inputs(), inputs("compressor.bottleneck_kwargs.bits=3")
    plain = inputs("compressor.bottleneck=continuous", "compressor.bottleneck_kwargs={}")
    own = inputs("compressor.bottleneck=fsq", "compressor.bottleneck_kwargs={}")
    for name in ("pretrain_compressor", "distill"):
        assert one[name] == other[name] == plain[name] != own[name]
    for name in ("finetune", "evaluate"):
        assert len({one[name], other[name], plain[name], own[name]}) == 4


def test_a_rate_that_cannot_be_is_refused_before_anything_runs(config, capsys):
    told = refused(capsys, "run", config, "compressor.bottleneck_kwargs.bits=0")
    assert "bits is 0, expected 1 ... 512" in told
    told = refused(capsys, "run", config, "finetune.enabled=false")
    assert "compressor.bottleneck=transform is fitted to a distilled student, but finetune" in told
