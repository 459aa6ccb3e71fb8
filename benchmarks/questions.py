"""Updates of models that see a step alone, asked about every observation once or at every step.

    python -m benchmarks.questions

Models, losses and batches of shipped configurations, random fields, one torch thread; whole
updates without drawing: loss, gradients, clipping, AdamW. Each round times both ways once, by the
processor time of this process; a ratio is the median over rounds.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from ad.model import Triple
from ad.objectives import ActionObjective
from benchmarks.speed import random_triple
from nets.spaces import field_spec
from pipelines.common import Run
from pipelines.config import RunConfig
from pipelines.models import build_model
from pipelines.opening import open_tasks
from teacher.model import RawContextObjective
from training.config import load_config
from training.optim import OptimConfig, build_optimizer

FAMILIES = ("keyed_bandit", "keyed_bandit_128", "random_mdp_recall", "permuted_room")
ROUNDS = 7


class Way:
    """One objective, an update at a time."""

    def __init__(self, objective: ActionObjective | RawContextObjective, *, once: bool) -> None:
        self.objective = objective.train()
        if not once:
            objective.questions.observations = None
        self.optimizer = build_optimizer(objective, OptimConfig())
        self.seconds: list[float] = []

    def update(self, batch: Triple) -> None:
        """Do one, and note how long it took."""
        began = time.process_time()
        self.objective(batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.process_time() - began)


def objective_of(
    config: RunConfig, run: Run, method: str
) -> tuple[ActionObjective | RawContextObjective, int]:
    """Return what a method of a run is trained by, and its batch."""
    model = build_model(replace(run, config=replace(config, method=method)))
    if method == "teacher":
        return RawContextObjective(model), config.train_teacher.optim.batch_size
    teacher = build_model(replace(run, config=replace(config, method="teacher"))).eval()
    return ActionObjective(model, config.distill.loss, teacher), config.distill.optim.batch_size


def main(rounds: int = ROUNDS) -> None:
    """Measure everything and print one table."""
    torch.set_num_threads(1)
    table = Table(title="an update, processor seconds")
    for heading in ("family", "observations", "steps", "model", "every step", "once", "ratio"):
        table.add_column(heading)
    for name in FAMILIES:
        config = load_config(RunConfig, f"configs/families/{name}.yaml")
        family, split = open_tasks(config)
        run = Run(config, Path(), family, split, Accelerator(cpu=True))
        observation = field_spec(family.observation_space, "observation")
        fields = {"observation": observation, "action": field_spec(family.action_space, "action")}
        for method in ("student", "teacher"):
            ways = []
            for once in (False, True):
                torch.manual_seed(0)
                objective, size = objective_of(config, run, method)
                ways.append(Way(objective, once=once))
            for _ in range(rounds + 1):
                batch = random_triple(size, 1, **fields, region_len=config.region_len)
                for way in ways:
                    way.update(batch)
            plain, once = (way.seconds[1:] for way in ways)  # the first warms up
            ratio = statistics.median(a / b for a, b in zip(plain, once, strict=True))
            table.add_row(
                name,
                str(math.prod(observation.n_classes)),
                str(config.region_len),
                method,
                *(f"{statistics.median(times):.3f}" for times in (plain, once)),
                f"{ratio:.2f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
