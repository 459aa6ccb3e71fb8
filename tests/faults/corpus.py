"""A case of hostile input, what came of it, and whether that is well: the rules of the corpus.

Well is one of two: it ended as if nothing had been wrong, with the right result; or it was refused
in one sentence that names the file, key or class. Everything else is a break: a traceback, a hang,
a death, a sentence that names nothing, a result that silently differs, a file that was changed.
"""

import os
import pickle
import random
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.errors import UserError

try:
    from base.errors import as_user_error
except ImportError:  # an older version of this code, measured by the same corpus

    def as_user_error(error: BaseException) -> UserError | None:
        return error if isinstance(error, UserError) else None


ROOM = 4 * 2**30
"""Bytes that the corpus may need."""
LONGEST = 900
"""Characters of a sentence; some list what is allowed."""
WELL = ("right", "refused")


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        name: Unique in the corpus.
        run: Does what a user would do; returns None, or in a word what is wrong with the outcome.
        named: Words of which a refusal must have one: the file, the key, the class.
        seconds: After which it counts as a hang, on an idle machine.
        apart: Whether it needs a process of its own, for it may die or leave things changed.
        drawn: Whether another seed makes another case of it.
    """

    name: str
    run: Callable[[], str | None]
    named: tuple[str, ...]
    seconds: float = 60.0
    apart: bool = True
    drawn: bool = True


@dataclass(frozen=True)
class Verdict:
    """What came of a case: one of `WELL`, or how it broke, and what was told."""

    case: str
    what: str
    told: str = ""

    @property
    def well(self) -> bool:
        return self.what in WELL


class BrokenError(Exception):
    """A command that ended in a way that is well under no rule.

    Attributes:
        what: The verdict, in a word.
        told: What was told.
    """

    def __init__(self, what: str, told: str) -> None:
        super().__init__(what, told)
        self.what, self.told = what, told


class Hang(BaseException):
    """Raised by the alarm; nothing catches it."""


def patience(seconds: float) -> float:
    """Seconds in which a busy machine does what an idle one does in so many."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def judge(case: Case) -> Verdict:
    """Run one case and judge it."""
    what, told = _apart(case) if case.apart else _here(case)
    return Verdict(case.name, what, told)


def judge_all(
    cases: Iterable[Case], tell: Callable[[Verdict], None] = lambda verdict: None
) -> list[Verdict]:
    """Judge cases one after the other."""
    verdicts = []
    for case in cases:
        verdicts.append(judge(case))
        tell(verdicts[-1])
    return verdicts


def summary(verdicts: Sequence[Verdict]) -> str:
    """How many cases had which verdict, in one line."""
    counts = Counter(verdict.what for verdict in verdicts)
    parts = [f"{counts[what]} {what}" for what in [*WELL, *sorted(set(counts) - set(WELL))]]
    return f"{len(verdicts)} cases: {', '.join(parts)}"


def sample(cases: Sequence[Case], n: int, seed: int) -> list[Case]:
    """Some of the cases, others with another seed."""
    return random.Random(seed).sample(list(cases), min(n, len(cases)))


def _here(case: Case) -> tuple[str, str]:
    def alarm(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, alarm)
    limit = patience(case.seconds)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        wrong = case.run()
    except Hang:
        return "hang", f"after {limit:.0f} s"
    except SystemExit as ended:
        return "exit", str(ended.code)
    except BrokenError as broken:
        return broken.what, broken.told
    except Exception as error:
        mistake = as_user_error(error)
        if mistake is None:
            return "traceback", traceback.format_exc()
        return _sentence(str(mistake), case)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return ("right", "") if wrong is None else (wrong.partition(":")[0], wrong)


def _sentence(told: str, case: Case) -> tuple[str, str]:
    if len(told.strip().splitlines()) != 1 or len(told) > LONGEST:
        return "long", told
    if not any(word in told for word in case.named):
        return "vague", told
    return "refused", told


def _apart(case: Case) -> tuple[str, str]:
    """Judge in a fork: it has all modules already, and may die."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _quiet()
        result = _here(case)
        os.write(writing, pickle.dumps((result[0], result[1][-3000:])))
        os._exit(0)
    os.close(writing)
    limit = time.monotonic() + patience(case.seconds) + 5
    data = b""
    while time.monotonic() < limit:
        ready, _, _ = select.select([reading], [], [], max(0.0, limit - time.monotonic()))
        if not ready:
            break
        if not (chunk := os.read(reading, 65536)):
            break
        data += chunk
    os.close(reading)
    if time.monotonic() >= limit:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if data:
        return pickle.loads(data)
    if time.monotonic() >= limit:
        return "hang", f"after {case.seconds:.0f} s, deaf to an alarm"
    return "died", f"wait status {status}"


def _quiet() -> None:
    """What a stage prints is not the corpus's affair."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def tree(folder: Path, apart_from: Sequence[Path] = ()) -> dict[str, Any]:
    """What a folder holds, by relative path: bytes of files, targets of links."""
    passed, start = {os.fspath(path) for path in apart_from}, len(os.fspath(folder)) + 1
    found: dict[str, Any] = {}
    folders = [os.fspath(folder)]
    while folders:
        for entry in os.scandir(folders.pop()):
            if entry.path in passed:
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            is_file = entry.is_file()
            found[entry.path[start:]] = Path(entry.path).read_bytes() if is_file else "folder"
    return found


def memory() -> str | None:
    """A folder of a file system in memory: thousands of small files are written and removed."""
    folder = "/dev/shm"
    usable = os.path.isdir(folder) and os.access(folder, os.W_OK)
    return folder if usable and shutil.disk_usage(folder).free > ROOM else None
