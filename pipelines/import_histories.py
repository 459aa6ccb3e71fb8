"""Import histories made elsewhere into the file that `histories` names; a run then takes them.

`import_histories.source` and `import_histories.format` say what is imported; docs/data.md has the
formats and what must be stated of a file that does not say it itself. Nothing is guessed: what is
filled in is told, and kept in the file.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("import_histories")

import os
from dataclasses import asdict
from pathlib import Path

from histories.imports import import_histories
from histories.regions import MarkerRule
from pipelines.config import RunConfig
from pipelines.opening import open_tasks
from pipelines.stage import StageError


def main(config: RunConfig) -> None:
    """Run the stage."""
    if not config.histories:
        raise StageError(
            "histories is empty; give the file to write, for example histories=data/mine.h5, and "
            "let the run's configuration name it too."
        )
    if int(os.environ.get("RANK", "0")) > 0:  # one process writes
        return
    family, split = open_tasks(config)
    rule = MarkerRule(
        config.collect.marker_rule, config.region_len, config.collect.episodes_per_region
    )
    summary = import_histories(
        Path(config.histories),
        family,
        split,
        rule,
        config.import_histories,
        asdict(config.family),
    )
    if not summary.made:
        return _say(f"{summary.path} is done")
    for line in summary.told:
        _say(line)
    _say(
        f"{summary.path}: {summary.n_tasks} tasks, {summary.n_streams} streams, "
        f"{summary.n_transitions} transitions; `pipelines.doctor` looks at them"
    )


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201
