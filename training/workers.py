"""Jobs, what runs them, and local processes that do so and stay alive between jobs.

A local worker imports a job's modules once, not once per job. It is no `ProcessPoolExecutor`, where
one killed worker (out of memory, say) fails every other job. Clusters are in `training.clusters`.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Protocol, Self

from base.errors import UserError, as_user_error
from base.imports import many_imports

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
GRACE_SECONDS = 5.0  # what a job that is told to stop has for its own cleaning up


class JobsError(UserError):
    """Jobs that cannot be run at all, for what they are or for where they should run."""


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
    """How a job ended.

    Attributes:
        name: the job's.
        status: `skipped` if a job it comes after did not finish.
        seconds: how long it ran, without any time in a cluster's queue.
        value: what the function returned.
        error: what to tell the user of a failure.
        log: the file that holds its output; None if it never ran.
    """

    name: str
    status: Literal["finished", "failed", "skipped"]
    seconds: float = 0.0
    value: Any = None
    error: str | None = None
    log: Path | None = None


class JobPool(Protocol):
    """Where jobs run. What has been started and has not ended is stopped at the end of the `with`.

    Within it SIGTERM acts as Ctrl-C does.
    """

    @property
    def busy(self) -> bool:
        """Whether any job is running."""
        ...

    def start(self, job: Job) -> bool:
        """Begin a job; False if there is no room now."""
        ...

    def wait(self, timeout: float | None = None) -> list[JobResult]:
        """Wait until a running job ends, at most `timeout` seconds; all that have ended."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def run_job(job: Job, log: Path) -> JobResult:
    """Run a job in this process with one thread, its output appended to `log`.

    An exception is a failed result; one that is the user's to mend is told by its message alone,
    here and in the log; any other by its name too, and in the log by its traceback.
    """
    os.environ |= ONE_THREAD  # what numpy and torch read when the job imports them
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    clock = time.perf_counter()
    with _output_to(log):
        try:
            value = job.function(*job.args)
        except Exception as error:
            if (mistake := as_user_error(error)) is None:
                traceback.print_exc()
                told = f"{type(error).__name__}: {error}"
            else:
                told = str(mistake)
                print(f"error: {told}", file=sys.stderr)  # noqa: T201
            return JobResult(job.name, "failed", time.perf_counter() - clock, error=told, log=log)
    return JobResult(job.name, "finished", time.perf_counter() - clock, value, log=log)


def visible_gpus() -> list[str]:
    """Return the ids of the GPUs this process may use, as CUDA_VISIBLE_DEVICES names them.

    CUDA is not initialised: torch asks the driver's library, and only if the variable is not set.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        import torch  # late, for it takes seconds

        return [str(gpu) for gpu in range(torch.cuda.device_count())]
    gpus = [gpu.strip() for gpu in named.split(",")]
    hidden = [place for place, gpu in enumerate(gpus) if gpu in ("", "-1")]  # CUDA stops there
    return gpus[: hidden[0]] if hidden else gpus


class InterruptiblePool:
    """The `with` of a pool: `open`, then `close` in any case; SIGTERM is Ctrl-C in between."""

    def open(self) -> None:
        """Prepare for jobs."""

    def close(self) -> None:
        """Stop what still runs."""

    def __enter__(self) -> Self:
        self.previous = signal.getsignal(signal.SIGTERM)
        self.open()
        self._on_sigterm(_interrupt)  # after opening, for Ray sets a handler of its own
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        finally:
            self._on_sigterm(self.previous)

    def _on_sigterm(self, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # others may set none
            signal.signal(signal.SIGTERM, handler)


class WorkerPool(InterruptiblePool):
    """Up to `n_workers` local processes, started when first needed.

    Worker i sees one GPU alone, `gpus[i % len(gpus)]`; without `gpus`, all that this process sees.

    Raises:
        JobsError: no worker, or GPUs that CUDA_VISIBLE_DEVICES hides from this process.
    """

    def __init__(self, n_workers: int, log_dir: str | Path, gpus: Sequence[str] = ()) -> None:
        if n_workers < 1:
            raise JobsError(f"n_workers is {n_workers}, but at least 1 process is needed.")
        named = "CUDA_VISIBLE_DEVICES" in os.environ
        if hidden := sorted(set(gpus) - set(visible_gpus())) if gpus and named else []:
            raise JobsError(
                f"gpus has {', '.join(hidden)}, but CUDA_VISIBLE_DEVICES allows only "
                f"{', '.join(visible_gpus()) or 'none'}."
            )
        self.log_dir, self.gpus = Path(log_dir), tuple(gpus)
        self.workers: list[_Worker | None] = [None] * n_workers  # a worker's place gives its GPU

    @property
    def busy(self) -> bool:
        """Whether any job is running."""
        return bool(self._running())

    def start(self, job: Job) -> bool:
        """Give a job to a free worker; False if there is none."""
        worker = next((worker for worker in self.workers if worker and not worker.job), None)
        if worker is None and None in self.workers:
            place = self.workers.index(None)
            gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[place % len(self.gpus)]} if self.gpus else {}
            worker = self.workers[place] = _Worker(ONE_THREAD | gpu)
        if worker is not None:
            worker.start(job, self.log_dir / f"{job.name}.log")
        return worker is not None

    def wait(self, timeout: float | None = None) -> list[JobResult]:
        """Wait until a running job ends, at most `timeout` seconds; all that have ended."""
        running = {worker.pipe: worker for worker in self._running()}
        ready = connection.wait(list(running), timeout) if running else []
        results = [running[pipe].result() for pipe in ready]  # type: ignore[index]
        for place, worker in enumerate(self.workers):
            # One that died with its job a moment ago is told of by its pipe, the next time.
            if worker and not worker.job and not worker.process.is_alive():
                worker.stop()
                self.workers[place] = None
        return results

    def close(self) -> None:
        """Stop the workers; a job that runs may clean up, as at SIGTERM."""
        workers = [worker for worker in self.workers if worker]
        for worker in workers:
            worker.tell_to_stop()
        limit = time.monotonic() + GRACE_SECONDS  # of all together
        for worker in workers:
            worker.stop(limit - time.monotonic())
        self.workers = [None] * len(self.workers)

    def _running(self) -> "list[_Worker]":
        return [worker for worker in self.workers if worker and worker.job]


class _Worker:
    """The parent's side of one process: give it a job, wait on its pipe, take the result."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("spawn")  # a forked torch may deadlock
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,))
        # There before the child imports anything. Ctrl-C reaches all processes; the parent decides.
        with _environment(variables), _sigint_blocked():
            self.process.start()
        theirs.close()  # so that the pipe ends when the process does
        self.job: Job | None = None

    def start(self, job: Job, log: Path) -> None:
        self.pipe.send((job, log))
        self.job, self.log, self.clock = job, log, time.perf_counter()

    def result(self) -> JobResult:
        assert self.job is not None
        name, self.job = self.job.name, None
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            how = f"its process ended with exit code {self.process.exitcode}"
            told = f"{how} (-9: killed, perhaps out of memory)"
            seconds = time.perf_counter() - self.clock
            return JobResult(name, "failed", seconds, error=told, log=self.log)

    def tell_to_stop(self) -> None:
        self.pipe.close()  # at which an idle worker leaves by itself
        if self.job is not None:
            self.process.terminate()

    def stop(self, seconds: float = GRACE_SECONDS) -> None:
        self.tell_to_stop()
        self.process.join(max(seconds, 0.0))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _leave(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is cleaned up now is not disturbed
    sys.exit(128 + signal.SIGTERM)


def _leave_with_parent() -> None:
    """End this process when the parent does, however that ends; a job may clean up."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os._exit(128 + signal.SIGKILL)


def _serve(pipe: connection.Connection) -> None:
    """A worker's life: jobs until the parent closes the pipe, or is no more."""
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    importing = many_imports()  # by unpickling the first job
    while True:
        try:
            with importing:
                job, log = pipe.recv()
            importing = contextlib.nullcontext()
            pipe.send(run_job(job, log))
        except (EOFError, BrokenPipeError):
            return


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Let a process that starts here inherit that it is not interrupted by Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Append this process's output to a file, be it of Python, C or a child."""
    log.parent.mkdir(parents=True, exist_ok=True)
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Streams on the descriptors, not on the file: a logging handler that keeps one stays valid.
    how: Any = {"mode": "w", "buffering": 1, "encoding": "utf-8", "errors": "backslashreplace"}
    sys.stdout, sys.stderr = open(1, closefd=False, **how), open(2, closefd=False, **how)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams
        for descriptor, before in zip((1, 2), kept, strict=True):
            os.dup2(before, descriptor)
            os.close(before)
