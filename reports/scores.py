"""All results of one method, stacked over its training seeds, in the units tables speak of.

Shape letters: S training seeds, T tasks, T' tasks with references, V evaluation seeds, K in-context
episodes. A cell is one (training seed, task); a stream is one (training seed, task, evaluation
seed).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reports import statistics
from reports.records import (
    BASELINE,
    CONTROL,
    RAW_CONTEXT,
    REFERENCE,
    SEARCH,
    STUDENT,
    TEACHER,
    MethodRecord,
    is_point,
    title_of,
)
from reports.result_files import EvaluationResult
from reports.results import group_by_label

Floats = NDArray[np.float64]
NO_SEED = -1
"""Stands for the training seed of a rollout, which has none."""

SECTIONS = {
    STUDENT: 0,
    TEACHER: 1,
    RAW_CONTEXT: 1,
    BASELINE: 2,
    CONTROL: 3,
    REFERENCE: 6,
    SEARCH: 7,
}
POINT_SECTION, POINT_CONTROL_SECTION = 4, 5


@dataclass(frozen=True)
class MethodScores:
    """All results of one method, stacked over its training seeds.

    Attributes:
        label: method, method@run, or a sweep's method@setting.
        results: S results, one per training seed.
    """

    label: str
    results: tuple[EvaluationResult, ...]

    @property
    def record(self) -> MethodRecord:
        """What the method says of itself."""
        return self.results[0].record

    @property
    def method(self) -> str:
        """The method without the run's name."""
        return self.record.name

    @property
    def title(self) -> str:
        """What figures and tables call it."""
        return title_of(self.label, self.record)

    @property
    def is_point(self) -> bool:
        """Whether this is a point of a sweep."""
        return is_point(self.label)

    @property
    def is_ours(self) -> bool:
        """Whether this is the student itself, which figures and tables set off."""
        return self.record.group == STUDENT and self.label == self.method

    @property
    def section(self) -> int:
        """The section of a table it stands in; a rule divides them."""
        return section(self.results[0])

    @property
    def seeds(self) -> list[int]:
        """Training seeds, `(S,)`; -1 for a rollout, which has none."""
        return [NO_SEED if r.training_seed is None else r.training_seed for r in self.results]

    @property
    def n_episodes(self) -> int:
        """In-context episodes, K."""
        return self.results[0].returns.shape[-1]

    @property
    def final_episodes(self) -> int:
        """How many of the last episodes count as final."""
        return self.results[0].final_episodes

    @cached_property
    def returns(self) -> Floats:
        """`(S, T, V, K)`."""
        return np.stack([result.returns for result in self.results])

    @cached_property
    def all_normalized(self) -> Floats:
        """`(S, T, V, K)`, nan for tasks without references."""
        first = self.results[0]
        references = (first.random_returns[:, None, None], first.best_returns[:, None, None])
        return statistics.normalized_return(self.returns, *references)

    @cached_property
    def has_reference(self) -> NDArray[np.bool_]:
        """`(T,)`, False where returns cannot be normalised."""
        return np.isfinite(self.all_normalized[0, :, 0, 0])

    @cached_property
    def episodes(self) -> Floats:
        """`(S, T', V, K)` normalised; of all tasks and as they are where none has references."""
        known = self.has_reference
        return self.all_normalized[:, known] if known.any() else self.returns

    @cached_property
    def is_border(self) -> NDArray[np.bool_]:
        """`(S, T', V, K)`: the first episode to begin in its region, from the second region on."""
        regions = self.regions
        return np.diff(regions, axis=-1, prepend=regions[..., :1]) > 0

    @cached_property
    def regions(self) -> NDArray[np.int64]:
        """`(S, T', V, K)` number of the region, from 0, that each episode began in."""
        known = self.has_reference if self.has_reference.any() else slice(None)
        return np.stack([result.starts[known] // result.region_len for result in self.results])

    @cached_property
    def curves(self) -> Floats:
        """`(S, T', K)`: `episodes` averaged over evaluation seeds."""
        return self.episodes.mean(axis=2)

    @property
    def seed_curves(self) -> Floats:
        """`(S, K)`: `episodes` averaged over tasks and evaluation seeds."""
        return self.curves.mean(axis=1)

    @property
    def scores(self) -> Floats:
        """`(S, T')` final return of the tasks of `curves`."""
        return self.curves[..., -self.final_episodes :].mean(axis=-1)

    @property
    def task_scores(self) -> Floats:
        """`(S, T)` final return in the units of `curves`, nan for the tasks it leaves out."""
        values = self.all_normalized if self.has_reference.any() else self.returns
        return values[..., -self.final_episodes :].mean(axis=(2, 3))

    @property
    def seed_scores(self) -> Floats:
        """`(S,)` mean final return of each training seed."""
        return self.scores.mean(axis=1)

    @property
    def by_seed(self) -> dict[int, float]:
        """`seed_scores` by training seed."""
        return dict(zip(self.seeds, self.seed_scores.tolist(), strict=True))

    def number_by_seed(self, key: str) -> dict[int, float]:
        """A number of metrics.json by training seed, where it is known."""
        numbers = [result.number(key) for result in self.results]
        by_seed = zip(self.seeds, numbers, strict=True)
        return {seed: value for seed, value in by_seed if value is not None}

    def number(self, key: str) -> float | None:
        """Mean over training seeds of a number of metrics.json; whole where all are the same."""
        known = list(self.number_by_seed(key).values())
        return known[0] if len(set(known)) == 1 else float(np.mean(known)) if known else None

    def of_seed(self, seed: int) -> "MethodScores":
        """The results of one training seed alone."""
        return MethodScores(
            self.label, tuple(result for result in self.results if result.training_seed == seed)
        )

    def replicated(self, values: Floats) -> Floats:
        """Values by training seed `(S, ...)`; none of them for a rollout, which is no replicate."""
        return values[:0] if self.record.is_rollout else values


def section(result: EvaluationResult) -> int:
    """The section of a table a result stands in.

    Shared methods by group, then the points of a sweep, then their controls, then references.
    """
    if is_point(result.label):
        return POINT_CONTROL_SECTION if result.record.group == CONTROL else POINT_SECTION
    return SECTIONS[result.record.group]


def is_normalized(methods: Sequence[MethodScores]) -> bool:
    """Whether `curves` and `scores` are normalised; the same for all methods of a comparison."""
    return bool(methods[0].has_reference.any())


def records_of(methods: Sequence[MethodScores]) -> dict[str, MethodRecord]:
    """What each says of itself, by its label."""
    return {method.label: method.record for method in methods}


def stack_methods(results: Sequence[EvaluationResult]) -> list[MethodScores]:
    """One `MethodScores` per label, in the order of the results."""
    return [MethodScores(label, tuple(group)) for label, group in group_by_label(results).items()]
