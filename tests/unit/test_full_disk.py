"""A disk that is full, or files that may not grow: one sentence, nothing half-written."""

import errno
import io
import multiprocessing
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from base.errors import FileError, as_user_error
from base.files import atomic_dir, atomic_file, remove_temporaries, write_npy, write_text
from histories.hdf5 import _Spool
from histories.schema import History
from histories.store import write_part
from histories.triples import _write_arrow
from tests.unit.histories_data import small_family
from training.checkpoint import save_checkpoint

LIMIT = 100_000


def write_arrow(path: Path) -> None:
    with atomic_dir(path) as folder:
        _write_arrow(folder / "regions.arrow", {"rewards": np.random.rand(10 * LIMIT)})


def write_weights(path: Path) -> None:
    with atomic_file(path) as temporary:
        save_file({"w": torch.rand(LIMIT)}, temporary)


def write_checkpoint(path: Path) -> None:
    model = torch.nn.Linear(LIMIT, 1, bias=False)
    save_checkpoint(path, 10, model, torch.optim.AdamW(model.parameters()), {}, None)


def write_optimizer(path: Path) -> None:
    with atomic_dir(path) as folder, (folder / "optimizer.pt").open("wb") as file:
        torch.save({"w": torch.rand(LIMIT)}, file)


def write_history(path: Path) -> None:
    spaces = small_family().observation_space, small_family().action_space
    history = History.empty(*spaces, 64, 4000, style="walk", source_seed=0)
    history.rewards[:] = np.random.rand(64, 4000)
    write_part(path, {0: history}, "fingerprint")


def write_array(path: Path) -> None:
    write_npy(path, np.random.rand(LIMIT))


WRITERS = [
    write_arrow,
    write_weights,
    write_checkpoint,
    write_optimizer,
    write_history,
    write_array,
]


def tell(writer, path: Path, pipe) -> None:
    """In a process of its own, for a library may die of it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    try:
        writer(path)
    except FileError as error:
        pipe.send(str(error))
    else:
        pipe.send("written")


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_a_file_that_may_not_grow_is_told_in_a_sentence(tmp_path: Path, writer):
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=tell, args=(writer, tmp_path / "result", theirs)
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0
    told = ours.recv()
    assert f"{tmp_path}/result" in told
    assert "could not be written: " in told
    assert "MiB" in told
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class Full(io.BytesIO):
    """A file on a disk that is full: what stands there can be read."""

    def write(self, data) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_hdf5_reads_again_what_could_not_be_written():
    spool = _Spool(Full(b"abcdef"))
    spool.seek(4)
    assert spool.write(b"1234") == 4
    spool.truncate(7)
    assert spool.seek(0) == 0
    assert spool.read(9) == b"abcd123"
    assert spool.error is not None


def test_what_a_killed_process_left_is_removed(tmp_path: Path):
    write_text(tmp_path / "checkpoints" / "state.json", "{}")
    (tmp_path / "checkpoints" / ".000010.0a1b2c3d.tmp").mkdir()
    (tmp_path / ".histories.0a1b2c3d.tmp.h5").touch()
    (tmp_path / ".env").touch()
    remove_temporaries(tmp_path)
    left = sorted(path.name for path in tmp_path.rglob("*"))
    assert left == [".env", "checkpoints", "state.json"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "a.csv"), "a.csv cannot be used: the disk is full"),
        (PermissionError(13, "Permission denied", "a"), "a cannot be used: permission is denied"),
        (NotADirectoryError(20, "Not a directory", "a/b"), "a part of the path is a file"),
        (MemoryError(), "memory is used up"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory is used up"),
    ],
)
def test_what_the_machine_refuses_is_the_users_to_mend(error: Exception, told: str):
    assert told in str(as_user_error(error))


def test_a_defect_is_nobodys_to_mend():
    assert as_user_error(KeyError("x")) is None
    assert as_user_error(FileNotFoundError(2, "No such file", "a")) is None
