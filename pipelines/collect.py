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
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from base.hashes import content_hash
from histories.collection import CollectSettings, CollectSummary, collect
from histories.curves import curve_table
from pipelines.cli import run_main
from pipelines.common import Run, StageError, inputs_hash, open_run
from pipelines.config import RunConfig
from tasks.splits import Split
from teacher.source import learn_history, noise_expert_history, random_history
from training.run_dir import mark_done, stage_done


def main(config: RunConfig) -> None:
    """Run the stage."""
    run = open_run(config, "collect")
    sections = collect_sections(config, run.split)
    inputs = inputs_hash(sections, {})
    if stage_done(run.collect_dir, inputs):
        run.say(f"{run.collect_dir} is done")
        return
    if config.histories:
        run.say(f"histories are taken from {config.histories}: nothing to collect")
        return
    started = time.perf_counter()
    summary = collect(
        run.family,
        run.split,
        CollectSettings(
            **{**asdict(config.collect), "n_workers": _n_workers(config)},
            region_len=config.region_len,
        ),
        run.collect_dir,
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
            run.collect_dir,
            "collect",
            inputs,
            seconds=time.perf_counter() - started,
            split_identity=run.split.identity,
            env_steps=summary.n_env_steps,
        )
        _report(run, summary)
    run.accelerator.wait_for_everyone()


def collect_sections(config: RunConfig, split: Split) -> dict:
    """Configuration the histories depend on, and the content of existing ones.

    Raises:
        StageError: The existing histories are no file.
    """
    if config.histories and not Path(config.histories).is_file():
        raise StageError(f"histories={config.histories} is no file; give a path to a histories.h5.")
    collected = {k: v for k, v in asdict(config.collect).items() if k != "n_workers"}
    return {
        "family": asdict(config.family),
        "split": split.identity,
        "collect": {**collected, "region_len": config.region_len},
        "source": asdict(config.source),
        "noise": asdict(config.noise),
        "histories": content_hash(config.histories) if config.histories else "",
    }


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
