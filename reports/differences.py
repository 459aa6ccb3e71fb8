"""Every method minus one of them, paired by training seed and task: columns and rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from reports import statistics
from reports.column import Column, by_key
from reports.records import STUDENT, TEACHER
from reports.rows import Row, make_row
from reports.scores import MethodScores
from reports.statistics import Floats, Interval


@dataclass(frozen=True)
class Pair:
    """What a row of differences is about: both sets of scores are of the same seeds and tasks.

    Attributes:
        seeds: training seeds that both have.
        scores: `(S, T')` of the method.
        reference: `(S, T')` of the method it is set against.
        reference_label: its label.
    """

    seeds: tuple[int, ...]
    scores: Floats
    reference: Floats
    reference_label: str

    @property
    def by_seed(self) -> Floats:
        """`(S,)` mean difference."""
        return (self.scores - self.reference).mean(axis=1)

    @cached_property
    def interval(self) -> Interval:
        """Of the mean difference, over training seeds."""
        return statistics.seed_interval(self.by_seed)


COLUMNS: tuple[Column[Pair], ...] = (
    Column("reference", "Reference", "what is subtracted", lambda pair: pair.reference_label),
    Column(
        "seeds",
        "Common seeds",
        "training seeds that both have",
        lambda pair: len(pair.seeds),
        decimals=None,
    ),
    Column(
        "mean_difference",
        "Difference",
        "mean difference of the normalised final returns, paired by training seed and task",
        lambda pair: pair.by_seed.mean(),
    ),
    Column(
        "interval",
        "95 % interval",
        "interval of that mean, as in the table of results",
        lambda pair: pair.interval,
        decimals=2,
    ),
    Column("interval_low", "Interval from", "its lower bound", lambda pair: pair.interval.low),
    Column("interval_high", "Interval to", "its upper bound", lambda pair: pair.interval.high),
    Column(
        "interval_kind",
        "Interval is",
        "t or bootstrap",
        lambda pair: pair.interval.kind or None,
    ),
    Column(
        "difference_by_seed",
        "By seed",
        "mean difference of each training seed",
        lambda pair: by_key(pair.seeds, pair.by_seed.tolist()),
    ),
    Column(
        "probability_of_improvement",
        "P(improvement)",
        "probability that a training seed of the method does better on a task than one of the "
        "reference, a tie counting half",
        lambda pair: statistics.probability_of_improvement(pair.scores, pair.reference),
    ),
)

SHOWN = tuple(c for c in COLUMNS if c.name not in ("reference", "interval_low", "interval_high"))


def reference_method(methods: Sequence[MethodScores]) -> MethodScores | None:
    """What methods are set against: the student, else the teacher, else the first trained one."""
    trained = [method for method in methods if not method.record.is_rollout]
    shared = [method for method in trained if not method.is_point]
    for group in (STUDENT, TEACHER):
        for method in shared:
            if method.record.group == group and method.label == method.method:
                return method
    return trained[0] if trained else None


def difference_rows(methods: Sequence[MethodScores], reference: MethodScores | None) -> list[Row]:
    """Every trained method minus the reference, paired by training seed and task.

    Policies that are only rolled out are left out: no training seed of theirs could be paired.

    Args:
        methods: from `stack_methods`.
        reference: the method that is subtracted.

    Returns:
        A row for every other method that shares training seeds with the reference.
    """
    rows = []
    for method in methods:
        if reference is None or method is reference or method.record.is_rollout:
            continue
        common = [seed for seed in method.seeds if seed in reference.seeds]
        if common:
            scores, others = (
                m.scores[[m.seeds.index(seed) for seed in common]] for m in (method, reference)
            )
            pair = Pair(tuple(common), scores, others, reference.label)
            rows.append(make_row(method, pair, COLUMNS))
    return rows
