"""Where a user waits, as ratios against a reference measured in the same run. Run by hand.

    python -m benchmarks.speed

Absolute times of shared machines mean little; the ratios are medians over repetitions, with one
torch thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rich.console import Console
from rich.table import Table

from ad.losses import LossConfig
from ad.model import Triple
from ad.objectives import ActionObjective
from ad.student import CADStudent
from ad.student_config import StudentConfig
from nets.regions import Regions, Steps
from nets.spaces import FieldSpec
from tasks.darkroom import DarkRoomFamily
from teacher.model import RawContextObjective, TeacherConfig, TeacherModel, TeacherModelConfig
from training.metrics import training_bytes

CELLS, CHOICE = FieldSpec("classes", (2,), (9, 9)), FieldSpec("classes", (), (5,))
OBSERVATION, ACTION = CELLS.to_json(), CHOICE.to_json()
REGION_LEN, BATCH = 80, 48


def median_seconds(function: Callable[[], object], repetitions: int) -> float:
    """Median wall-clock seconds of a call, after one warm-up."""
    function()
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def random_triple(
    batch: int,
    n_regions: int,
    *,
    observation: FieldSpec = CELLS,
    action: FieldSpec = CHOICE,
    region_len: int = REGION_LEN,
) -> Triple:
    """Draw a batch of triples (B, R, L, ...), observations and actions being classes."""

    def values(spec: FieldSpec, *size: int) -> torch.Tensor:
        return spec.classes(torch.stack([torch.randint(n, size) for n in spec.n_classes], -1))

    def regions(*size: int) -> Regions:
        flags, seen = torch.zeros(size, dtype=torch.bool), values(observation, *size)
        rewards = torch.rand(size).round()
        return Regions(seen, values(action, *size), rewards, seen, flags, flags, ~flags)

    has_context = torch.ones(batch, n_regions, dtype=torch.bool)
    return Triple(regions(batch, n_regions, region_len), has_context, regions(batch, region_len))


def training_rows() -> list[tuple[str, float, str]]:
    """Compare one training step of the student with raw contexts of 1 and 4 regions."""
    student = CADStudent(StudentConfig(OBSERVATION, ACTION, REGION_LEN))
    objectives: dict[str, tuple[torch.nn.Module, int]] = {
        "student, 8 latents": (ActionObjective(student, LossConfig()), 1)
    }
    for n_regions in (1, 4):
        settings = asdict(TeacherConfig(n_context_regions=n_regions))
        config = TeacherModelConfig(OBSERVATION, ACTION, REGION_LEN, teacher=settings)
        objectives[f"raw context, {n_regions} region(s)"] = (
            RawContextObjective(TeacherModel(config)),
            n_regions,
        )
    rows, reference = [], None
    for name, (objective, n_regions) in objectives.items():
        batch = random_triple(BATCH, n_regions)
        step = partial(_step, objective, batch)
        seconds = median_seconds(step, 5)
        memory = training_bytes(objective, batch) / 2**20
        reference = reference or (seconds, memory)
        note = f"memory x {memory / reference[1]:.2f}, {memory:.0f} MB"
        rows.append((f"training step: {name}", seconds / reference[0], note))
    return rows


def _step(objective: torch.nn.Module, batch: Triple) -> None:
    objective.zero_grad()
    objective(batch)[0].backward()


def acting_rows() -> list[tuple[str, float, str]]:
    """Compare acting through a region with caches, and recomputing the region at every step."""
    student = CADStudent(StudentConfig(OBSERVATION, ACTION, REGION_LEN)).eval()
    query = random_triple(64, 1).query
    latents = student.memory.read(student.memory.start(64))
    tokens = student.step_encoder(Steps.of(query))

    @torch.inference_mode()
    def cached() -> None:
        state = student.decoder.start(latents)
        for t in range(REGION_LEN):
            student.decoder.step(tokens[:, t : t + 1], state)

    @torch.inference_mode()
    def recomputed() -> None:
        for t in range(REGION_LEN):
            student.decoder(tokens[:, : t + 1], latents)

    reference = median_seconds(cached, 3)
    return [
        ("acting, one region: caches", 1.0, f"{1000 * reference / REGION_LEN:.1f} ms/step"),
        ("acting, one region: recomputed", median_seconds(recomputed, 3) / reference, "64 streams"),
    ]


def environment_rows() -> list[tuple[str, float, str]]:
    """Compare the batched environment with one Python object per stream."""
    family = DarkRoomFamily()
    tasks = list(family.tasks())[:64]
    batched: gymnasium.vector.VectorEnv = family.make_vector_env(tasks)
    makers = [partial(family.make_env, task) for task in tasks]
    objects = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    actions = np.random.default_rng(0).integers(5, size=(100, len(tasks)))

    def play(env: gymnasium.vector.VectorEnv) -> None:
        env.reset(seed=0)
        for row in actions:
            env.step(row)

    reference = median_seconds(partial(play, batched), 5)
    note = f"{actions.size / reference:,.0f} steps/s"
    slow = median_seconds(partial(play, objects), 3) / reference
    return [("environment: one batch", 1.0, note), ("environment: objects", slow, "64 streams")]


def main() -> None:
    """Measure everything and print one table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = Table(title="time, relative to the first of each group")
    for heading in ("what", "ratio", ""):
        table.add_column(heading)
    for rows in (training_rows(), acting_rows(), environment_rows()):
        for name, ratio, note in rows:
            table.add_row(name, f"{ratio:.2f}", note)
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
