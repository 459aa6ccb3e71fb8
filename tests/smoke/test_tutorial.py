"""The tutorial is followed as a reader follows it: its files saved, its commands run, smaller."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/tutorial-own-task.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
SMALLER = (
    *("trackers=[]", "n_workers=2", "collect.n_streams=2", "collect.n_workers=1"),
    *(f"{stage}.optim.updates=3" for stage in ("train_teacher", "pretrain", "distill")),
    *("evaluate.n_seeds=2", "evaluate.n_episodes=6", "evaluate.reading_updates=2"),
    *("validation.n_seeds=1", "validation.n_episodes=4", "evaluate.n_offline=8"),
)


def test_an_empty_directory_becomes_a_table(tmp_path: Path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for language, text in BLOCKS:
        if language in ("python", "yaml"):
            (tmp_path / text.split("\n")[0].removeprefix("# ")).write_text(text)
    (commands,) = (text.splitlines() for language, text in BLOCKS if language == "bash")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    told = []
    for command in commands:
        words = shlex.split(command)
        assert words[:3] == ["accelerate", "launch", "-m"]
        call = [sys.executable, "-m", *words[3:], *SMALLER]
        done = subprocess.run(
            call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        told.append(done.stdout)
    assert told[0].splitlines()[-1] == "19 findings: all ok"
    for line in re.findall(r"^ok .*$", PAGE, re.MULTILINE):
        assert line in told[0]
    table = (tmp_path / "runs/guess/comparison/table.md").read_text()
    for row in ("student", "teacher", "no context", "random", "optimal", "posterior sampling"):
        assert f"\n| {row} |" in table


def test_the_family_takes_no_more_than_the_page_says():
    (family,) = (text for language, text in BLOCKS if language == "python")
    assert len(family.splitlines()) <= 40 + 1  # its name is no line of it
