"""Files and folders that are either whole or absent.

Everything is written under a temporary name in the same folder, flushed to disk and renamed:
whoever is interrupted leaves no half-written result behind, and whoever reads sees the old or the
new one.
"""

import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import FileError, no_room


@contextmanager
def atomic_file(path: str | Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` if the block ends without an error.

    The temporary name keeps the suffix of `path`, which some writers go by. Without `flush` the
    machine, though not the process, may lose what it has just written.

    Raises:
        FileError: There is no room for it; what was there is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        with _room_for(path, temporary):
            yield temporary
            if flush:
                _flush(temporary)
        put(temporary, path, flush=flush)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder; it becomes `path` if the block ends without an error.

    A folder already at `path` is replaced (and is missing for the moment between two renames).

    Raises:
        FileError: There is no room for it; what was there is as it was.
    """
    path = Path(path)
    old = _temporary_name(path)
    with work_dir(path) as temporary:
        with _room_for(path, temporary):
            yield temporary
            for file in (p for p in temporary.rglob("*") if p.is_file()):
                _flush(file)
        try:
            if path.exists():
                os.replace(path, old)
            put(temporary, path)
        finally:
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def work_dir(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` for what it is made of; it is gone after the block.

    It is locked as long as its process lives: the next one for the same `path` deletes those that
    killed processes have left, and nobody else's.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = re.compile(re.escape(f".{path.stem}") + rf"{_MARK}({re.escape(path.suffix)})?")
    for left in [each for each in path.parent.glob(".*") if name.fullmatch(each.name)]:
        if left.is_dir() and (held := _lock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(held)
    folder = _temporary_name(path)
    unlocked = folder.with_suffix(".new")  # a name that nobody deletes
    unlocked.mkdir()
    lock = _lock(unlocked)
    os.replace(unlocked, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def put(temporary: Path, path: Path, *, flush: bool = True) -> None:
    """Give what is finished its name, and force the folder's list of names to the disk."""
    os.replace(temporary, path)
    if flush:
        _flush(path.parent)


def _lock(folder: Path) -> int | None:
    """Lock a folder as long as this process lives; None where it is, or cannot be had."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # some network file systems have none: then nothing is deleted there
        os.close(descriptor)
        return None
    return descriptor


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically.

    Raises:
        ValueError: a NaN or infinity, which JSON has no words for; write None instead.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_npy(path: str | Path, array: np.ndarray) -> None:
    """Write one array as .npy atomically; never pickles."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


@contextmanager
def _room_for(path: Path, temporary: Path) -> Iterator[None]:
    """Tell of a full disk in one sentence, whichever library noticed it."""
    try:
        yield
    except Exception as error:
        if (why := no_room(error)) is None:
            raise
        written = sum(p.stat().st_size for p in [temporary, *temporary.rglob("*")] if p.is_file())
        free = shutil.disk_usage(path.parent).free
        raise FileError(
            f"{path} could not be written: {why} (it needs more than {written / 2**20:.1f} MiB, "
            f"{free / 2**20:.1f} MiB are free); make room and run the same command again: what was "
            "finished stays."
        ) from error


def remove_temporaries(folder: str | Path) -> None:
    """Delete what killed processes left half-written in a folder that nobody else writes to."""
    for path in list(Path(folder).rglob(".*.tmp*")):
        if _TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


_MARK = r"\.[0-9a-f]{8}\.tmp"
_TEMPORARY = re.compile(rf"\..*{_MARK}(\..*)?")


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")


def _flush(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
