import multiprocessing
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job_functions import crash, die, is_gone, linger, refuse, speak, wait_for, write

from base.errors import UserError
from training import clusters
from training.clusters import ClusterError, RayPool, SlurmPool, make_pool
from training.jobs import Job, JobResult, Listener, run_jobs
from training.workers import JobPool, WorkerPool

HERE = str(Path(__file__).parent)
ROOT = str(Path(__file__).parents[2])

SBATCH = """#!/bin/bash
cp "$1" "$FAKE_SLURM/script"
SLURM_JOB_ID=$$ setsid bash "$1" > /dev/null 2>&1 &
echo $! > "$FAKE_SLURM/$$"
echo "Submitted batch job $$"
"""
# srun's own options come first; the files it names are for output and errors.
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do
  case $1 in --output) out=$2; shift;; --error) err=$2; shift;; esac; shift
done
out=${out//%j/$SLURM_JOB_ID}; err=${err//%j/$SLURM_JOB_ID}
SLURM_PROCID=0 exec "$@" > "${out//%t/0}" 2> "${err//%t/0}"
"""
SCANCEL = """#!/bin/bash
echo "$@" >> "$FAKE_SLURM/cancelled"
kill -TERM -- "-$(cat "$FAKE_SLURM/$1")"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
cd "$FAKE_SLURM"
for id in [0-9]*; do
  if kill -0 "$(cat $id)" 2> /dev/null; then state=RUNNING; else state=FAILED; fi
  echo "$id|$state|here"
done
"""

SQUEUE = """#!/bin/bash
cd "$FAKE_SLURM"
for id in [0-9]*; do kill -0 "$(cat $id)" 2> /dev/null && echo $id; done
exit 0
"""
NO_ACCOUNTING = """#!/bin/bash
echo Slurm accounting storage is disabled >&2
exit 1
"""
NODE_FAILED = """#!/bin/bash
echo "JobID|State|NodeList"
cd "$FAKE_SLURM"
for id in [0-9]*; do echo "$id|NODE_FAIL|here"; done
"""


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """For processes that do not inherit `sys.path`."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([ROOT, HERE]))


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, importable: None) -> Path:
    """Slurm's commands as scripts that run jobs on this machine; returns the scripts' folder."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    scripts = {"sbatch": SBATCH, "srun": SRUN, "scancel": SCANCEL, "sacct": SACCT}
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setattr(clusters, "RESULT_SECONDS", 0.5)
    return folder


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A local Ray of two CPUs, which starts once for all tests."""
    ray = pytest.importorskip("ray")
    pool = RayPool(2, "unused", address="local")
    with pool:
        yield ray


def make_jobs(folder: Path, *more: Job) -> list[Job]:
    return [
        Job("late", write, (str(folder / "late"),), after=("seed_1/talk",)),
        Job("seed_1/talk", speak),
        Job("refused", refuse),
        Job("crashed", crash),
        Job("skipped", write, (str(folder / "never"),), after=("refused",)),
        *more,
    ]


def check(results: list[JobResult], folder: Path, logs: Path) -> dict[str, JobResult]:
    """What must be so wherever `make_jobs` ran."""
    by_name = {result.name: result for result in results}
    assert by_name["late"].status == "finished", by_name["late"]
    assert by_name["seed_1/talk"].value == 1, by_name["seed_1/talk"]  # torch threads
    assert by_name["seed_1/talk"].seconds > 0
    said = (logs / "seed_1/talk.log").read_text().splitlines()
    assert said == ["said in Python", "said by a child", "said to stderr"]
    assert by_name["refused"].error == "the moon is full; wait."
    assert by_name["crashed"].error == "RuntimeError: a defect"
    assert "a defect" in (logs / "crashed.log").read_text()
    assert by_name["crashed"].log == logs / "crashed.log"
    assert by_name["skipped"].status == "skipped"
    assert not (folder / "never").exists()
    return by_name


def interrupt_when_started(pool: JobPool, folder: Path, cleans_up: bool = True) -> None:
    """Run one job that lingers and press Ctrl-C once it has started."""

    class Interrupter(Listener):
        def tick(self) -> None:
            if (folder / "started").exists():
                raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("linger", linger, (str(folder),))], pool, listener=Interrupter())
    assert not pool.busy
    assert signal.getsignal(signal.SIGTERM) == previous
    assert not cleans_up or wait_for(f"{folder}/cleaned")


# ----------------------------------------------------------------------------------------- Slurm


def test_submitit_debug_runs_in_this_process(
    tmp_path: Path, importable: None, capfd: pytest.CaptureFixture[str]
):
    pool = SlurmPool(0, tmp_path / "logs", {"cluster": "debug"})
    here = Job("here", os.getpid)
    by_name = check(run_jobs(make_jobs(tmp_path, here), pool), tmp_path, tmp_path / "logs")
    assert by_name["here"].value == os.getpid()
    assert "said in Python" not in capfd.readouterr().out


@pytest.mark.slow
def test_submitit_local_runs_in_processes(
    tmp_path: Path, importable: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(clusters, "RESULT_SECONDS", 0.5)
    pool = SlurmPool(2, tmp_path / "logs", {"cluster": "local", "timeout_min": 2})
    jobs = make_jobs(tmp_path, Job("killed", die))
    by_name = check(run_jobs(jobs, pool), tmp_path, tmp_path / "logs")
    killed = by_name["killed"]
    assert killed.status == "failed"
    assert "ended without a result" in (killed.error or "")
    assert str(tmp_path / "logs/submitit") in (killed.error or "")
    assert killed.log == tmp_path / "logs/killed.log"


@pytest.mark.slow
def test_submitit_local_is_cancelled_by_ctrl_c(tmp_path: Path, importable: None):
    pool = SlurmPool(1, tmp_path, {"cluster": "local", "timeout_min": 2})
    interrupt_when_started(pool, tmp_path)


@pytest.mark.slow
def test_slurm_gets_the_options_and_gives_results(tmp_path: Path, fake_slurm: Path):
    options = {"timeout_min": 7, "cpus_per_task": 3, "slurm_partition": "night"}
    pool = make_pool("slurm", 2, tmp_path / "logs", options=options)
    jobs = [
        Job("a/b", write, (str(tmp_path / "flag"),)),
        Job("waits", wait_for, (str(tmp_path / "flag"),)),
        Job("third", refuse),
        Job("killed", die),
    ]
    with pool:
        assert pool.start(jobs[0])
        script = (fake_slurm / "script").read_text()
        assert pool.start(jobs[1])
        assert not pool.start(jobs[2])  # two are in the queue
        ended = []
        while pool.busy:
            ended += pool.wait(timeout=5)
        assert pool.start(jobs[2])
        assert pool.start(jobs[3])
        while pool.busy:
            ended += pool.wait()
    results = {result.name: result for result in ended}
    for line in ("partition=night", "time=7", "cpus-per-task=3", "job-name=a/b"):
        assert line in script.replace("'", "").replace('"', "")
    assert results["waits"].value is True
    assert results["third"].error == "the moon is full; wait."
    assert "ended without a result (state: FAILED)" in (results["killed"].error or "")
    assert not (fake_slurm / "cancelled").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sacct", [NO_ACCOUNTING, NODE_FAILED], ids=["none", "node failed"])
def test_slurms_queue_says_what_has_ended(
    tmp_path: Path, fake_slurm: Path, sacct: str, monkeypatch: pytest.MonkeyPatch
):
    """A job of a failed node is queued again, and not every cluster keeps accounts."""
    for name, text in (("sacct", sacct), ("squeue", SQUEUE)):
        (fake_slurm / name).write_text(text)
        (fake_slurm / name).chmod(stat.S_IRWXU)
    monkeypatch.setattr(clusters, "QUEUE_SECONDS", 0.2)
    flag = str(tmp_path / "flag")
    pool = make_pool("slurm", 0, tmp_path / "logs", options={"timeout_min": 7})
    with pool:
        assert pool.start(Job("waits", wait_for, (flag,)))
        assert pool.start(Job("killed", die))
        ended = []
        while not ended:
            ended = pool.wait(timeout=5)
        Path(flag).touch()
        while pool.busy:
            ended += pool.wait()
    killed, waits = ended
    assert killed.name == "killed"
    assert "ended without a result" in (killed.error or "")
    assert waits.value is True


@pytest.mark.slow
def test_slurm_jobs_are_cancelled_by_ctrl_c(tmp_path: Path, fake_slurm: Path):
    interrupt_when_started(SlurmPool(0, tmp_path, {"timeout_min": 5}), tmp_path, cleans_up=False)
    assert len((fake_slurm / "cancelled").read_text().split()) == 1


def test_a_preempted_slurm_job_is_called_again(tmp_path: Path):
    call = clusters._Call(Job("again", write, (str(tmp_path / "file"),)), tmp_path / "log")
    call.checkpoint().result()
    assert (tmp_path / "file").exists()


def test_a_job_that_slurm_refuses_ends_the_run(tmp_path: Path, fake_slurm: Path):
    (fake_slurm / "sbatch").write_text("#!/bin/bash\necho no such partition >&2\nexit 1\n")
    with pytest.raises(ClusterError, match=r"slurm did not take job a: (.|\n)*no such partition"):
        run_jobs([Job("a", crash)], SlurmPool(0, tmp_path, {"timeout_min": 5}))


# ------------------------------------------------------------------------------------------- Ray


@pytest.mark.slow
def test_ray_runs_jobs(tmp_path: Path, ray: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    pool = make_pool("ray", 2, "logs")
    jobs = make_jobs(
        tmp_path,
        Job("killed", die),
        Job("waits", wait_for, (str(tmp_path / "flag"),)),
        Job("raises the flag", write, ("flag",)),  # relative to this process's folder
    )
    by_name = check(run_jobs(jobs, pool), tmp_path, tmp_path / "logs")
    assert by_name["waits"].value is True  # two at once
    assert "WorkerCrashedError" in (by_name["killed"].error or "")
    assert by_name["killed"].log == tmp_path / "logs/killed.log"
    assert ray.is_initialized()  # for it was so before


@pytest.mark.slow
def test_ray_tasks_are_cancelled_by_ctrl_c(tmp_path: Path, ray: Any):
    interrupt_when_started(RayPool(2, tmp_path), tmp_path)


@pytest.mark.slow
def test_ray_takes_no_more_than_it_has_room_for(tmp_path: Path, ray: Any):
    pool = RayPool(0, tmp_path, num_cpus=2)
    with pool:
        assert pool.wait() == []
        assert pool.start(Job("a", wait_for, (str(tmp_path / "flag"),)))
        assert not pool.start(Job("b", write, ("never",)))
        assert pool.wait(timeout=0.05) == []
        write(str(tmp_path / "flag"))
        (result,) = pool.wait()
    assert result.value is True
    with pytest.raises(ClusterError, match=r"needs 1 CPUs and 1 GPUs, but Ray has 2 and 0"):
        run_jobs([], RayPool(1, tmp_path, num_gpus=1))


def linger_on_a_ray_of_its_own(folder: str) -> None:
    run_jobs([Job("linger", linger, (folder,))], RayPool(1, folder, address="local"))


@pytest.mark.slow
def test_sigterm_ends_a_ray_of_our_own(tmp_path: Path):
    pytest.importorskip("ray")
    parent = multiprocessing.get_context("spawn").Process(
        target=linger_on_a_ray_of_its_own, args=(str(tmp_path),)
    )
    parent.start()
    assert wait_for(f"{tmp_path}/started")
    worker = int((tmp_path / "started").read_text())
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGTERM)
    parent.join(30)
    assert parent.exitcode == 1  # a KeyboardInterrupt nobody caught
    assert (tmp_path / "cleaned").exists()
    assert is_gone(worker)


# ---------------------------------------------------------------------------------- by a name


def test_mistakes_are_told_in_one_sentence(tmp_path: Path):
    def refusal(executor: str, n_workers: int = 1, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            make_pool(executor, n_workers, tmp_path, options=options)
        assert str(error.value).endswith(".") or "\n" not in str(error.value)
        return str(error.value)

    assert refusal("lsf") == "executor is lsf, but must be one of local, ray, slurm."
    assert refusal("local", colour=1) == (
        "executor_options has colour, but executor=local knows none."
    )
    assert "knows address, num_cpus, num_gpus" in refusal("ray", gpus=1)
    assert "executor_options has partition" in refusal("slurm", partition="night")
    assert "needs executor_options.timeout_min" in refusal("slurm")
    assert "cluster is pbs" in refusal("slurm", cluster="pbs", timeout_min=1)
    assert "slurm_colour" in refusal("slurm", cluster="local", timeout_min=1, slurm_colour=1)
    assert "timeout_min" in refusal("slurm", cluster="local", timeout_min="long")
    assert "n_workers is -1" in refusal("ray", n_workers=-1)


def test_slurm_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="srun"):
        make_pool("slurm", 1, tmp_path, options={"timeout_min": 5})


@pytest.mark.parametrize(("executor", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, package: str
):
    monkeypatch.setitem(sys.modules, package, None)
    told = f"executor={executor} needs {package}: pip install 'cad-icrl\\[{executor}\\]'"
    with pytest.raises(ClusterError, match=told):
        make_pool(executor, 1, tmp_path, options={"timeout_min": 5} if executor == "slurm" else {})


def test_local_workers_are_one_per_gpu_or_core(tmp_path: Path):
    def count(n_workers: int, gpus: tuple[str, ...]) -> int:
        pool = make_pool("local", n_workers, tmp_path, gpus=gpus)
        assert isinstance(pool, WorkerPool)
        return len(pool.workers)

    assert count(0, ()) == os.cpu_count()
    assert count(5, ()) == 5


def test_local_workers_share_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    pool = make_pool("local", 0, tmp_path, gpus=("0", "1", "2"))
    assert isinstance(pool, WorkerPool)
    assert len(pool.workers) == 3


def test_a_ray_cluster_that_has_gone_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from training.clusters import _cluster_of_this_machine

    pytest.importorskip("ray")
    (tmp_path / "ray").mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert _cluster_of_this_machine() is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray/ray_current_cluster").write_text(address)
        assert _cluster_of_this_machine() == address
    assert _cluster_of_this_machine() is None
    for named in (address, "auto"):
        pool = RayPool(1, tmp_path, address=named)
        with pytest.raises(ClusterError, match="ray start"):
            pool._connect()  # `open` would not, where another test has connected before
