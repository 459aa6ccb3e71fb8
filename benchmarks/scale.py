"""Memory of collecting, cutting and training on histories that need not fit in it. Run by hand.

    python -m benchmarks.scale
    python -m benchmarks.scale --tasks 25 100 400 --steps 1000000 --folder /data/scale

A keyed bandit of more and more tasks, each with the same number of steps, through the functions
that the stages call, every phase in a process of its own. Peak memory is that of the process
itself (anonymous pages); pages of mapped files are left out, for the system takes them back when
it needs them. Ratios are to the smallest number of tasks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

REGION_LEN, STREAMS = 80, 64
PHASES = ("start", "collect", "cut", "train")


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon; this needs Linux")


def peak_of(work: Callable[[], None]) -> tuple[float, int]:
    """Processor seconds of some work, and the most memory the process had meanwhile."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            peak[0] = max(peak[0], anonymous_bytes())
            over.wait(0.005)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began = time.process_time()
    work()
    seconds = time.process_time() - began
    over.set()
    watcher.join()
    return seconds, max(peak[0], anonymous_bytes())


def phase(name: str, n_tasks: int, n_steps: int, folder: Path) -> None:
    """Do one phase and print what it took."""
    import torch

    from ad.batches import SamplingConfig, TripleSource
    from ad.losses import LossConfig
    from ad.objectives import ActionObjective
    from ad.student import CADStudent
    from ad.student_config import StudentConfig
    from histories.collection import CollectSettings, collect
    from histories.table import RegionTable
    from histories.triples import build_triples
    from nets.spaces import field_spec
    from tasks.family import load_family
    from tasks.splits import make_split
    from teacher.posterior_sampling import PosteriorConfig
    from teacher.sources import make_sources

    torch.set_num_threads(1)
    style = "posterior_sampling"
    kwargs = {"n_contexts": 16, "n_actions": 4, "n_tasks": n_tasks}
    family = load_family("tasks.bandits:KeyedBanditFamily", kwargs)
    split = make_split(family.tasks(), seed=0, n_validation=1, n_test=1)

    def collecting() -> None:
        regions = {style: max(1, n_steps // (STREAMS * REGION_LEN))}
        settings = CollectSettings(
            styles=(style,), n_streams=STREAMS, regions=regions, region_len=REGION_LEN
        )
        sources = make_sources([style], {"posterior": PosteriorConfig()}, {})
        collect(family, split, settings, folder, sources, progress=False)

    def cutting() -> None:
        build_triples(folder / "histories.h5", folder / "triples", family=family, split=split)

    def training() -> None:
        table = RegionTable.load(folder / "triples/train")
        observation = field_spec(family.observation_space, "observation").to_json()
        action = field_spec(family.action_space, "action").to_json()
        student = CADStudent(StudentConfig(observation, action, REGION_LEN))
        objective = ActionObjective(student, LossConfig())
        batches = TripleSource(table, SamplingConfig(), batch_size=16)
        optimizer = torch.optim.AdamW(objective.parameters())
        for step in range(10):
            objective(batches(step))[0].backward()
            optimizer.step()
            optimizer.zero_grad()

    work = {"start": lambda: None, "collect": collecting, "cut": cutting, "train": training}
    seconds, peak = peak_of(work[name])
    print(json.dumps({"seconds": seconds, "peak": peak}))


def measured(name: str, n_tasks: int, n_steps: int, folder: Path) -> dict[str, float]:
    """Do one phase in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--phase", name]
    command += ["--tasks", str(n_tasks), "--steps", str(n_steps), "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure every phase at every size and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--steps", type=int, default=102_400)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--phase", choices=PHASES, default=None)
    options = parser.parse_args()
    if options.phase is not None:
        return phase(options.phase, options.tasks[0], options.steps, options.folder)
    table = Table(title=f"{options.steps:,} steps a task")
    headings = ("tasks", "phase", "MB on disk", "peak MB", "ratio", "s", "bytes a step")
    for heading in headings:
        table.add_column(heading)
    least: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        for n_tasks in sorted(options.tasks):
            folder = Path(root) / str(n_tasks)
            for name in PHASES:
                found = measured(name, n_tasks, options.steps, folder)
                made = {"collect": folder / "histories.h5", "cut": folder / "triples"}.get(name)
                files = [] if made is None else [made, *made.rglob("*")]
                size = sum(path.stat().st_size for path in files if path.is_file())
                peak = found["peak"] / 2**20
                ratio = peak / least.setdefault(name, peak)
                shown = f"{size / 2**20:,.0f}" if size else ""
                each = f"{size / (n_tasks * options.steps):.2f}" if size else ""
                seconds = f"{found['seconds']:.1f}"
                table.add_row(
                    str(n_tasks), name, shown, f"{peak:,.0f}", f"{ratio:.2f}", seconds, each
                )
            table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
