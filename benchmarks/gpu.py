"""Everything worth knowing of one GPU, within ten minutes. Run by hand where there is one.

    python -m benchmarks.gpu --out docs/results/gpu

The tests of devices (`pytest -m gpu`); updates per second of student and teacher against one
processor core, in fp32 and bf16; acting with 16 to 16,384 streams; `configs/quickstart.yaml` from
nothing to its table. Written to <out>/gpu.csv with the device's name, and printed. A part that
fails is a row that says so. `--device cpu --parts updates acting` tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ad.model import InContextModel, Triple
from ad.policy import ContextPolicy
from ad.rollout import rollout
from benchmarks.speed import random_triple
from benchmarks.windows import BATCH, raw, student
from tasks.family import load_family

PARTS = ("tests", "updates", "acting", "job")
STREAMS = (16, 1024, 16_384)
SECONDS = 5.0
"""For how long each pace is measured, after a warm-up."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        part: One of `PARTS`.
        what: Measured.
        value: The figure, in `unit`.
        unit: Of it.
        ratio: To the same on one processor core, where that was measured.
    """

    part: str
    what: str
    value: float
    unit: str
    ratio: float | None = None


def pace(step: Callable[[], object], device: torch.device, seconds: float = SECONDS) -> float:
    """Calls per second, the device's work included."""
    for _ in range(3):
        step()
    _wait(device)
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        step()
        calls += 1
        if calls % 10 == 0:  # the queue must not run ahead of the clock
            _wait(device)
    _wait(device)
    return calls / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def updates(device: torch.device) -> Iterator[Row]:
    """Updates per second at the sizes of darkroom.yaml."""
    for name, make, n_regions in (
        ("student", student, 2),
        ("teacher of 2 regions", lambda: raw("teacher.model:TeacherModel", 2), 2),
    ):
        core = None
        for where, kind in ((torch.device("cpu"), "fp32"), (device, "fp32"), (device, "bf16")):
            objective = make().to(where).train()
            optimizer = torch.optim.AdamW(objective.parameters(), fused=where.type == "cuda")
            batch = random_triple(BATCH, n_regions)
            moved = Triple(
                batch.context.to(where), batch.has_context.to(where), batch.query.to(where)
            )

            def step(
                objective: torch.nn.Module = objective,
                optimizer: torch.optim.Optimizer = optimizer,
                moved: Triple = moved,
                where: torch.device = where,
                mixed: bool = kind == "bf16",
            ) -> None:
                with torch.autocast(where.type, torch.bfloat16, enabled=mixed):
                    loss, _ = objective(moved)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

            measured = pace(step, where)
            core = core or measured
            yield Row(
                "updates", f"{name}, {where.type} {kind}", measured, "updates/s", measured / core
            )


def acting(device: torch.device) -> Iterator[Row]:
    """Environment steps per second of a student in Dark Room, all streams together."""
    family = load_family("tasks.darkroom:DarkRoomFamily")
    core = None
    for where, n_streams in ((torch.device("cpu"), STREAMS[0]), *((device, n) for n in STREAMS)):
        tasks = [family.tasks()[i % len(family.tasks())] for i in range(n_streams)]
        model: InContextModel = student().student.to(where)  # pyright: ignore
        policy = ContextPolicy(model, device=where)
        began = time.perf_counter()
        rollout(policy, family, tasks, n_episodes=8, seed=0)
        _wait(where)
        steps = n_streams * 8 * family.episode_len / (time.perf_counter() - began)
        core = core or steps
        yield Row("acting", f"{n_streams} streams, {where.type}", steps, "steps/s", steps / core)


def device_tests(device: torch.device) -> Iterator[Row]:
    """The tests that need an accelerator: how many passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout[-2000:])
    passed = re.search(r"(\d+) passed", done.stdout)
    number = float(passed[1]) if passed else 0.0
    yield Row("tests", f"pytest -m gpu, exit code {done.returncode}", number, "passed")


def job(device: torch.device) -> Iterator[Row]:
    """The quickstart, from nothing to its table."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipelines.run", "--config", "configs/quickstart.yaml"]
        began = time.perf_counter()
        subprocess.run(
            [*command, f"run_dir={folder}/run"],
            check=True,
            env={**os.environ, "ACCELERATE_USE_CPU": str(device.type == "cpu").lower()},
        )
        yield Row("job", "configs/quickstart.yaml", time.perf_counter() - began, "s")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu --parts updates acting tries the script")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    parts = {"tests": device_tests, "updates": updates, "acting": acting, "job": job}
    rows: list[Row] = []
    table = Table(title=f"{name}, torch {torch.__version__}")
    for heading in ("part", "what", "value", "unit", "x one core"):
        table.add_column(heading)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        try:
            rows += parts[part](device)
        except Exception as error:
            rows.append(Row(part, f"failed: {type(error).__name__}: {error}", float("nan"), ""))
        with (options.out / "gpu.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)  # after every part: time may run out
            writer.writerow(("device", "part", "what", "value", "unit", "ratio"))
            writer.writerows((name, *vars(row).values()) for row in rows)
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.1f}"
        table.add_row(row.part, row.what, f"{row.value:,.1f}", row.unit, ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
