import multiprocessing
import os
import re
import signal
from pathlib import Path

import pytest
from job_functions import (
    crash,
    die,
    environment,
    linger,
    refuse,
    refuse_bytes,
    speak,
    wait_for,
    write,
)

from training.jobs import Job, JobResult, JobsError, Listener, PrintingListener, run_jobs
from training.workers import WorkerPool, run_job, visible_gpus


def test_order_logs_failures_and_persistent_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """One run for all of it, since starting a worker costs seconds."""
    jobs = [
        Job("late", write, (str(tmp_path / "late"),), after=("talk", "first")),
        Job("first", write, (str(tmp_path / "first"),)),
        Job("seed_1/talk", speak),
        Job("talk", speak),
        Job("refused", refuse),
        Job("needs refused", write, (str(tmp_path / "never"),), after=("refused",)),
        Job("needs that", write, (str(tmp_path / "never"),), after=("needs refused",)),
        Job("crashed", crash),
        Job("killed", die),
        Job("after all", write, (str(tmp_path / "last"),)),
    ]
    results = run_jobs(jobs, pool=1, log_dir=tmp_path / "logs")
    told = capsys.readouterr().out

    assert [result.name for result in results] == [job.name for job in jobs]
    by_name = {result.name: result for result in results}
    failed = {name for name, result in by_name.items() if result.status == "failed"}
    skipped = {name for name, result in by_name.items() if result.status == "skipped"}
    assert failed == {"refused", "crashed", "killed"}
    assert skipped == {"needs refused", "needs that"}
    assert not (tmp_path / "never").exists()

    assert by_name["refused"].error == "the moon is full; wait."
    assert by_name["crashed"].error == "RuntimeError: a defect"
    assert "exit code -9" in (by_name["killed"].error or "")
    assert "a defect" in (tmp_path / "logs/crashed.log").read_text()

    assert by_name["talk"].value == 1  # torch threads
    log = (tmp_path / "logs/seed_1/talk.log").read_text()
    assert log.splitlines() == ["said in Python", "said by a child", "said to stderr"]

    assert by_name["first"].value == by_name["late"].value != os.getpid()  # one process, reused
    assert by_name["after all"].value != by_name["late"].value  # and replaced once it was killed

    started = re.findall(r"started +(.+)", told)
    assert started.index("first") < started.index("late")
    assert "failed: refused: the moon is full; wait." in told
    assert str(tmp_path / "logs/crashed.log") in told


def test_a_mistake_that_is_no_text_is_told_all_the_same(tmp_path: Path):
    result = run_job(Job("refused", refuse_bytes), tmp_path / "log")
    assert result.error == "b\\udcff is no name."
    assert (tmp_path / "log").read_text() == "error: b\\udcff is no name.\n"


def test_two_workers_work_at_the_same_time(tmp_path: Path):
    jobs = [
        Job("waits", wait_for, (str(tmp_path / "flag"),)),
        Job("raises the flag", write, (str(tmp_path / "flag"),)),
    ]
    results = run_jobs(jobs, pool=2, log_dir=tmp_path)
    assert results[0].value is True


def linger_as_a_job(folder: str) -> None:
    run_jobs([Job("linger", linger, (folder,)), Job("next", linger, (folder,))], 1, folder)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_the_workers(tmp_path: Path, sent: signal.Signals):
    parent = multiprocessing.get_context("spawn").Process(
        target=linger_as_a_job, args=(str(tmp_path),)
    )
    parent.start()
    assert wait_for(f"{tmp_path}/started")
    worker = int((tmp_path / "started").read_text())
    assert parent.pid is not None
    os.kill(parent.pid, sent)
    parent.join(20)
    assert parent.exitcode == 1  # a KeyboardInterrupt nobody caught
    assert (tmp_path / "cleaned").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path):
    parent = multiprocessing.get_context("spawn").Process(
        target=linger_as_a_job, args=(str(tmp_path),)
    )
    parent.start()
    assert wait_for(f"{tmp_path}/started")
    parent.kill()
    assert wait_for(f"{tmp_path}/cleaned")


def test_mistakes_are_found_before_anything_runs(tmp_path: Path):
    def refusal(*jobs: Job, n_workers: int = 1) -> str:
        with pytest.raises(JobsError) as error:
            run_jobs(jobs, n_workers, tmp_path)
        return str(error.value)

    assert "same name: a" in refusal(Job("a", refuse), Job("a", refuse))
    assert "a comes after b, but there is no such job" in refusal(Job("a", refuse, after=("b",)))
    circle = (Job("a", refuse, after=("b",)), Job("b", refuse, after=("a",)))
    assert "wait for each other" in refusal(*circle)
    assert "n_workers is 0" in refusal(Job("a", refuse), n_workers=0)


def test_no_jobs_are_no_work(tmp_path: Path):
    assert run_jobs([], 2, tmp_path) == []


class Recorder(Listener):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def started(self, name: str, seconds: float) -> None:
        assert seconds >= 0
        self.told.append(f"started {name}")

    def ended(self, result: JobResult) -> None:
        self.told.append(f"{result.status} {result.name}")

    def tick(self) -> None:
        self.told.append("tick")

    def done(self, results: list[JobResult]) -> None:
        self.told.append(f"done {len(results)}")


class PoolInThisProcess:
    """Runs one job at a time, in the next `wait`; the one before that ends by its timeout."""

    def __init__(self, log_dir: Path) -> None:
        self.log_dir, self.job, self.waits = log_dir, None, 0

    @property
    def busy(self) -> bool:
        return self.job is not None

    def start(self, job: Job) -> bool:
        if self.job is not None:
            return False
        self.job = job
        return True

    def wait(self, timeout: float | None = None) -> list[JobResult]:
        assert timeout is not None
        assert timeout <= 1  # or a display would freeze
        self.waits += 1
        if self.waits % 2:
            return []
        job, self.job = self.job, None
        assert job is not None
        return [run_job(job, self.log_dir / job.name)]

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.left = True


def test_a_listener_hears_everything_from_any_pool(tmp_path: Path):
    pool, listener = PoolInThisProcess(tmp_path), Recorder()
    jobs = [Job("a", refuse), Job("b", crash, after=("a",)), Job("c", os.getpid)]
    results = run_jobs(jobs, pool, listener=listener)
    assert listener.told == [
        *("started a", "tick", "failed a", "tick", "skipped b"),
        *("started c", "tick", "finished c", "tick", "done 3"),
    ]
    assert results[2].value == os.getpid()
    assert [result.log for result in results] == [tmp_path / "a", None, tmp_path / "c"]
    assert pool.left


def test_printing_names_what_failed_and_its_log(capsys: pytest.CaptureFixture[str]):
    PrintingListener().done(
        [JobResult("a", "finished"), JobResult("b", "failed", error="lost", log=Path("b.log"))]
    )
    assert capsys.readouterr().out.split("\n") == [
        *("", "failed: b: lost", "        its output: b.log", "")
    ]


def test_a_job_in_this_process_gives_the_output_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    os.system("echo before")
    assert run_job(Job("a", os.system, ("echo in between",)), tmp_path / "log").value == 0
    os.system("echo after")
    assert capfd.readouterr().out == "before\nafter\n"
    assert (tmp_path / "log").read_text() == "in between\n"


def test_waiting_ends_at_the_timeout(tmp_path: Path):
    with WorkerPool(1, tmp_path) as pool:
        assert pool.start(Job("a", wait_for, (str(tmp_path / "flag"),)))
        assert not pool.start(Job("b", write, ("never",)))
        assert pool.wait(timeout=0.05) == []
        assert pool.busy
        write(str(tmp_path / "flag"))
        (result,) = pool.wait()
    assert result.value is True


def test_each_worker_sees_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    name = "CUDA_VISIBLE_DEVICES"
    with WorkerPool(3, tmp_path, gpus=("4", "GPU-7")) as pool:
        for job in ("first", "second", "third"):
            assert pool.start(Job(job, environment, (name,)))
        seen = {result.name: result.value for _ in range(3) for result in pool.wait()}
        assert seen == {"first": "4", "second": "GPU-7", "third": "4"}
        assert name not in os.environ
        # A worker that replaces a killed one has that one's GPU.
        assert pool.start(Job("idle", environment, (name,)))  # keeps the first busy
        assert pool.start(Job("killed", die))
        while pool.busy:
            pool.wait()
        assert pool.start(Job("a", environment, (name,)))
        assert pool.start(Job("b", environment, (name,)))
        assert pool.start(Job("c", environment, (name,)))
        again = [result.value for _ in range(3) for result in pool.wait()]
    assert sorted(again) == ["4", "4", "GPU-7"]


def test_gpus_are_chosen_from_the_visible_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for value, gpus in {"2, 5": ["2", "5"], "": [], "-1": [], "3,-1,4": ["3"]}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible_gpus() == gpus
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    WorkerPool(1, tmp_path, gpus=("5",))
    with pytest.raises(JobsError, match="gpus has 0, but CUDA_VISIBLE_DEVICES allows only 2, 5"):
        WorkerPool(1, tmp_path, gpus=("0", "5"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert visible_gpus() == ["0", "1"]
