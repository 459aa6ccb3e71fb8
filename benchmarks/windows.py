"""Targets per processor-second of training, as ratios to one region a row. Run by hand.

    python -m benchmarks.windows

Sizes of `configs/darkroom.yaml`, histories of 8 regions of random fields, one torch thread; whole
updates: drawing, loss, gradients, clipping, AdamW. Each round times every variant once, by the
processor time of this process; a ratio is the median over rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
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
from benchmarks.speed import ACTION, OBSERVATION, REGION_LEN, random_triple
from compression.compressor import CompressorConfig
from compression.memory import MemoryConfig
from teacher.model import RawContextObjective, TeacherConfig, TeacherModelConfig, teacher_class
from training.optim import OptimConfig, build_optimizer

N_REGIONS, STREAMS, BATCH = 8, 64, 48
MODEL = ModelConfig(48, 4)
ROUNDS = 5


@dataclass
class Histories:
    """Regions of random fields, as `ad.batches.Table` wants them."""

    columns: dict[str, np.ndarray]
    region: np.ndarray
    stream: np.ndarray
    task: np.ndarray

    @classmethod
    def random(cls) -> Histories:
        """Draw them."""
        regions = vars(random_triple(N_REGIONS * STREAMS, 1).query)
        stream, region = np.indices((STREAMS, N_REGIONS)).reshape(2, -1)
        columns = {name: field.numpy() for name, field in regions.items()}
        return cls(columns, region, stream, np.zeros_like(region))


class Variant:
    """One way of training, an update at a time."""

    def __init__(self, name: str, objective: torch.nn.Module, table: Histories, window: int):
        self.name, self.objective, self.step = name, objective.train(), 0
        self.optimizer = build_optimizer(objective, OptimConfig())
        self.source = TripleSource(
            table,
            SamplingConfig(history_stride=1, window=window),
            batch_size=BATCH,
            n_context_regions=objective.n_context_regions,  # pyright: ignore
        )
        self.seconds: list[float] = []

    def update(self) -> None:
        """Do one, and note how long it took."""
        began = time.process_time()
        loss, _ = self.objective(self.source(self.step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.process_time() - began)
        self.step += 1


def student() -> ActionObjective:
    """Return a student's objective."""
    parts = StudentParts(
        MODEL,
        CompressorConfig(n_latents=8, n_layers=1, dropout=0.1),
        MemoryConfig("accumulate", 2),
        decoder=DecoderConfig(n_layers=3, dropout=0.1),
    )
    config = StudentConfig(OBSERVATION, ACTION, REGION_LEN, to_plain(parts))
    return ActionObjective(CADStudent(config), LossConfig())


def raw(target: str, n_regions: int) -> RawContextObjective:
    """Return the objective of a raw-context model."""
    settings = TeacherConfig(target, 6, n_regions, dropout=0.1)
    config = TeacherModelConfig(OBSERVATION, ACTION, REGION_LEN, asdict(MODEL), asdict(settings))
    model = teacher_class(target)(config)  # pyright: ignore
    return RawContextObjective(model, weights={"token_type_nll": 0.1})


def groups(table: Histories) -> list[list[Variant]]:
    """Return what is compared with the first of each group."""
    together, apart = "teacher.model:TeacherModel", "teacher.apart:RegionsApart"
    found = [[Variant(f"student, window {w}", student(), table, w) for w in (1, 4, 8)]]
    for n_regions in (2, 4):
        group = [Variant(f"teacher of {n_regions} regions", raw(together, n_regions), table, 1)]
        for window in (1, 4, 8):
            name = f"{n_regions} regions apart, window {window}"
            group.append(Variant(name, raw(apart, n_regions), table, window))
        found.append(group)
    return found


def main(rounds: int = ROUNDS) -> None:
    """Measure everything and print one table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = Table(title="training on actions, targets per processor-second")
    for heading in ("what", "ratio", "targets/s"):
        table.add_column(heading)
    for group in groups(Histories.random()):
        for _ in range(rounds + 1):
            for variant in group:
                variant.update()
        for variant in group:
            times = list(zip(group[0].seconds, variant.seconds, strict=True))[1:]  # one warms up
            ratio = statistics.median(first / own for first, own in times)
            pace = BATCH * REGION_LEN / statistics.median(own for _, own in times)
            table.add_row(variant.name, f"{ratio:.2f}", f"{pace:,.0f}")
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
