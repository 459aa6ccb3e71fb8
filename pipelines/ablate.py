"""Run a sweep: every cell of a grid, what cells share once, then one report over all.

Stages are kept by the hash of their inputs and never run twice. What is done is skipped, what was
interrupted goes on. With --dry-run only the list of cells is shown. Output:
<run_dir>/{sweep.json,cells/,logs/,report/}. Given a list of experiments (configs/paper.yaml) it
runs one after the other and publishes their tables and figures.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage, sweep_or_list

    run_stage(
        "ablate",
        config_class=sweep_or_list,
        flags={"dry_run": "list the cells and what is reused; run nothing"},
    )

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from base.files import write_json, write_text
from pipelines.experiments import ExperimentsConfig, run_all
from pipelines.plan import PlannedStage, unneeded
from pipelines.stage import StageError
from pipelines.stages import DATA_STAGES
from pipelines.store import StageStore
from pipelines.sweep import Cell, Sweep, SweepConfig, lay_out
from pipelines.sweep_table import Row, SweepTable
from training.clusters import check_executor, make_pool
from training.config import to_yaml
from training.jobs import Job, run_jobs
from training.locks import take_lock
from training.run_dir import claim_run_dir
from training.workers import visible_gpus

SWEEP_FORMAT = 1
"""Of sweep.json, which `reports.sweeps` reads."""


@dataclass(frozen=True)
class Work:
    """What is left of a sweep.

    Attributes:
        data: Collection and tables, which use all cores themselves: (run directory, stage).
        jobs: The rest, shared stages before the cells that need them.
        rows: What the table shows of each job, and of the cells that have nothing left to do.
    """

    data: list[tuple[Path, PlannedStage]]
    jobs: list[Job]
    rows: list[Row]


def main(config: SweepConfig | ExperimentsConfig, file: str, *, dry_run: bool = False) -> None:
    """Run the sweep, or every experiment of a list."""
    if isinstance(config, ExperimentsConfig):
        run_all(config, file, dry_run=dry_run)
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise StageError("a sweep starts its processes itself; launch pipelines.ablate as one.")
    check_executor(config.executor, config.executor_options)
    sweep = lay_out(config, file)
    config = sweep.config
    store = sweep.store()
    work = what_is_left(sweep, store)
    console = Console(highlight=False, markup=False)
    table = SweepTable(work.rows, console)
    if dry_run:
        table.print(f"{config.run_dir}: {len(sweep.cells)} cells, nothing is run")
        return
    prepare(sweep, store)
    for run_dir, stage in work.data:
        with store.lock(stage):
            stage.run(str(run_dir))
    logs = sweep.root / "logs"
    gpus = visible_gpus() if config.executor == "local" else ()
    options = config.executor_options
    pool = make_pool(config.executor, config.n_workers, logs, gpus=gpus, options=options)
    with table.live():
        results = run_jobs(work.jobs, pool, listener=table)
    report(sweep)
    failed = [result.name for result in results if result.status != "finished"]
    if failed:
        raise StageError(
            f"{len(failed)} of {len(results)} jobs did not finish: {', '.join(failed)}; see "
            f"{logs}, mend the cause and run the same command again: it runs only these."
        )


def what_is_left(sweep: Sweep, store: StageStore) -> Work:
    """Return the jobs that the sweep still needs; nothing is written."""
    uses = Counter(key for cell in sweep.cells for key in {s.inputs for s in cell.stages})
    data: dict[str, tuple[Path, PlannedStage]] = {}
    shared: dict[str, Job] = {}
    jobs, rows = [], []
    for cell in sweep.cells:
        done = {stage.name for stage in cell.stages if store.done(stage)}
        idle = done | unneeded(cell.stages, done)
        missing = [stage for stage in cell.stages if stage.name not in idle]
        own: list[PlannedStage] = []
        for stage in missing:
            if stage.module in DATA_STAGES:
                data.setdefault(stage.inputs, (cell.run_dir, stage))
            elif uses[stage.inputs] > 1:
                if stage.inputs not in shared:
                    shared[stage.inputs] = _shared_job(stage, cell, store, shared)
                    row = Row(shared[stage.inputs].name, cell.run_dir, (stage,))
                    rows.append(row)
            else:
                own.append(stage)
        reused = len(done)
        rows.append(Row(cell.name, cell.run_dir, tuple(own), cell, reused))
        if own:
            needed = [shared[s.inputs].name for s in missing if s.inputs in shared]
            arguments = (str(cell.run_dir), own, store)
            jobs.append(Job(cell.name, run_stages, arguments, tuple(needed)))
    return Work(list(data.values()), [*shared.values(), *jobs], rows)


def _shared_job(stage: PlannedStage, cell: Cell, store: StageStore, shared: dict[str, Job]) -> Job:
    before = {s.name: s.inputs for s in cell.stages}
    after = tuple(shared[before[n]].name for n in stage.after if before[n] in shared)
    name = f"shared/{stage.module}-{stage.inputs[:6]}/seed_{cell.seed}"
    return Job(name, run_stages, (str(cell.run_dir), [stage], store), after)


def run_stages(run_dir: str, stages: Sequence[PlannedStage], store: StageStore) -> None:
    """Run stages in their order, each under its lock: another sweep may be at it."""
    for stage in stages:
        with store.lock(stage):
            stage.run(run_dir)


def prepare(sweep: Sweep, store: StageStore) -> None:
    """Make the sweep's directory: what it is, and each cell's links into the store.

    Raises:
        RunDirError: It belongs to another sweep.
    """
    cells = ("grid", "seeds", "methods", "controls")  # what is done of others stays in the store
    ignored = ("executor", "n_workers", "executor_options", "reuse", "store", "run_dir", *cells)
    claim_run_dir(sweep.root, sweep.config, ignored)
    take_lock(sweep.root, "cells")
    write_text(sweep.root / "config.yaml", to_yaml(sweep.config))
    write_json(
        sweep.root / "sweep.json",
        {
            "format_version": SWEEP_FORMAT,
            "name": sweep.config.name,
            "axes": {axis: list(values) for axis, values in sweep.axes.items()},
            "seeds": sweep.config.seeds,
            "base": sweep.base.folder if sweep.base else None,
            "points": [{"dir": p.folder, "values": dict(p.values)} for p in sweep.points],
        },
    )
    write_text(sweep.root / "base.yaml", to_yaml(sweep.base_config))
    for cell in sweep.cells:
        for stage in cell.stages:
            store.link(stage, cell.run_dir)


def report(sweep: Sweep) -> None:
    """Write the report over all cells that are done."""
    # Late: workers import this module too, and draw nothing.
    from reports.comparison import ReportOptions
    from reports.sweeps import write_sweep_comparison

    console = Console(highlight=False, markup=False)
    command = f"accelerate launch -m pipelines.ablate --config {sweep.root / 'config.yaml'}"
    out = sweep.root / "report"
    options = ReportOptions(
        solved_threshold=sweep.base_config.compare.solved_threshold,
        commands=[command],
        config_text=to_yaml(sweep.config) + "\n# base configuration\n" + to_yaml(sweep.base_config),
        console=console,
    )
    write_sweep_comparison(sweep.root, out, options)
    console.print(f"table, figures and page: {out}", soft_wrap=True)
