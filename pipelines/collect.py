"""Collect learning histories: every task, every style, every source seed, in parallel processes.

Each finished history is written at once, so a killed collection goes on where it was; launched on
several machines, the tasks are shared out. Output: <run_dir>/collect/histories.h5 and
learning_curves.csv.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("collect")

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from histories.collection import (
    CollectError,
    CollectJob,
    CollectSettings,
    CollectSummary,
    collect,
    make_part,
    one_after_another,
)
from histories.curves import curve_table
from pipelines.common import Run
from pipelines.config import RunConfig
from pipelines.opening import open_run
from pipelines.stages import STAGES
from teacher.sources import make_sources
from training.jobs import Job, JobResult, Listener, run_jobs
from training.run_dir import mark_done, stage_done

START_SECONDS = 10.0  # what worker processes take to start, with all that they import


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
    settings = CollectSettings(**asdict(config.collect), region_len=config.region_len)
    sections = {"source": config.source, "noise": config.noise, "posterior": config.posterior}
    summary = collect(
        run.family,
        run.split,
        settings,
        folder,
        make_sources(config.collect.styles, sections, config.collect.kwargs),
        run=partial(_run_jobs, n_workers=_n_workers(config), log_dir=run.root / "logs/collect"),
        family_settings=asdict(config.family),
        rank=run.accelerator.process_index,
        world_size=run.accelerator.num_processes,
    )
    if run.accelerator.is_main_process:
        mark_done(
            folder,
            "collect",
            inputs,
            results=STAGES["collect"].results,
            seconds=time.perf_counter() - started,
            split_identity=run.split.identity,
            env_steps=summary.n_env_steps,
        )
        _report(run, summary)
    run.accelerator.wait_for_everyone()


def _run_jobs(
    jobs: Sequence[CollectJob],
    tell: Callable[[CollectJob], None],
    *,
    n_workers: int,
    log_dir: Path,
) -> None:
    """Run jobs in processes, where there is enough to do for them; else in this very process.

    Raises:
        CollectError: A job failed in a process of its own; the others have been made.
    """
    left = list(jobs) if n_workers == 1 else _quick_ones_here(jobs, tell)
    n_workers = min(n_workers, len(left))
    if n_workers <= 1:
        return one_after_another(left, tell)
    named = {job.name: job for job in left}
    results = run_jobs(
        [Job(name, make_part, (job,)) for name, job in named.items()],
        n_workers,
        log_dir,
        listener=_Teller(named, tell),
    )
    failed = [result for result in results if result.status == "failed"]
    if failed:
        raise CollectError(
            f"{len(failed)} of {len(left)} collecting jobs failed, first {failed[0].name}: "
            f"{failed[0].error}; its output is in {failed[0].log}, run again to go on "
            "(with a smaller collect.n_workers where memory was short)"
        )


def _quick_ones_here(
    jobs: Sequence[CollectJob], tell: Callable[[CollectJob], None]
) -> list[CollectJob]:
    """Make here what takes less time than processes take to start; return the other jobs.

    Only of sources that are quick in principle: the first job of such a style tells.
    """
    left = []
    for _, same in itertools.groupby(jobs, key=lambda job: job.job.style):
        group = list(same)
        if group[0].source.quick:
            first = group.pop(0)
            began = time.perf_counter()
            one_after_another([first], tell)
            if (time.perf_counter() - began) * len(group) < START_SECONDS:
                one_after_another(group, tell)
                group = []
        left += group
    return left


class _Teller(Listener):
    """Passes on which jobs have finished."""

    def __init__(self, jobs: Mapping[str, CollectJob], tell: Callable[[CollectJob], None]) -> None:
        self.jobs, self.tell = jobs, tell

    def ended(self, result: JobResult) -> None:
        """Tell of a finished one."""
        if result.status == "finished":
            self.tell(self.jobs[result.name])


def _n_workers(config: RunConfig) -> int:
    """Processes of this rank: its share of the machine's cores unless the user says otherwise."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return config.collect.n_workers or max(1, (os.cpu_count() or 1) // here)


def _report(run: Run, summary: CollectSummary) -> None:
    console = Console(soft_wrap=False)
    console.print(curve_table(summary.curves))
    for warning in summary.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    rate = summary.n_env_steps / max(summary.seconds, 1e-9)
    console.print(
        f"{summary.n_jobs} histories in {escape(str(summary.path))}, {summary.n_env_steps} "
        f"environment steps in {summary.seconds:.0f} s ({rate:.0f} steps/s)"
    )
