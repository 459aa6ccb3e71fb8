"""Export histories for others: as a `datasets` folder (a row per episode) or as Minari datasets.

Takes the file that `histories` names, else the run's own collect/histories.h5, and writes
`export_histories.target`. `pipelines.import_histories` reads both back, value for value.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("export_histories")

import os
from typing import Any

from histories.exports import export_histories
from pipelines.common import histories_file
from pipelines.config import RunConfig
from tasks.family import Task, load_family


def main(config: RunConfig) -> None:
    """Run the stage."""
    if int(os.environ.get("RANK", "0")) > 0:  # one process writes
        return
    path, settings = histories_file(config), config.export_histories
    family = load_family(config.family.target, config.family.kwargs)

    def spec_of(task: Task) -> Any:
        env = family.make_env(task)
        spec = env.spec
        env.close()
        return spec

    export_histories(path, settings, spec_of)
    print(f"{path} as {settings.format}: {settings.target}", flush=True)  # noqa: T201
