"""Folders beside a file that is made: what a killed process left there goes, nobody else's does."""

import os
import signal
from multiprocessing import get_context

import pytest

from base.files import atomic_dir, atomic_file, work_dir

LEFT = ".mine.0123abcd.tmp"
NOT_OURS = (".mine.v2.0123abcd.tmp", ".yours.0123abcd.tmp", ".mine.0123abcd.tmpx", "mine")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_left_for_the_file_is_removed(tmp_path):
    for name in (LEFT, *NOT_OURS):
        (tmp_path / name).mkdir()
        (tmp_path / name / "000000.h5").write_text("half")
    with work_dir(tmp_path / "mine.h5") as folder:
        assert names(folder) == []
        (folder / "part").write_text("part")
    assert names(tmp_path) == sorted(NOT_OURS)


def test_two_at_a_time_leave_each_other_alone(tmp_path):
    with work_dir(tmp_path / "mine.h5") as first, work_dir(tmp_path / "mine.h5") as second:
        assert first != second
        assert first.is_dir()
        assert second.is_dir()
    assert names(tmp_path) == []


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), work_dir(tmp_path / "deep/mine.h5"):
        raise KeyError
    assert names(tmp_path / "deep") == []


@pytest.mark.parametrize("stem", ["mine.h5", "mine", "mine.v2"])
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, stem):
    process = get_context("fork").Process(target=die, args=(tmp_path / stem,))
    process.start()
    process.join()
    assert len(names(tmp_path)) == 1
    with atomic_dir(tmp_path / stem) as folder:
        assert len(names(tmp_path)) == 1
        (folder / "part").write_text("part")
    assert names(tmp_path) == [stem]
    assert names(tmp_path / stem) == ["part"]


def die(path):
    with work_dir(path) as folder, atomic_file(folder / "part.h5") as part:
        part.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
