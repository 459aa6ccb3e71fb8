"""What a source of histories is given and what it returns; who they are stands in `teacher`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from base.errors import UserError
from histories.regions import MarkerRule
from histories.schema import History
from tasks.family import Task, TaskFamily
from tasks.mixture import members_of


class SourceError(UserError):
    """A style has no source, or one that cannot make histories."""


@dataclass(frozen=True)
class SourceJob:
    """What one call of a source has to make: a history of every task.

    Attributes:
        family: Of the tasks.
        tasks: To learn; one history each, independent of each other.
        train: Indices of the split's training tasks, what a source with a prior may know.
        style: Name the histories bear.
        source_seed: Together with the tasks, seeds everything.
        n_streams: Copies of the environment per task, S.
        n_regions: Regions per stream.
        marker_rule: Where regions end; its `region_len` is also a learner's rollout.
        member: First task index of the family within a mixture that its tasks are from.
    """

    family: TaskFamily
    tasks: tuple[Task, ...]
    train: tuple[int, ...]
    style: str
    source_seed: int
    n_streams: int
    n_regions: int
    marker_rule: MarkerRule
    member: int = 0

    @property
    def region_len(self) -> int:
        """Transitions in a region, L."""
        return self.marker_rule.region_len

    @property
    def n_transitions(self) -> int:
        """Transitions per stream, T."""
        return self.n_regions * self.region_len

    @property
    def n_env_steps(self) -> int:
        """Environment steps of the whole job."""
        return len(self.tasks) * self.n_streams * self.n_transitions

    @property
    def seed(self) -> int:
        """One seed per source seed and tasks, so that no two jobs share their exploration."""
        entropy = [self.source_seed, *(self.member + task.index for task in self.tasks)]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)

    @property
    def train_tasks(self) -> tuple[Task, ...]:
        """The split's training tasks."""
        tasks = self.family.tasks()
        return tuple(tasks[index] for index in self.train)


@dataclass(frozen=True)
class Source:
    """Makes histories: `source(job)` is one `History` `(S, T, ...)` per task of the job.

    Attributes:
        function: A top-level function, to be picklable, of a job and the settings.
        settings: Its keyword arguments. Histories made with others are not the same.
        streams_per_job: Streams that one call should make together, as many tasks as fit into
            them; at least one.
        uses_split: Whether the histories depend on which tasks are training tasks.
        quick: Whether it may be done before a process for it has started.
    """

    function: Callable[..., list[History]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    streams_per_job: int = 1
    uses_split: bool = False
    quick: bool = False

    def __call__(self, job: SourceJob) -> list[History]:
        """Make the histories of a job."""
        return self.function(job, **self.settings)


def make_histories(source: Source, job: SourceJob) -> list[History]:
    """A history per task of a job; of a mixture, those of one family after the other.

    Raises:
        SourceError: The source returned something else than a history per task.
    """
    histories: dict[int, History] = {}
    for member in members_of(job.family, job.tasks):
        part = replace(
            job,
            family=member.family,
            tasks=member.tasks,
            train=member.own(job.train),
            member=member.offset,
        )
        found = source(part)
        n = len(found) if isinstance(found, list | tuple) else type(found).__name__
        if n != len(part.tasks):
            raise SourceError(
                f"the source of style {job.style!r} must return a list of {len(part.tasks)} "
                f"histories, one per task, got {n}"
            )
        histories |= zip(member.places.tolist(), found, strict=True)
    return [histories[place] for place in range(len(job.tasks))]
