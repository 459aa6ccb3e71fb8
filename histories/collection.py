"""Collecting histories: many independent jobs over processes and ranks, resumable, then one file.

A job is one (task, style, source seed). The learners themselves are handed in.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from base.errors import UserError
from base.ranges import AtLeast, NonEmpty
from histories.curves import CURVES_NAME, write_learning_curves
from histories.regions import MarkerRule, RuleName
from histories.schema import SCHEMA_VERSION, History, check_history
from histories.store import HistoryFileError, assemble, open_histories, part_fingerprint, write_part
from tasks.family import Task, TaskFamily
from tasks.splits import SPLIT_PARTS, Split

HISTORIES_NAME = "histories.h5"


class CollectError(UserError):
    """Histories cannot be collected as asked."""


class Learner(Protocol):
    """Makes the history of one job; a top-level function or a partial of one, to be picklable."""

    def __call__(
        self,
        family: TaskFamily,
        task: Task,
        *,
        n_streams: int,
        n_regions: int,
        region_len: int,
        source_seed: int,
        marker_rule: MarkerRule,
    ) -> History:
        """Return a history of `n_streams` streams and `n_regions * region_len` transitions."""
        ...


@dataclass(frozen=True)
class CollectConfig:
    """What to collect for every task.

    Attributes:
        styles: Names of the learners handed to `collect`.
        source_seeds: One history per style and seed.
        n_streams: Streams per history.
        n_regions: Regions per stream.
        marker_rule: `rollout`, `fixed` or `episode`.
        episodes_per_region: Of the rule `episode`.
        n_workers: Processes on this machine; 0 for one per core.
    """

    styles: Annotated[tuple[str, ...], NonEmpty()] = ("ppo",)
    source_seeds: Annotated[tuple[Annotated[int, AtLeast(0)], ...], NonEmpty()] = (0,)
    n_streams: Annotated[int, AtLeast(1)] = 64
    n_regions: Annotated[int, AtLeast(1)] = 20
    marker_rule: RuleName = "rollout"
    episodes_per_region: Annotated[int, AtLeast(1)] = 4
    n_workers: Annotated[int, AtLeast(0)] = 0


@dataclass(frozen=True)
class CollectSettings(CollectConfig):
    """A collection's settings together with the region length it is cut by.

    Attributes:
        region_len: Transitions in a region; also the source algorithm's rollout.
    """

    region_len: Annotated[int, AtLeast(1)] = 80

    def rule(self) -> MarkerRule:
        """The marker rule; raises RegionError where the settings make none."""
        return MarkerRule(self.marker_rule, self.region_len, self.episodes_per_region)


@dataclass(frozen=True)
class CollectSummary:
    """What a call of `collect` did.

    Attributes:
        path: The assembled file; on ranks other than 0 it may not exist yet.
        n_jobs: Jobs of all ranks.
        n_done_before: Jobs of this rank found finished.
        n_env_steps: Environment steps made by this call.
        seconds: Wall clock of this call.
        warnings: Curves that collapsed or stayed flat, one line each; rank 0 only.
    """

    path: Path
    n_jobs: int
    n_done_before: int
    n_env_steps: int
    seconds: float
    warnings: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _Job:
    task: Task
    style: str
    source_seed: int
    path: Path
    fingerprint: str


def collect(
    family: TaskFamily,
    split: Split,
    settings: CollectSettings,
    out_dir: str | Path,
    learners: Mapping[str, Learner],
    *,
    family_settings: Mapping[str, Any] | None = None,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
    barrier: Callable[[], None] | None = None,
    poll_seconds: float = 2.0,
) -> CollectSummary:
    """Collect every job of a split and join them into `out_dir/histories.h5`.

    Jobs that are already done are not made again, so a killed run goes on where it stood. Each
    rank makes its share; rank 0 waits for the others' parts and assembles.

    Args:
        family: Of the tasks.
        split: All its tasks, of every part, are collected.
        settings: What to collect.
        out_dir: For `parts/`, `histories.h5` and `learning_curves.csv`.
        learners: A picklable function per style, see `Learner`.
        family_settings: JSON values written to the file, such as import path and arguments.
        rank: Of this machine.
        world_size: Number of machines that share `out_dir`.
        progress: Show a bar.
        barrier: Called when this rank's share is done; without it rank 0 polls for the parts.
        poll_seconds: Between two looks at the parts.

    Returns:
        A summary of this call.

    Raises:
        CollectError: `out_dir` holds parts made with other settings, a style has no learner, or
            a process died.
    """
    began = time.monotonic()
    out_dir = Path(out_dir)
    _check_settings(settings, learners)
    family_settings = dict(family_settings or {})
    jobs = _jobs(family, split, settings, learners, family_settings, out_dir / "parts")
    path, warnings = out_dir / HISTORIES_NAME, ()
    content_hash = _content_hash(jobs, split)
    assembled = _holds(path, content_hash)
    done = [assembled or _is_done(job) for job in jobs]  # looks at all: old settings end here
    mine = jobs[rank::world_size]
    todo = [
        job for job, is_done in list(zip(jobs, done, strict=True))[rank::world_size] if not is_done
    ]
    _run(family, settings, todo, learners, len(mine), progress)
    if barrier is not None:
        barrier()
    if rank == 0:
        while not (assembled or all(_is_done(job) for job in jobs)):
            time.sleep(poll_seconds)
        if not assembled:
            stored = {**asdict(settings), "content_hash": content_hash, "family": family_settings}
            _assemble_jobs(family, split, stored, jobs, path)
        warnings = tuple(write_learning_curves(path, out_dir / CURVES_NAME))
    seconds = time.monotonic() - began
    n_steps = len(todo) * _steps_per_job(settings)
    return CollectSummary(path, len(jobs), len(mine) - len(todo), n_steps, seconds, warnings)


def _check_settings(settings: CollectSettings, learners: Mapping[str, Learner]) -> None:
    settings.rule()
    for style in settings.styles:
        if style not in learners:
            raise CollectError(f"no learner for style {style!r}; known: {', '.join(learners)}")
    for name in ("n_streams", "n_regions"):
        if getattr(settings, name) < 1:
            raise CollectError(f"{name} must be at least 1, got {getattr(settings, name)}")


def _steps_per_job(settings: CollectSettings) -> int:
    return settings.n_streams * settings.n_regions * settings.region_len


def _jobs(
    family: TaskFamily,
    split: Split,
    settings: CollectSettings,
    learners: Mapping[str, Learner],
    family_settings: Mapping[str, Any],
    parts_dir: Path,
) -> list[_Job]:
    tasks = family.tasks()
    indices = sorted(index for part in SPLIT_PARTS for index in getattr(split, part))
    return [
        _Job(
            tasks[index],
            style,
            seed,
            parts_dir / f"{index:05d}-{style}-{seed}.h5",
            _fingerprint(tasks[index], settings, learners[style], family_settings),
        )
        for index in indices
        for style in settings.styles
        for seed in settings.source_seeds
    ]


def _fingerprint(
    task: Task,
    settings: CollectSettings,
    learner: Learner,
    family_settings: Mapping[str, Any],
) -> str:
    """Hash of all that a part depends on; a part's style and seed stand in its name."""
    shaping = ("n_streams", "n_regions", "region_len", "marker_rule", "episodes_per_region")
    content = {
        "schema_version": SCHEMA_VERSION,
        "task": task.key(),
        "family": dict(family_settings),
        "settings": {name: getattr(settings, name) for name in shaping},
        # A partial carries the source algorithm's configuration in its bound arguments.
        "learner": repr(sorted(getattr(learner, "keywords", {}).items())),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_done(job: _Job) -> bool:
    found = part_fingerprint(job.path)
    if found not in (None, job.fingerprint):
        raise CollectError(
            f"{job.path} was collected with other settings; "
            f"delete {job.path.parent} or choose another run directory"
        )
    return found is not None


def _make_part(family: TaskFamily, settings: CollectSettings, job: _Job, learner: Learner) -> None:
    history = learner(
        family,
        job.task,
        n_streams=settings.n_streams,
        n_regions=settings.n_regions,
        region_len=settings.region_len,
        source_seed=job.source_seed,
        marker_rule=settings.rule(),
    )
    check_history(history, family.observation_space, family.action_space)
    write_part(job.path, history, job.fingerprint)


def _one_thread() -> None:
    """In a worker: the networks are tiny, and workers together fill the cores."""
    import torch

    torch.set_num_threads(1)


def _run(
    family: TaskFamily,
    settings: CollectSettings,
    todo: list[_Job],
    learners: Mapping[str, Learner],
    n_jobs: int,
    progress: bool,
) -> None:
    """Make every part of `todo` and show how far it is among `n_jobs`."""
    if not todo:
        return
    with _progress_bar(progress) as bar:
        shown = bar.add_task("collect", total=n_jobs, completed=n_jobs - len(todo), speed=0.0)
        began = time.monotonic()
        for n_finished in _make_parts(family, settings, todo, learners):
            seconds = time.monotonic() - began
            bar.update(shown, advance=1, speed=n_finished * _steps_per_job(settings) / seconds)


def _make_parts(
    family: TaskFamily,
    settings: CollectSettings,
    todo: list[_Job],
    learners: Mapping[str, Learner],
) -> Iterator[int]:
    """Make the parts, yielding how many are made; one worker is this very process."""
    n_workers = min(settings.n_workers or os.cpu_count() or 1, len(todo))
    if n_workers == 1:
        for n_finished, job in enumerate(todo, start=1):
            _make_part(family, settings, job, learners[job.style])
            yield n_finished
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_workers, context, _one_thread) as pool:
        futures = [
            pool.submit(_make_part, family, settings, job, learners[job.style]) for job in todo
        ]
        n_finished = 0
        try:
            for n_finished, future in enumerate(as_completed(futures), start=1):
                future.result()
                yield n_finished
        except BrokenProcessPool as error:
            raise CollectError(
                f"a collecting process died at job {n_finished} of {len(todo)}, perhaps for want "
                "of memory; run again to go on, with a smaller n_workers if it recurs"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _progress_bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]:,.0f} steps/s"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=False),
        disable=not shown,
    )


def _content_hash(jobs: list[_Job], split: Split) -> str:
    """Hash of all that the assembled file depends on."""
    content = [split.identity, split.name]
    content += [f"{job.path.name} {job.fingerprint}" for job in jobs]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def _holds(path: Path, content_hash: str) -> bool:
    with contextlib.suppress(HistoryFileError), open_histories(path) as reader:
        return reader.settings.get("content_hash") == content_hash
    return False


def _assemble_jobs(
    family: TaskFamily, split: Split, stored: Mapping[str, Any], jobs: list[_Job], path: Path
) -> None:
    parts: dict[int, list[Path]] = {}
    for job in jobs:
        parts.setdefault(job.task.index, []).append(job.path)
    tasks = family.tasks()
    assemble(
        path,
        parts,
        tasks,
        family_name=family.name,
        observation_space=family.observation_space,
        action_space=family.action_space,
        split=split,
        settings=stored,
        references={
            index: (family.random_return(tasks[index]), family.optimal_return(tasks[index]))
            for index in parts
        },
    )
