"""Look at histories before training on them: one line per finding, nothing is written.

Takes the file that `histories` names, else the run's own collect/histories.h5: values, tasks and
splits, markers, last observations, actions, rewards, and whether curves rise. Exit status 0 where
nothing has failed (warnings are no failure), else 2.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("doctor")

import os
from collections.abc import Iterator
from pathlib import Path

from base.findings import Finding, any_failed, as_line, counted
from histories.doctor import examine
from pipelines.cli import USER_ERROR
from pipelines.common import histories_file, split_settings
from pipelines.config import RunConfig
from tasks.family import load_family
from tasks.splits import SplitError, make_split


def main(config: RunConfig) -> None:
    """Print every finding; raises SystemExit 2 where something has failed."""
    if int(os.environ.get("RANK", "0")) > 0:  # one process tells
        return
    path = histories_file(config)
    print(path, flush=True)  # noqa: T201
    found: list[Finding] = []
    for finding in _findings(config, path):
        print(as_line(finding), flush=True)  # noqa: T201
        found.append(finding)
    print(counted(found))  # noqa: T201
    if any_failed(found):
        raise SystemExit(USER_ERROR)


def _findings(config: RunConfig, path: Path) -> Iterator[Finding]:
    family = load_family(config.family.target, config.family.kwargs)
    try:
        split = make_split(family.tasks(), **split_settings(config))
    except SplitError as error:
        yield Finding("failure", "split", str(error))
        return
    yield from examine(path, family, split, config.region_len, config.collect.marker_rule)
