"""HDF5 files of histories: written whole, refused in one sentence where they cannot be read.

What lies in them is the business of store.py.
"""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from base.errors import UserError
from histories.schema import SCHEMA_VERSION

STORED: Any = {"compression": "lzf", "shuffle": True, "fletcher32": True}
"""How fields lie in files: with checksums, so that a flipped bit is an error and no other value."""

FORMAT_BOUND: Any = "v110"
"""Of the file format, which HDF5 1.10 and later read: what says where data lie carries checksums.
Strings of variable length have none: `write_text`.
"""

REMEDY = "delete it, and the meta.json beside it if there is one, and collect again"


class HistoryFileError(UserError):
    """A history file is missing, damaged, foreign, of another version or of other settings."""


@contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file; a full disk ends in an OSError instead of a segmentation fault."""
    with path.open("w+b", buffering=0) as raw:
        spool = _Spool(raw)
        with h5py.File(spool, "w", libver=FORMAT_BOUND) as file:
            yield file
        if spool.error is not None:
            raise spool.error


class _Spool:
    """A file that HDF5 never hears an error of, for it does not survive one; it is kept.

    From there on the file lies in memory: HDF5 reads again what it has written, and takes anything
    else for its own.
    """

    def __init__(self, raw: Any) -> None:
        self.file: Any = raw
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        place, content = self.file.tell(), memoryview(data).cast("B")
        try:
            left = content
            while len(left):
                left = left[self.file.write(left) :]
        except OSError as error:
            self._go_on_in_memory(error)
            self.file.seek(place)
            self.file.write(content)
        return len(content)

    def truncate(self, size: int) -> int:
        try:
            return self.file.truncate(size)
        except OSError as error:
            self._go_on_in_memory(error)
            return self.file.truncate(size)

    def _go_on_in_memory(self, error: OSError) -> None:
        self.error, whole = error, io.BytesIO()
        self.file.seek(0)
        shutil.copyfileobj(self.file, whole)
        self.file = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def write_text(attributes: Any, name: str, text: str) -> None:
    """Set an attribute to a string of fixed length, which lies where HDF5 keeps checksums."""
    attributes[name] = np.array(text.encode())


def read_text(attributes: Any, name: str) -> str:
    """A string of fixed or variable length; raises KeyError."""
    value = attributes[name]
    return value.decode() if isinstance(value, bytes) else str(value)


class DamagedFileError(HistoryFileError):
    """A history file is truncated or otherwise unreadable."""


@contextmanager
def opened(path: Path, file_format: str) -> Iterator[h5py.File]:
    """Open a file of this format and schema version; raises HistoryFileError."""
    if not path.is_file():
        raise HistoryFileError(f"{path} does not exist; run the collect stage first")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if h5py.is_hdf5(path):
            raise DamagedFileError(damaged(path)) from error
        if path.stat().st_size == 0:
            raise DamagedFileError(f"{path} is empty; {REMEDY}") from error
        raise HistoryFileError(
            f"{path} is no HDF5 file, so no histories; name the histories.h5 of a collect stage"
        ) from error
    with file:
        with readable(path):
            found = read_text(file.attrs, "format") if "format" in file.attrs else None
            version = file.attrs.get("schema_version", 0)
        if found != file_format:
            raise HistoryFileError(
                f"{path} is an HDF5 file but not of format {file_format!r} (found {found!r}); "
                "name the histories.h5 of a collect stage"
            )
        if not isinstance(version, int | np.integer):
            raise DamagedFileError(damaged(path))
        if version != SCHEMA_VERSION:
            remedy = "update this code" if version > SCHEMA_VERSION else "collect again"
            raise HistoryFileError(
                f"{path} has schema version {version}, this code reads {SCHEMA_VERSION}; {remedy}"
            )
        yield file


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever is raised while the file is read into DamagedFileError."""
    try:
        yield
    except (
        AttributeError,
        IndexError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise DamagedFileError(damaged(path)) from error


def damaged(path: Path) -> str:
    """Say that a file is, and what to do."""
    return f"{path} is damaged or was cut short; {REMEDY}"
