"""What `pipelines.demo` shows: a shipped student acts on a held-out task, episode by episode."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ad.policy import ContextPolicy
from ad.student import CADStudent
from base.errors import UserError
from nets.spaces import FieldSpec
from probes.traces import (
    Episode,
    cells_of,
    draws_pictures,
    goal_cells,
    play,
    shown_episodes,
)
from reports.film import captioned, write_gif
from reports.terminal import LEGEND, bar, beside, room
from tasks.family import FAMILIES, Task, TaskFamily, load_family
from tasks.splits import SplitError, make_split

BAR_WIDTH = 40
REST = 6  # frames a film stands still after an episode


class DemoError(UserError):
    """A demonstration that cannot be given."""


def demonstrate(arguments: argparse.Namespace) -> None:
    """Act, and show it on the console.

    Raises:
        DemoError: There is no such model, task or number of episodes.
    """
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if arguments.episodes < 1:
        raise DemoError(f"--episodes is {arguments.episodes}, expected at least 1.")
    torch.set_num_threads(1)
    student = load_shipped(Path(arguments.model), trust_model_code=arguments.trust_model_code)
    family = family_of(student, trust_model_code=arguments.trust_model_code)
    tasks = held_out_tasks(student, family)
    task = min(tasks, key=lambda task: family.optimal_return(task) or 0.0)
    if arguments.task is not None:
        if not 1 <= arguments.task <= len(tasks):
            raise DemoError(
                f"--task is {arguments.task}, expected 1 ... {len(tasks)}, all held out."
            )
        task = tasks[arguments.task - 1]
    temperature = student.config.provenance.get("temperature", 1.0)  # what it was judged at
    best, region_len = family.optimal_return(task), student.region_len
    console.print(
        f"{family.name}, {task.name}: held out in training. Weights frozen, actions\nsampled at "
        f"temperature {temperature:g}; context: {student.n_latents} latents of each of the last "
        f"{student.n_context_regions} x {region_len} steps,\nand the steps since.\n"
        f"random return {family.random_return(task):.2f}"
        + ("" if best is None else f", best possible {best:g}")
        + "\n"
    )
    shown = shown_episodes(arguments.episodes)
    pictures = draws_pictures(family)
    kept: list[Episode] = []
    highest = best
    for episode in play(
        ContextPolicy(student, temperature=temperature),
        family,
        task,
        n_episodes=arguments.episodes,
        seed=arguments.seed,
        shown=shown if pictures else (),
    ):
        highest = max(highest or 1.0, episode.total)
        line = bar(episode.total, best or highest, BAR_WIDTH)
        console.print(f"episode {episode.number:3d} │{line}│ {episode.total:g}")
        if episode.number in shown:
            kept.append(episode)
    for line in paths(kept, family, task, student):
        console.print(line)
    if pictures:
        write_gif(Path(arguments.gif), film(kept))
        console.print(f"\nfilm: {arguments.gif}")


def load_shipped(folder: Path, *, trust_model_code: bool = False) -> CADStudent:
    """Load a student by `from_pretrained`, on the CPU.

    Raises:
        DemoError: There is none.
        ModelError: It is damaged, or names code that is not trusted.
    """
    missing = [n for n in ("config.json", "model.safetensors") if not (folder / n).is_file()]
    if missing:
        raise DemoError(
            f"{folder} holds no shipped student ({' and '.join(missing)} missing); give its folder "
            "with --model, or ship one with pipelines.ship."
        )
    trust: Any = {"trust_model_code": trust_model_code}
    return CADStudent.from_pretrained(str(folder), local_files_only=True, **trust).eval()


def family_of(student: CADStudent, *, trust_model_code: bool = False) -> TaskFamily:
    """Build the family a student was trained on, from its provenance.

    Raises:
        DemoError: It is not named, or one of somebody's own that is not trusted.
        FamilyError: It cannot be built.
    """
    provenance = student.config.provenance
    target, kwargs = provenance.get("family"), provenance.get("family_kwargs") or {}
    if not (isinstance(target, str) and isinstance(kwargs, dict)):
        raise DemoError("the model's config.json names no family in its provenance; ship it again.")
    imports = target not in FAMILIES or ":" in str(kwargs.get("env_id", ""))
    if imports and not trust_model_code:
        raise DemoError(
            f"the model's config.json has the family {target!r} {kwargs or ''}, code of whoever "
            "saved it; read that code, and give --trust-model-code if you trust it."
        )
    return load_family(target, kwargs)


def held_out_tasks(student: CADStudent, family: TaskFamily) -> list[Task]:
    """Return the test tasks of the split a student was trained on.

    Raises:
        DemoError: Its provenance does not tell them.
    """
    provenance, tasks = student.config.provenance, family.tasks()
    settings = provenance.get("split_settings")
    try:
        if settings is None:  # the test tasks of a named split are known by its name
            name = provenance.get("split")
            split = make_split(tasks, seed=0, n_validation=0, named=name or "none")
        else:
            split = make_split(tasks, **settings)
            if split.identity != provenance.get("split_identity"):
                raise SplitError("they make another split than the one it was trained on")
    except SplitError as error:
        raise DemoError(
            f"the model's config.json does not tell its held-out tasks ({error}); ship it again."
        ) from error
    return [tasks[i] for i in split.test]


def paths(
    episodes: Sequence[Episode], family: TaskFamily, task: Task, student: CADStudent
) -> list[str]:
    """Draw episodes as paths over the grid; nothing unless observations are cells of one."""
    spec = FieldSpec.from_json(student.config.observation)
    if len(spec.n_classes) != 2:
        return []
    goals = goal_cells(family.tasks(), spec)
    goal = None if goals is None else np.unravel_index(goals[task.index], spec.n_classes)
    blocks = {}
    for episode in episodes:
        cells = cells_of(episode.observations, spec)
        path = np.stack(np.unravel_index(np.asarray(cells), spec.n_classes), axis=-1)
        name = f"ep. {episode.number}: {episode.total:g}"
        blocks[name] = room(path, spec.n_classes, None if goal is None else [int(g) for g in goal])
    return ["", LEGEND, "", *beside(blocks)]


def film(episodes: Sequence[Episode]) -> list[np.ndarray]:
    """Frames of episodes one after the other, each under its number and its return so far."""
    frames = []
    for episode in episodes:
        so_far = [0.0, *np.cumsum(episode.rewards)]
        frames += [
            captioned([(f"episode {episode.number}: return {total:g}", picture)])
            for total, picture in zip(so_far, episode.frames, strict=True)
        ]
        frames += [frames[-1]] * REST
    return frames
