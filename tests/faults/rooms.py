"""Folders that cannot be written to, and a file system of its own that is full, for every stage.

A stage that cannot write says so in one sentence, and changes nothing that was finished; given room
or permission it goes on to the result that it would have had.
"""

import contextlib
import ctypes
import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from base.errors import UserError, as_user_error
from tests.faults import files
from tests.faults.corpus import Case, tree
from tests.faults.damages import ITS_OWN, Outcome, Subject, copied, outcome, undisturbed

KIB = 1024
SIZE = 256 * 1024 * KIB
LEFT = {"nothing": (0, 1), "little": (4, 64), "some": (64, 512)}
"""KiB that are left, from and to."""
BY_PERMISSION = (1 << 1) | (
    1 << 2
)  # what lets root pass permissions: CAP_DAC_OVERRIDE, _READ_SEARCH


def cases(work: Path, seed: int) -> list[Case]:
    """All cases: each stage x read-only, and x room that is left where file systems can be made."""
    files.make_run(work)
    rng = random.Random(seed)
    found = []
    stages = [subject for subject in files.SUBJECTS if subject.made]
    for subject in stages:

        def closed(subject: Subject = subject) -> str | None:
            return read_only(subject, work)

        named = (str(work), "run_dir")
        name = f"{subject.name}: read-only"
        found.append(Case(name, closed, named, apart=False, drawn=False))
    if not can_mount():
        return found
    for subject in stages:
        for what, (least, most) in LEFT.items():
            room = rng.randrange(least, most) * KIB

            def full(subject: Subject = subject, room: int = room) -> str | None:
                return filled(subject, work, room)

            name = f"{subject.name}: {what} left"
            found.append(Case(name, full, (str(work),), seconds=120, apart=False))
    return found


def read_only(subject: Subject, work: Path) -> str | None:
    """Whether a stage changes nothing in a run that it may only read, and then goes on."""
    expected = undisturbed(subject, work)
    with copied(subject, work) as copy:
        before = tree(copy)
        with as_ordinary_user(), only_readable(copy):
            refused = refusal(subject, copy)
        if tree(copy) != before:
            return "changed: something was written"
        return goes_on(subject, copy, expected, refused)


def filled(subject: Subject, work: Path, room: int) -> str | None:
    """Whether a stage survives a file system with so many bytes left, and then goes on."""
    expected = undisturbed(subject, work)
    (work / "copy").mkdir(exist_ok=True)
    with mounted(work / "copy"), copied(subject, work) as copy:
        own = [copy / name for name in (*subject.own, *subject.writes, *ITS_OWN)]
        before = tree(copy, own)
        with full_but(copy.parent / "ballast", room):
            refused = refusal(subject, copy)
        if tree(copy, own) != before:
            return "changed: something that was finished"
        return goes_on(subject, copy, expected, refused)


def refusal(subject: Subject, copy: Path) -> UserError | None:
    try:
        outcome(subject, copy)
    except Exception as error:
        if (mistake := as_user_error(error)) is None:
            raise
        return mistake
    return None


def goes_on(
    subject: Subject, copy: Path, expected: Outcome, refused: UserError | None
) -> str | None:
    found = outcome(subject, copy)
    for name in expected.files | found.files:
        if found.files.get(name) != expected.files.get(name):
            return f"silent: {name} is another after a second call"
    if refused is not None:
        raise refused
    return None


@contextlib.contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Without the right to pass permissions, if this is root."""

    def may(allowed: bool) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        data = (ctypes.c_uint32 * 6)()
        libc.capget(header, data)
        data[0] = data[0] | BY_PERMISSION if allowed else data[0] & ~BY_PERMISSION
        if libc.capset(header, data):
            raise OSError(ctypes.get_errno(), "capset")

    if os.geteuid() != 0:
        yield
        return
    may(False)
    try:
        yield
    finally:
        may(True)


@contextlib.contextmanager
def only_readable(folder: Path) -> Iterator[None]:
    """Nothing in a folder may be written."""
    paths = [folder, *(path for path in folder.rglob("*") if not path.is_symlink())]
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & 0o555)
    try:
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@contextlib.contextmanager
def full_but(ballast: Path, room: int) -> Iterator[None]:
    """The file system of a file has so many bytes left."""
    with ballast.open("wb") as file:
        status = os.statvfs(ballast)
        os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize - room))
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """A file system of its own at a folder."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder)):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False
