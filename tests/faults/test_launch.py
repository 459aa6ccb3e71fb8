"""A fork ends as the command does that it stands for."""

import contextlib

import pytest

from base.errors import UserError
from tests.faults import launch
from tests.faults.corpus import BrokenError

MODULE = "tests.faults.statement"
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
TOLD = "import sys; print('told'); print('error: no such key.', file=sys.stderr); sys.exit({})"
DRAWN = "import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1))"
WORKER = """
import multiprocessing as m, os
worker = m.get_context('spawn').Process(target=os._exit, args=(3,))
worker.start(); worker.join(); print(worker.exitcode)
"""


def ended(statement: str) -> str:
    """How Python ends after a statement, in a word and what it told."""
    try:
        return f"right: {launch.command(MODULE, statement)}"
    except UserError as refused:
        return f"refused: {refused}"
    except BrokenError as broken:
        return broken.what


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("print('told')", "right: told\n"),
        (TOLD.format(0), "right: told\n"),
        (TOLD.format(2), "refused: no such key."),
        (TOLD.format(3), "exit"),
        ("import sys; sys.exit('told')", "exit"),
        ("1 / 0", "traceback"),
        (KILLED, "died"),
        ("import atexit; atexit.register(print, 'late')", "right: late\n"),
        ("import sys; print(sys.argv[0].rpartition('/')[2])", "right: statement.py\n"),
        (WORKER, "right: 3\n"),
    ],
)
def test_commands_end_as_their_forks(statement: str, expected: str, real: bool):
    with launch.as_users_do() if real else contextlib.nullcontext():
        assert ended(statement) == expected


def test_processes_that_are_left_are_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "patience", lambda seconds: 0.1)
    assert ended("import subprocess; subprocess.Popen(['sleep', '100'])") == "left"


def test_forks_draw_other_numbers_without_a_seed():
    assert ended(DRAWN) != ended(DRAWN)


def test_workers_of_a_fork_are_forks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "HAVE_WORKERS", (MODULE,))
    assert ended(WORKER) == "right: 3\n"
