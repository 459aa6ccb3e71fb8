"""Cut histories into regions and write one Arrow table per part of the task split.

A row is one region of one stream; a triple (X, q, Y) is two rows of a stream. Output:
<run_dir>/triples/{train,validation,test}/.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("build_triples")

import time
from pathlib import Path

from histories.collection import HISTORIES_NAME
from histories.triples import build_triples
from pipelines.config import RunConfig
from pipelines.opening import open_run
from pipelines.stages import STAGES
from training.run_dir import mark_done, stage_done


def main(config: RunConfig) -> None:
    """Run the stage."""
    run = open_run(config, "build_triples")
    folder, inputs = run.folder("build_triples"), run.inputs_of("build_triples")
    if stage_done(folder, inputs):
        run.say(f"{folder} is done")
        return
    run.parents("build_triples")
    histories = Path(config.histories or run.folder("collect") / HISTORIES_NAME)
    started = time.perf_counter()
    if run.accelerator.is_main_process:
        summary = build_triples(
            histories, folder, family=run.family, split=run.split, region_len=config.region_len
        )
        mark_done(
            folder,
            "build_triples",
            inputs,
            results=STAGES["build_triples"].results,
            seconds=time.perf_counter() - started,
            split_identity=run.split.identity,
        )
        rows = ", ".join(f"{part} {n}" for part, n in summary.n_rows.items())
        run.say(f"{folder}: regions of {config.region_len} transitions: {rows}")
    run.accelerator.wait_for_everyone()
