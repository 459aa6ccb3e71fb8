"""Measure what acting costs as the history grows: student, teacher, the whole history kept raw.

Models of this run's sizes act untrained, which costs what trained ones do; nothing needs to be
trained or collected before. Output: <run_dir>/cost/cost.csv, which `pipelines.compare` draws.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from dataclasses import asdict, astuple, fields, replace
from typing import Any

import torch

from ad.policy import StudentPolicy, TeacherPolicy
from ad.student import CADStudent
from base.files import atomic_file
from pipelines.cli import run_main
from pipelines.common import Run, inputs_hash, open_run, student_config, teacher_config
from pipelines.config import RunConfig
from probes.cost import Cost, acting_cost
from teacher.model import TeacherModel
from training.run_dir import mark_done, stage_done

HISTORY_REGIONS = (1, 2, 5, 10, 20, 35, 50)
N_STREAMS = 16
MODEL_SECTIONS = (
    "family",
    "region_len",
    "model",
    "compressor",
    "decoder",
    "teacher",
    "long_context",
)
Row = tuple[str, int, Cost]


def main(config: RunConfig) -> None:
    """Run the stage."""
    run = open_run(config, "cost")
    if not run.accelerator.is_main_process:
        return
    inputs = inputs_hash(cost_sections(config), {})
    folder = run.root / "cost"
    if stage_done(folder, inputs):
        run.say(f"{folder} is done")
        return
    started = time.perf_counter()
    rows = list(_measure(run))
    with atomic_file(folder / "cost.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "history_regions", *(entry.name for entry in fields(Cost))])
        writer.writerows([method, regions, *astuple(cost)] for method, regions, cost in rows)
    mark_done(
        folder,
        "cost",
        inputs,
        seconds=time.perf_counter() - started,
        device=str(run.accelerator.device),
        threads=config.threads,
    )
    run.say(f"cost of acting, {N_STREAMS} streams: {folder / 'cost.csv'}")


def cost_sections(config: RunConfig) -> dict[str, Any]:
    """Configuration that the cost of acting depends on."""
    sections = {name: asdict(config)[name] for name in MODEL_SECTIONS}
    return {**sections, "history_regions": list(HISTORY_REGIONS), "n_streams": N_STREAMS}


def _measure(run: Run) -> Iterator[Row]:
    """Measure each method at each length of the history; one model at a time is in memory."""
    device = run.accelerator.device
    as_student = replace(run, config=replace(run.config, method="student"))
    for method in ("student", "teacher", "long_context"):
        for regions in HISTORY_REGIONS:
            torch.manual_seed(0)
            if method == "student":
                model = CADStudent(student_config(as_student)).to(device)
                policy = StudentPolicy(model, device=device)
            else:
                whole = replace(run.config.long_context, n_context_regions=regions)
                sized = replace(run, config=replace(run.config, long_context=whole))
                model = TeacherModel(teacher_config(sized, method)).to(device)
                policy = TeacherPolicy(model, device=device)
            cost = acting_cost(policy, run.family, history_regions=regions, n_streams=N_STREAMS)
            run.say(f"{method}, history of {regions}: {cost.ms_per_action:.2f} ms per action")
            yield method, regions, cost


if __name__ == "__main__":
    run_main(main)
