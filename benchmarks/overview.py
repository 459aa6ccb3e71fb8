"""What collecting, training, acting and a whole job cost, beside the nearest public predecessor.

    python -m benchmarks.overview --out docs/results/speed
    python -m benchmarks.overview --out docs/results/speed --job

The predecessor (github.com/tommyma3/Algorithm_Distillation) publishes returns and settings, no
speeds. So its settings are measured here in the same run: stable-baselines3's PPO with 100 streams,
20 steps, minibatches of 50, 20 epochs, in our faster environment; updates of 512 sequences of 160
tokens with one target each, through torch's own encoder of 4 layers of width 32; acting that
computes all 160 tokens anew at every step. Processor seconds of one torch thread; medians. Writes
<out>/overview.csv, or, with `--job`, adds to it configs/quickstart.yaml with student and teacher,
from nothing to its table, which takes minutes; the predecessor's job, the histories of 81 goals and
50,000 updates, is extrapolated from its paces in the file.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ad.policy import ContextPolicy
from ad.rollout import rollout
from base.files import atomic_file
from benchmarks.speed import REGION_LEN
from benchmarks.windows import BATCH, Histories, Variant, student
from histories.regions import MarkerRule
from histories.sources import SourceJob
from tasks.family import load_family
from teacher.posterior_sampling import PosteriorConfig
from teacher.ppo_config import SourceConfig
from teacher.sources import make_sources

STREAMS, ROUNDS = 128, 5
HEADINGS = ("what", "here", "its settings", "ratio")
THEIR_TOKENS, THEIR_WIDTH, THEIR_BATCH, THEIR_UPDATES = 160, 32, 512, 50_000
THEIR_HISTORIES = 81 * 100_000
"""Environment steps: every goal of the room."""
THEIR_PPO = SourceConfig(learning_rate=3e-4, batch_size=50, n_epochs=20, ent_coef=0.0)
OUR_PPO = SourceConfig(clip_range=0.2)


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: Is measured.
        unit: Of it; paces, of which more is better, are a second.
        here: Our figure.
        theirs: The same by the predecessor's settings.
    """

    what: str
    unit: str
    here: float
    theirs: float

    def cells(self) -> list[str]:
        """Return it as text; the ratio says how many times better ours is."""
        more = self.unit.endswith("/s")
        ratio = self.here / self.theirs if more else self.theirs / self.here
        figures = (f"{_figure(value)} {self.unit}" for value in (self.here, self.theirs))
        return [self.what, *figures, f"× {_figure(ratio)}"]


def _figure(value: float) -> str:
    """Three significant digits."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def median_seconds(work: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Median processor seconds of a call, after a first one."""
    taken = []
    for _ in range(rounds + 1):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return statistics.median(taken[1:])


def family() -> Any:
    """Return the 9x9 Dark Room."""
    return load_family("tasks.darkroom:DarkRoomFamily", {"size": 9, "horizon": 20})


def steps_per_second(
    style: str, config: Any, n_tasks: int, n_streams: int, n_regions: int, length: int
) -> float:
    """Return the pace of a source."""
    room = family()
    source = make_sources([style], {"source": config, "posterior": config}, {})[style]
    tasks, train = room.tasks()[:n_tasks], tuple(range(len(room.tasks())))
    rule = MarkerRule("rollout", length)
    job = SourceJob(room, tuple(tasks), train, style, 0, n_streams, n_regions, rule)
    return job.n_env_steps / median_seconds(lambda: source(job), rounds=1)


class TheirModel(nn.Module):
    """An encoder over 159 transitions and a query, read at its last token."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"dim_feedforward": 4 * THEIR_WIDTH, "activation": "gelu", "batch_first": True}
        self.embed = nn.Linear(10, THEIR_WIDTH)  # two observations of two, an action of five, r
        self.positions = nn.Parameter(torch.zeros(THEIR_TOKENS, THEIR_WIDTH))
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(THEIR_WIDTH, 4, **sizes), 4, enable_nested_tensor=False
        )
        self.action = nn.Linear(THEIR_WIDTH, 5)

    def forward(self, transitions: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 5) of transitions (B, T, 10)."""
        return self.action(self.layers(self.embed(transitions) + self.positions)[:, -1])


def their_update(model: TheirModel, optimizer: torch.optim.Optimizer) -> None:
    """Do one update on random numbers."""
    transitions = torch.rand(THEIR_BATCH, THEIR_TOKENS, 10)
    logits = model(transitions)
    nn.functional.cross_entropy(logits, torch.randint(5, (THEIR_BATCH,))).backward()
    optimizer.step()
    optimizer.zero_grad()


def measured() -> list[Row]:
    """Measure everything but the whole job."""
    search = PosteriorConfig(noise=0.1)
    played = steps_per_second("posterior_sampling", search, 16, 64, 8, REGION_LEN)
    learned = steps_per_second("ppo_batched", OUR_PPO, 8, 64, 3, REGION_LEN)
    theirs = steps_per_second("ppo", THEIR_PPO, 1, 100, 5, 20)
    model = TheirModel()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    their_targets = THEIR_BATCH / median_seconds(lambda: their_update(model, optimizer), 2)
    ours = Variant("student", student(), Histories.random(), 1)
    targets = BATCH * REGION_LEN / median_seconds(ours.update)
    policy = ContextPolicy(student().student)
    room = family()
    streams = list(room.tasks())[:8] * (STREAMS // 8)
    n_episodes = 3 * REGION_LEN // room.episode_len  # to the third region, two in memory
    playing = median_seconds(
        lambda: rollout(policy, room, streams, n_episodes=n_episodes, seed=0), 2
    )
    window = torch.rand(STREAMS, THEIR_TOKENS, 10)
    act = torch.inference_mode()(model.eval().forward)
    acting = 1000 * playing / (3 * REGION_LEN), 1000 * median_seconds(lambda: act(window))
    return [
        Row("collecting by posterior sampling", "steps/s", played, theirs),
        Row("collecting by PPO", "steps/s", learned, theirs),
        Row("training on recorded actions", "targets/s", targets, their_targets),
        Row(f"acting, a step of {STREAMS} streams", "ms", *acting),
        Row("context, a stream", "bytes", policy.context_bytes, 4 * THEIR_TOKENS * THEIR_WIDTH),
    ]


def whole_job(known: list[list[str]]) -> Row:
    """Run the quickstart with student and teacher; extrapolate the predecessor's job."""
    paces = {row[0]: float(row[2].partition(" ")[0].replace(",", "")) for row in known}
    theirs = THEIR_HISTORIES / paces["collecting by PPO"]
    theirs += THEIR_UPDATES * THEIR_BATCH / paces["training on recorded actions"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipelines.run", "--config", "configs/quickstart.yaml"]
        settings = [f"run_dir={folder}/run", "methods=[student,teacher]", "n_workers=1"]
        subprocess.run([*command, *settings], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    ours = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Row("whole job", "minutes", ours / 60, theirs / 60)


def main() -> None:
    """Measure, print one table and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the CSV file")
    parser.add_argument("--job", action="store_true", help="add the quickstart, for minutes")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = options.out / "overview.csv"
    if options.job:
        with path.open(newline="") as file:
            _, *known = csv.reader(file)
        cells = [*known, whole_job(known).cells()]
    else:
        cells = [row.cells() for row in measured()]
    table = Table(title="one processor core")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in cells:
        table.add_row(*row)
    Console().print(table)
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([HEADINGS, *cells])


if __name__ == "__main__":
    main()
