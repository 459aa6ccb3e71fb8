"""The loop: equal seeds equal runs, resumed = uninterrupted, accumulated = whole, 2 ranks = 1."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import two_ranks
from accelerate import Accelerator
from fixtures import make_regions, make_student, make_table
from safetensors.torch import load_file
from torch import nn

from ad.batches import SamplingConfig, TripleSource
from ad.losses import LossConfig
from ad.objectives import ActionObjective
from training.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from training.loop import DivergedError, fit
from training.optim import OptimConfig, StagedObjective, build_optimizer, build_schedule

CONFIG = OptimConfig(updates=7, batch_size=8, log_every=1, validate_every=2, checkpoint_every=2)


class KilledError(Exception):
    """What stands for the end of a process."""


def run(stage_dir, *, config=CONFIG, kill_at=None, seed=1, scores=None, kind="query_pooling"):
    """Fit a student with dropout; return its final weights and what `fit` returned."""
    objective = ActionObjective(
        make_student(kind, dropout=0.2), LossConfig(gamma=0.1, gamma_final=0.3)
    )
    source = TripleSource(
        make_table(),
        SamplingConfig(),
        batch_size=config.batch_size,
        seed=seed,
        accumulation_steps=config.accumulation_steps,
    )

    def batches(step, micro):
        if step == kill_at:
            raise KilledError
        return source(step, micro)

    def validate():
        torch.rand(3)  # whatever validation draws must not disturb training
        total = sum(p.abs().sum().item() for p in objective.parameters())
        return {"score": total if scores is None else scores.pop(0)}

    result = fit(
        objective,
        batches,
        config,
        stage_dir,
        Accelerator(cpu=True),
        seed=seed,
        targets_per_update=48,
        validate=validate,
    )
    assert not objective.training
    return {k: v.clone() for k, v in objective.state_dict().items()}, result


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(stage_dir):
    """log.csv without the clock."""
    with (stage_dir / "log.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_equal_seeds_are_equal_runs(tmp_path):
    first, result = run(tmp_path / "a")
    second, again = run(tmp_path / "b")
    other, _ = run(tmp_path / "c", seed=2)
    assert same(first, second)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert not same(first, other)
    assert result["updates"] == 7
    assert {k: v for k, v in result["final"].items() if k != "seconds"} == {
        k: v for k, v in again["final"].items() if k != "seconds"
    }
    start = make_student(dropout=0.2).state_dict()
    assert not same({f"student.{k}": v for k, v in start.items()}, first)


@pytest.mark.parametrize("kill_at", [1, 4, 6])
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, kill_at):
    whole, result = run(tmp_path / "whole")
    with pytest.raises(KilledError):
        run(tmp_path / "killed", kill_at=kill_at)
    resumed, again = run(tmp_path / "killed")
    assert same(whole, resumed)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert again["best_step"] == result["best_step"]
    last = [latest_checkpoint(tmp_path / name) for name in ("whole", "killed")]
    assert [path.name for path in last] == ["000007", "000007"]
    for name in ("model.safetensors", "best.safetensors"):
        assert same(*(load_file(path / name) for path in last))
    states = [torch.load(path / "optimizer.pt", weights_only=True)["state"] for path in last]
    for index, state in states[0].items():
        assert same(state, states[1][index])


def test_a_run_killed_twice_ends_as_an_uninterrupted_one(tmp_path):
    whole, _ = run(tmp_path / "whole")
    for kill_at in (3, 5):
        with pytest.raises(KilledError):
            run(tmp_path / "killed", kill_at=kill_at)
    assert same(whole, run(tmp_path / "killed")[0])


def test_an_interruption_while_a_checkpoint_is_written_loses_only_that_one(tmp_path):
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(KilledError):
        run(tmp_path / "killed", kill_at=5)
    half = tmp_path / "killed/checkpoints/.tmp-000006-1"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert same(whole, run(tmp_path / "killed")[0])
    assert [p.name for p in (tmp_path / "killed/checkpoints").iterdir()] == ["000007"]


def test_a_finished_run_is_loaded_not_repeated(tmp_path):
    whole, result = run(tmp_path)
    again, told = run(tmp_path, kill_at=0)
    assert same(whole, again)
    assert told == result


def test_the_best_validated_weights_are_kept_even_across_an_interruption(tmp_path):
    best, result = run(tmp_path / "whole", scores=[0.1, 0.9, 0.5, 0.2])
    assert (result["best_step"], result["best_score"]) == (4, 0.9)
    last = load_file(tmp_path / "whole/checkpoints/000007/model.safetensors")
    assert not same(best, last)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", kill_at=6, scores=[0.1, 0.9, 0.5])
    resumed, again = run(tmp_path / "killed", scores=[0.2])
    assert same(best, resumed)
    assert (again["best_step"], again["best_score"]) == (4, 0.9)


def test_accumulated_micro_batches_equal_one_batch(tmp_path):
    accelerator = Accelerator(cpu=True)
    whole, parts = (
        two_ranks.gradients(
            tmp_path / str(n), accelerator, replace(two_ranks.CONFIG, accumulation_steps=n)
        )
        for n in (1, 4)
    )
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_two_processes_compute_the_gradients_of_one(tmp_path):
    alone = two_ranks.gradients(tmp_path / "alone", Accelerator(cpu=True))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, two_ranks.__file__, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        together = load_file(tmp_path / f"rank_{rank}.safetensors")
        assert together.keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    assert (tmp_path / "fit/checkpoints/000002").is_dir()


def small():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters())


def test_the_latest_checkpoint_is_the_highest_number(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for name in ("000500", "999999", "1000000", ".tmp-2000000-1", "notes", "3000000"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert latest_checkpoint(tmp_path).name == "3000000"


def test_only_the_newest_checkpoint_is_kept(tmp_path):
    model, optimizer = small()
    for step in (5, 10):
        save_checkpoint(tmp_path, step, model, optimizer, {"seconds": 1.5}, model.state_dict())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000010"]
    path = tmp_path / "checkpoints/000010"
    stored = json.loads((path / "state.json").read_text())
    assert (stored["seconds"], stored["step"]) == (1.5, 10)
    other, its_optimizer = small()
    nn.init.zeros_(other.weight)
    state, best = load_checkpoint(path, other, its_optimizer)
    assert state["step"] == 10
    assert same(other.state_dict(), model.state_dict())
    assert same(best, model.state_dict())


def test_a_checkpoint_of_another_shape_names_the_parameter(tmp_path):
    path = save_checkpoint(tmp_path, 1, *small(), {}, None)
    wider = nn.Linear(3, 4)
    with pytest.raises(CheckpointError, match=r"weight is \(2, 3\) there and \(4, 3\) here"):
        load_checkpoint(path, wider, torch.optim.AdamW(wider.parameters()))
    with pytest.raises(CheckpointError, match=r"bias is absent there and \(2,\) here"):
        load_weights(nn.Linear(3, 2), {"weight": torch.zeros(2, 3)}, path)
    extra = {**nn.Linear(3, 2).state_dict(), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"extra is \(1,\) there and absent here"):
        load_weights(nn.Linear(3, 2), extra, path)


def test_another_optimisers_state_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, *small(), {}, None)
    model, _ = small()
    split = torch.optim.AdamW([{"params": [p]} for p in model.parameters()])
    with pytest.raises(CheckpointError, match=r"optimiser state in .* does not fit"):
        load_checkpoint(path, model, split)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "missing", "foreign"])
def test_a_damaged_checkpoint_is_named(tmp_path, file, damage):
    path = save_checkpoint(tmp_path, 1, *small(), {"seconds": 0.0}, None)
    content = (path / file).read_bytes()
    if damage == "missing":
        (path / file).unlink()
    else:
        (path / file).write_bytes(content[: len(content) // 2] if damage == "cut" else b"hello")
    with pytest.raises(CheckpointError, match=rf"{path} is damaged .* delete this folder"):
        load_checkpoint(path, *small())


def test_a_checkpoint_is_never_unpickled(tmp_path):
    path = save_checkpoint(tmp_path, 1, *small(), {}, None)
    torch.save({"state": KilledError("anything that is no tensor")}, path / "optimizer.pt")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path, *small())


def test_a_stage_with_a_damaged_checkpoint_says_so(tmp_path):
    with pytest.raises(KilledError):
        run(tmp_path, kill_at=5)
    (latest_checkpoint(tmp_path) / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="000004 is damaged"):
        run(tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    class Diverging(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, step):
            loss = self.weight.sum() * (float("nan") if step == 2 else 1.0)
            return loss, {"loss": loss.detach()}

    with pytest.raises(DivergedError, match=r"diverged before update 3: .*loss is nan"):
        fit(
            Diverging(),
            lambda step, micro: step,
            CONFIG,
            tmp_path,
            Accelerator(cpu=True),
            seed=0,
            targets_per_update=1,
        )
    assert latest_checkpoint(tmp_path).name == "000002"


def test_an_objective_is_told_how_far_its_stage_is(tmp_path):
    class Told(StagedObjective):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.heard = []

        def forward(self, step):
            self.heard.append(self.progress)
            loss = self.weight.sum()
            return loss, {"loss": loss.detach()}

    told = Told()
    accelerator = Accelerator(cpu=True)
    config = OptimConfig(updates=5)
    fit(told, lambda *of: of, config, tmp_path, accelerator, seed=0, targets_per_update=1)
    assert told.heard == [0, 0.25, 0.5, 0.75, 1]


def test_only_matrices_decay_and_the_compressor_learns_slowly():
    student = make_student()
    config = OptimConfig(learning_rate=1e-2, weight_decay=0.3)
    optimizer = build_optimizer(student, config, student.compressor_parameters(), 0.1)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    slow = {id(parameter) for parameter in student.compressor_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            assert group["lr"] == pytest.approx(1e-3 if id(parameter) in slow else 1e-2)
            words = ("norm", "bias", "table", "positions", "quer", "no_context", "index")
            embedding = any(word in name for word in words) and not name.endswith("q.weight")
            assert group["weight_decay"] == (0.0 if embedding else 0.3), name
    assert seen == {name for name, _ in student.named_parameters()}


def test_the_rate_warms_up_and_falls_to_nothing():
    model, _ = small()
    config = OptimConfig(updates=100, learning_rate=1.0, warmup_ratio=0.1)
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config)
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:10] == pytest.approx([i / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert 0 < rates[-1] < 1e-3


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="10 is no multiple of accumulation_steps 4"):
        OptimConfig(batch_size=10, accumulation_steps=4)


def test_a_fitted_pca_survives_training_and_checkpoints(tmp_path):
    student = make_student("pca")
    regions = make_regions(64, 6)
    student.compressor.fit(*student.compressor_tokens(regions))
    before = student.compressor.components.clone()
    objective = ActionObjective(student, LossConfig())
    source = TripleSource(make_table(), SamplingConfig(), batch_size=8)
    accelerator = Accelerator(cpu=True)
    fit(objective, source, CONFIG, tmp_path, accelerator, seed=0, targets_per_update=1)
    stored = load_file(latest_checkpoint(tmp_path) / "model.safetensors")
    assert torch.equal(stored["student.compressor.components"], before)
    assert torch.equal(student.compressor.components, before)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of update 10, with the model and optimiser it is of."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"seconds": 1.5, "busy": 1.0, "best_score": 0.5, "best_step": 5}
    return (
        save_checkpoint(tmp_path, 10, model, optimizer, state, model.state_dict()),
        model,
        optimizer,
    )


def test_a_checkpoint_as_it_was_written_is_loaded(saved):
    state, best = load_checkpoint(*saved)
    assert (state["step"], state["best_step"], set(best)) == (10, 5, {"weight", "bias"})


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "state.json").unlink(),
        lambda folder: (folder / "state.json").write_text("{}"),
        lambda folder: edit_state(folder, step=-5),
        lambda folder: edit_state(folder, best_score=9.0),
        lambda folder: (folder / "best.safetensors").unlink(),
        lambda folder: flip(folder / "model.safetensors"),
        lambda folder: torch.save({"state": {}, "param_groups": []}, folder / "optimizer.pt"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_what_to_delete(saved, change):
    folder, model, optimizer = saved
    change(folder)
    with pytest.raises(CheckpointError, match=f"{folder} is damaged .*delete this folder"):
        load_checkpoint(folder, model, optimizer)


def edit_state(folder, **values):
    content = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(content | values))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_checkpoints_that_are_a_file_are_refused(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        latest_checkpoint(tmp_path)
