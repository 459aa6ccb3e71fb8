"""Cut histories into regions and write one Arrow table per part of the task split.

A row is one region of one stream; a triple (X, q, Y) is two rows of a stream. Output:
<run_dir>/triples/{train,validation,test}/.
"""

from __future__ import annotations

import time
from pathlib import Path

from histories.collection import HISTORIES_NAME
from histories.triples import build_triples
from pipelines.cli import run_main
from pipelines.collect import collect_sections
from pipelines.common import inputs_hash, open_run
from pipelines.config import RunConfig
from tasks.splits import Split
from training.run_dir import mark_done, stage_done


def main(config: RunConfig) -> None:
    """Run the stage."""
    run = open_run(config, "build_triples")
    inputs = inputs_hash(triples_sections(config, run.split), {})
    if config.histories:
        histories = Path(config.histories)
    else:
        run.require(run.collect_dir, "collect")
        histories = run.collect_dir / HISTORIES_NAME
    if stage_done(run.triples_dir, inputs):
        run.say(f"{run.triples_dir} is done")
        return
    started = time.perf_counter()
    if run.accelerator.is_main_process:
        summary = build_triples(
            histories, run.triples_dir, split=run.split, region_len=config.region_len
        )
        mark_done(
            run.triples_dir,
            "build_triples",
            inputs,
            seconds=time.perf_counter() - started,
            split_identity=run.split.identity,
        )
        rows = ", ".join(f"{part} {n}" for part, n in summary.n_rows.items())
        run.say(f"{run.triples_dir}: regions of {config.region_len} transitions: {rows}")
    run.accelerator.wait_for_everyone()


def triples_sections(config: RunConfig, split: Split) -> dict:
    """Configuration the tables depend on."""
    return {**collect_sections(config, split), "region_len": config.region_len}


if __name__ == "__main__":
    run_main(main)
