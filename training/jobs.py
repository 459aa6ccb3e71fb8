"""Independent jobs, some after others, in a few local processes: in what order, and what is told.

Each job's output goes to a log file of its own; the console shows one line when a job starts and
one when it ends. The processes themselves are in `training.workers`.
"""

import graphlib
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tasks.errors import UserError
from training.workers import Job, JobResult, WorkerPool

__all__ = ["Job", "JobResult", "JobsError", "run_jobs"]


class JobsError(UserError):
    """Jobs that cannot be run at all: names that clash or are missing, or a circle of them."""


def run_jobs(jobs: Sequence[Job], n_workers: int, log_dir: str | Path) -> list[JobResult]:
    """Run every job as soon as those it comes after have finished; earlier ones in the list first.

    A failed job stops nothing but the jobs after it, which are skipped. Ctrl-C and SIGTERM stop the
    workers.

    Args:
        jobs: in order of priority.
        n_workers: processes, at least 1.
        log_dir: `<job name>.log` is appended to there.

    Returns:
        One result per job, in the order of `jobs`.

    Raises:
        JobsError: before anything has run.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the workers have stopped.
    """
    _validate(jobs, n_workers)
    console, clock = Console(highlight=False, markup=False, soft_wrap=True), time.perf_counter()
    waiting, results = list(jobs), dict[str, JobResult]()

    def tell(event: str, name: str) -> None:
        console.print(f"{time.perf_counter() - clock:8.1f} s  {event:<9} {name}")

    def end(result: JobResult) -> None:
        results[result.name] = result
        tell(result.status, result.name)

    with WorkerPool(n_workers, Path(log_dir)) as pool:
        while waiting or pool.busy:
            for job in list(waiting):
                before = [results[name].status for name in job.after if name in results]
                if set(before) - {"finished"}:
                    waiting.remove(job)
                    end(JobResult(job.name, "skipped"))
                elif len(before) == len(job.after) and pool.start(job):
                    waiting.remove(job)
                    tell("started", job.name)
            for result in pool.wait():
                end(result)
    for result in results.values():
        if result.status == "failed":
            log = Path(log_dir) / f"{result.name}.log"
            console.print(f"\nfailed: {result.name}: {result.error}\n        its output: {log}")
    return [results[job.name] for job in jobs]


def _validate(jobs: Sequence[Job], n_workers: int) -> None:
    names = [job.name for job in jobs]
    if n_workers < 1:
        raise JobsError(f"n_workers is {n_workers}, but at least 1 process is needed.")
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
