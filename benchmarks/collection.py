"""How fast histories are collected, as ratios against stable-baselines3's PPO in the same run.

    python -m benchmarks.collection

Seconds of the processor, one torch thread, Dark Room 9x9, as configs/darkroom.yaml collects it. For
PPO's two styles the learning curves stand beside the rates: a faster source is only one if it
learns alike. Last, what files cost beside the playing, where histories are many and short.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from histories.collection import CollectSettings, collect
from histories.regions import MarkerRule
from histories.schema import History
from histories.sources import SourceJob
from tasks.darkroom import DarkRoomFamily
from tasks.family import load_family
from tasks.splits import make_split
from teacher.noise_expert import NoiseConfig
from teacher.posterior_sampling import PosteriorConfig
from teacher.ppo_config import SourceConfig
from teacher.sources import SOURCES, make_sources

FAMILY = DarkRoomFamily()
GOALS = (4 * 9 + 2, 5 * 9 + 6, 7 * 9 + 2, 3 * 9 + 6, 1 * 9 + 4, 6 * 9 + 3, 2 * 9 + 2, 8 * 9 + 5)
N_STREAMS, N_REGIONS, REGION_LEN, N_SEEDS = 64, 20, 80, 1
SECTIONS = {
    "source": SourceConfig(clip_range=0.2),
    "noise": NoiseConfig(),
    "posterior": PosteriorConfig(),
}


def measured(style: str) -> tuple[float, np.ndarray]:
    """Environment steps per second, and mean share of the optimal return in each region."""
    source = make_sources([style], SECTIONS, {})[style]
    together = max(1, source.streams_per_job // N_STREAMS)
    tasks = [FAMILY.tasks()[index] for index in GOALS]
    histories, n_steps, began = list[History](), 0, time.process_time()
    for seed in range(N_SEEDS):
        rule = MarkerRule("rollout", REGION_LEN)
        train = tuple(range(len(FAMILY.tasks())))
        job = SourceJob(FAMILY, (), train, style, seed, N_STREAMS, N_REGIONS, rule)
        for first in range(0, len(tasks), together):
            own = replace(job, tasks=tuple(tasks[first : first + together]))
            histories += source(own)
            n_steps += own.n_env_steps
    rate = n_steps / (time.process_time() - began)
    best = np.array([FAMILY.optimal_return(task) for task in tasks] * N_SEEDS)
    rewards = np.stack([history.rewards for history in histories])
    episodes = rewards.reshape(*rewards.shape[:2], N_REGIONS, -1, FAMILY.episode_len).sum(-1)
    return rate, (episodes.mean((1, 3)) / best[:, None]).mean(0)


def whole_collection(n_tasks: int = 192) -> tuple[float, float]:
    """Milliseconds a task of a keyed bandit takes: its histories, and all that `collect` does."""
    styles, seconds = ("posterior_sampling", "noise_expert"), [0.0]
    kwargs = {"n_contexts": 16, "n_actions": 4, "n_tasks": n_tasks}
    family = load_family("tasks.bandits:KeyedBanditFamily", kwargs)

    def timed(function: Callable[..., list[History]]) -> Callable[..., list[History]]:
        def made(job: SourceJob, **settings: object) -> list[History]:
            began = time.process_time()
            histories = function(job, **settings)
            seconds[0] += time.process_time() - began
            return histories

        return made

    sources = make_sources(styles, SECTIONS, {})
    sources = {s: replace(source, function=timed(source.function)) for s, source in sources.items()}
    settings = CollectSettings(styles, n_streams=16, regions=dict.fromkeys(styles, 4))
    split = make_split(family.tasks(), seed=0, n_validation=32, n_test=64)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        collect(family, split, settings, Path(folder), sources, progress=False)
    return 1000 * seconds[0] / n_tasks, 1000 * (time.process_time() - began) / n_tasks


def main() -> None:
    """Measure every source that fits the room and print one table."""
    torch.set_num_threads(1)
    table = Table(title="relative to stable-baselines3's PPO; curve in % of the optimum")
    for heading in ("style", "ratio", "steps/s", "regions 1, 3, 5, 7, ..."):
        table.add_column(heading, no_wrap=True)
    reference = None
    for style in SOURCES:
        if style == "ucb":  # for Discrete observations
            continue
        rate, curve = measured(style)
        reference = reference or rate
        shown = " ".join(f"{100 * share:.0f}" for share in curve[::2])
        table.add_row(style, f"{rate / reference:.1f}", f"{rate:,.0f}", shown)
    Console(width=120).print(table)
    histories, everything = whole_collection()
    print(
        f"short histories, two a task: {histories:.1f} ms a task; with their files and curves "
        f"{everything:.1f} ms, {everything / histories:.1f} times as much"
    )


if __name__ == "__main__":
    main()
