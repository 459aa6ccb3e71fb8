"""What raw contexts cost beside latents, and what they return: one table. Run by hand.

    python -m benchmarks.raw_contexts --config configs/raw_contexts.yaml --out table.csv

Models of the run's sizes are measured untrained, as weights change no cost, on random batches and
observations; in processor time of one thread, so that other programs do not count, and turn about,
so that a machine that slows down does so for all. Returns are those of the run, where it has been
evaluated. Dark Room alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from ad.losses import LossConfig
from ad.objectives import ActionObjective
from benchmarks.speed import random_triple
from pipelines.config import RunConfig
from pipelines.models import build_model, policy_of
from pipelines.opening import open_run
from pipelines.stages import N_STREAMS, STAGES, evaluated
from probes.cost import acting_cost
from reports.files import write_csv
from teacher.model import RawContextObjective
from training.config import load_config
from training.metrics import training_bytes

METHODS = ("student", "previous_region", "whole_history")
HEADER = (
    *("method", "context_tokens", "context_bytes", "train_peak_mb", "ms_per_update"),
    *("ms_per_action", "n_parameters_acting", "mean"),
)
ROUNDS = 5


def main() -> None:
    """Measure every method and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(RunConfig, given.config, given.overrides)
    run = open_run(config, "cost")
    batch_size = config.distill.optim.batch_size
    models, objectives, batches = {}, {}, {}
    for name in METHODS:
        torch.manual_seed(0)
        models[name] = model = build_model(run.of(name))
        student = name == "student"
        objective = ActionObjective(model, LossConfig()) if student else RawContextObjective(model)
        objectives[name] = objective.train()
        batches[name] = random_triple(batch_size, model.n_context_regions)
    updates = {name: [] for name in METHODS}
    for _ in range(ROUNDS + 1):
        for name in METHODS:
            updates[name].append(_update(objectives[name], batches[name]))
    rows = []
    for name in METHODS:
        memory = training_bytes(objectives[name], batches[name]) / 2**20
        n_regions = max(models[n].n_context_regions for n in METHODS)
        policy = policy_of(models[name], run, temperature=1.0)
        costs = [
            acting_cost(policy, run.family, history_regions=n_regions, n_streams=N_STREAMS)
            for _ in range(3)
        ]
        per_action = statistics.median(
            c.ms_per_action + c.ms_per_region / config.region_len for c in costs
        )
        rows.append(
            (
                name,
                policy.context_tokens,
                costs[0].context_bytes,
                memory,
                statistics.median(updates[name][1:]),
                per_action,
                models[name].n_acting_parameters,
                _returned(run.of(name)),
            )
        )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(given.out, HEADER, rows)


def _update(objective: torch.nn.Module, batch: object) -> float:
    """Milliseconds of processor time of a loss and its gradients."""
    began = time.process_time()
    objective.zero_grad()
    objective(batch)[0].backward()
    return 1000 * (time.process_time() - began)


def _returned(run: object) -> float | None:
    """Normalised return of the last episodes, None where it has not been evaluated."""
    config = run.config
    folder = (
        run.root / STAGES["evaluate"].folders(config)[evaluated(config.method).index(config.method)]
    )
    path = folder / "metrics.json"
    return json.loads(path.read_text())["normalized_final"] if path.exists() else None


if __name__ == "__main__":
    main()
