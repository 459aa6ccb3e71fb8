"""From evaluation results to one row per method: which number is computed from what.

Shape letters: S training seeds, T tasks, V evaluation seeds, K in-context episodes. A cell is one
(training seed, task); a stream is one (training seed, task, evaluation seed).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reports import statistics
from reports.results import EvaluationResult, group_by_label
from reports.statistics import DEFAULT_BOOTSTRAP, Bootstrap

SOLVED_THRESHOLD = 0.8  # of the way from random to optimal
FOUND_THRESHOLD = 0.1  # far above what random acting gets, far below what knowing the task gets
MIN_GAP = 0.05  # a share of a smaller gap between teacher and no context would be noise

Floats = NDArray[np.float64]


def _column(description: str) -> float | None:
    return field(default=None, metadata={"description": description})


@dataclass(frozen=True)
class MethodRow:
    """One method of a comparison; fields are the columns of table.csv, None is not known.

    What a column means stands in its metadata, see `column_descriptions`.
    """

    method: str
    n_latents: float | None = _column("latent tokens the context is compressed to")
    seeds: int = field(default=0, metadata={"description": "training seeds"})
    normalized_return: float | None = _column(
        "interquartile mean over training seeds and tasks of the final return, 0 random, 1 optimal"
    )
    ci_low: float | None = _column("lower bound of its bootstrap interval over training seeds")
    ci_high: float | None = _column("upper bound of its bootstrap interval over training seeds")
    gap_recovered: float | None = _column(
        "(method - none) / (teacher - none), of mean normalised final returns"
    )
    tasks_solved: float | None = _column(
        "share of (training seed, task) with a normalised final return of the threshold or more"
    )
    context_tokens: float | None = _column("tokens an action attends to at most")
    compression_ratio: float | None = _column("tokens of a region per latent")
    context_bytes: float | None = _column("bytes of context state of one stream")
    ms_per_action: float | None = _column("milliseconds per action")
    train_targets_per_s: float | None = _column("training targets per second")
    train_peak_mb: float | None = _column("peak memory of training, MB")
    return_mean: float | None = _column("mean final return, not normalised")
    goals_found: float | None = _column(
        "share of streams of which at least half the final episodes clearly beat random acting"
    )
    return_once_found: float | None = _column("mean normalised final return of these streams")
    episodes_to_90: float | None = _column(
        "median over cells that beat random acting of the first episode, from 1, from which five "
        "episodes average 90 % of the final return"
    )
    final_minus_best: float | None = _column(
        "mean over cells of the normalised final return minus the best running mean"
    )
    first_episode_return: float | None = _column("mean return of the first episode, not normalised")
    action_accuracy_recorded: float | None = _column("accuracy against the recorded action")
    action_accuracy_optimal: float | None = _column("accuracy against the optimal actions")
    teacher_kl: float | None = _column("KL divergence from the teacher's action distribution, nats")
    train_updates: float | None = _column("optimiser updates")
    train_seconds: float | None = _column("seconds of training")
    n_parameters: float | None = _column("number of parameters")
    return_normalized_mean: float | None = _column("mean normalised final return")
    return_normalized_median: float | None = _column(
        "median over training seeds and tasks of the normalised final return"
    )
    optimality_gap: float | None = _column(
        "mean of how far normalised final returns stay below 1, those above it counting as 1"
    )
    reconstruction_accuracy: float | None = _column(
        "share of a region's observations, actions and next observations read back from its latents"
    )
    latent_bits: float | None = _column("bits of the latents as they are stored")


COPIED = (
    "n_latents",
    "context_tokens",
    "compression_ratio",
    "context_bytes",
    "ms_per_action",
    "train_targets_per_s",
    "train_peak_mb",
    "action_accuracy_recorded",
    "action_accuracy_optimal",
    "teacher_kl",
    "train_updates",
    "train_seconds",
    "n_parameters",
    "reconstruction_accuracy",
    "latent_bits",
)


def column_descriptions() -> dict[str, str]:
    """What each column of a `MethodRow` means, in order."""
    return {entry.name: entry.metadata.get("description", "") for entry in fields(MethodRow)}


@dataclass(frozen=True)
class MethodScores:
    """All results of one method, stacked over its training seeds.

    Attributes:
        label: method, or method@run.
        results: S results, one per training seed.
    """

    label: str
    results: tuple[EvaluationResult, ...]

    @property
    def method(self) -> str:
        """The method without the run's name."""
        return self.results[0].method

    @property
    def seeds(self) -> list[int | None]:
        """Training seeds, `(S,)`; the one rollout of a reference has None."""
        return [result.training_seed for result in self.results]

    @property
    def final_episodes(self) -> int:
        """How many of the last episodes count as final."""
        return self.results[0].final_episodes

    @cached_property
    def returns(self) -> Floats:
        """`(S, T, V, K)`."""
        return np.stack([result.returns for result in self.results])

    @cached_property
    def normalized(self) -> Floats:
        """`(S, T, V, K)`, nan for tasks without references."""
        first = self.results[0]
        references = (first.random_returns[:, None, None], first.optimal_returns[:, None, None])
        return statistics.normalized_return(self.returns, *references)

    @property
    def has_reference(self) -> NDArray[np.bool_]:
        """`(T,)`, False where returns cannot be normalised."""
        return np.isfinite(self.normalized[0, :, 0, 0])

    @property
    def curves(self) -> Floats:
        """`(S, T', K)` averaged over evaluation seeds.

        Normalised, over the T' tasks with references; of all tasks and not normalised where no
        task has references.
        """
        known = self.has_reference
        values = self.normalized[:, known] if known.any() else self.returns
        return values.mean(axis=2)

    @property
    def task_scores(self) -> Floats:
        """`(S, T)` final return in the units of `curves`, nan for the tasks it leaves out."""
        values = self.normalized if self.has_reference.any() else self.returns
        return values[..., -self.final_episodes :].mean(axis=(2, 3))

    @property
    def scores(self) -> Floats:
        """`(S, T')` final return of the tasks of `curves`."""
        return self.curves[..., -self.final_episodes :].mean(axis=-1)


def is_normalized(methods: Sequence[MethodScores]) -> bool:
    """Whether `curves` and `scores` are normalised; the same for all methods of a comparison."""
    return bool(methods[0].has_reference.any())


def stack_methods(results: Sequence[EvaluationResult]) -> list[MethodScores]:
    """One `MethodScores` per label, in the order of the results."""
    return [MethodScores(label, tuple(group)) for label, group in group_by_label(results).items()]


def method_rows(
    results: Sequence[EvaluationResult],
    *,
    solved_threshold: float = SOLVED_THRESHOLD,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> list[MethodRow]:
    """Aggregate results to one row per method.

    Args:
        results: from `load_results`.
        solved_threshold: normalised final return from which a task counts as solved.
        bootstrap: how intervals are drawn.
    """
    methods = stack_methods(results)
    return [_row(method, methods, solved_threshold, bootstrap) for method in methods]


@dataclass(frozen=True)
class DifferenceRow:
    """One method set against the reference; fields are the columns of differences.csv."""

    method: str
    reference: str
    seeds: int  # that both have
    mean_difference: float
    ci_low: float
    ci_high: float
    probability_of_improvement: float


def reference_label(methods: Sequence[MethodScores]) -> str:
    """What methods are set against: the student, or else the teacher, or else the first."""
    labels = [method.label for method in methods]
    return next((name for name in ("student", "teacher") if name in labels), labels[0])


def difference_rows(
    methods: Sequence[MethodScores],
    reference: str = "student",
    *,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> list[DifferenceRow]:
    """Every method minus the reference, paired by training seed and task.

    Args:
        methods: from `stack_methods`.
        reference: label of the method that is subtracted.
        bootstrap: how intervals are drawn; bounds are nan with one common seed.

    Returns:
        A row for every other method that shares training seeds with the reference; none without
        the reference.
    """
    base = next((method for method in methods if method.label == reference), None)
    rows = []
    for method in methods:
        if base is None or method is base:
            continue
        common = [seed for seed in method.seeds if seed in base.seeds]
        if not common:
            continue
        scores = method.scores[[method.seeds.index(seed) for seed in common]]
        others = base.scores[[base.seeds.index(seed) for seed in common]]
        difference = statistics.paired_difference(scores, others, bootstrap)
        probability = statistics.probability_of_improvement(scores, others)
        rows.append(DifferenceRow(method.label, reference, len(common), *difference, probability))
    return rows


def _row(
    method: MethodScores,
    methods: Sequence[MethodScores],
    solved_threshold: float,
    bootstrap: Bootstrap,
) -> MethodRow:
    copied = {key: _mean_number(method, key) for key in COPIED}
    final = method.returns[..., -method.final_episodes :]
    row = {
        "return_mean": final.mean(),
        "first_episode_return": method.returns[..., 0].mean(),
    }
    if method.has_reference.any():
        low, high = statistics.stratified_bootstrap_interval(method.scores, bootstrap=bootstrap)
        row |= {
            "normalized_return": statistics.iqm(method.scores),
            "ci_low": low,
            "ci_high": high,
            "gap_recovered": gap_recovered(method, methods),
            "tasks_solved": (method.scores >= solved_threshold).mean(),
            "return_normalized_mean": statistics.mean(method.scores),
            "return_normalized_median": statistics.median(method.scores),
            "optimality_gap": statistics.optimality_gap(method.scores),
            **_search(method),
            **_pace(method),
        }
    known = {key: float(value) for key, value in row.items() if np.isfinite(value)}
    return MethodRow(method=method.label, seeds=len(method.results), **copied, **known)


def _mean_number(method: MethodScores, key: str) -> float | int | None:
    """Mean over training seeds of a number of metrics.json, whole where all are the same."""
    values = [result.number(key) for result in method.results]
    known = [value for value in values if value is not None]
    if not known:
        return None
    return known[0] if len(set(known)) == 1 else float(np.mean(known))


def gap_recovered(method: MethodScores, methods: Sequence[MethodScores]) -> float:
    """(method - none) / (teacher - none); nan where a reference is missing or the gap is small."""
    none, teacher = _reference(method, methods, "none"), _reference(method, methods, "teacher")
    if none is None or teacher is None:
        return np.nan
    return _share_of_gap(method.scores.mean(), none.scores.mean(), teacher.scores.mean())


def gap_recovered_by_seed(
    method: MethodScores, methods: Sequence[MethodScores]
) -> list[tuple[int, float]]:
    """(training seed, gap recovered) of each seed that method, teacher and no context all have.

    A seed whose own gap is small is left out.
    """
    none, teacher = _reference(method, methods, "none"), _reference(method, methods, "teacher")
    if none is None or teacher is None:
        return []
    means = [
        dict(zip(m.seeds, m.scores.mean(axis=1), strict=True)) for m in (method, none, teacher)
    ]
    common = [seed for seed in means[0] if seed in means[1] and seed in means[2]]
    shares = [(seed, _share_of_gap(*(mean[seed] for mean in means))) for seed in common]
    return [(seed, share) for seed, share in shares if seed is not None and np.isfinite(share)]


def _share_of_gap(level: float, floor: float, ceiling: float) -> float:
    gap = ceiling - floor
    return float((level - floor) / gap) if gap >= MIN_GAP else np.nan


def _reference(
    method: MethodScores, methods: Sequence[MethodScores], name: str
) -> MethodScores | None:
    """The method called `name` of the same run, or else the only one, or that of a sweep's base."""
    candidates = [other for other in methods if other.method == name]
    runs = {result.run_dir for result in method.results}
    same_run = [
        other for other in candidates if runs & {result.run_dir for result in other.results}
    ]
    shared = [other for other in candidates if other.label == name]
    chosen = (same_run or shared) if len(candidates) > 1 else candidates
    return chosen[0] if len(chosen) == 1 else None


def _search(method: MethodScores) -> dict[str, float]:
    """How often the task was found at all, and what it was worth then."""
    final = method.normalized[:, method.has_reference][..., -method.final_episodes :]
    found = (final > FOUND_THRESHOLD).mean(axis=-1) >= 0.5  # (S, T', V)
    once_found = final.mean(axis=-1)[found]
    return {
        "goals_found": float(found.mean()),
        "return_once_found": float(once_found.mean()) if once_found.size else np.nan,
    }


def _pace(method: MethodScores) -> dict[str, float]:
    """How fast the final level was reached, and whether a better one was lost."""
    final_episodes = method.final_episodes
    learned = method.scores > FOUND_THRESHOLD  # 90 % of nothing is reached at once
    episodes = statistics.episodes_to_fraction(
        method.curves[learned], final_episodes=final_episodes
    )
    reached = episodes[np.isfinite(episodes)]
    lost = statistics.final_minus_best(method.curves, final_episodes=final_episodes)
    return {
        "episodes_to_90": float(np.median(reached)) if reached.size else np.nan,
        "final_minus_best": float(lost.mean()),
    }
