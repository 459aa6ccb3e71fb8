"""Measure what acting costs as the history grows: student, teacher, the whole history kept raw.

Models of this run's sizes act untrained, which costs what trained ones do; nothing needs to be
trained or collected before. Output: <run_dir>/cost/cost.csv, which `pipelines.compare` draws.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("cost")

import csv
import time
from collections.abc import Iterator
from dataclasses import astuple, fields, replace

import torch

from base.files import atomic_file
from pipelines.common import Run
from pipelines.config import RunConfig
from pipelines.models import build_model, policy_of
from pipelines.opening import open_run
from pipelines.stages import N_STREAMS, STAGES, history_regions
from probes.cost import Cost, acting_cost
from training.run_dir import mark_done, stage_done

Row = tuple[str, int, Cost]


def main(config: RunConfig) -> None:
    """Run the stage."""
    run = open_run(config, "cost")
    if not run.accelerator.is_main_process:
        return
    folder, inputs = run.folder("cost"), run.inputs_of("cost")
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
        results=STAGES["cost"].results,
        seconds=time.perf_counter() - started,
        device=str(run.accelerator.device),
        threads=config.threads,
    )
    run.say(f"cost of acting, {N_STREAMS} streams: {folder / 'cost.csv'}")


def _measure(run: Run) -> Iterator[Row]:
    """Measure each method at each length of the history; one model at a time is in memory."""
    for method in ("student", "teacher", "long_context"):
        for regions in history_regions(run.config):
            torch.manual_seed(0)
            whole = replace(run.config.long_context, n_context_regions=regions)
            sized = replace(run, config=replace(run.config, method=method, long_context=whole))
            model = build_model(sized).to(run.accelerator.device)
            policy = policy_of(model, run, temperature=1.0)
            cost = acting_cost(policy, run.family, history_regions=regions, n_streams=N_STREAMS)
            run.say(f"{method}, history of {regions}: {cost.ms_per_action:.2f} ms per action")
            yield method, regions, cost
