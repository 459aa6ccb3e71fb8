"""Local processes that stay alive between jobs.

A worker imports a job's modules once, not once per job, and computes with one thread. It is no
`ProcessPoolExecutor`, where one killed worker (out of memory, say) fails every other job.
"""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

from tasks.errors import UserError

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Job:
    """One call of a function, in another process.

    Attributes:
        name: unique among the jobs of a run; also the name of its log, `/` making folders.
        function: a function at the top level of a module, so that a worker can import it.
        args: its positional arguments; small, for they are pickled.
        after: names of the jobs that must have succeeded before.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobResult:
    """How a job ended; `error` is what to tell the user, `value` what the function returned."""

    name: str
    status: Literal["finished", "failed", "skipped"]
    seconds: float = 0.0
    value: Any = None
    error: str | None = None


class WorkerPool:
    """Up to `n_workers` processes, started when first needed and stopped at the end of the `with`.

    Within it SIGTERM acts as Ctrl-C does.
    """

    def __init__(self, n_workers: int, log_dir: Path) -> None:
        self.n_workers, self.log_dir = n_workers, log_dir
        self.workers: list[_Worker] = []

    @property
    def busy(self) -> bool:
        """Whether any job is running."""
        return any(worker.job for worker in self.workers)

    def start(self, job: Job) -> bool:
        """Give a job to a free worker; False if there is none."""
        worker = next((worker for worker in self.workers if worker.job is None), None)
        if worker is None and len(self.workers) < self.n_workers:
            worker = _Worker()
            self.workers.append(worker)
        if worker is not None:
            worker.start(job, self.log_dir / f"{job.name}.log")
        return worker is not None

    def wait(self) -> list[JobResult]:
        """The jobs that have ended, at least one if any is running."""
        running = {worker.pipe: worker for worker in self.workers if worker.job}
        ready = connection.wait(list(running)) if running else []
        results = [running[pipe].result() for pipe in ready]  # type: ignore[index]
        for worker in [w for w in self.workers if not w.process.is_alive()]:
            worker.stop()
            self.workers.remove(worker)
        return results

    def __enter__(self) -> Self:
        self.previous = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.workers:
            worker.stop()
        signal.signal(signal.SIGTERM, self.previous)


class _Worker:
    """The parent's side of one process: give it a job, wait on its pipe, take the result."""

    def __init__(self) -> None:
        os.environ |= _ONE_THREAD  # what numpy and torch read when the child imports them
        context = multiprocessing.get_context("spawn")  # a forked torch may deadlock
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,))
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does
        self.job: Job | None = None

    def start(self, job: Job, log: Path) -> None:
        self.pipe.send((job, log))
        self.job = job

    def result(self) -> JobResult:
        assert self.job is not None
        name, self.job = self.job.name, None
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            how = f"its process ended with exit code {self.process.exitcode}"
            return JobResult(name, "failed", error=f"{how} (-9: killed, perhaps out of memory)")

    def stop(self) -> None:
        self.pipe.close()  # at which an idle worker leaves by itself
        if self.job is not None:
            self.process.terminate()
        self.process.join(_GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _serve(pipe: connection.Connection) -> None:
    """A worker's life: jobs until the parent closes the pipe, or is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # clean up, then leave
    while True:
        try:
            job, log = pipe.recv()
            pipe.send(_run(job, log))
        except (EOFError, BrokenPipeError):
            return


def _run(job: Job, log: Path) -> JobResult:
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)  # the descriptors, so that libraries in C are heard as well
        os.dup2(file.fileno(), 2)
    clock = time.perf_counter()
    try:
        value = job.function(*job.args)
    except Exception as error:
        traceback.print_exc()
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return JobResult(job.name, "failed", time.perf_counter() - clock, error=told)
    return JobResult(job.name, "finished", time.perf_counter() - clock, value)
