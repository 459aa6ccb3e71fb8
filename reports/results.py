"""The evaluated methods of one or several runs: read, checked against each other, named, sorted.

What one result is and how its files are read stands in `reports.result_files`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from reports.records import REFERENCE, MethodRecord
from reports.result_files import REQUIRED_METRICS, EvaluationResult, ResultsError, load_run

BEHIND_POLICIES = 1_000
"""Place of a reference that is no policy among the others."""


def load_results(
    run_dirs: Iterable[str | Path],
    seeds: Iterable[int] | None = None,
    folder: str = "evaluate",
) -> list[EvaluationResult]:
    """Read every evaluated method of the runs.

    Args:
        run_dirs: run directories, each with seed_<n>/<folder>/<method>/ inside.
        seeds: training seeds to read; all that are there when None.
        folder: where the evaluations are, `evaluate` or `evaluate_<name>`.

    Returns:
        Results in the order of methods, then runs, then training seeds. Where two runs hold the
        same method they are told apart by label unless they are the same method at other seeds.

    Raises:
        ResultsError: a file is missing or damaged, results disagree, or there are none.
    """
    directories = _run_directories(run_dirs)
    wanted = None if seeds is None else set(seeds)
    results = [result for run_dir in directories for result in load_run(run_dir, wanted, folder)]
    results = _without_repeated_references(results)
    if not results:
        chosen = "" if wanted is None else f" with seed {' or '.join(map(str, sorted(wanted)))}"
        raise ResultsError(
            f"no evaluated method{chosen} under {', '.join(map(str, directories))}: expected "
            f"seed_<n>/{folder}/<method>/eval_result.npy; evaluate a trained run first"
        )
    absent = (wanted or set()) - set(known := training_seeds(results))
    if absent:
        raise ResultsError(
            f"training seeds {sorted(absent)} were asked for but are not among the evaluated ones, "
            f"{known}"
        )
    check_comparable(results)
    results += best_source(results)
    order = {run_dir: position for position, run_dir in enumerate(directories)}
    return sorted(
        _label(results),
        key=lambda result: (
            result.record.rank,
            order[result.run_dir] if result.label != result.method else -1,
            -1 if result.training_seed is None else result.training_seed,
        ),
    )


def best_source(results: Sequence[EvaluationResult]) -> list[EvaluationResult]:
    """A row of what sources of the histories have reached, where some returns are normalised by it.

    No policy is behind it: every episode of a task counts as the best mean return of a region that
    a source had there. None where that is not known of every task.
    """
    first = results[0]
    reached = np.array([task.source_return for task in first.tasks])
    if not (first.n_by_source and np.isfinite(reached).all()):
        return []
    record = MethodRecord("best_source", "best source", REFERENCE, BEHIND_POLICIES)
    return [
        replace(
            first,
            record=record,
            label=record.name,
            training_seed=None,
            returns=np.broadcast_to(reached[:, None, None], first.returns.shape),
            cells_visited=None,
            metrics={name: first.metrics.get(name) for name in (*REQUIRED_METRICS, "part")},
        )
    ]


def _without_repeated_references(results: Sequence[EvaluationResult]) -> list[EvaluationResult]:
    """Keep the first run's references: they depend on tasks and evaluation alone."""
    first: dict[str, Path] = {}
    for result in results:
        if result.training_seed is None:
            first.setdefault(result.method, result.run_dir)
    return [r for r in results if r.training_seed is not None or first[r.method] == r.run_dir]


def training_seeds(results: Iterable[EvaluationResult]) -> list[int]:
    """All training seeds among results, ascending."""
    return sorted({r.training_seed for r in results if r.training_seed is not None})


def group_by_label(results: Sequence[EvaluationResult]) -> dict[str, list[EvaluationResult]]:
    """Results of one method together, in the order given."""
    groups: dict[str, list[EvaluationResult]] = {}
    for result in results:
        groups.setdefault(result.label, []).append(result)
    return groups


def _run_directories(run_dirs: Iterable[str | Path]) -> list[Path]:
    directories = list(dict.fromkeys(map(Path, run_dirs)))
    if not directories:
        raise ResultsError("no run directory was given: name at least one")
    for run_dir in directories:
        if not run_dir.is_dir():
            raise ResultsError(f"run directory {run_dir} does not exist: check the path")
    return directories


def check_comparable(results: Sequence[EvaluationResult]) -> None:
    """Raise unless all results are of the same tasks, evaluated the same way."""
    first = results[0]
    for key in ("split_identity", "split_name", "part", "family"):
        for other in results[1:]:
            values = [result.metrics.get(key) for result in (first, other)]
            if values[0] != values[1]:
                raise ResultsError(
                    f"results of different {key} cannot be compared: {values[0]!r} in "
                    f"{_where(first)}, {values[1]!r} in {_where(other)}; compare runs of one split"
                )
    for other in results[1:]:
        if [task.name for task in other.tasks] != [task.name for task in first.tasks]:
            raise ResultsError(
                f"{_where(first)} and {_where(other)} were evaluated on different tasks: evaluate "
                "both on the same"
            )
        best = [result.best_returns for result in (first, other)]
        if first.n_by_source + other.n_by_source and not np.array_equal(*best, equal_nan=True):
            raise ResultsError(
                f"{_where(first)} and {_where(other)} are normalised by different returns: sources "
                "of their histories reached other ones; compare runs of the same histories, or "
                "evaluate both with evaluate.normalise=optimal"
            )
        counts = [(*result.returns.shape, result.final_episodes) for result in (first, other)]
        if counts[0] != counts[1]:
            raise ResultsError(
                f"shapes disagree: {_where(first)} has (tasks, evaluation seeds, episodes, final "
                f"episodes) {counts[0]}, {_where(other)} has {counts[1]}; evaluate both alike"
            )


def _where(result: EvaluationResult) -> str:
    if result.training_seed is None:
        return str(result.run_dir / "references" / result.method)
    return str(result.run_dir / f"seed_{result.training_seed}" / "evaluate" / result.method)


def _label(results: Sequence[EvaluationResult]) -> list[EvaluationResult]:
    """Name the run of a method that several runs hold, unless they are its seeds."""
    names = _run_names(results)
    labelled = []
    for result in results:
        same = [other for other in results if other.method == result.method]
        cells = {other.training_seed for other in same}
        settings = {other.number("n_latents") for other in same}
        ambiguous = len(cells) < len(same) or len(settings) > 1
        suffix = f"@{names[result.run_dir]}" if ambiguous else ""
        labelled.append(replace(result, label=result.method + suffix))
    return labelled


def _run_names(results: Sequence[EvaluationResult]) -> dict[Path, str]:
    directories = list(dict.fromkeys(result.run_dir for result in results))
    names = [path.resolve().name for path in directories]
    unique = len(set(names)) == len(names)
    return {
        path: name if unique else str(path) for path, name in zip(directories, names, strict=True)
    }
