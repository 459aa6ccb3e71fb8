"""Collecting histories: many independent jobs, resumable, shared out over ranks, then one file.

A history is of one (task, style, source seed); a job makes those of one task, or of several that a
source plays together, and writes them as one part. Sources, and where jobs run, are handed in.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from base.errors import UserError
from base.ranges import AtLeast, Between, Distinct, NonEmpty
from histories.curves import (
    CURVES_NAME,
    Curve,
    curve_warning,
    learning_curves,
    write_learning_curves,
)
from histories.regions import MarkerRule, RuleName
from histories.schema import SCHEMA_VERSION, check_history
from histories.sources import Source, SourceJob, make_histories
from histories.store import HistoryFileError, assemble, open_histories, part_fingerprint, write_part
from tasks.family import Task, TaskFamily
from tasks.splits import SPLIT_PARTS, Split

HISTORIES_NAME = "histories.h5"


class CollectError(UserError):
    """Histories cannot be collected as asked."""


@dataclass(frozen=True)
class CollectConfig:
    """What to collect for every task.

    Attributes:
        styles: Who makes histories: names of sources, `sb3:NAME`, or paths `module:function`.
        source_seeds: One history per style and seed.
        n_streams: Streams per history.
        n_regions: Regions per stream.
        streams: Other numbers of streams, by style.
        regions: Other numbers of regions, by style; a source that finds its task soon needs few.
        kwargs: Keyword arguments of sources without a section of their own, by style.
        marker_rule: `rollout`, `fixed` or `episode`.
        episodes_per_region: Of the rule `episode`.
        n_workers: Processes on this machine; 0 for one per core.
    """

    styles: Annotated[tuple[str, ...], NonEmpty(), Distinct()] = ("ppo",)
    source_seeds: Annotated[tuple[Annotated[int, AtLeast(0)], ...], NonEmpty(), Distinct()] = (0,)
    n_streams: Annotated[int, AtLeast(1)] = 64
    n_regions: Annotated[int, AtLeast(1)] = 20
    streams: dict[str, Annotated[int, AtLeast(1)]] = field(default_factory=dict)
    regions: dict[str, Annotated[int, AtLeast(1)]] = field(
        default_factory=lambda: {"posterior_sampling": 8}
    )
    kwargs: dict[str, dict[str, Any]] = field(default_factory=dict)
    marker_rule: RuleName = "rollout"
    episodes_per_region: Annotated[int, AtLeast(1)] = 4
    n_workers: Annotated[int, Between(0, 1024)] = 0


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

    def streams_of(self, style: str) -> int:
        """Streams in a history of a style."""
        return self.streams.get(style, self.n_streams)

    def regions_of(self, style: str) -> int:
        """Regions in a stream of a style."""
        return self.regions.get(style, self.n_regions)


@dataclass(frozen=True)
class CollectSummary:
    """What a call of `collect` did.

    Attributes:
        path: The assembled file; on ranks other than 0 it may not exist yet.
        n_jobs: Jobs of all ranks.
        n_done_before: Jobs of this rank found finished.
        n_env_steps: Environment steps made by this call.
        seconds: Wall clock of this call.
        curves: Learning curves of all histories; rank 0 only.
    """

    path: Path
    n_jobs: int
    n_done_before: int
    n_env_steps: int
    seconds: float
    curves: tuple[Curve, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """Curves that collapsed or stayed flat, one line each."""
        return [warning for curve in self.curves if (warning := curve_warning(curve))]


@dataclass(frozen=True)
class CollectJob:
    """One call of a source, and the file its histories go to.

    Attributes:
        name: Unique within a collection.
        source: To call.
        job: What to call it with.
        path: Of its part.
        made_from: Of each task, its history's name and a hash of all that it depends on.
    """

    name: str
    source: Source
    job: SourceJob
    path: Path
    made_from: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Of all that its histories depend on."""
        return _hash_of(self.made_from)

    def is_done(self) -> bool:
        """Whether its part is there; raises CollectError where that is of other settings."""
        found = part_fingerprint(self.path)
        if found not in (None, self.fingerprint):
            raise CollectError(
                f"{self.path} was collected with other settings; "
                f"delete {self.path.parent} or choose another run directory"
            )
        return found is not None


Run = Callable[[Sequence[CollectJob], Callable[[CollectJob], None]], None]
"""Runs jobs by `make_part` and tells of each that is finished."""


def make_part(job: CollectJob) -> None:
    """Make the histories of a job and write them.

    Raises:
        SourceError: The source returned something else than a history per task.
        HistoryError: A history does not fit the schema.
    """
    family, histories = job.job.family, make_histories(job.source, job.job)
    spaces = family.observation_space, family.action_space
    for history in histories:
        check_history(history, *spaces, episode_len=family.episode_len)
    indices = (task.index for task in job.job.tasks)
    write_part(job.path, dict(zip(indices, histories, strict=True)), job.fingerprint)


def one_after_another(jobs: Sequence[CollectJob], tell: Callable[[CollectJob], None]) -> None:
    """Run jobs in this very process."""
    for job in jobs:
        make_part(job)
        tell(job)


def collect(
    family: TaskFamily,
    split: Split,
    settings: CollectSettings,
    out_dir: str | Path,
    sources: Mapping[str, Source],
    *,
    run: Run = one_after_another,
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
        sources: One per style.
        run: Where the jobs run.
        family_settings: JSON values written to the file, such as import path and arguments.
        rank: Of this machine.
        world_size: Number of machines that share `out_dir`.
        progress: Show a bar.
        barrier: Called when this rank's share is done; without it rank 0 polls for the parts.
        poll_seconds: Between two looks at the parts.

    Returns:
        A summary of this call.

    Raises:
        CollectError: `out_dir` holds parts made with other settings, a style has no source, or
            a job failed.
    """
    began = time.monotonic()
    out_dir = Path(out_dir)
    _check_settings(settings, sources)
    family_settings = dict(family_settings or {})
    jobs = list(_jobs(family, split, settings, sources, family_settings, out_dir / "parts"))
    path, curves = out_dir / HISTORIES_NAME, ()
    content_hash = _hash_of(
        [split.identity, split.name, *(m for job in jobs for m in job.made_from)]
    )
    assembled = _holds(path, content_hash)
    done = [job.is_done() or assembled for job in jobs]  # looks at all: old settings end here
    mine = jobs[rank::world_size]
    todo = [job for job, is_done in zip(mine, done[rank::world_size], strict=True) if not is_done]
    n_mine, n_todo = _n_histories(mine), _n_histories(todo)
    if todo:
        with _progress_bar(progress) as bar:
            run(todo, _teller(bar, n_mine, n_todo))
    if barrier is not None:
        barrier()
    if rank == 0:
        while not (assembled or all(job.is_done() for job in jobs)):
            time.sleep(poll_seconds)
        if assembled:
            with open_histories(path) as reader:
                curves = tuple(learning_curves(reader))
        else:
            stored = {**asdict(settings), "content_hash": content_hash, "family": family_settings}
            curves = tuple(_assemble_parts(family, split, stored, jobs, path))
        write_learning_curves(curves, out_dir / CURVES_NAME)
    seconds = time.monotonic() - began
    n_steps = sum(job.job.n_env_steps for job in todo)
    return CollectSummary(path, _n_histories(jobs), n_mine - n_todo, n_steps, seconds, curves)


def _n_histories(jobs: Sequence[CollectJob]) -> int:
    return sum(len(job.made_from) for job in jobs)


def _check_settings(settings: CollectSettings, sources: Mapping[str, Source]) -> None:
    settings.rule()
    for style in settings.styles:
        if style not in sources:
            raise CollectError(
                f"collect.styles: no source for style {style!r}; known: {', '.join(sources)}"
            )
        for name, number in (
            ("streams", settings.streams_of(style)),
            ("regions", settings.regions_of(style)),
        ):
            if number < 1:
                raise CollectError(
                    f"collect: {name} of style {style!r} must be at least 1, got {number}"
                )


def _jobs(
    family: TaskFamily,
    split: Split,
    settings: CollectSettings,
    sources: Mapping[str, Source],
    family_settings: Mapping[str, Any],
    parts_dir: Path,
) -> Iterator[CollectJob]:
    every = family.tasks()
    tasks = [
        every[index] for index in sorted(i for part in SPLIT_PARTS for i in getattr(split, part))
    ]
    for style in settings.styles:
        source, n_streams = sources[style], settings.streams_of(style)
        train = [every[index].key() for index in split.train] if source.uses_split else None
        made_by = {"family": dict(family_settings), "train": train}
        made_by["settings"] = repr(sorted(source.settings.items()))
        made_by["shape"] = [n_streams, settings.regions_of(style), asdict(settings.rule())]
        together = max(1, source.streams_per_job // n_streams)
        for seed in settings.source_seeds:
            for first in range(0, len(tasks), together):
                own = tuple(tasks[first : first + together])
                name = f"{style}-{seed}-{own[0].index:05d}"
                yield CollectJob(
                    name,
                    source,
                    SourceJob(
                        *(family, own, split.train, style, seed, n_streams),
                        *(settings.regions_of(style), settings.rule()),
                    ),
                    parts_dir / f"{name}.h5",
                    tuple(_made_from(task, style, seed, made_by) for task in own),
                )


def _made_from(task: Task, style: str, seed: int, made_by: Mapping[str, Any]) -> str:
    """Name of a history, and a hash of all that it depends on but what stands in its name."""
    content = {"schema_version": SCHEMA_VERSION, "task": task.key(), **made_by}
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{task.index:05d}-{style}-{seed}.h5 {fingerprint}"


def _hash_of(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _teller(bar: Progress, n_parts: int, n_todo: int) -> Callable[[CollectJob], None]:
    """A function that shows how far the parts are when it is told of a finished job."""
    shown = bar.add_task("collect", total=n_parts, completed=n_parts - n_todo, speed=0.0)
    began, n_steps = time.monotonic(), 0

    def tell(job: CollectJob) -> None:
        nonlocal n_steps
        n_steps += job.job.n_env_steps
        speed = n_steps / max(time.monotonic() - began, 1e-9)
        bar.update(shown, advance=len(job.made_from), speed=speed)

    return tell


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


def _holds(path: Path, content_hash: str) -> bool:
    with contextlib.suppress(HistoryFileError), open_histories(path) as reader:
        return reader.settings.get("content_hash") == content_hash
    return False


def _assemble_parts(
    family: TaskFamily,
    split: Split,
    stored: Mapping[str, Any],
    jobs: Sequence[CollectJob],
    path: Path,
) -> list[Curve]:
    """Assemble the file; return its learning curves, in the order of `learning_curves`."""
    tasks, made = family.tasks(), dict[int, list[CollectJob]]()
    for job in jobs:
        for task in job.job.tasks:
            made.setdefault(task.index, []).append(job)
    references = {
        index: (family.random_return(tasks[index]), family.optimal_return(tasks[index]))
        for index in made
    }
    returns = assemble(
        path,
        {index: [job.path for job in own] for index, own in made.items()},
        tasks,
        family_name=family.name,
        observation_space=family.observation_space,
        action_space=family.action_space,
        split=split,
        settings=stored,
        references=references,
    )
    curves = []
    for index in sorted(made):
        name, part = tasks[index].name, split.part_of(index)
        for job, each in zip(made[index], returns[index], strict=True):
            labels = (index, name, part, job.job.style, job.job.source_seed)
            curves.append(Curve(*labels, each, *references[index]))
    return curves
