"""Everything for one YAML: collect, build triples, train, evaluate, compare, all methods and seeds.

What is done is skipped, what was interrupted goes on. On one process, independent stages run side
by side in worker processes (`n_workers`); launched on several, each stage runs on all of them in
turn.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ad.evaluate import has_expert
from compression.compressor import compressor_class
from pipelines.cli import run_main
from pipelines.common import StageError, method_config, open_run
from pipelines.config import REFERENCES, RunConfig
from training.jobs import Job, run_jobs


def main(config: RunConfig) -> None:
    """Run every stage."""
    run = open_run(config, "run")
    run_stage("collect", config)
    run_stage("build_triples", config)
    references = REFERENCES if has_expert(run.family) else ("random",)
    jobs = [
        job for seed in config.seeds for job in seed_jobs(replace(config, seed=seed), references)
    ]
    if run.accelerator.num_processes > 1:
        for job in jobs:
            job.function(*job.args)
        run.accelerator.wait_for_everyone()
    else:
        results = run_jobs(jobs, _n_workers(config), Path(config.run_dir) / "logs")
        failed = [result.name for result in results if result.status != "finished"]
        if failed:
            raise StageError(
                f"{len(failed)} of {len(results)} stages did not finish: {', '.join(failed)}; see "
                f"{config.run_dir}/logs, mend the cause and run the same command again."
            )
    if run.accelerator.is_main_process:
        run_stage("compare", config)


def run_stage(module: str, config: RunConfig) -> None:
    """Run one stage in this process."""
    importlib.import_module(f"pipelines.{module}").main(config)


def seed_jobs(config: RunConfig, references: Sequence[str] = REFERENCES) -> list[Job]:
    """Return the jobs of one training seed, the longest chains first."""
    jobs: list[Job] = []

    def add(stage: str, method: str, after: tuple[str, ...] = ()) -> str:
        name = f"seed_{config.seed}/{method}/{stage}"
        jobs.append(Job(name, run_stage, (stage, replace(config, method=method)), after))
        return name

    trained = [config.distill, *([config.finetune] if config.finetune.enabled else [])]
    needs_teacher = any(stage.loss.beta > 0 for stage in trained)
    teacher: tuple[str, ...] = ()
    if "teacher" in config.methods or needs_teacher:
        teacher = (add("train_teacher", "teacher"),)
    students = [m for m in config.methods if m not in ("teacher", "long_context", *REFERENCES)]
    before: dict[str, tuple[str, ...]] = {}
    for method in students:
        own = method_config(replace(config, method=method))
        if config.pretrain.enabled and compressor_class(own.compressor.kind).learns:
            before[method] = (add("pretrain_compressor", method),)
    for method in students:
        last = add("distill", method, teacher + before.get(method, ()))
        if config.finetune.enabled:
            last = add("finetune", method, (last,))
        add("evaluate", method, (last,))
    if "teacher" in config.methods:
        add("evaluate", "teacher", teacher)
    if "long_context" in config.methods:
        trained = add("train_teacher", "long_context")
        add("evaluate", "long_context", (trained, *teacher))
    for reference in references:
        add("evaluate", reference)
    return jobs


def _n_workers(config: RunConfig) -> int:
    if config.n_workers:
        return config.n_workers
    if torch.cuda.is_available():
        return 1  # stages share the one GPU better in turn
    return os.cpu_count() or 1


if __name__ == "__main__":
    run_main(main)
