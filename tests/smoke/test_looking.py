"""Looking into a student, shipping it and demonstrating it: through the commands, on a tiny run."""

import csv
import json
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file
from test_stages import CONFIG, refused, stage, written

from ad.student import CADStudent
from pipelines.demo import main as demo

pytestmark = pytest.mark.slow

FIGURES = ["attention", "cosine", "probes", "strip", "swap", "swap_rooms"]
SMALL = "probe={n_regions: 40, n_pairs: 1, n_seeds: 2, swap_after: 1, n_regions_after: 1, "
SMALL += "n_episodes: 6}"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "micro.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run directory in which student, teacher and pooled means are trained and compared."""
    run_dir = tmp_path_factory.mktemp("runs") / "micro"
    at = f"run_dir={run_dir}"
    for name in ("collect", "build_triples", "train_teacher", "pretrain_compressor"):
        stage(name, config, at)
    for method in ("student", "mean_pooling"):
        for name in ("distill", "finetune", "evaluate"):
            stage(name, config, at, f"method={method}")
    for reference in ("random", "optimal"):
        stage("evaluate", config, at, f"method={reference}")
    stage("compare", config, at)
    return run_dir


@pytest.fixture(scope="module")
def shipped(finished, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    stage("ship", config, f"run_dir={finished}", f"ship.folder={folder}")
    return folder / "micro-student"


def test_looking_writes_numbers_figures_and_a_film(finished, config, capsys):
    before = written(finished / "seed_0/student")
    capsys.readouterr()
    stage("probe", config, f"run_dir={finished}", SMALL)
    told = capsys.readouterr().out
    assert "linear probes, held-out tasks" in told
    assert "effective rank" in told
    out = finished / "seed_0/probe/student"
    assert max(len(line) for line in told.splitlines() if str(finished) not in line) <= 80
    for name in FIGURES:
        for suffix in ("pdf", "png", "csv"):
            assert (out / f"{name}.{suffix}").stat().st_size > 0, name
    with Image.open(out / "strip.gif") as film:
        assert film.n_frames > 10
    found = json.loads((out / "probe.json").read_text())
    assert {row["tested_on"] for row in found["probes"]} == {"other streams", "held-out tasks"}
    assert found["n_regions"] == {"train": 40, "validation": 24, "test": 40}
    assert [row["dimensions"] for row in found["ranks"]] == [32, 16, 16]
    assert 0 < found["attention"]["attention_share"] < 1
    assert [row["block"] for row in found["swap"]["by_region"]] == [-1, 0] * 2
    assert set(found["strip"]["returns"]) == {"student", "teacher"}
    assert len(found["strip"]["returns"]["student"]) == 6
    with (out / "swap.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 2
    assert written(finished / "seed_0/student") == before


def test_looking_twice_sees_the_same(finished, config):
    out = finished / "seed_0/probe/mean_pooling"
    seen = []
    for _ in range(2):
        stage("probe", config, f"run_dir={finished}", "method=mean_pooling", SMALL)
        found = json.loads((out / "probe.json").read_text())
        seen.append({key: value for key, value in found.items() if key != "created"})
    assert seen[0] == seen[1]
    assert seen[0]["attention"] is None
    assert not (out / "attention.png").exists()


@pytest.mark.parametrize("method", ["teacher", "none", "random"])
def test_a_method_without_latents_is_not_looked_into(finished, config, capsys, method):
    told = refused(capsys, "probe", config, f"run_dir={finished}", f"method={method}")
    assert f"pipelines.probe is not for method={method}" in told


def test_an_untrained_method_is_named_with_its_command(finished, config, capsys):
    for name in ("probe", "ship"):
        told = refused(capsys, name, config, f"run_dir={finished}", "method=pca")
        assert "-m pipelines.finetune --config ... seed=0 method=pca" in told


def test_a_shipped_student_is_the_evaluated_one_with_what_it_needs(finished, shipped):
    own = load_file(finished / "seed_0/student/finetune/model/model.safetensors")
    copy = load_file(shipped / "model.safetensors")
    assert own.keys() == copy.keys()
    assert all(own[name].equal(copy[name]) for name in own)
    assert {path.name for path in shipped.iterdir()} == {
        *("config.json", "config.yaml", "model.safetensors", "README.md", "checksums.json")
    }
    metrics = json.loads((finished / "seed_0/evaluate/student/metrics.json").read_text())
    provenance = CADStudent.from_pretrained(shipped).config.provenance
    assert provenance["test_tasks"] == [task["params"] for task in metrics["tasks"]]
    card = (shipped / "README.md").read_text()
    with (finished / "comparison/table.csv").open() as file:
        row = next(r for r in csv.DictReader(file) if r["method"] == "student")
    assert f"| {float(row['mean']):.3f} |" in card
    for task in metrics["tasks"]:
        assert f"| {task['name']} |" in card


def test_shipping_asks_for_the_comparison(finished, config, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    shutil.rmtree(run_dir / "comparison")
    told = refused(capsys, "ship", config, f"run_dir={run_dir}", f"ship.folder={tmp_path / 'm'}")
    assert "-m pipelines.compare --config" in told
    assert not (tmp_path / "m").exists()


def test_shipping_refuses_a_comparison_that_was_changed(finished, config, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    table = run_dir / "comparison/table.csv"
    table.write_text(table.read_text().replace("0.", "0.9", 1))
    told = refused(capsys, "ship", config, f"run_dir={run_dir}", f"ship.folder={tmp_path / 'm'}")
    assert "table.csv is missing or not as it was written" in told
    assert not (tmp_path / "m").exists()
    stage("compare", config, f"run_dir={run_dir}")
    stage("ship", config, f"run_dir={run_dir}", f"ship.folder={tmp_path / 'm'}")


def test_the_demonstration_needs_the_model_alone(shipped, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shipped, tmp_path / "model")
    (tmp_path / "model/config.yaml").unlink()
    demo(["--model", "model", "--episodes", "6", "--task", "2"])
    told = capsys.readouterr().out
    assert "held out in training" in told
    assert [line[:11] for line in told.splitlines() if line.startswith("episode")] == [
        f"episode {number:3d}" for number in range(1, 7)
    ]
    assert "ep. 1:" in told
    assert "ep. 6:" in told
    assert max(map(len, told.splitlines())) <= 80
    with Image.open(tmp_path / "runs/demo/demo.gif") as film:
        assert film.n_frames > 3
    again = (tmp_path / "runs/demo/demo.gif").read_bytes()
    demo(["--model", "model", "--episodes", "6", "--task", "2", "--gif", "again.gif"])
    assert (tmp_path / "again.gif").read_bytes() == again
    assert capsys.readouterr().out.partition("film:")[0] == told.partition("film:")[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "nowhere"], "nowhere holds no model (config.json and"),
        (["--task", "3"], "--task is 3, expected 1 ... 2"),
        (["--episodes", "0"], "--episodes is 0"),
    ],
)
def test_the_demonstration_tells_a_mistake_in_one_sentence(shipped, capsys, arguments, expected):
    with pytest.raises(SystemExit) as ended:
        demo(["--model", str(shipped), *arguments])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert expected in told


@pytest.mark.parametrize(
    ("which", "more", "title"),
    [
        ("", [], "student: weights frozen"),
        ("", ["--method", "teacher", "--training-seed", "0"], "teacher: weights frozen"),
        ("seed_0/mean_pooling/distill/model", [], "mean pooling, raw: weights frozen"),
        ("seed_0/teacher/model", [], "the last 1 x 10 steps as they are"),
        ("", ["--method", "optimal"], "optimal."),
    ],
)
def test_any_model_of_a_run_is_demonstrated(finished, tmp_path, capsys, which, more, title):
    film = tmp_path / "film.gif"
    folder = finished / which
    demo(["--model", str(folder), "--episodes", "2", "--gif", str(film), *more])
    told = capsys.readouterr().out
    assert title in " ".join(told.split())
    assert "ep. 2:" in told
    assert film.is_file()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--method", "pca"], "has no trained model of --method=pca --training-seed=0"),
        (["--training-seed", "3"], "has no trained model of --method=student --training-seed=3"),
        (["--method", "ucb"], "--method is 'ucb', expected one of student, teacher"),
    ],
)
def test_what_a_run_has_not_trained_is_told(finished, capsys, more, expected):
    with pytest.raises(SystemExit) as ended:
        demo(["--model", str(finished), *more])
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_run_whose_configuration_was_emptied_is_not_demonstrated(finished, tmp_path, capsys):
    """Its tasks would be those of the defaults, on which the model was trained perhaps."""
    folder = tmp_path / "run"
    model = "seed_0/student/finetune"
    shutil.copytree(finished / model, folder / model)
    (folder / "config.yaml").write_text("")
    with pytest.raises(SystemExit) as ended:
        demo(["--model", str(folder)])
    assert ended.value.code == 2
    assert "config.yaml names; bring that file back" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("meta", "origin", "expected"),
    [
        (True, {"method": "stude~t"}, "config.json is missing or not as it was written"),
        (False, {"method": "stude~t"}, "config.json says that the model is of method 'stude~t'"),
        (False, {"method": "student", "training_seed": "x"}, "training seed 'x'"),
        (False, {}, "config.json does not tell of which method the model is"),
    ],
)
def test_a_model_in_a_run_is_what_it_says(finished, tmp_path, capsys, meta, origin, expected):
    folder = tmp_path / "run"
    stage = folder / "seed_0/student/finetune"
    shutil.copytree(finished / "seed_0/student/finetune", stage)
    shutil.copy(finished / "config.yaml", folder)
    if not meta:
        (stage / "meta.json").unlink()
    config = json.loads((stage / "model/config.json").read_text())
    config["provenance"] = origin
    (stage / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as ended:
        demo(["--model", str(stage / "model")])
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_shipped_teacher_is_demonstrated(finished, shipped, tmp_path, capsys):
    folder = tmp_path / "teacher"
    shutil.copytree(finished / "seed_0/teacher/model", folder)
    config = json.loads((folder / "config.json").read_text())
    of_student = json.loads((shipped / "config.json").read_text())["provenance"]
    config["provenance"]["split_settings"] = of_student["split_settings"]
    (folder / "config.json").write_text(json.dumps(config))
    demo(["--model", str(folder), "--episodes", "1", "--gif", str(tmp_path / "film.gif")])
    assert "teacher: weights frozen" in capsys.readouterr().out
    config["teacher"]["target"] = "somebody:Model"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        demo(["--model", str(folder)])
    assert "code of whoever saved it" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["unseen", "weights", "no provenance", "other split"])
def test_the_demonstration_refuses_a_damaged_model(shipped, tmp_path, capsys, damage):
    folder = tmp_path / "model"
    shutil.copytree(shipped, folder)
    if damage != "unseen":
        (folder / "checksums.json").unlink()  # as if it had been changed on purpose
    config = json.loads((folder / "config.json").read_text())
    if damage == "weights":
        (folder / "model.safetensors").write_bytes(b"hello")
    elif damage == "no provenance":
        config["provenance"] = {}
    else:
        config["provenance"]["split_settings"]["seed"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as ended:
        demo(["--model", str(folder)])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    reasons = {
        "unseen": "config.json is missing or not as it was written",
        "weights": "cannot be loaded",
        "no provenance": "names no family",
        "other split": "does not tell its held-out tasks",
    }
    assert reasons[damage] in told
