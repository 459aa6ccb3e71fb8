"""Independent jobs, some after others: in what order they start, and what is told of them.

Each job's output goes to a log file of its own; the console shows one line when a job starts and
one when it ends. Where they run is a pool's affair: local processes in `training.workers`, Ray and
Slurm in `training.clusters`.
"""

import graphlib
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from training.workers import Job, JobPool, JobResult, JobsError, WorkerPool

__all__ = ["Job", "JobPool", "JobResult", "JobsError", "Listener", "PrintingListener", "run_jobs"]


class Listener:
    """Is told what happens to jobs; this one does nothing with it."""

    def started(self, name: str, seconds: float) -> None:
        """A job was given to the pool, `seconds` after the first could have been."""

    def ended(self, result: JobResult) -> None:
        """A job finished, failed or was skipped."""

    def tick(self) -> None:
        """At least once a second while jobs run: time to refresh a display."""

    def done(self, results: Sequence[JobResult]) -> None:
        """All jobs have ended; not called after Ctrl-C."""


class PrintingListener(Listener):
    """A line when a job starts and when it ends; at last what failed, why, and its log."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, soft_wrap=True)
        self.clock = time.perf_counter()

    def started(self, name: str, seconds: float) -> None:
        """Print it."""
        self._tell(seconds, "started", name)

    def ended(self, result: JobResult) -> None:
        """Print it."""
        self._tell(time.perf_counter() - self.clock, result.status, result.name)

    def done(self, results: Sequence[JobResult]) -> None:
        """Print the failures."""
        for result in results:
            if result.status == "failed":
                self.console.print(f"\nfailed: {result.name}: {result.error}")
                self.console.print(f"        its output: {result.log}")

    def _tell(self, seconds: float, event: str, name: str) -> None:
        self.console.print(f"{seconds:8.1f} s  {event:<9} {name}")


def run_jobs(
    jobs: Sequence[Job],
    pool: JobPool | int,
    log_dir: str | Path = "logs",
    *,
    listener: Listener | None = None,
) -> list[JobResult]:
    """Run every job as soon as those it comes after have finished; earlier ones in the list first.

    A failed job stops nothing but the jobs after it, which are skipped. Ctrl-C and SIGTERM stop
    those that run.

    Args:
        jobs: in order of priority.
        pool: where they run, entered here; a number stands for that many local processes.
        log_dir: where those local processes append to `<job name>.log`; a pool has its own.
        listener: is told what happens; prints it unless given.

    Returns:
        One result per job, in the order of `jobs`.

    Raises:
        JobsError: before anything has run, or if a cluster does not take a job.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the jobs have stopped.
    """
    pool = WorkerPool(pool, log_dir) if isinstance(pool, int) else pool
    _validate(jobs)
    listener, clock = listener or PrintingListener(), time.perf_counter()
    waiting, results = list(jobs), dict[str, JobResult]()

    def end(result: JobResult) -> None:
        results[result.name] = result
        listener.ended(result)

    with pool:
        while waiting or pool.busy:
            for job in list(waiting):
                before = [results[name].status for name in job.after if name in results]
                if set(before) - {"finished"}:
                    waiting.remove(job)
                    end(JobResult(job.name, "skipped"))
                elif len(before) == len(job.after) and pool.start(job):
                    waiting.remove(job)
                    listener.started(job.name, time.perf_counter() - clock)
            for result in pool.wait(timeout=1.0):
                end(result)
            listener.tick()
    ordered = [results[job.name] for job in jobs]
    listener.done(ordered)
    return ordered


def _validate(jobs: Sequence[Job]) -> None:
    names = [job.name for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise JobsError(f"two jobs have the same name: {', '.join(twice)}.")
    for job in jobs:
        for name in job.after:
            if name not in names:
                raise JobsError(f"job {job.name} comes after {name}, but there is no such job.")
    try:
        graphlib.TopologicalSorter({job.name: job.after for job in jobs}).prepare()
    except graphlib.CycleError as error:
        raise JobsError(f"jobs wait for each other: {' -> '.join(error.args[1])}.") from None
