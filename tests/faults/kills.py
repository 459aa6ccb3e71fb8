"""SIGKILL, SIGTERM, SIGINT at random moments, to a command or one of its workers.

Most commands and their workers are forks of this process, which has all modules already: most of a
tiny stage's time is Python's start, and signals are to meet its work. A share starts as a user
would start it.

A command that is killed is started again, and killed again, until it is done: then the results have
the very bytes of an undisturbed run, no process is left, and no temporary file. Ended by SIGTERM or
SIGINT, a command ends with 130 and prints no traceback. A SIGINT that comes while Python itself
starts, before it has read a line of ours, is answered by Python alone, with a traceback of its own:
these are counted apart.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import launch
from tests.faults.configs import TINY
from tests.faults.corpus import patience
from tests.faults.files import CHAIN, SMALL
from tests.faults.launch import ROOT, members

RESULTS = ("*.safetensors", "*.npy", "*.arrow", "*.h5", "learning_curves.csv")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PLANS = {"stages": 0.7, "run": 0.15, "ablate": 0.15}  # share of the kills
FORKED = 0.8  # share of the commands that are forks
EARLY = 0.7  # share of the signals that come in the first third of what is left to do
PATIENCE = 60.0  # seconds until a command that was told to end must have
HISTORIES = "collect/histories.h5"
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp(\..*)?")
_PACKAGES = "|".join(sorted(path.parent.name for path in ROOT.glob("*/__init__.py")))
_OURS = re.compile(rf'File "{re.escape(str(ROOT))}/(?:{_PACKAGES})/'.encode())


@dataclass
class Plan:
    """Commands, one after the other, in one run directory."""

    name: str
    folder: Path
    commands: list[list[str]]
    done: int = 0
    killed: int = 0
    before_python: int = 0
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
        return [f"pipelines.{module}", "--config", str(config), *overrides]

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
    return Plan(name, folder, commands[name])


def start(command: Sequence[str], log: Path, *, forked: bool) -> launch.Command:
    """Start a module with its arguments; its output is appended to a file."""
    module, *arguments = command
    with log.open("ab") as file:
        return launch.start(module, arguments, file.fileno(), file.fileno(), forked=forked)


def finish(plan: Plan, number: int | None = None) -> None:
    """Run what is left of a plan's commands, or of its first ones, undisturbed."""
    while plan.done < (len(plan.commands) if number is None else number):
        began = time.monotonic()
        process = start(plan.commands[plan.done], plan.folder / "log", forked=True)
        if process.wait() != 0:
            told = (plan.folder / "log").read_text(errors="replace")[-2000:]
            raise SystemExit(f"{plan.name} failed at {plan.commands[plan.done]}: {told}")
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


def before_python(status: int, told: bytes) -> bool:
    """Whether what an interrupted command told is a traceback of Python's start, none of ours."""
    return status == 1 and told.endswith(b"\nKeyboardInterrupt\n") and not _OURS.search(told)


def kill(plan: Plan, seconds: float, rng: random.Random) -> list[str]:
    """Start the plan's next command, kill it after a while; what is wrong with how it ended."""
    log = plan.folder / "log"
    before = log.stat().st_size if log.exists() else 0
    forked = rng.random() < FORKED
    process = start(plan.commands[plan.done], log, forked=forked)
    sent, wrong = rng.choice(SIGNALS), []
    latest = seconds / 3 if rng.random() < EARLY else seconds
    try:
        status = process.wait(rng.uniform(0.0, latest))
        plan.done += status == 0
        return wrong if status == 0 else [f"ended with {status} undisturbed"]
    except subprocess.TimeoutExpired:
        pass
    server = process.server if isinstance(process, launch.Forked) else 0
    alive = [each for each in members(process.pid) if each != server]  # no user has one
    to_worker = rng.random() < 0.25 and len(alive) > 1
    victim = rng.choice(alive) if to_worker else process.pid
    what = f"{plan.name} {sent.name}{' to a worker' * (victim != process.pid)}"
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, sent)
        plan.killed += 1
    try:
        status = process.wait(patience(PATIENCE))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return [f"{what}: hangs"]
    plan.done += status == 0
    told = log.read_bytes()[before:]
    answers = victim == process.pid and sent is not signal.SIGKILL
    if answers and sent is signal.SIGINT and before_python(status, told):
        plan.before_python += 1
        answers = False
    if answers and status not in (0, 130, -sent):
        how = "a fork" if forked else "a command"
        wrong.append(f"{what}: exit status {status} of {how}: {told[-300:]!r}")
    limit = time.monotonic() + patience(15)
    while (left := members(process.pid)) and time.monotonic() < limit:
        time.sleep(0.1)
    if left:
        wrong.append(f"{what}: processes are left: {left}")
        for each in left:
            os.kill(each, signal.SIGKILL)
    if answers and b"Traceback" in told:
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
    rng, wrong, n_killed, n_done, n_before = random.Random(seed), [], 0, 0, 0
    launch.import_all()
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
                    before = plan.killed
                    found += kill(plan, 1.1 * seconds[number], rng)
                    n_killed += plan.killed - before  # unless it ended first
                finish(plan, number + 1)
            found += check(plan, expected)
            n_done, n_before = n_done + 1, n_before + plan.before_python
            for each in found:
                print(each, flush=True)  # noqa: T201
            wrong += found
            told = f"{n_killed} kills, {name} to the end: {len(found)} wrong"
            print(told, flush=True)  # noqa: T201
    told = f"{n_killed} kills, {n_before} before Python had begun, {n_done} times to the end: "
    print(f"{told}{len(wrong)} wrong", flush=True)  # noqa: T201
    return wrong
