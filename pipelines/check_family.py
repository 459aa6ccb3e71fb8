"""Check a task family before hours are spent on it: one line per finding, nothing is written.

Looks at spaces, tasks and their parameters, split, autoreset, terminal observations, equal seeds,
references against what random and optimal actions really earn, and speed. Exit status 0 where
nothing has failed (warnings are no failure), else 2.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("check_family")

import math
import os
from dataclasses import asdict

from base.findings import any_failed, as_line, counted
from histories.collection import CollectSettings
from nets.spaces import field_spec
from pipelines.cli import USER_ERROR
from pipelines.common import split_settings
from pipelines.config import RunConfig
from tasks.family import TaskFamily, load_family
from tasks.family_check import Findings
from tasks.family_findings import Look, look_at, look_at_params, look_at_split
from tasks.splits import make_split

SPACES = "observation_space", "action_space"


def main(config: RunConfig) -> None:
    """Print every finding; raises SystemExit 2 where something has failed."""
    if os.environ.get("RANK", "0") != "0":
        return
    findings = Findings(tell=lambda finding: print(as_line(finding), flush=True))  # noqa: T201
    with findings.of("family"):
        _look(config, load_family(config.family.target, config.family.kwargs), findings)
    print(counted(findings.found))  # noqa: T201
    if any_failed(findings.found):
        raise SystemExit(USER_ERROR)


def _look(config: RunConfig, family: TaskFamily, findings: Findings) -> None:
    for name in SPACES:
        with findings.of(name.removesuffix("_space")):
            space = getattr(family, name)
            field_spec(space, f"{name}:")
            findings.ok(name.removesuffix("_space"), str(space))
    if findings.failed():
        return
    look = look_at(family, findings, by_source=config.evaluate.normalise == "source")
    if look.tasks:
        look_at_params(look.tasks, findings)
        with findings.of("split"):
            look_at_split(look.tasks, make_split(look.tasks, **split_settings(config)), findings)
        if math.isfinite(look.steps_per_s):
            findings.ok("speed", _speed(config, look))


def _speed(config: RunConfig, look: Look) -> str:
    """How fast the environments are, and what that means for collecting."""
    told = f"{_short(look.steps_per_s)} env steps/s"
    if config.histories:
        return told
    settings = CollectSettings(**asdict(config.collect), region_len=config.region_len)
    regions = sum(
        settings.streams_of(style) * settings.regions_of(style) for style in settings.styles
    )
    steps = regions * config.region_len * len(settings.source_seeds) * len(look.tasks)
    seconds = steps / look.steps_per_s
    return f"{told}; collecting {_short(steps)} takes {seconds:.0f} s a core"


def _short(number: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"
