"""Targets per second of S training seeds as one model, as ratios to one seed alone. Run by hand.

    python -m benchmarks.stacked
    python -m benchmarks.stacked --device cuda --seeds 1 5 20 --updates 200

Sizes of `configs/darkroom.yaml` and of a model an eighth as wide, random histories, whole updates
through `training.loop.fit` and `training.stacked.fit_together`. On a CPU seconds are those of the
processor, one thread; on a GPU those of the wall. Each round trains alone and in every stack; a
ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from ad.batches import SamplingConfig, TripleSource
from ad.decoder import DecoderConfig
from ad.losses import LossConfig
from ad.model import ModelConfig
from ad.objectives import ActionObjective
from ad.student import CADStudent
from ad.student_config import StudentConfig, StudentParts
from base.hashes import to_plain
from benchmarks.speed import ACTION, OBSERVATION, REGION_LEN
from benchmarks.windows import Histories, raw, student
from compression.compressor import CompressorConfig
from training.loop import fit
from training.optim import OptimConfig
from training.stacked import Member, fit_together


def narrow() -> ActionObjective:
    """Return the objective of a student whose time is calls more than arithmetic."""
    parts = StudentParts(
        ModelConfig(16, 2), CompressorConfig(n_latents=4), decoder=DecoderConfig(n_layers=2)
    )
    config = StudentConfig(OBSERVATION, ACTION, REGION_LEN, to_plain(parts))
    return ActionObjective(CADStudent(config), LossConfig())


MODELS: dict[str, tuple[Callable[[], torch.nn.Module], int]] = {
    "student of darkroom.yaml": (student, 24),
    "teacher of 2 regions": (lambda: raw("teacher.model:TeacherModel", 2), 24),
    "student of width 16": (narrow, 8),
}


def pace(
    make: Callable[[], torch.nn.Module],
    batch_size: int,
    n_seeds: int,
    updates: int,
    accelerator: Accelerator,
    table: Histories,
) -> float:
    """Targets per second of all seeds together."""
    config = OptimConfig(updates=updates, batch_size=batch_size, checkpoint_every=updates)
    with tempfile.TemporaryDirectory() as folder:
        members = []
        for seed in range(n_seeds):
            objective = make().to(accelerator.device)
            source = TripleSource(
                table,
                SamplingConfig(history_stride=1),
                batch_size=batch_size,
                n_context_regions=objective.n_context_regions,  # pyright: ignore
                seed=seed,
                device=accelerator.device,
            )
            stage_dir = Path(folder) / str(seed)
            members.append(Member(objective, source, stage_dir, accelerator, seed))
        targets = batch_size * REGION_LEN
        if n_seeds > 1:
            return fit_together(members, config, targets_per_update=targets)[0]["targets_per_s"]
        each = members[0]
        alone = fit(
            each.objective,
            each.batches,
            config,
            each.stage_dir,
            accelerator,
            seed=0,
            targets_per_update=targets,
        )
        return alone["targets_per_s"]


def main() -> None:
    """Measure everything and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; leave --device at cpu")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=options.device == "cpu")
    accelerator.print = lambda *_, **__: None  # the pace of each update is not wanted here
    histories = Histories.random()
    table = Table(title=f"training seeds as one model, {options.device}")
    for heading in ("what", "seeds", "ratio to one alone", "targets/s"):
        table.add_column(heading)
    counts = sorted({1, *options.seeds})
    for name, (make, batch_size) in MODELS.items():
        rounds = [
            [pace(make, batch_size, n, options.updates, accelerator, histories) for n in counts]
            for _ in range(options.rounds)
        ]
        for i, n in enumerate(counts):
            ratio = statistics.median(found[i] / found[0] for found in rounds)
            mean = statistics.median(found[i] for found in rounds)
            table.add_row(name, str(n), f"{ratio:.2f}", f"{mean:,.0f}")
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
