"""Machines that go: Slurm and Ray of several nodes, ranks of torchrun, a clock that jumps.

Real Slurm, Ray and torchrun on this machine, each test skipped where its software is absent. They
take minutes: `make faults`, or `pytest -m machine tests/faults`.
"""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.configs import TINY
from tests.faults.corpus import patience
from tests.faults.kills import results
from tests.faults.launch import ENVIRONMENT, ROOT, members
from training import clusters
from training.clusters import SlurmPool
from training.jobs import Job

pytestmark = pytest.mark.machine

PATIENCE = 300.0
JOBS = str(ROOT / "tests/unit")
OPTIM = "{updates: 30, batch_size: 8, log_every: 10, checkpoint_every: 2, validate_every: 15}"
SMALL = f"""
train_teacher: {{optim: {OPTIM}}}
pretrain: {{enabled: false}}
finetune: {{enabled: false}}
distill: {{freeze_compressor: false, optim: {OPTIM}, loss: {{alpha: 1, beta: 0}}}}
validation: {{n_episodes: 2, n_seeds: 1}}
evaluate: {{n_episodes: 4, n_seeds: 2, n_offline: 16, reading_updates: 2, final_episodes: 2}}
"""
SWEEP = """
config: small.yaml
run_dir: {where}/sweep
store: {where}/store
methods: [student]
controls: []
seeds: [0, 1]
grid: {{compressor.n_latents: [2, 4]}}
"""


def until(done: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What a function says once it says something."""
    limit = time.monotonic() + patience(seconds)
    while not (found := done()):
        assert time.monotonic() < limit, "it took too long"
        time.sleep(0.1)
    return found


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own; its output is appended to a file."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def ended(process: subprocess.Popen[bytes], seconds: float = PATIENCE) -> int:
    """Exit status of a command, and that no process of its session is left."""
    status = process.wait(patience(seconds))
    until(lambda: not members(process.pid), 30)
    return status


def ablate(folder: Path, where: str, *overrides: str) -> subprocess.Popen[bytes]:
    """A sweep of four jobs, begun."""
    file = folder / f"{where}.yaml"
    file.write_text(SWEEP.format(where=folder / where))
    (folder / "small.yaml").write_text(TINY.format(run_dir=folder / where / "run") + SMALL)
    command = [sys.executable, "-m", "pipelines.ablate", "--config", str(file), *overrides]
    return start(command, folder / f"{where}.log")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Results of the sweep in one local worker."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ended(ablate(folder, "here", "n_workers=1")) == 0, (folder / "here.log").read_text()
    found = results(folder / "here")
    assert len([name for name in found if "eval_result" in name]) >= 4
    return found


# ----------------------------------------------------------------------------------------- Slurm

SLURM = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MpiDefault=none
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=16818-16819 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=60 State=UP
"""


@dataclass
class Slurm:
    """Two nodes of Slurm's on this machine, without accounting."""

    folder: Path
    daemons: dict[str, subprocess.Popen[bytes]]

    def ask(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def begin(self, name: str, *command: str) -> None:
        self.daemons[name] = start(list(command), self.folder / f"{name}.log")

    def node_of_a_running_job(self) -> str:
        return until(lambda: self.ask("squeue", "-h", "-t", "R", "-o", "%N").split())[0]

    def lose(self, node: str) -> None:
        """A machine that goes: its daemon and all that it has started."""
        daemon = self.daemons.pop(node)
        for session in [daemon.pid, *self.steps(node)]:
            for process in members(session):
                os.kill(process, signal.SIGKILL)
        daemon.wait()

    def steps(self, node: str) -> list[int]:
        """Sessions of the steps on a node."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"SLURMD_NODENAME={node}".encode() in path.read_bytes().split(b"\0"):
                    found.append(os.getsid(int(path.parent.name)))
            except OSError:
                continue
        return sorted(set(found))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    pytest.importorskip("submitit")
    if missing := [n for n in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(n)]:
        pytest.skip(f"Slurm is not installed here: no {missing[0]}")
    folder = tmp_path_factory.mktemp("slurm")
    user, host = os.environ.get("USER") or "root", os.uname().nodename
    conf = folder / "slurm.conf"
    conf.write_text(SLURM.format(host=host, folder=folder, user=user))
    (folder / "state").mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    before = os.environ.copy()
    os.environ |= {"SLURM_CONF": str(conf), "PYTHONPATH": os.pathsep.join([str(ROOT), JOBS])}
    made = Slurm(folder, {})
    files = {"key": "key", "socket": "munge.sock", "pid": "munge.pid", "log": "munged", "seed": "s"}
    named = [f"--{n}{'' if n == 'socket' else '-file'}={folder / f}" for n, f in files.items()]
    made.begin("munged", "munged", "--foreground", "--force", *named)
    until(lambda: (folder / "munge.sock").exists(), 30)
    made.begin("slurmctld", "slurmctld", "-D", "-f", str(conf))
    for node in ("n1", "n2"):
        made.begin(node, "slurmd", "-D", "-N", node, "-f", str(conf))
    try:
        until(lambda: made.ask("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"], 60)
        yield made
    finally:
        for daemon in made.daemons.values():
            daemon.kill()
        os.environ.clear()
        os.environ.update(before)


def test_slurm_runs_a_sweep_while_a_node_is_drained(
    tmp_path: Path, slurm: Slurm, undisturbed: dict[str, bytes]
):
    options = "executor_options={timeout_min: 30, cpus_per_task: 1}"
    process = ablate(tmp_path, "there", "executor=slurm", options)
    node = slurm.node_of_a_running_job()
    slurm.ask("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    assert ended(process) == 0, (tmp_path / "there.log").read_text()
    assert "drain" in slurm.ask("sinfo", "-h", "-n", node, "-o", "%T")
    slurm.ask("scontrol", "update", f"nodename={node}", "state=resume")
    assert results(tmp_path / "there") == undisturbed


def test_a_job_whose_slurm_node_is_lost_is_begun_again_on_another(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
):
    sys.path.insert(0, JOBS)
    from job_functions import begin_and_wait_for, die

    monkeypatch.setattr(clusters, "QUEUE_SECONDS", 2.0)
    monkeypatch.setattr(clusters, "RESULT_SECONDS", 2.0)
    flag, begun = tmp_path / "flag", tmp_path / "begun"
    pool = SlurmPool(0, tmp_path / "logs", {"timeout_min": 10})
    with pool:
        assert pool.start(Job("killed", die))
        assert pool.start(Job("waits", begin_and_wait_for, (str(begun), str(flag))))
        until(begun.exists)
        first = begun.read_text()
        slurm.lose(slurm.node_of_a_running_job())
        until(lambda: begun.read_text() != first)
        flag.touch()
        ended = []
        while pool.busy:
            ended += pool.wait()
    by_name = {result.name: result for result in ended}
    assert "ended without a result" in (by_name["killed"].error or "")
    assert by_name["waits"].value is True


# ------------------------------------------------------------------------------------------- Ray


def test_ray_loses_a_node_in_the_middle_of_a_sweep(tmp_path: Path, undisturbed: dict[str, bytes]):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        cluster.add_node(num_cpus=1)
        lost = cluster.add_node(num_cpus=1)
        options = f'executor_options={{address: "{cluster.address}"}}'
        process = ablate(tmp_path, "there", "executor=ray", options)
        log = tmp_path / "there.log"
        until(lambda: log.exists() and log.read_text().count(" started ") >= 2)
        cluster.remove_node(lost, allow_graceful=False)
        status, told = ended(process), log.read_text()
        assert status == (2 if "jobs did not finish" in told else 0), told  # or begun again
        assert "Traceback" not in told
        assert ended(ablate(tmp_path, "there", "executor=ray", options)) == 0, log.read_text()
    finally:
        cluster.shutdown()
    assert results(tmp_path / "there") == undisturbed


# ----------------------------------------------------------------------- several ranks, a clock


@dataclass
class Ranks:
    """A run whose data are made, the teacher of which is trained on two ranks."""

    folder: Path

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.folder / "run", self.folder / name))

    def command(self, *launcher: str, run: Path) -> list[str]:
        file = self.folder / "small.yaml"
        stage = ["-m", "pipelines.train_teacher", "--config", str(file), f"run_dir={run}"]
        return [sys.executable, "-m", *launcher, *stage, "method=teacher"]

    def torchrun(self, run: Path) -> subprocess.Popen[bytes]:
        launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        return start(self.command(*launcher, run=run), self.folder / "log")

    def machines(self, run: Path) -> list[subprocess.Popen[bytes]]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = str(server.getsockname()[1])
        return [self._machine(rank, run, port) for rank in (0, 1)]

    def _machine(self, rank: int, run: Path, port: str) -> subprocess.Popen[bytes]:
        file = ROOT / "configs/accelerate/multi_node.yaml"
        options = (
            "--num_processes",
            "2",
            "--main_process_port",
            port,
            "--mixed_precision",
            "no",
        )
        launcher = ("accelerate.commands.launch", "--config_file", str(file), *options)
        rank_of = ("--machine_rank", str(rank))
        return start(self.command(*launcher, *rank_of, run=run), self.folder / f"log{rank}")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    made = Ranks(tmp_path_factory.mktemp("ranks"))
    file = made.folder / "small.yaml"
    longer = SMALL.replace("updates: 30", "updates: 600")  # it must not end before it is killed
    file.write_text(TINY.format(run_dir=made.folder / "run") + longer)
    for stage in ("collect", "build_triples"):
        command = [sys.executable, "-m", f"pipelines.{stage}", "--config", str(file)]
        assert ended(start(command, made.folder / "log")) == 0, (made.folder / "log").read_text()
    return made


@pytest.fixture(scope="module")
def trained(ranks: Ranks) -> dict[str, bytes]:
    """What two undisturbed ranks come to."""
    run = ranks.copy("undisturbed")
    assert ended(ranks.torchrun(run)) == 0, (ranks.folder / "log").read_text()
    return results(run)


def rank_of(run: Path, rank: int) -> int | None:
    """The process of a rank: torchrun gives each a session of its own."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            of_run = f"run_dir={run}".encode() in (folder / "cmdline").read_bytes().split(b"\0")
            if of_run and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:
            continue
    return None


def has_begun(run: Path) -> Callable[[], bool]:
    return lambda: any((run / "seed_0/teacher/checkpoints").glob("0*"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_of_torchrun_is_killed(ranks: Ranks, trained: dict[str, bytes], rank: int):
    run = ranks.copy(f"killed{rank}")
    process = ranks.torchrun(run)
    until(has_begun(run))
    victim = rank_of(run, rank)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    assert ended(process) != 0
    until(lambda: rank_of(run, 1 - rank) is None, 60)
    assert not (run / "seed_0/teacher/meta.json").exists()
    assert ended(ranks.torchrun(run)) == 0
    assert results(run) == trained


def test_a_machine_of_accelerates_multi_node_file_is_lost(ranks: Ranks, trained: dict[str, bytes]):
    run = ranks.copy("machines")
    both = ranks.machines(run)
    until(has_begun(run))
    worker = rank_of(run, 1)  # in a session of its own
    assert worker is not None
    for process in (*members(both[1].pid), worker):
        os.kill(process, signal.SIGKILL)
    assert ended(both[1]) != 0
    assert ended(both[0]) != 0
    both = ranks.machines(run)
    assert [ended(process) for process in both] == [0, 0]
    assert results(run) == trained


LIBRARY = "/usr/lib/*/faketime/libfaketime.so.1"


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    found = sorted(Path("/").glob(LIBRARY.lstrip("/")))
    if not found:
        pytest.skip("libfaketime is not installed here")
    now = tmp_path / "now"
    now.write_text("+0")
    for name, value in {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(now),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }.items():
        monkeypatch.setenv(name, value)
    process = ablate(tmp_path, "there", "n_workers=2")
    log = tmp_path / "there.log"
    for n, jump in enumerate(("-400d", "+400d", "-1d")):
        until(lambda n=n: log.exists() and log.read_text().count(" finished ") > n)
        now.write_text(jump)
    assert ended(process) == 0, log.read_text()
    assert results(tmp_path / "there") == undisturbed
    with next((tmp_path / "there").rglob("log.csv")).open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file) if row.get("seconds")]
    assert all(0 <= value < PATIENCE for value in seconds)
