"""The page and the training logs it shows."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from reports_data import task_entries, write_method, write_run

from reports.comparison import ReportOptions, write_comparison
from reports.result_files import ResultsError
from reports.training_logs import draw_training, load_stage_logs

VOID = {"meta", "img", "br"}


class Balance(HTMLParser):
    """Checks that tags close in the order they opened, and keeps the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.images = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read_page(path):
    parser = Balance()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return " ".join(" ".join(parser.text).split()), parser.images


def write_log(run_dir, seed, stage_dir, text):
    path = run_dir / f"seed_{seed}" / stage_dir / "log.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


LOG = "step,lr,loss,val_score\n10,0.1,1.5,\n20,0.1,1.25,0.5\n"


def test_page_is_whole_and_names_what_failed(tmp_path):
    entries = task_entries(5)
    entries[1]["name"] = "<script>alert(1)</script>"
    random = np.array([entry["random_return"] for entry in entries])
    optimal = np.array([entry["optimal_return"] for entry in entries])
    levels = np.array([0.9, 0.2, 0.95, 0.79, 0.81])
    returns = (random + levels * (optimal - random))[:, None, None] * np.ones((1, 2, 12))
    for seed in (0, 1):
        write_method(tmp_path, "student", seed, tasks=entries, returns=returns.astype(np.float32))
        write_log(tmp_path, seed, "student/distill", LOG)
    options = ReportOptions(
        commands=["accelerate launch -m pipelines.run --config a.yaml x=<b>"],
        config_text="name: {{ braces }} & <angle>",
    )
    write_comparison([tmp_path], tmp_path / "out", options=options)
    text, images = read_page(tmp_path / "out" / "report.html")
    failed = f"fails 2 of 5 tasks (normalised final return, averaged over training and evaluation \
seeds, below 0.8): {entries[1]['name']}, {entries[3]['name']}."
    assert failed in text
    assert "x=<b>" in text
    assert "<script>" not in (tmp_path / "out" / "report.html").read_text()
    assert "{{ braces }} & <angle>" in text
    assert "95 % interval of the mean: t-interval" in text
    assert len(images) == 6
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert all(image["alt"] for image in images)
    assert (tmp_path / "out" / "training.csv").is_file()


def test_page_needs_no_network_and_leaves_out_what_there_is_not(tmp_path):
    run = write_run(tmp_path, methods=("pca", "random"), seeds=(0,), n_tasks=3, n_episodes=5)
    write_comparison([run], tmp_path / "out")
    source = (tmp_path / "out" / "report.html").read_text()
    text, images = read_page(tmp_path / "out" / "report.html")
    assert not re.search(r"https?://|<script|<link|@import", source)
    for absent in ("Commands", "Configuration</h2>", "Task by task", "Training</h2>"):
        assert absent not in source
    assert len(images) == 4
    assert "One seed: no interval" in text
    assert "Differences" not in text


def test_logs_are_read_by_stage_and_method(tmp_path):
    write_log(tmp_path, 0, "student/finetune", LOG)
    write_log(tmp_path, 0, "student/pretrain", "step,rec_loss,val_score\n10,3,\n20,2,-1\n")
    write_log(tmp_path, 1, "truncation/distill", LOG)
    write_log(tmp_path, 1, "teacher", LOG)
    logs = load_stage_logs([tmp_path])
    assert [(log.stage, log.method, log.training_seed) for log in logs] == [
        ("full context", "teacher", 1),
        ("pretrain", "student", 0),
        ("distill", "truncation", 1),
        ("finetune", "student", 0),
    ]
    assert [log.loss_column for log in logs] == ["loss", "rec_loss", "loss", "loss"]
    steps, scores = logs[0].curve("val_score")
    assert (steps.tolist(), scores.tolist()) == ([20.0], [0.5])
    assert [log.training_seed for log in load_stage_logs([tmp_path], seeds=[1])] == [1, 1]


@pytest.mark.parametrize("text", ["lr,loss\n1,2\n", "step,loss\n1,abc\n"])
def test_a_damaged_log_is_named(tmp_path, text):
    write_log(tmp_path, 0, "student/distill", text)
    with pytest.raises(ResultsError, match=r"log.csv is damaged"):
        load_stage_logs([tmp_path])


def test_an_empty_log_is_no_curve(tmp_path):
    write_log(tmp_path, 0, "student/distill", "")
    write_log(tmp_path, 0, "student/finetune", LOG)
    logs = load_stage_logs([tmp_path])
    assert [log.loss_column for log in logs] == [None, "loss"]
    paths = draw_training(logs, {}, tmp_path)
    assert [path.name for path in paths] == ["training.pdf", "training.png"]
    assert len((tmp_path / "training.csv").read_text().splitlines()) == 1 + 2 + 1
