"""What torch.compile and bf16 make of a training update, as ratios to the plain one. By hand.

    python -m benchmarks.compiled

Sizes of `configs/darkroom.yaml` as in `benchmarks.windows`, whole updates, processor time of one
torch thread; the first update, which compiles, is left out of the ratio. Needs a C++ compiler.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.windows import ROUNDS, Histories, Variant, raw, student


class Autocast(torch.nn.Module):
    """An objective whose products are taken in bf16."""

    def __init__(self, objective: torch.nn.Module) -> None:
        super().__init__()
        self.objective = objective
        self.n_context_regions = objective.n_context_regions

    def forward(self, triple: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return what the objective returns."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.objective(triple)


def main(rounds: int = ROUNDS) -> None:
    """Measure everything and print one table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    histories = Histories.random()
    table = Table(title="one update of training, processor time")
    for heading in ("what", "ratio to plain", "first update, s"):
        table.add_column(heading)
    teacher = partial(raw, "teacher.model:TeacherModel", 2)
    makers = {"student": student, "teacher of 2 regions": teacher}
    for name, make in makers.items():
        ways = {
            "plain": make(),
            "torch.compile": torch.compile(make()),
            "bf16": Autocast(make()),
        }
        group = [Variant(f"{name}, {way}", model, histories, 1) for way, model in ways.items()]
        for _ in range(rounds + 2):
            for variant in group:
                variant.update()
        for variant in group:
            times = list(zip(group[0].seconds, variant.seconds, strict=True))[2:]
            ratio = statistics.median(plain / own for plain, own in times)
            table.add_row(variant.name, f"{ratio:.2f}", f"{variant.seconds[0]:.1f}")
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
