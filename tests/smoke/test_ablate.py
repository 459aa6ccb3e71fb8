"""A sweep through its command line: what cells share, what a failed one stops, what runs again."""

import csv
import json
import tarfile
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from types import SimpleNamespace

import pytest
from test_stages import CONFIG

from pipelines.cli import run_main, run_or_sweep, sweep_or_list
from pipelines.experiments import ExperimentsConfig, publish, read
from training.config import load_config

pytestmark = pytest.mark.slow

SWEEP = """
config: base.yaml
first_stage: pretrain_compressor
n_workers: 1
store: store
run_dir: sweep
grid:
  compressor.n_latents: [1, 2]
  finetune.loss.alpha: [0.5, 1.0e+39]
"""


def ablate(*overrides, name="sweep.yaml"):
    main = import_module("pipelines.ablate").main
    flags = {"dry_run": ""}
    run_main(main, ["--config", name, *overrides], config_class=sweep_or_list, flags=flags)


def failing(*overrides):
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        ablate(*overrides)
    assert ended.value.code == 2
    return SimpleNamespace(out=out.getvalue(), err=err.getvalue())


def csv_column(file, name):
    with open(file) as table:
        return [row[name] for row in csv.DictReader(table)]


def write_files(folder):
    (folder / "base.yaml").write_text(CONFIG + "run_dir: run\n")
    (folder / "sweep.yaml").write_text(SWEEP)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_files(folder)
    return folder


@pytest.fixture(scope="module")
def told(workplace):
    """What the sweep said when it first ran, one of its values having diverged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        return failing()


@pytest.fixture(autouse=True)
def _there(workplace, monkeypatch):
    monkeypatch.chdir(workplace)


def test_a_dry_run_lists_cells_and_writes_nothing(tmp_path, monkeypatch, capsys):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    ablate("--dry-run")
    shown = capsys.readouterr().out
    assert "nothing is run" in shown
    assert "n_latents=1,alpha=0.5/seed_0" in shown.replace("\n", "")
    assert {path.name for path in tmp_path.iterdir()} == {"base.yaml", "sweep.yaml"}


def test_cells_share_stages_and_a_failed_one_stops_no_other(workplace, told):
    assert "2 of 10 jobs did not finish" in told.err
    for name in ("n_latents=1,alpha=1e+39/seed_0", "n_latents=2,alpha=1e+39"):
        assert name in told.err
    assert "diverged" in told.out
    finetuned = sorted((workplace / "sweep/cells").glob("*/seed_0/student/finetune/meta.json"))
    assert [path.parts[-5] for path in finetuned] == [
        "n_latents=1,alpha=0.5",
        "n_latents=2,alpha=0.5",
    ]
    stages = [path.name for path in (workplace / "store").iterdir()]
    for stage, n in (("teacher-train", 1), ("student-pretrain", 2), ("student-distill", 2)):
        assert len([name for name in stages if f"seed_0-{stage}" in name]) == n
    returns = csv_column("sweep/report/sweep.csv", "mean")
    assert [value != "" for value in returns].count(True) == 2
    assert (workplace / "sweep/report/report.html").is_file()


@pytest.mark.usefixtures("told")
def test_run_again_only_what_is_missing_runs(workplace):
    done = {p: p.stat().st_mtime_ns for p in (workplace / "store").glob("*/meta.json")}
    assert done
    again = failing()
    assert "2 of 2 jobs did not finish" in again.err
    assert {path: path.stat().st_mtime_ns for path in done} == done


@pytest.mark.usefixtures("told")
def test_another_sweep_finds_what_is_there(workplace, capsys):
    ablate("--dry-run", "run_dir=other", "controls=[]", "grid={compressor.n_latents: [2]}")
    shown = capsys.readouterr().out
    assert "distill" not in shown
    assert json.loads((workplace / "sweep/sweep.json").read_text())["base"] == "cells/base"


@pytest.mark.usefixtures("told")
def test_a_directory_of_another_sweep_is_refused():
    refused = failing("settings={decoder.n_layers: 3}")
    assert "sweep belongs to a run with settings" in refused.err


def test_a_sweep_goes_on_with_another_grid_in_its_directory(workplace):
    ablate("run_dir=growing", "controls=[]", "grid={compressor.n_latents: [2]}")
    done = {p: p.stat().st_mtime_ns for p in (workplace / "store").glob("*/meta.json")}
    ablate("run_dir=growing", "controls=[]", "grid={compressor.n_latents: [3, 2]}")
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert csv_column("growing/report/sweep.csv", "n_latents") == ["3", "2"]
    again = ["--config", "growing/config.yaml"]  # the command that the report names
    run_main(import_module("pipelines.ablate").main, again, config_class=sweep_or_list)
    assert csv_column("growing/report/sweep.csv", "n_latents") == ["3", "2"]


@pytest.mark.usefixtures("told")
def test_a_sweep_may_be_compared_again(workplace):
    compare = import_module("pipelines.compare")
    page = workplace / "sweep/report/report.html"
    page.unlink()
    run_main(compare.main, ["--config", "sweep.yaml"], config_class=run_or_sweep)
    assert page.is_file()


def test_cells_of_a_part_that_is_trained_later_share_the_compressor(workplace):
    ablate("run_dir=decoders", "controls=[]", "seeds=[0, 1]", "grid={decoder.n_layers: [1, 2, 3]}")
    cells = workplace / "decoders/cells"
    for seed in (0, 1):
        of_seed = [cells / f"n_layers={n}/seed_{seed}" for n in (1, 2, 3)]
        assert len({(cell / "student/pretrain").resolve() for cell in of_seed}) == 1
        files = [cell / "evaluate/student/metrics.json" for cell in of_seed]
        sizes = [json.loads(file.read_text())["n_parameters_acting"] for file in files]
        assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0
    assert not list(cells.glob("*/references"))


EXPERIMENTS = """
publish_to: published
experiments:
  diverging: {config: sweep.yaml, settings: {run_dir: bad, grid: {finetune.loss.alpha: [1.0e+39]}}}
  room:
    config: base.yaml
    settings: {methods: [student]}
    publish: [table.csv, evaluations.tar.xz]
  latents:
    config: sweep.yaml
    settings: {run_dir: good, controls: [], grid: {compressor.n_latents: [1, 2]}}
    publish: [sweep.csv, evaluations.tar.xz]
  elsewhere: {config: absent_extra.yaml, publish: [table.csv], needs: [no_such_module, json]}
"""


@pytest.fixture
def _absent_extra(workplace):
    """Write what the list calls elsewhere: its family cannot even be imported."""
    (workplace / "absent_extra.yaml").write_text(
        "base: base.yaml\nrun_dir: elsewhere\nfamily: {target: 'no_such_module:Family'}\n"
    )


@pytest.mark.usefixtures("_absent_extra")
def test_a_list_of_experiments_runs_what_it_can_and_publishes_it(workplace, capsys):
    (workplace / "list.yaml").write_text(EXPERIMENTS)
    ablate("--dry-run", name="list.yaml")
    shown = capsys.readouterr().out
    names = [line.split()[0] for line in shown.splitlines()[1:]]
    assert names == ["diverging", "room", "latents", "elsewhere"]
    assert "needs no_such_module, not installed" in shown
    (workplace / "unplanned.yaml").write_text(
        EXPERIMENTS.replace("needs: [no_such", "needs: [io]} #")
    )
    ablate("--dry-run", "only=[elsewhere, room]", name="unplanned.yaml")
    told = " ".join(capsys.readouterr().out.split())
    assert "module 'no_such_module' cannot be imported" in told
    assert told.split()[-4:-2] == ["room", "base.yaml"]
    with pytest.raises(SystemExit):
        ablate(name="list.yaml")
    told = capsys.readouterr()
    assert "1 of 4 experiments did not finish: diverging" in told.err
    assert "left out: needs no_such_module" in told.out
    assert (workplace / "published/room/table.csv").read_bytes() == (
        workplace / "run/comparison/table.csv"
    ).read_bytes()
    assert csv_column("published/latents/sweep.csv", "n_latents") == ["1", "2"]
    assert not (workplace / "published/diverging").exists()
    ablate("--dry-run", "only=[room, latents]", name="list.yaml")
    counts = [line.split()[-2:] for line in capsys.readouterr().out.splitlines()[1:]]
    assert all(stages == done for stages, done in counts)


def test_published_evaluations_are_gone_on_with_elsewhere(workplace, capsys):
    (workplace / "room.yaml").write_text(EXPERIMENTS)
    ablate("only=[room]", name="room.yaml")
    archive = workplace / "published/room/evaluations.tar.xz"
    with tarfile.open(archive) as tar:
        tar.extractall("moved", filter="data")
    assert (workplace / "moved/collect/learning_curves.csv").is_file()  # figures have them
    # What is there needs nothing before it; one more training seed, all of its own.
    run = import_module("pipelines.run").main
    there = ["--config", "base.yaml", "methods=[student]", "run_dir=moved"]
    capsys.readouterr()
    run_main(run, [*there, "--dry-run"], flags={"dry_run": ""})
    states = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[:-1])
    assert set(states.values()) == {"done", "needed"}
    run_main(run, [*there, "seeds=[0, 1]"])
    assert not (workplace / "moved/seed_0/student").exists()
    with (workplace / "moved/comparison/table.csv").open() as table:
        rows = {row["method"]: row for row in csv.DictReader(table)}
    assert rows["student"]["seeds"] == "2"
    experiment = read(load_config(ExperimentsConfig, "room.yaml", ["only=[room]"]), "room.yaml")[0]
    publish(experiment, "again")
    assert (workplace / "again/room/evaluations.tar.xz").read_bytes() == archive.read_bytes()


def test_published_evaluations_of_a_sweep_are_gone_on_with_in_a_store(workplace, capsys):
    (workplace / "latents.yaml").write_text(EXPERIMENTS.replace("controls: []", "controls: [none]"))
    ablate("only=[latents]", name="latents.yaml")
    archive = workplace / "published/latents/evaluations.tar.xz"
    with tarfile.open(archive) as tar:
        tar.extractall("moved_store", filter="data")
    there = ("run_dir=good_moved", "store=moved_store", "controls=[none]")
    capsys.readouterr()
    ablate("--dry-run", *there, "grid={compressor.n_latents: [1, 2]}")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert {line[0]: line[1] for line in lines} == {
        "base/seed_0": "nothing",
        "n_latents=1/seed_0": "nothing",
        "n_latents=2/seed_0": "nothing",
    }
    ablate(*there, "grid={compressor.n_latents: [1, 2, 3]}")
    trained = [path.parent.name for path in (workplace / "moved_store").glob("*/model")]
    assert len([name for name in trained if "student-distill" in name]) == 1  # of 3 latents
    first, both = (f"{folder}/report/sweep.csv" for folder in ("good", "good_moved"))
    assert csv_column(both, "n_latents")[-3:] == ["1", "2", "3"]
    for column in ("mean", "mean_by_seed", "worst_cell"):
        assert csv_column(both, column)[:-1] == csv_column(first, column)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("config: base.yaml", "config: absent.yaml", "experiments.room.config: expected the YAML"),
        ("[table.csv, ", "[../table.csv, ", "experiments.room.publish: expected names of files"),
        ("no_such_module", "no_such.module", "experiments.elsewhere.needs: expected names of top"),
        (
            "{methods: [student]}",
            "{method: 3}",
            "experiments.room.settings: method: expected one of",
        ),
        ("elsewhere: {config", "elsewhere: {configs", "unknown key"),
    ],
)
@pytest.mark.usefixtures("_absent_extra")
def test_a_list_that_cannot_be_used_is_refused_before_anything_runs(
    workplace, capsys, old, new, said
):
    (workplace / "wrong.yaml").write_text(EXPERIMENTS.replace(old, new))
    with pytest.raises(SystemExit) as ended:
        ablate(name="wrong.yaml")
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.out == ""
