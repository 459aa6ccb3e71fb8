"""Damages to a file, and the trial of what reads it: a copy is damaged, read, and compared."""

import contextlib
import csv
import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.corpus import Case, tree

Damage = Callable[[Path, random.Random], None]


def missing(path: Path, _: random.Random) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def written(content: bytes) -> Damage:
    def write(path: Path, rng: random.Random) -> None:
        missing(path, rng)
        path.write_bytes(content)

    return write


def truncated(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(max(1, len(content)))])


def flipped(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes()) or bytearray(1)
    for _ in range(rng.randrange(1, 4)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def zeroed(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes()) or bytearray(1)
    start = rng.randrange(len(content))
    content[start : start + 64] = bytes(len(content[start : start + 64]))
    path.write_bytes(content)


def folder(path: Path, rng: random.Random) -> None:
    missing(path, rng)
    path.mkdir()


def root_of(path: Path) -> Path:
    """The copy that a path lies in."""
    return [parent for parent in path.parents if (parent / "config.yaml").exists()][-1]


def exchanged(path: Path, rng: random.Random) -> None:
    """The file of another stage, part or run that has the same name."""
    root = root_of(path)
    same = [p for p in sorted(root.rglob(path.name)) if p != path and p.is_file()]
    same = [p for p in same if p.read_bytes() != path.read_bytes()]
    other = rng.choice(same) if same else root / "config.yaml"
    path.write_bytes(other.read_bytes())


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def pickled(path: Path, rng: random.Random) -> None:
    root = root_of(path)
    written(pickle.dumps(Trap(root / "sprung")))(path, rng)


def edited(path: Path, rng: random.Random) -> None:
    """One value of a JSON file is another, or gone."""
    content = json.loads(path.read_text())
    keys = sorted(content) if isinstance(content, dict) else []
    if not keys:
        return written(b"{}")(path, rng)
    key = rng.choice(keys)
    if rng.random() < 0.3:
        del content[key]
    else:
        values = (None, -5, 999, "x", [], {}, 1e30, [1], {"a": 1}, True)
        content[key] = rng.choice([v for v in values if v != content[key]])
    path.write_text(json.dumps(content))


ANY: dict[str, Damage] = {
    "missing": missing,
    "empty": written(b""),
    "rubbish": written(b"\x00\xff rubbish\n" * 9),
    "text": written(b"hello,world\n1,2\n"),
    "truncated": truncated,
    "flipped": flipped,
    "flipped again": flipped,
    "zeroed": zeroed,
    "a folder": folder,
    "another's": exchanged,
    "a pickle": pickled,
}
JSON: dict[str, Damage] = {
    "{}": written(b"{}"),
    "[]": written(b"[]"),
    **{f"edited {n}": edited for n in range(6)},
}


DRAWN: tuple[Damage, ...] = (truncated, flipped, zeroed, exchanged, edited)
"""Others are the same with every seed."""
FOLDER: dict[str, Damage] = {"missing": missing, "a file": written(b""), "empty": folder}


@dataclass(frozen=True)
class Subject:
    """A command under test, and the files it reads.

    Attributes:
        name: Of the command.
        act: Runs it in the copy whose root it is given; what it returns must come out the same.
        reads: Files it reads, as patterns; a folder is exchanged as a whole.
        own: What it makes, taken out before.
        writes: What it may write besides.
        made: Files that must come out with the same bytes, as patterns.
        origin: Folder that is copied.
        free: Patterns of files of which any content that is taken makes a result of its own.
        named: Words besides the file's of which a refusal may have one.
        draws: Damages of each file that the seed draws, where others of the kind are tried whole; 0
            for all.
        seconds: After which it hangs.
        apart: Whether it is read in this process, and so needs one of its own; a command has that.
    """

    name: str
    act: Callable[[Path], Any]
    reads: tuple[str, ...]
    own: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    origin: str = "run"
    free: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    draws: int = 0
    seconds: float = 60.0
    apart: bool = False


@dataclass
class Outcome:
    """What a command told and made."""

    told: Any
    files: dict[str, bytes] = field(default_factory=dict)


def trials(subject: Subject, work: Path, rng: random.Random) -> list[Case]:
    """Each file the subject reads x each damage."""
    origin, found = work / subject.origin, []
    for path in reads(subject, origin):
        damages = ANY if path.suffix != ".json" else {**ANY, **JSON}
        damages = FOLDER if (origin / path).is_dir() else damages
        chosen = list(damages.items())
        for what, damage in rng.sample(chosen, min(subject.draws or len(chosen), len(chosen))):
            number = rng.randrange(10**9)

            def run(path: Path = path, damage: Damage = damage, number: int = number) -> str | None:
                return attempt(subject, work, path, damage, number)

            named = (path.name, str(path.parent), path.parent.name + "/", *subject.named)
            name = f"{subject.name}: {path} {what}"
            how = (subject.seconds, subject.apart, damage in DRAWN)
            found.append(Case(name, run, named, *how))
    return found


def reads(subject: Subject, origin: Path) -> Iterator[Path]:
    for pattern in subject.reads:
        found = sorted(origin.glob(pattern))
        if not found:
            raise FileNotFoundError(f"{subject.name} reads {pattern}, which is not there")
        yield from (path.relative_to(origin) for path in found)


def undisturbed(subject: Subject, work: Path) -> Outcome:
    """What comes of no damage; made once, by whichever process is the first to ask."""
    kept = work / f"{subject.name.replace(' ', '_')}.pickle"
    if not kept.exists():
        with copied(subject, work) as copy:
            kept.write_bytes(pickle.dumps(outcome(subject, copy)))
    return pickle.loads(kept.read_bytes())


@contextlib.contextmanager
def copied(subject: Subject, work: Path) -> Iterator[Path]:
    """A copy of what the subject works on, always at the same path: results may hold it."""
    copy = work / "copy" / subject.origin
    empty(copy.parent)
    shutil.copytree(work / subject.origin, copy, symlinks=True)
    for own in subject.own:
        shutil.rmtree(copy / own, ignore_errors=True)
    try:
        yield copy
    finally:
        empty(copy.parent)


def empty(folder: Path) -> None:
    """Take out all that a folder holds; it may be a mounted file system."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


ITS_OWN = ("config.yaml", "logs", ".locks", "trackers")
"""What any stage of a run may write."""


def outcome(subject: Subject, copy: Path) -> Outcome:
    told = subject.act(copy)
    found = (path for pattern in subject.made for path in sorted(copy.glob(pattern)))
    files = {p.relative_to(copy).as_posix(): untimed(p) for p in found if p.is_file()}
    return Outcome(told, files)


TIMED = ("ms_per_action", "train_seconds", "train_targets_per_s")
"""Columns of tables that come of a clock: a stage that is run again has others."""


def untimed(path: Path) -> bytes:
    """What a file holds, of a table all but what a clock told."""
    content = path.read_bytes()
    if path.suffix != ".csv":
        return content
    rows = list(csv.reader(content.decode().splitlines()))
    left = [n for n, name in enumerate(rows[0]) if name not in TIMED]
    return "\n".join("\0".join(row[n] for n in left if n < len(row)) for row in rows).encode()


def attempt(subject: Subject, work: Path, path: Path, damage: Damage, number: int) -> str | None:
    """Damage a copy, run the subject on it, compare."""
    expected = undisturbed(subject, work)
    with copied(subject, work) as copy:
        damage(copy / path, random.Random(number))
        own = [copy / name for name in (*subject.own, *subject.writes, *ITS_OWN)]
        before = tree(copy, own)
        try:
            found = outcome(subject, copy)
        finally:
            if (copy / "sprung").exists():
                return "pickle: it was unpickled"  # noqa: B012
            after = tree(copy, own)
            if path.as_posix() not in before:  # what was taken away may be made anew
                after.pop(path.as_posix(), None)
            if changed := sorted(k for k in before | after if before.get(k) != after.get(k)):
                return f"changed: {changed[0]}"  # noqa: B012
        if any(path.match(pattern) for pattern in subject.free):
            return None
        for name in expected.files | found.files:
            if found.files.get(name) != expected.files.get(name):
                return f"silent: {name} is another"
        return None if found.told == expected.told else "silent: it told something else"
