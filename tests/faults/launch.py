"""Commands of ours as forks of this process, which has imported what they import.

Python's start takes longer than most cases. A fork does what `python -m` does: `runpy` runs the
module as `__main__`, in a session of its own, with arguments, streams, signals, random numbers and
exit handlers as a new process has them; its workers are forks likewise. Some cases go through the
real command too (`as_users_do`), and must come to the same verdict.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import logging
import multiprocessing.context
import multiprocessing.forkserver
import os
import random
import re
import runpy
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing import util
from pathlib import Path
from typing import NoReturn

from base.errors import UserError
from tests.faults.corpus import BrokenError, patience

ROOT = Path(__file__).resolve().parent.parent.parent
COMMANDS = sorted(path.stem for path in (ROOT / "pipelines").glob("[a-z]*.py"))
LATE = (
    *("datasets", "minari.data_collector", "reports.published", "tasks.darkroom"),
    *(f"sklearn.{name}" for name in ("cluster", "decomposition", "linear_model", "metrics")),
)
"""What commands import once they need it."""
HAVE_WORKERS = ("pipelines.ablate", "pipelines.collect", "pipelines.run")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
_SENTENCE = re.compile(r"^error: ", re.MULTILINE)
_real = False


def import_all() -> None:
    """Import what commands import, once; forks have it already."""
    import torch

    from pipelines.config import RunConfig
    from training.config import load_config

    torch.set_num_threads(1)
    for name in (*(f"pipelines.{name}" for name in COMMANDS), *LATE):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:  # what reading a configuration sets up
        file = Path(folder) / "a.yaml"
        file.write_text("seed: 0\n")
        load_config(RunConfig, file, ["seed=1"])
    gc.collect()
    gc.freeze()  # or else each fork's collector copies the pages of all that it looks at


@contextlib.contextmanager
def as_users_do() -> Iterator[None]:
    """Within it `command` starts a Python of its own."""
    global _real
    _real = True
    try:
        yield
    finally:
        _real = False


def command(module: str, *arguments: str) -> str:
    """Do `python -m module arguments`; what it tells on standard output.

    Raises:
        UserError: It was refused, with the sentence that was told.
        BrokenError: It ended otherwise, told a traceback, or left processes.
    """
    out, err = os.memfd_create("out"), os.memfd_create("err")
    with open(out, "rb") as told, open(err, "rb") as mistakes:
        started = start(module, arguments, out, err, forked=not _real)
        try:
            status = started.wait()
            _check_left(started.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
        return _judged(status, _text(told), _text(mistakes))


def _text(file) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _judged(status: int, out: str, err: str) -> str:
    if "Traceback (most recent call last)" in err:
        raise BrokenError("traceback", err)
    if status == 0:
        return out
    if status != 2:
        raise BrokenError("died" if status < 0 else "exit", f"{status}: {err}")
    *_, last = _SENTENCE.split(err) if _SENTENCE.search(err) else (out + err,)
    raise UserError(last.strip())


def _check_left(session: int) -> None:
    limit = time.monotonic() + patience(15)
    while left := members(session):
        if time.monotonic() > limit:
            raise BrokenError("left", f"processes {left}")
        time.sleep(0.02)


def members(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, *rest = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(rest[2]) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def start(module: str, arguments: Sequence[str], out: int, err: int, *, forked: bool) -> "Command":
    """Start `python -m module arguments` in a session of its own, or a fork that does the same."""
    if forked:
        return Forked(module, arguments, out, err)
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        start_new_session=True,
        preexec_fn=_keep_rights,
    )


def _keep_rights() -> None:
    """Let the program that this process becomes have no right more, though it be root's."""
    status = Path("/proc/self/status").read_text()
    rights = int(re.findall(r"CapEff:\s*([0-9a-f]+)", status)[0], 16)
    bound = int(re.findall(r"CapBnd:\s*([0-9a-f]+)", status)[0], 16)
    libc = ctypes.CDLL(None)
    for right in range(64):
        if bound & ~rights & 1 << right:
            libc.prctl(24, right, 0, 0, 0)  # PR_CAPBSET_DROP


class Forked:
    """A command in a fork of this process: what of `subprocess.Popen` is needed.

    Attributes:
        pid: Of the command, which leads a session.
        server: The process that its workers are forks of; 0 for none.
    """

    def __init__(self, module: str, arguments: Sequence[str], out: int, err: int) -> None:
        self.status: int | None = None
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _become(module, arguments, out, err, writing)
        os.close(writing)
        with open(reading, "rb") as begun:
            self.server = int(begun.readline() or 0)
        self._ended = os.pidfd_open(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, negative for a signal; raises `subprocess.TimeoutExpired`."""
        if self.status is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a fork", timeout or 0)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._ended)
        return self.status


Command = subprocess.Popen[bytes] | Forked


def _become(module: str, arguments: Sequence[str], out: int, err: int, begun: int) -> NoReturn:
    """Do in a fork what `python -m` does."""
    status = 1
    try:
        os.setsid()
        _begin_anew(out, err)
        server = _fork_workers(begun) if module in HAVE_WORKERS else 0
        os.write(begun, f"{server}\n".encode())
        os.close(begun)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)  # noqa: T201
        else:
            status = int(ended.code or 0)
    except KeyboardInterrupt:  # before the command has begun
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            _end()
        finally:
            os._exit(status)


def _begin_anew(out: int, err: int) -> None:
    """Nothing is left of this process's own streams, signals, random numbers, exit handlers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, descriptor in enumerate((nothing, out, err)):
        os.dup2(descriptor, stream)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    atexit._clear()
    os.chdir(ROOT)
    os.environ |= ENVIRONMENT
    _draw_anew()
    os.register_at_fork(after_in_child=_draw_anew)
    warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # of runpy


def _draw_anew() -> None:
    """What is drawn without a seed is to be another in each process."""
    import numpy
    import torch

    random.seed()
    numpy.random.seed()
    torch.seed()


def _fork_workers(begun: int) -> int:
    """Let workers be forks of this process as it is now; the process that makes them."""
    listener = socket.socket(socket.AF_UNIX)
    address = f"\0faults-{secrets.token_hex(8)}"
    listener.bind(address)
    listener.listen()
    alive, ours = os.pipe()
    made = os.fork()
    if not made:
        try:
            os.close(ours)
            os.close(begun)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as training.workers does
            multiprocessing.forkserver.main(listener.detach(), alive, [])
        finally:
            os._exit(0)
    listener.close()
    os.close(alive)
    server = multiprocessing.forkserver._forkserver
    server._forkserver_address, server._forkserver_alive_fd = address, ours
    server._forkserver_pid = made
    contexts = multiprocessing.context._concrete_contexts
    contexts["spawn"] = contexts["forkserver"]
    return made


def _end() -> None:
    """What Python does at its end."""
    threading._shutdown()
    util._exit_function()
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
