"""Processor seconds until a stage begins its work, as ratios to `import torch` in the same run.

    python -m benchmarks.startup

Every row is a process of its own: what its command takes up to the point where it finds that the
stage before has not been run. User and system time; medians, and files read before. Run by hand.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

REPETITIONS = 3
CONFIG = "configs/quickstart.yaml"
STAGES = (
    "build_triples",
    "train_teacher",
    "pretrain_compressor",
    "distill",
    "finetune",
    "evaluate",
    "probe",
    "compare",
)


def processor_seconds(arguments: list[str]) -> float:
    """User and system seconds of a Python process, the median of several after a first one."""
    taken = []
    for _ in range(REPETITIONS + 1):
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        usage = os.wait4(process.pid, 0)[2]
        taken.append(usage.ru_utime + usage.ru_stime)
    return statistics.median(taken[1:])


def main() -> None:
    """Measure every stage and print one table."""
    os.environ["OMP_NUM_THREADS"] = "1"
    table = Table(title="processor seconds until the work begins")
    for heading in ("what", "ratio", "s"):
        table.add_column(heading, justify="right" if heading != "what" else "left")
    rows = {"import torch": ["-c", "import torch"]}
    rows["distill --help"] = ["-m", "pipelines.distill", "--help"]
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            run_dir = Path(folder) / stage
            run_dir.mkdir()
            command = ["-m", f"pipelines.{stage}", "--config", CONFIG, f"run_dir={run_dir}"]
            rows[stage] = command
        reference = None
        for name, arguments in rows.items():
            seconds = processor_seconds(arguments)
            reference = reference or seconds
            table.add_row(name, f"{seconds / reference:.2f}", f"{seconds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
