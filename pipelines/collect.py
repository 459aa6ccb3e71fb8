"""Collect learning histories: every task, every style, every source seed, in parallel processes.

Each finished history is written at once, so a killed collection goes on where it was; launched on
several machines, the tasks are shared out. Output: <run_dir>/collect/histories.h5 and
learning_curves.csv.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from functools import partial

from rich.console import Console
from rich.markup import escape

from histories.collection import CollectSettings, CollectSummary, collect
from histories.curves import curve_table
from pipelines.cli import run_main
from pipelines.common import Run, open_run
from pipelines.config import RunConfig
from teacher.source import learn_history, noise_expert_history, random_history
from training.run_dir import mark_done, stage_done


def main(config: RunConfig) -> None:
    """Run the stage."""
    run = open_run(config, "collect")
    if config.histories:
        run.say(f"histories are taken from {config.histories}: nothing to collect")
        return
    folder, inputs = run.folder("collect"), run.inputs_of("collect")
    if stage_done(folder, inputs):
        run.say(f"{folder} is done")
        return
    started = time.perf_counter()
    summary = collect(
        run.family,
        run.split,
        CollectSettings(
            **{**asdict(config.collect), "n_workers": _n_workers(config)},
            region_len=config.region_len,
        ),
        folder,
        {
            "ppo": partial(learn_history, config=config.source),
            "noise_expert": partial(noise_expert_history, config=config.noise),
            "random": random_history,
        },
        family_settings=asdict(config.family),
        rank=run.accelerator.process_index,
        world_size=run.accelerator.num_processes,
    )
    if run.accelerator.is_main_process:
        mark_done(
            folder,
            "collect",
            inputs,
            seconds=time.perf_counter() - started,
            split_identity=run.split.identity,
            env_steps=summary.n_env_steps,
        )
        _report(run, summary)
    run.accelerator.wait_for_everyone()


def _n_workers(config: RunConfig) -> int:
    """Processes of this rank: its share of the machine's cores unless the user says otherwise."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return config.collect.n_workers or max(1, (os.cpu_count() or 1) // here)


def _report(run: Run, summary: CollectSummary) -> None:
    console = Console(soft_wrap=False)
    console.print(curve_table(summary.path))
    for warning in summary.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    rate = summary.n_env_steps / max(summary.seconds, 1e-9)
    console.print(
        f"{summary.n_jobs} histories in {summary.path}, {summary.n_env_steps} environment steps in "
        f"{summary.seconds:.0f} s ({rate:.0f} steps/s)"
    )


if __name__ == "__main__":
    run_main(main)
