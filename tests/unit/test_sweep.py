"""Sweep files: what cells they mean, what is refused, and what the store already has."""

import json
import os
from pathlib import Path

import pytest

from base.errors import UserError
from pipelines.config import RunConfig
from pipelines.store import StageStore
from pipelines.sweep import SweepConfig, SweepError, lay_out
from pipelines.sweep_table import Row, SweepTable, clock
from training.config import ConfigError, load_config
from training.jobs import JobResult
from training.run_dir import mark_done

ROOT = Path(__file__).resolve().parents[2]
BASE = """
run_dir: runs/base
family: {kwargs: {size: 3, horizon: 5}}
split: {n_validation: 1, n_test: 2}
distill: {loss: {beta: 0.5}}
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Return a function from a sweep file's text (and overrides) to the sweep laid out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)

    def laid_out(text, *overrides):
        (tmp_path / "try.yaml").write_text("config: base.yaml\n" + text)
        return lay_out(load_config(SweepConfig, "try.yaml", overrides), "try.yaml")

    return laid_out


def stages_of(cell):
    return {stage.name.removeprefix(f"seed_{cell.seed}/"): stage for stage in cell.stages}


def test_a_cell_is_a_point_with_a_training_seed(sweep):
    laid_out = sweep(
        "grid: {compressor.n_latents: [1, 2], finetune.loss.gamma: [0, 0.5]}\nseeds: [3, 4]"
    )
    assert laid_out.config.run_dir == "runs/sweeps/try-base"
    assert [cell.name for cell in laid_out.cells] == [
        f"{point}/seed_{seed}"
        for point in (
            "base",
            "n_latents=1,gamma=0",
            "n_latents=1,gamma=0.5",
            "n_latents=2,gamma=0",
            "n_latents=2,gamma=0.5",
        )
        for seed in (3, 4)
    ]
    last = stages_of(laid_out.cells[-1])["student/finetune"].config
    assert (last.compressor.n_latents, last.finetune.loss.gamma, last.seed) == (2, 0.5, 4)
    assert "random/evaluate" in stages_of(laid_out.cells[0])
    assert {name for name in stages_of(laid_out.cells[-1]) if "evaluate" in name} == {
        "student/evaluate"
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("[1, 3]", (1, 3)),
        ("{start: 1, stop: 32, factor: 2}", (1, 2, 4, 8, 16, 32)),
        ("{start: 1, stop: 10, step: 4}", (1, 5, 9)),
    ],
)
def test_lists_and_ranges(sweep, given, expected):
    assert sweep(f"grid: {{compressor.n_latents: {given}}}").axes == {
        "compressor.n_latents": expected
    }


def test_a_range_of_real_numbers_has_no_rounding_dust(sweep):
    axes = sweep("grid: {finetune.loss.gamma: {start: 0.1, stop: 0.3, step: 0.1}}").axes
    assert axes["finetune.loss.gamma"] == (0.1, 0.2, 0.3)


def test_labelled_settings_and_methods_are_axes_too(sweep):
    laid_out = sweep(
        "grid: {loss: {ce: {distill.loss.alpha: 1, distill.loss.beta: 0}, kl: {distill.loss.alpha:"
        " 0}}, method: [student, pca]}\ncontrols: []"
    )
    assert [cell.name for cell in laid_out.cells] == [
        f"loss={loss},method={method}/seed_0"
        for loss in ("ce", "kl")
        for method in ("student", "pca")
    ]
    first, last = (stages_of(laid_out.cells[i]) for i in (0, -1))
    assert first["student/distill"].config.distill.loss.beta == 0
    assert last["pca/distill"].config.distill.loss.alpha == 0
    assert "pca/evaluate" in last
    assert "student/evaluate" not in last


def test_a_label_set_to_null_is_left_out(sweep):
    text = "grid: {size: {small: {compressor.n_latents: 1}, large: {compressor.n_latents: 4}}}"
    assert sweep(text, "grid.size.large=null").axes["size"] == ("small",)
    with pytest.raises(SweepError, match="nothing is left of size"):
        sweep(text, "grid.size.large=null", "grid.size.small=null")


def test_a_label_that_is_a_number_is_set_as_it_is_written(sweep):
    text = (
        "controls: []\ngrid: {bits: {4: {compressor.n_latents: 1}, 8: {compressor.n_latents: 4}}}"
    )
    assert sweep(text, "grid.bits.4=null").axes["bits"] == (8,)
    assert sweep(text, "grid.bits.16={compressor.n_latents: 8}").axes["bits"] == (4, 8, 16)
    cells = map(stages_of, sweep(text, "grid.bits.8={compressor.n_latents: 2}").cells)
    assert [own["student/distill"].config.compressor.n_latents for own in cells] == [1, 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grid: {}", "grid is empty"),
        ("grid: {compressor.n_latents: 3}", "expected a list of values"),
        ("grid: {compressor.n_latents: []}", "expected a list of values"),
        ("grid: {compressor.n_latents: [1, 1]}", "stands there twice"),
        ("grid: {compressor.n_latents: {start: 1, stop: 8}}", "a range is"),
        ("grid: {compressor.n_latents: {start: 8, stop: 1, step: 1}}", "never gets"),
        ("grid: {compressor.n_latents: {start: 1, stop: 8, factor: 1}}", "never gets"),
        ("grid: {compressor.n_latnets: [1]}", "did you mean 'n_latents'"),
        ("grid: {seed: [1]}\nconfig: nowhere.yaml", "no such file: nowhere.yaml"),
        ("grid: {decoder.n_layers: [1, 2]}\nfirst_stage: finetune", "distill already differs"),
        ("grid: {finetune.loss.gamma: [1]}\nmethods: [studnet]", "(did you mean 'student'?)"),
        (
            "grid: {finetune.loss.gamma: [1]}\nfirst_stage: fine",
            "first_stage: expected one of 'collect', ",
        ),
        (
            "grid: {finetune.loss.gamma: [1]}\nseeds: []",
            "seeds: expected a list of int of 0 or more, not empty, nothing twice, got []",
        ),
    ],
)
def test_mistakes_are_told_in_one_sentence(sweep, text, expected):
    if "\nconfig" in text:
        grid, _, config = text.partition("\n")
        Path("other.yaml").write_text(f"{config}\n{grid}\n")
        with pytest.raises(SweepError, match=expected):
            lay_out(load_config(SweepConfig, "other.yaml"), "other.yaml")
        return
    with pytest.raises((SweepError, ConfigError)) as told:
        sweep(text)
    assert expected in str(told.value)


def test_settings_hold_for_all_cells_and_win_on_the_command_line(sweep):
    text = "grid: {compressor.n_latents: [1]}\nsettings: {distill.optim.updates: 7}"
    laid_out = sweep(text)
    assert {cell.stages[-1].config.distill.optim.updates for cell in laid_out.cells} == {7}
    changed = sweep(text, "settings.distill.optim.updates=9")
    assert {cell.stages[-1].config.distill.optim.updates for cell in changed.cells} == {9}


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs/sweeps").glob("*.yaml")), ids=lambda p: p.stem
)
def test_shipped_sweeps_can_be_laid_out(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    laid_out = lay_out(load_config(SweepConfig, file), file)
    assert len({cell.name for cell in laid_out.cells}) == len(laid_out.cells)
    for cell in laid_out.cells:
        assert any(stage.module == "evaluate" for stage in cell.stages)


def test_the_store_finds_stages_elsewhere_by_their_inputs(sweep, tmp_path):
    laid_out = sweep("grid: {compressor.n_latents: [1, 2]}")
    cell = laid_out.cells[-1]
    teacher, finetune = (stages_of(cell)[n] for n in ("teacher/train_teacher", "student/finetune"))
    mark_done(tmp_path / "runs/old/seed_0/teacher", "teacher", teacher.inputs, seconds=1)
    mark_done(tmp_path / "runs/old/seed_0/student/finetune", "finetune", "another", seconds=1)
    store = StageStore("runs/store", ["runs/old", "runs/nowhere"])
    assert store.done(teacher)
    assert not store.done(finetune)
    for stage in (teacher, finetune):
        store.link(stage, cell.run_dir)
        store.link(stage, cell.run_dir)
    link = cell.run_dir / "seed_0/teacher"
    assert json.loads((link / "meta.json").read_text())["inputs"] == teacher.inputs
    assert not os.path.isabs(os.readlink(link))
    mark_done(cell.run_dir / "seed_0/student/finetune", "finetune", finetune.inputs, seconds=1)
    assert StageStore("runs/store").done(finetune)
    assert not StageStore("runs/store").done(teacher)


def test_an_evaluation_is_done_with_its_controls_only(sweep):
    cell = sweep("grid: {compressor.n_latents: [1]}").cells[-1]
    evaluation = stages_of(cell)["student/evaluate"]
    store = StageStore("runs/store")
    for position in range(4):
        assert not store.done(evaluation)
        mark_done(store.folder(evaluation, position), "evaluate", evaluation.inputs, seconds=1)
    assert store.done(evaluation)


def test_the_table_follows_its_jobs(tmp_path, sweep):
    from rich.console import Console

    cell = sweep("grid: {compressor.n_latents: [1]}").cells[-1]
    stage = stages_of(cell)["student/distill"]
    row = Row("n_latents=1/seed_0", tmp_path, (stage,), cell)
    console = Console(width=80, record=True, force_terminal=False)
    table = SweepTable([row, Row("other", tmp_path, ())], console)
    table.started(row.name, 0.0)
    log = tmp_path / stage.folders[0] / "log.csv"
    log.parent.mkdir(parents=True)
    log.write_text(f"step,loss,val_score\n{stage.config.distill.optim.updates // 4},1,0.25\n")
    assert row.progress() == pytest.approx(0.25, abs=0.01)
    assert row.metric() == "val 0.250"
    table.ended(JobResult(row.name, "failed", 65.0, error="no"))
    console.print(table.table())
    shown = console.export_text()
    assert "failed" in shown
    assert "1:05" in shown
    assert "reused" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(("seconds", "shown"), [(5, "0:05"), (125, "2:05"), (3725, "1:02:05")])
def test_clock(seconds, shown):
    assert clock(seconds) == shown


def test_a_sweep_file_is_no_run(tmp_path):
    (tmp_path / "a.yaml").write_text("grid: {seed: [1]}\n")
    with pytest.raises(ConfigError, match="grid"):
        load_config(RunConfig, tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("grid: {split.seed: {start: 1, stop: 1000000000, step: 1}}", "has 1000000000 values"),
        ("grid: {split.seed: {start: 1, stop: 5000, step: 1}}\nseeds: [0, 1, 2]", "15000 cells"),
        ("grid: {run_dir: [a, b]}", "grid has run_dir"),
        ("grid: {seed: [1, 2]}", "give seeds"),
        ("grid: {size: {a: {split.seed: 1}, b: {split.seed: 1}}}", "have the same settings"),
        ("grid: {compressor.n_latents: [500]}", "only be compressed to 1"),
        ("grid: {split.seed: [1]}\nreuse: [nowhere]", "nowhere is no folder"),
    ],
)
def test_what_could_not_run_is_refused_before_it_is_laid_out(sweep, text, told):
    with pytest.raises(UserError, match=told):
        sweep(text)
