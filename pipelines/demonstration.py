"""What `pipelines.demo` shows: a model acts on a held-out task, episode by episode.

A film where environments draw pictures, or observations are cells of a grid. In the terminal paths
over that grid, else what the environment prints, else actions and what they were paid.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from nets.spaces import FieldSpec, field_spec
from pipelines.shown import Actor, DemoError, actor_of
from probes.traces import (
    PICTURES,
    Episode,
    cells_of,
    goal_cells,
    play,
    render_modes,
    shown_episodes,
)
from reports.film import captioned, grid_pictures, smaller, write_gif
from reports.terminal import LEGEND, bar, beside, moments, room, steps
from tasks.family import Task, TaskFamily

NO_FILM = (
    "\nno film: environments draw no pictures here, or lack what they draw with\n"
    "(gymnasium's classic ones: pip install '.[film]')"
)
BAR_WIDTH = 40
REST = 6  # frames a film stands still after an episode
MOST_FRAMES = 80  # of an episode in the film


def demonstrate(arguments: argparse.Namespace) -> None:
    """Act, and show it on the console.

    Raises:
        DemoError: There is no such model, task or number of episodes.
    """
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if arguments.episodes < 1:
        raise DemoError(f"--episodes is {arguments.episodes}, expected at least 1.")
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    actor = actor_of(
        Path(arguments.model),
        method=arguments.method,
        seed=arguments.training_seed,
        trust_model_code=arguments.trust_model_code,
    )
    family = actor.family
    task = _task(actor, arguments.task)
    best = family.optimal_return(task)
    bounds = f"random return {family.random_return(task):.2f}"
    bounds += "" if best is None else f", best possible {best:g}"
    console.print(f"{family.name}, {task.name}: held out in training.")
    console.print(textwrap.fill(f"{actor.title}.", 80))
    console.print(f"{bounds}\n")
    shown = shown_episodes(arguments.episodes)
    modes = render_modes(family, task)
    kept: list[Episode] = []
    lowest = min(0.0, family.random_return(task))
    highest = best
    for episode in play(
        actor.policy_for(task),
        family,
        task,
        n_episodes=arguments.episodes,
        seed=arguments.seed,
        shown=shown,
        modes=modes,
    ):
        highest = max(episode.total, lowest + 1.0 if highest is None else highest)
        most = highest if best is None else best
        line = bar(episode.total - lowest, most - lowest, BAR_WIDTH)
        console.print(f"episode {episode.number:3d} │{line}│ {episode.total:g}")
        if episode.number in shown:
            kept.append(episode)
    for line in told(kept, family, task):
        console.print(line)
    if PICTURES not in modes:
        draw(kept, family, task)
    if all(episode.frames for episode in kept):
        write_gif(Path(arguments.gif), film(kept))
        console.print(f"\nfilm: {arguments.gif}")
    else:
        console.print(NO_FILM)


def _task(actor: Actor, number: int | None) -> Task:
    if number is None:
        return min(actor.tasks, key=lambda task: actor.family.optimal_return(task) or 0.0)
    if not 1 <= number <= len(actor.tasks):
        raise DemoError(f"--task is {number}, expected 1 ... {len(actor.tasks)}, all held out.")
    return actor.tasks[number - 1]


def told(episodes: Sequence[Episode], family: TaskFamily, task: Task) -> list[str]:
    """Episodes as a terminal can show them, in the best of three ways."""
    if lines := paths(episodes, family, task):
        return lines
    lines = [""]
    for episode in episodes:
        name = f"ep. {episode.number}: {episode.total:g}"
        if episode.texts:
            lines += [name, *moments(episode.texts), ""]
        else:
            lines += [name, *steps(episode.actions, episode.rewards), ""]
    return lines[:-1]


def paths(episodes: Sequence[Episode], family: TaskFamily, task: Task) -> list[str]:
    """Episodes as paths over the grid; nothing unless observations are cells of one."""
    if (grid := _grid(family, task)) is None:
        return []
    spec, goal = grid
    blocks = {
        f"ep. {each.number}: {each.total:g}": room(_path(each, spec), spec.n_classes, goal)
        for each in episodes
    }
    return ["", LEGEND if goal else LEGEND.partition("   G")[0], "", *beside(blocks)]


def draw(episodes: Sequence[Episode], family: TaskFamily, task: Task) -> None:
    """Give episodes pictures of their own, where observations are cells of a grid."""
    if (grid := _grid(family, task)) is not None:
        spec, goal = grid
        for each in episodes:
            each.frames[:] = grid_pictures(_path(each, spec), spec.n_classes, goal)


def _grid(family: TaskFamily, task: Task) -> tuple[FieldSpec, list[int] | None] | None:
    """The grid whose cells observations are, and the task's goal in it if there is one."""
    spec = field_spec(family.observation_space, "observation")
    if len(spec.n_classes) != 2:
        return None
    goals = goal_cells(family.tasks(), spec)
    at = None if goals is None else np.unravel_index(goals[task.index], spec.n_classes)
    return spec, None if at is None else [int(axis) for axis in at]


def _path(episode: Episode, spec: FieldSpec) -> np.ndarray:
    """Cells (T + 1, 2)."""
    cells = cells_of(episode.observations, spec)
    return np.stack(np.unravel_index(np.asarray(cells), spec.n_classes), axis=-1)


def film(episodes: Sequence[Episode]) -> list[np.ndarray]:
    """Frames of episodes one after the other, each under its number and its return so far."""
    frames = []
    for episode in episodes:
        so_far = [0.0, *np.cumsum(episode.rewards)]
        n = len(episode.frames)
        for i in np.unique(np.linspace(0, n - 1, min(n, MOST_FRAMES)).round().astype(int)):
            caption = f"episode {episode.number}: return {so_far[i]:.4g}"
            frames.append(captioned([(caption, smaller(episode.frames[i]))]))
        frames += [frames[-1]] * REST
    return frames
