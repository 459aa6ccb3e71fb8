import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tasks.errors import UserError
from training.jobs import Job, JobsError, run_jobs


def write(path: str, text: str = "") -> int:
    Path(path).write_text(text)
    return os.getpid()


def wait_for(path: str) -> bool:
    """Whether the file appears within half a minute."""
    for _ in range(3000):
        if Path(path).exists():
            return True
        time.sleep(0.01)
    return False


def speak() -> int:
    sys.stdout.write("said in Python\n")
    os.system("echo said by a child")
    sys.stderr.write("said to stderr\n")
    import torch  # here, so that the other workers start quickly

    return torch.get_num_threads()


def refuse() -> None:
    raise UserError("the moon is full; wait.")


def crash() -> None:
    raise RuntimeError("a defect")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


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


def test_two_workers_work_at_the_same_time(tmp_path: Path):
    jobs = [
        Job("waits", wait_for, (str(tmp_path / "flag"),)),
        Job("raises the flag", write, (str(tmp_path / "flag"),)),
    ]
    results = run_jobs(jobs, pool=2, log_dir=tmp_path)
    assert results[0].value is True


def linger(folder: str) -> None:
    """Say which process this is, work for long, and say if the end was orderly."""
    write(f"{folder}/started", str(os.getpid()))
    try:
        time.sleep(60)
    finally:
        write(f"{folder}/cleaned")


def linger_as_a_job(folder: str) -> None:
    run_jobs([Job("linger", linger, (folder,)), Job("next", linger, (folder,))], 1, folder)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_the_workers(tmp_path: Path, sent: signal.Signals):
    parent = multiprocessing.get_context("spawn").Process(
        target=linger_as_a_job, args=(str(tmp_path),)
    )
    parent.start()
    assert wait_for(f"{tmp_path}/started")
    time.sleep(0.1)  # the file is there a moment before its content
    worker = int((tmp_path / "started").read_text())
    assert parent.pid is not None
    os.kill(parent.pid, sent)
    parent.join(20)
    assert parent.exitcode == 1  # a KeyboardInterrupt nobody caught
    assert (tmp_path / "cleaned").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


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
