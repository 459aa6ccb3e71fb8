"""Everything for one YAML: collect, build triples, train, evaluate, compare, all methods and seeds.

What is done is skipped, what was interrupted goes on. On one process, independent stages run side
by side in worker processes (`n_workers`); launched on several, each stage runs on all of them in
turn. With --dry-run only the list of stages is shown.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("run", flags={"dry_run": "list the stages and what is done; run nothing"})

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pipelines.config import RunConfig
from pipelines.opening import open_run
from pipelines.plan import PlannedStage, StackedStage, plan, stacked, unneeded
from pipelines.stage import StageError
from pipelines.stages import DATA_STAGES
from training.jobs import Job, run_jobs
from training.run_dir import read_meta, stage_done


def main(config: RunConfig, *, dry_run: bool = False) -> None:
    """Run every stage, or list them."""
    if dry_run:
        _show(config)
        return
    run = open_run(config, "run")
    stages = plan(config)
    idle = unneeded(stages, {stage.name for stage in stages if _has_result(config, stage)})
    stages = [stage for stage in stages if stage.name not in idle]
    run.accelerator.wait_for_everyone()  # none begins while another still looks what is done
    for stage in stages:
        if stage.module in DATA_STAGES:
            stage.run()
    stages = [stage for stage in stages if stage.module not in DATA_STAGES]
    if run.accelerator.num_processes > 1:
        for stage in stages:
            stage.run()
        run.accelerator.wait_for_everyone()
    else:
        jobs = _jobs(stacked(stages) if _stacks(config) else stages)
        results = run_jobs(jobs, _n_workers(config), Path(config.run_dir) / "logs")
        failed = [result.name for result in results if result.status != "finished"]
        if failed:
            raise StageError(
                f"{len(failed)} of {len(results)} stages did not finish: {', '.join(failed)}; see "
                f"{config.run_dir}/logs, mend the cause and run the same command again."
            )
    if run.accelerator.is_main_process:
        from pipelines import compare  # late: workers import this module too, and draw nothing

        compare.main(config)


def _show(config: RunConfig) -> None:
    """Print every stage, and whether it is done; nothing is written."""
    table = Table("stage", "", box=None, pad_edge=False, show_header=False)
    stages = plan(config)
    done = {
        stage.name
        for stage in stages
        if all([stage_done(Path(config.run_dir) / name, stage.inputs) for name in stage.folders])
    }
    idle = unneeded(stages, done)
    for name in (stage.name for stage in stages):
        table.add_row(name, "done" if name in done else "not needed" if name in idle else "to do")
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(f"{config.run_dir}: {len(done)} of {len(stages)} stages done; nothing is run")


def _has_result(config: RunConfig, stage: PlannedStage) -> bool:
    """Whether all its folders are marked as done, from whatever inputs: the stage will say."""
    return all(read_meta(Path(config.run_dir) / name) is not None for name in stage.folders)


def _stacks(config: RunConfig) -> bool:
    """Whether training seeds are trained as one model: what is set, else where there is a GPU."""
    return torch.cuda.is_available() if config.stack_seeds is None else config.stack_seeds


def _jobs(stages: Sequence[PlannedStage | StackedStage]) -> list[Job]:
    """Return a job for each stage, after those of its parents that are jobs too."""
    names = {stage.name for stage in stages}
    return [
        Job(stage.name, stage.run, after=tuple(name for name in stage.after if name in names))
        for stage in stages
    ]


def _n_workers(config: RunConfig) -> int:
    if config.n_workers:
        return config.n_workers
    if torch.cuda.is_available():
        return 1  # stages share the one GPU better in turn
    return os.cpu_count() or 1
