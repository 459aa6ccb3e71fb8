"""Locks: who holds what since when, and that they end with their process."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tests.unit.job_functions import wait_for
from training.locks import LockedError, lock_scope, take_lock


def hold(root: str) -> None:
    with lock_scope():
        assert take_lock(root, "seed_0/distill")
        (Path(root) / "held").touch()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path: Path):
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(str(tmp_path),))
    process.start()
    assert wait_for(str(tmp_path / "held"))
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_told_who_holds_it_since_when(tmp_path: Path, holder):
    with lock_scope(), pytest.raises(LockedError) as error:
        take_lock(tmp_path, "seed_0/distill")
    assert f"distill is being worked on by process {holder.pid} on " in str(error.value)
    assert " since 20" in str(error.value)
    with lock_scope():
        assert take_lock(tmp_path, "seed_1/distill")


def test_who_waits_goes_on_when_the_holder_is_killed(
    tmp_path: Path, holder, capsys: pytest.CaptureFixture[str]
):
    os.kill(holder.pid, signal.SIGKILL)
    with lock_scope():
        assert take_lock(tmp_path, "seed_0/distill", wait=True)


def test_a_lock_is_let_go_with_its_scope(tmp_path: Path):
    for _ in range(2):
        with lock_scope():
            assert take_lock(tmp_path, "comparison")
    assert not take_lock(tmp_path, "comparison")  # outside of any scope nobody would let go of it


def test_a_folder_that_nothing_can_be_written_to_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "mkdir", refuse)
    with lock_scope():
        assert not take_lock(tmp_path, "comparison")
