"""SIGKILL, SIGTERM, SIGINT at random moments, to a command or one of its workers.

Most commands are forks of this process, which has all modules already: most of a tiny stage's time
is Python's start, and signals are to meet its work. A share starts as a user would start it.

A command that is killed is started again, and killed again, until it is done: then the results have
the very bytes of an undisturbed run, no process is left, and no temporary file. Ended by SIGTERM or
SIGINT, a command ends with 130 and prints no traceback.
"""

import contextlib
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from pipelines.cli import run_main
from tests.faults.configs import TINY
from tests.faults.corpus import patience
from tests.faults.files import CHAIN, SMALL

RESULTS = ("*.safetensors", "*.npy", "*.arrow", "*.h5", "learning_curves.csv")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PLANS = {"stages": 0.7, "run": 0.15, "ablate": 0.15}  # share of the kills
FORKED = 0.8  # share of the commands that are forks
EARLY = 0.7  # share of the signals that come in the first third of what is left to do
PATIENCE = 60.0  # seconds until a command that was told to end must have
HISTORIES = "collect/histories.h5"
ROOT = Path(__file__).resolve().parent.parent.parent
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp(\..*)?")


@dataclass
class Plan:
    """Commands, one after the other, in one run directory."""

    name: str
    folder: Path
    commands: list[list[str]]
    forks: bool = False
    done: int = 0
    seconds: list[float] = field(default_factory=list)


def make_plan(name: str, folder: Path) -> Plan:
    """Every stage by itself, a whole run, or a sweep, in a folder of its own."""
    folder.mkdir(parents=True)
    file, sweep = folder / "small.yaml", folder / "sweep.yaml"
    settings = TINY.format(run_dir=folder / "run").replace("[random]", "[random, noise_expert]")
    settings = settings.replace("[student, teacher]", "[student, teacher, dpt]")
    file.write_text(settings + SMALL.replace("n_workers: 1", "n_workers: 2"))
    sweep.write_text(
        f"config: {file}\nrun_dir: {folder / 'sweep'}\nstore: {folder / 'store'}\nn_workers: 2\n"
        "grid: {compressor.n_latents: [2, 4]}\ncontrols: [teacher]\n"
    )

    def command(module: str, config: Path, *overrides: str) -> list[str]:
        return [sys.executable, "-m", f"pipelines.{module}", "--config", str(config), *overrides]

    imported = (f"histories={folder}/mine.h5", f"import_histories.source={folder}/run/{HISTORIES}")
    commands = {
        "stages": [
            *(command(module, file, f"method={method}") for module, method in CHAIN[:-1]),
            command("import_histories", file, *imported, "import_histories.format=cad"),
            command("probe", file),
            command("compare", file),
            command("ship", file, f"ship.folder={folder}/models"),
        ],
        "run": [command("run", file)],
        "ablate": [command("ablate", sweep)],
    }
    return Plan(name, folder, commands[name], forks=name == "stages")


class Forked:
    """A command in a fork of this process; what of `subprocess.Popen` is needed."""

    def __init__(self, command: list[str], log: Path) -> None:
        module, arguments = command[2].removeprefix("pipelines."), command[3:]
        self.status: int | None = None
        self.pid = os.fork()
        if not self.pid:
            _become(module, arguments, log)
        while os.getsid(self.pid) != self.pid:  # a command of `Popen` has its session at once
            time.sleep(0.001)

    def wait(self, timeout: float | None = None) -> int:
        limit = None if timeout is None else time.monotonic() + timeout
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif limit is not None and time.monotonic() > limit:
                raise subprocess.TimeoutExpired("a fork", timeout or 0)
            else:
                time.sleep(0.005)
        return self.status


def _become(module: str, arguments: list[str], log: Path) -> NoReturn:
    """Do in a fork what a stage's script does."""
    status = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(file, stream)
        os.chdir(ROOT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run_main(importlib.import_module(f"pipelines.{module}").main, arguments)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except KeyboardInterrupt:  # before the command has begun
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


Command = subprocess.Popen[bytes] | Forked


def start(command: list[str], log: Path, forked: bool = False) -> Command:
    if forked:
        return Forked(command, log)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )


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


def finish(plan: Plan, number: int | None = None) -> None:
    """Run what is left of a plan's commands, or of its first ones, undisturbed."""
    while plan.done < (len(plan.commands) if number is None else number):
        began = time.monotonic()
        process = start(plan.commands[plan.done], plan.folder / "log", plan.forks)
        if process.wait() != 0:
            raise SystemExit(f"{plan.name} failed: {plan.folder / 'log'}")
        plan.seconds.append(time.monotonic() - began)
        plan.done += 1


def results(folder: Path) -> dict[str, bytes]:
    """What must come out the same, by its name without hashes of folders."""
    found = {}
    for pattern in RESULTS:
        for path in folder.rglob(pattern):
            name = path.relative_to(folder).as_posix()
            if "checkpoints/" not in name and "parts/" not in name:
                found[name] = path.read_bytes()
    return found


def kill(plan: Plan, seconds: float, rng: random.Random) -> list[str]:
    """Start the plan's next command, kill it after a while; what is wrong with how it ended."""
    log = plan.folder / "log"
    before = log.stat().st_size if log.exists() else 0
    forked = plan.forks and rng.random() < FORKED
    process = start(plan.commands[plan.done], log, forked)
    sent, wrong = rng.choice(SIGNALS), []
    latest = seconds / 3 if rng.random() < EARLY else seconds
    try:
        status = process.wait(rng.uniform(0.0, latest))
        plan.done += status == 0
        return wrong if status == 0 else [f"ended with {status} undisturbed"]
    except subprocess.TimeoutExpired:
        pass
    alive = members(process.pid)
    to_worker = rng.random() < 0.25 and len(alive) > 1
    victim = rng.choice(alive) if to_worker else process.pid
    what = f"{plan.name} {sent.name}{' to a worker' * (victim != process.pid)}"
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, sent)
    try:
        status = process.wait(patience(PATIENCE))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return [f"{what}: hangs"]
    plan.done += status == 0
    if victim == process.pid and sent is not signal.SIGKILL and status not in (0, 130, -sent):
        wrong.append(f"{what}: exit status {status}")
    limit = time.monotonic() + patience(15)
    while (left := members(process.pid)) and time.monotonic() < limit:
        time.sleep(0.1)
    if left:
        wrong.append(f"{what}: processes are left: {left}")
        for each in left:
            os.kill(each, signal.SIGKILL)
    told = log.read_bytes()[before:]
    told_of = victim == process.pid and sent is not signal.SIGKILL and b"Traceback" in told
    if told_of and b"importlib" not in told:  # while Python itself was starting
        wrong.append(f"{what}: a traceback: {told[-300:]!r}")
    return wrong


def check(plan: Plan, expected: dict[str, bytes]) -> list[str]:
    """What is wrong with the results of a plan that is done."""
    found = results(plan.folder)
    wrong = [
        f"{plan.name}: {name} {'is another' if name in found else 'is missing'}"
        for name, content in expected.items()
        if found.get(name) != content
    ]
    left = [path for path in plan.folder.rglob(".*") if _TEMPORARY.fullmatch(path.name)]
    return wrong + [f"{plan.name}: {path} is left" for path in left]


def run_kills(work: Path, count: int, seed: int, plans: Sequence[str] = tuple(PLANS)) -> list[str]:
    """Kill `count` times, shared out over the plans; everything that was wrong."""
    rng, wrong, n_killed, n_done = random.Random(seed), [], 0, 0
    for name, _ in CHAIN:
        importlib.import_module(f"pipelines.{name}")
    whole = sum(PLANS[name] for name in plans)
    for name in plans:
        most = n_killed + max(1, round(count * PLANS[name] / whole))
        plan = make_plan(name, work / "undisturbed" / name)
        finish(plan)
        seconds, expected = plan.seconds, results(plan.folder)
        print(f"{name}: undisturbed in {sum(seconds):.0f} s", flush=True)  # noqa: T201
        while n_killed < most:
            shutil.rmtree(work / "killed", ignore_errors=True)
            plan, found = make_plan(name, work / "killed"), []
            share = -(-(most - n_killed) // len(plan.commands))  # so that every stage is met
            for number in range(len(plan.commands)):
                until = min(most, n_killed + share)
                while plan.done == number and n_killed < until:
                    found += kill(plan, 1.1 * seconds[number], rng)
                    n_killed += 1
                finish(plan, number + 1)
            found += check(plan, expected)
            n_done += 1
            for each in found:
                print(each, flush=True)  # noqa: T201
            wrong += found
            told = f"{n_killed} kills, {name} to the end: {len(found)} wrong"
            print(told, flush=True)  # noqa: T201
    print(f"{n_killed} kills, {n_done} times to the end: {len(wrong)} wrong", flush=True)  # noqa: T201
    return wrong
