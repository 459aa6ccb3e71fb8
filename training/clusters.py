"""Jobs on a cluster: Ray tasks and Slurm jobs (by submitit), behind the interface of local workers.

`make_pool` chooses by name. Either package is optional, and imported when its pool is made. Both
need a file system that all machines share, and this code importable there under the same path.
"""

import contextlib
import importlib
import logging
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.workers import (
    GRACE_SECONDS,
    InterruptiblePool,
    Job,
    JobPool,
    JobResult,
    JobsError,
    WorkerPool,
    run_job,
)

__all__ = ["EXECUTORS", "ClusterError", "RayPool", "SlurmPool", "make_pool"]

POLL_SECONDS = 0.5
QUEUE_SECONDS = 15.0  # between two looks at Slurm's queue
RESULT_SECONDS = 15.0  # what a shared file system may need to show the result of a job that ended


class ClusterError(JobsError):
    """A cluster that cannot be used: a package or setting is missing, or it refuses a job."""


class RayPool(InterruptiblePool):
    """Jobs as Ray tasks.

    On the cluster that `address` or RAY_ADDRESS names, else on one that `ray start` has begun on
    this machine, else on a local one that lives as long as this pool.

    Args:
        n_workers: most tasks at once; 0 for as many as the cluster has room for at the start.
        log_dir: `<job name>.log` is appended to there.
        num_cpus: what a task reserves.
        num_gpus: likewise; 0.5 lets two tasks share a GPU.
        address: a cluster's, `auto` for any found, or `local` for one of its own.

    Raises:
        ClusterError: Ray is not installed, or there is no cluster at the address.
    """

    OPTIONS = ("address", "num_cpus", "num_gpus")

    def __init__(
        self,
        n_workers: int,
        log_dir: str | Path,
        *,
        num_cpus: float = 1,
        num_gpus: float = 0,
        address: str | None = None,
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        self.ray = _optional_package("ray", "ray")
        self.n_workers, self.log_dir, self.address = n_workers, Path(log_dir).absolute(), address
        self.needs = {"num_cpus": num_cpus, "num_gpus": num_gpus}
        self.running: dict[Any, tuple[Job, float]] = {}

    @property
    def busy(self) -> bool:
        """Whether any job is running."""
        return bool(self.running)

    def open(self) -> None:
        """Connect to a cluster or start one."""
        self.connected = not self.ray.is_initialized()
        if self.connected:
            self._connect()
        self.task = self.ray.remote(_run_in).options(**self.needs, max_retries=0)
        room = self.ray.cluster_resources()
        by_need = [
            int(room.get(resource, 0) // need)
            for resource, need in (("CPU", self.needs["num_cpus"]), ("GPU", self.needs["num_gpus"]))
            if need
        ]
        if 0 in by_need:
            self.close()
            raise ClusterError(
                f"a job needs {self.needs['num_cpus']} CPUs and {self.needs['num_gpus']} GPUs, but "
                f"Ray has {room.get('CPU', 0):g} and {room.get('GPU', 0):g}: change num_cpus and "
                "num_gpus of executor_options."
            )
        self.n_at_once = self.n_workers or min(by_need, default=1)

    def start(self, job: Job) -> bool:
        """Hand a job to Ray; False if there is no room now."""
        if len(self.running) >= self.n_at_once:
            return False
        pickled = self.ray.cloudpickle.dumps(job)
        reference = self.task.remote(os.getcwd(), sys.path, pickled, self._log(job))
        self.running[reference] = job, time.perf_counter()
        return True

    def wait(self, timeout: float | None = None) -> list[JobResult]:
        """Wait until a running job ends, at most `timeout` seconds; all that have ended."""
        if not self.running:
            return []
        references = list(self.running)
        ended, _ = self.ray.wait(references, num_returns=1, timeout=timeout)
        if ended:  # others may have ended by now
            ended, _ = self.ray.wait(references, num_returns=len(references), timeout=0)
        return [self._result(reference) for reference in ended]

    def close(self) -> None:
        """Interrupt what runs, kill what does not heed it, leave the cluster."""
        references = list(self.running)
        for force in (False, True):
            for reference in references:
                with contextlib.suppress(Exception):  # it may have ended meanwhile
                    self.ray.cancel(reference, force=force)
            if references:
                n, seconds = len(references), GRACE_SECONDS
                _, references = self.ray.wait(references, num_returns=n, timeout=seconds)
        self.running.clear()
        if self.connected:
            self.ray.shutdown()  # ends a local cluster of ours, and only leaves any other

    def _connect(self) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        address = self.address or os.environ.get("RAY_ADDRESS")
        if address in (None, "", "auto"):
            found = _cluster_of_this_machine()
            if found is None and address == "auto":
                raise ClusterError(f"address is auto, but no Ray cluster runs here; {_START}")
            address = found or "local"
        elif _answers(address) is False:
            raise ClusterError(f"no Ray cluster answers at {address}; {_START}")
        try:
            if address != "local":
                self.ray.init(address=address, **quiet)
                return
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(f"no Ray cluster answers at {address}: {error}") from None
        cpus = self.n_workers * self.needs["num_cpus"]
        n_cpus = max(1, round(cpus)) if self.n_workers else os.cpu_count()
        self.ray.init(address=address, num_cpus=n_cpus, include_dashboard=False, **quiet)

    def _result(self, reference: Any) -> JobResult:
        job, clock = self.running.pop(reference)
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            told = f"its Ray task ended without a result: {type(cause).__name__}: {cause}"
            seconds = time.perf_counter() - clock
            return JobResult(job.name, "failed", seconds, error=told, log=self._log(job))

    def _log(self, job: Job) -> Path:
        return self.log_dir / f"{job.name}.log"


_START = "start one with `ray start --head`, or leave the address out to have a local one."


def _cluster_of_this_machine() -> str | None:
    """The cluster that `ray start` has begun here, if it still lives.

    Ray itself would wait for minutes for one that has gone and left its note.
    """
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        address = note.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return address if _answers(address) else None


def _answers(address: str) -> bool | None:
    """Whether something listens at `host:port`; None for an address of another form."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return None
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except OSError:
        return False


class SlurmPool(InterruptiblePool):
    """Jobs as Slurm jobs, by submitit; `cluster` may also be its `local` (processes) or `debug`.

    Slurm may preempt a job or end it at its time limit: submitit then queues it again, up to
    `slurm_max_num_timeout` times for the limit, and it is called anew; a stage goes on from its
    checkpoint.

    Args:
        max_jobs: most jobs in the queue at once, running or not; 0 for no limit.
        log_dir: `<job name>.log` is appended to there; `submitit/` has the jobs' pickles and
            Slurm's own logs.
        options: `cluster`; `timeout_min` (required, for submitit's default is 5 minutes), `mem_gb`,
            `cpus_per_task`, `gpus_per_node`; and `slurm_<parameter>` for all that submitit knows,
            e.g. `slurm_partition`.

    Raises:
        ClusterError: submitit or Slurm is not installed, or an option is unknown or missing.
    """

    OPTIONS = ("cluster", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")

    def __init__(self, max_jobs: int, log_dir: str | Path, options: Mapping[str, Any]) -> None:
        submitit = _optional_package("submitit", "slurm")
        options = dict(options)
        self.max_jobs, self.log_dir = max_jobs, Path(log_dir).absolute()
        self.cluster = options.pop("cluster", "slurm")
        if self.cluster not in ("slurm", "local", "debug"):
            raise ClusterError(f"cluster is {self.cluster}, but must be slurm, local or debug.")
        _check_time({**options, "cluster": self.cluster})
        own = {k: options.pop(k) for k in ("slurm_max_num_timeout",) if k in options}
        folder = self.log_dir / "submitit"
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=self.cluster, **own)
            self.executor.update_parameters(**options)
        except (RuntimeError, NameError, AssertionError, ValueError) as error:
            told = str(error).splitlines()[0]
            raise ClusterError(f"executor=slurm cannot be used: {told}") from None
        self.running: dict[str, _Submitted] = {}
        self.queue = _Queue() if self.cluster == "slurm" else None

    @property
    def busy(self) -> bool:
        """Whether any job is queued or running."""
        return bool(self.running)

    def start(self, job: Job) -> bool:
        """Put a job into the queue; False if `max_jobs` are there."""
        if self.max_jobs and len(self.running) >= self.max_jobs:
            return False
        log = self.log_dir / f"{job.name}.log"
        self.executor.update_parameters(name=job.name)
        try:
            submitted = self.executor.submit(_Call(job, log))
        except Exception as error:  # submitit has no one class for what sbatch may say
            raise ClusterError(f"{self.cluster} did not take job {job.name}: {error}") from None
        self.running[job.name] = _Submitted(submitted, job, log, time.perf_counter())
        return True

    def wait(self, timeout: float | None = None) -> list[JobResult]:
        """Wait until a running job ends, at most `timeout` seconds; all that have ended."""
        clock = time.perf_counter()
        while self.running:
            results = [r for r in map(self._result, list(self.running.values())) if r]
            for result in results:
                del self.running[result.name]
            if results or (timeout is not None and time.perf_counter() - clock > timeout):
                return results
            time.sleep(POLL_SECONDS)
        return []

    def close(self) -> None:
        """Cancel what is queued or running, and give it a moment to end."""
        clock, left = time.perf_counter(), [each.handle for each in self.running.values()]
        for handle in left:
            handle.cancel(check=False)
        if self.cluster == "local":  # Slurm sees to its jobs by itself
            while time.perf_counter() - clock < GRACE_SECONDS and left:
                left = [handle for handle in left if not handle.done()]
                time.sleep(0.05)
        self.running.clear()

    def _result(self, submitted: "_Submitted") -> JobResult | None:
        handle, seconds = submitted.handle, time.perf_counter() - submitted.clock
        name, own_log = submitted.job.name, handle.paths.stderr
        if not self._has_ended(submitted):
            submitted.ended = None  # it may have been queued again
            return None
        if self.cluster != "debug" and not handle.paths.result_pickle.exists():
            submitted.ended = submitted.ended or time.perf_counter()
            if time.perf_counter() - submitted.ended < RESULT_SECONDS:
                return None
            told = f"it ended without a result (state: {handle.state}), perhaps killed or cancelled"
            log = submitted.log if submitted.log.exists() else own_log
            error = f"{told}; {self.cluster}'s own log: {own_log}"
            return JobResult(name, "failed", seconds, error=error, log=log)
        try:
            return handle.result()
        except Exception as error:  # what went wrong outside the job's function, e.g. its import
            lines = [line for line in str(error).splitlines() if line.strip(" -")]
            cause = next((line for line in reversed(lines) if "Error" in line), str(error))
            return JobResult(name, "failed", seconds, error=cause.strip(), log=own_log)

    def _has_ended(self, submitted: "_Submitted") -> bool:
        """Whether there is a result, or Slurm has done with a job: its queue knows best.

        `sacct`, which submitit asks, is not there on every cluster, and calls a job whose node has
        failed done before it is queued again.
        """
        handle = submitted.handle
        if self.queue is None or handle.paths.result_pickle.exists():
            return handle.done()
        queued = self.queue.holds(handle.job_id, submitted.clock)
        return handle.done() if queued is None else not queued


class _Queue:
    """Ids of this user's jobs that Slurm has in its queue, running or waiting; asked for rarely."""

    def __init__(self) -> None:
        self.ids: set[str] | None = None
        self.asked = float("-inf")

    def holds(self, job_id: str, since: float) -> bool | None:
        """Whether a job submitted at a time is there; None where Slurm does not tell."""
        if time.perf_counter() - self.asked > QUEUE_SECONDS:
            self.ids, self.asked = self._ids(), time.perf_counter()
        if self.ids is None:
            return None
        return self.asked < since or job_id in self.ids

    def _ids(self) -> set[str] | None:
        command = ["squeue", "--me", "--noheader", "--format=%i"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return set(done.stdout.split())


@dataclass
class _Submitted:
    """A job in Slurm's hands; `ended` is when it was first seen to have ended without a result."""

    handle: Any
    job: Job
    log: Path
    clock: float
    ended: float | None = None


@dataclass(frozen=True)
class _Call:
    """What submitit calls, and what it asks what to call after preemption or a time limit."""

    job: Job
    log: Path

    def __call__(self) -> JobResult:
        return run_job(self.job, self.log)

    def checkpoint(self) -> Any:
        return _optional_package("submitit", "slurm").helpers.DelayedSubmission(self)


def _run_in(folder: str, path: list[str], pickled: bytes, log: Path) -> JobResult:
    """Run a job where relative paths and imports mean the same as where it was made."""
    os.chdir(folder)
    sys.path += [entry for entry in path if entry not in sys.path]
    return run_job(pickle.loads(pickled), log)


def _optional_package(name: str, executor: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ClusterError(
            f"executor={executor} needs {name}: pip install 'cad-icrl[{executor}]'."
        ) from None


def make_pool(
    executor: str,
    n_workers: int,
    log_dir: str | Path,
    *,
    gpus: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> JobPool:
    """Return the pool that a configuration names.

    Args:
        executor: `local`, `ray` or `slurm`.
        n_workers: most jobs at once; 0 for one per GPU or else per core (local), as many as the
            cluster has room for (ray), no limit (slurm).
        log_dir: `<job name>.log` is appended to there.
        gpus: ids to share out over local workers; clusters have options for that.
        options: what the executor alone knows, see `RayPool` and `SlurmPool`.

    Raises:
        ClusterError: an unknown executor or option, or one that cannot be used here.
        JobsError: a negative number of workers, or GPUs that this process may not use.
    """
    if executor not in _POOLS:
        raise ClusterError(f"executor is {executor}, but must be one of {', '.join(_POOLS)}.")
    if n_workers < 0:
        raise JobsError(f"n_workers is {n_workers}, but must be 0 (automatic) or more.")
    return _POOLS[executor](n_workers, log_dir, gpus, dict(options or {}))


def check_executor(executor: str, options: Mapping[str, Any]) -> None:
    """Refuse options that `make_pool` would refuse, without what it needs to be installed.

    Raises:
        ClusterError: As `make_pool`.
    """
    if executor == "slurm":
        generic = {k: v for k, v in options.items() if not k.startswith("slurm_")}
        _check_options("slurm", generic, (*SlurmPool.OPTIONS, "slurm_<parameter>"))
        _check_time(options)
    else:
        _check_options(executor, options, RayPool.OPTIONS if executor == "ray" else ())


def _check_time(options: Mapping[str, Any]) -> None:
    if options.get("cluster") != "debug" and not {"timeout_min", "slurm_time"} & set(options):
        raise ClusterError("executor=slurm needs executor_options.timeout_min (per job).")


def _local_pool(
    n_workers: int, log_dir: str | Path, gpus: Sequence[str], options: dict[str, Any]
) -> JobPool:
    _check_options("local", options, ())
    return WorkerPool(n_workers or len(gpus) or os.cpu_count() or 1, log_dir, gpus)


def _ray_pool(
    n_workers: int, log_dir: str | Path, _: Sequence[str], options: dict[str, Any]
) -> JobPool:
    _check_options("ray", options, RayPool.OPTIONS)
    return RayPool(n_workers, log_dir, **options)


def _slurm_pool(
    n_workers: int, log_dir: str | Path, _: Sequence[str], options: dict[str, Any]
) -> JobPool:
    check_executor("slurm", options)
    return SlurmPool(n_workers, log_dir, options)


def _check_options(executor: str, options: Mapping[str, Any], allowed: Sequence[str]) -> None:
    if unknown := sorted(set(options) - set(allowed)):
        raise ClusterError(
            f"executor_options has {', '.join(unknown)}, but executor={executor} knows "
            f"{', '.join(allowed) or 'none'}."
        )


_POOLS: dict[str, Callable[..., JobPool]] = {
    "local": _local_pool,
    "ray": _ray_pool,
    "slurm": _slurm_pool,
}
EXECUTORS = tuple(_POOLS)
