"""Reading what evaluation wrote: one `EvaluationResult` per run directory, training seed, method.

    <run_dir>/seed_<n>/evaluate/<method>/eval_result.npy   (tasks, evaluation seeds, episodes)
    <run_dir>/seed_<n>/evaluate/<method>/metrics.json
    <run_dir>/references/<method>/                         the same, of what has no training seed
    <run_dir>/collect/learning_curves.csv

Everything is checked here, against its own file and against the other results, so that whoever
computes from results need not. Nothing is computed here. Shape letters: T tasks, V evaluation
seeds, K in-context episodes.
"""

import csv
import json
import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from base.errors import UserError

FORMAT_VERSION = 1

METHOD_ORDER = (
    "student",
    "teacher",
    "long_context",
    "truncation",
    "mean_pooling",
    "mean_pooling_encoded",
    "pca",
    "none",
    "student_zeroed",
    "student_shuffled",
    "student_no_context",
    "random",
    "optimal",
)

REQUIRED_METRICS = (
    "method",
    "split_identity",
    "split_name",
    "family",
    "tasks",
    "n_evaluation_seeds",
    "n_episodes",
    "final_episodes",
)


class ResultsError(UserError):
    """Result files are missing, damaged, or do not belong together."""


@dataclass(frozen=True)
class TaskReference:
    """What a result says about one task; a return is nan where it is not known."""

    index: int
    name: str
    random_return: float
    optimal_return: float


@dataclass(frozen=True)
class EvaluationResult:
    """One evaluated method of one training seed.

    Attributes:
        method: as evaluation named it, e.g. "mean_pooling".
        label: the method, and after "@" what it is told apart by: the name of the run where there
            are several, the settings of a sweep's point (`student@m = 8`).
        run_dir: the run it belongs to.
        training_seed: the n of seed_<n>; None for a reference, which no training has part in.
        returns: `(T, V, K)` float64 undiscounted episode returns.
        tasks: the T tasks.
        metrics: metrics.json as it stands.
    """

    method: str
    label: str
    run_dir: Path
    training_seed: int | None
    returns: NDArray[np.float64]
    tasks: tuple[TaskReference, ...]
    metrics: dict[str, Any]

    @property
    def final_episodes(self) -> int:
        """How many of the last episodes count as the method's final level."""
        return int(self.metrics["final_episodes"])

    @property
    def part(self) -> str:
        """The part of the split the tasks are from: test, validation or train."""
        return str(self.metrics.get("part") or self.metrics["split_name"])

    @property
    def random_returns(self) -> NDArray[np.float64]:
        """`(T,)`, nan where not known."""
        return np.array([task.random_return for task in self.tasks])

    @property
    def optimal_returns(self) -> NDArray[np.float64]:
        """`(T,)`, nan where not known."""
        return np.array([task.optimal_return for task in self.tasks])

    def number(self, key: str) -> float | int | None:
        """The number under `key` in metrics.json, None where it is null, absent or not finite."""
        value = self.metrics.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return value if math.isfinite(value) else None


@dataclass(frozen=True)
class SourceCurves:
    """How the source algorithm learned the compared tasks.

    Attributes:
        task_indices: `(C,)` for each curve the position of its task among the compared ones.
        returns: `(C, n_regions)` mean episode return in each region, nan after a shorter curve.
    """

    task_indices: NDArray[np.int64]
    returns: NDArray[np.float64]


def is_point(label: str) -> bool:
    """Whether a label is that of a point of a sweep, `student@m = 8`, and not of a run."""
    return " = " in label.partition("@")[2]


def method_rank(method: str) -> tuple[int, str]:
    """Sort key: the order of `METHOD_ORDER`, unknown methods after it by name."""
    known = method in METHOD_ORDER
    return (METHOD_ORDER.index(method) if known else len(METHOD_ORDER), method)


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
    order = {run_dir: position for position, run_dir in enumerate(directories)}
    return sorted(
        _label(results),
        key=lambda result: (
            method_rank(result.method),
            order[result.run_dir] if result.label != result.method else -1,
            -1 if result.training_seed is None else result.training_seed,
        ),
    )


def load_run(
    run_dir: Path,
    seeds: Container[int] | None = None,
    folder: str = "evaluate",
    *,
    unfinished: bool = False,
) -> list[EvaluationResult]:
    """Read every evaluated method of one run, labelled by its method, unsorted.

    Args:
        run_dir: the run directory; may hold nothing.
        seeds: training seeds to read; all that are there when None. References have none.
        folder: where the evaluations are; references are in `references` or `references_<name>`.
        unfinished: pass over a method whose metrics.json, written last, is not there yet.

    Raises:
        ResultsError: a file is missing or damaged.
    """
    found: list[tuple[int | None, Path]] = [
        (seed, seed_dir / folder)
        for seed, seed_dir in seed_directories(run_dir)
        if seeds is None or seed in seeds
    ]
    found.append((None, run_dir / f"references{folder.removeprefix('evaluate')}"))
    return [
        _load_result(path, run_dir, seed)
        for seed, methods_dir in found
        for path in _method_directories(methods_dir)
        if not unfinished or (path / "metrics.json").is_file()
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


def load_source_curves(
    run_dirs: Iterable[str | Path], tasks: Sequence[TaskReference], part: str
) -> SourceCurves | None:
    """PPO's learning curves on the compared tasks, None where the runs recorded none.

    Args:
        run_dirs: run directories; the first with usable curves in collect/learning_curves.csv
            serves, the others having collected the same tasks.
        tasks: the compared tasks.
        part: of the split; rows of other parts are left out.

    Raises:
        ResultsError: a learning_curves.csv is there but cannot be read.
    """
    positions = {str(task.index): position for position, task in enumerate(tasks)}
    positions |= {task.name: position for position, task in enumerate(tasks)}
    for run_dir in map(Path, run_dirs):
        path = run_dir / "collect" / "learning_curves.csv"
        if not path.is_file():
            continue
        try:
            curves = _read_curves(path, positions, part)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ResultsError(
                f"{path} cannot be read ({error!r}): expected the columns task, split, style, "
                "source_seed, region, mean_return; collect again"
            ) from error
        if curves:
            return _stack_curves(curves)
    return None


def _read_curves(
    path: Path, positions: dict[str, int], part: str
) -> dict[tuple[int, str], dict[int, float]]:
    """Mean return by region, for every (task position, source seed)."""
    curves: dict[tuple[int, str], dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            wanted = row["split"] == part and row["style"] == "ppo"
            # No episode may have ended in a region: its mean return is empty then.
            if wanted and row["task"] in positions and row["mean_return"]:
                curve = curves.setdefault((positions[row["task"]], row["source_seed"]), {})
                curve[int(row["region"])] = float(row["mean_return"])
    return curves


def _stack_curves(curves: dict[tuple[int, str], dict[int, float]]) -> SourceCurves:
    n_regions = 1 + max(max(curve) for curve in curves.values())
    returns = np.full((len(curves), n_regions), np.nan)
    for values, curve in zip(returns, curves.values(), strict=True):
        values[list(curve)] = list(curve.values())
    return SourceCurves(np.array([position for position, _ in curves]), returns)


def _run_directories(run_dirs: Iterable[str | Path]) -> list[Path]:
    directories = list(dict.fromkeys(map(Path, run_dirs)))
    if not directories:
        raise ResultsError("no run directory was given: name at least one")
    for run_dir in directories:
        if not run_dir.is_dir():
            raise ResultsError(f"run directory {run_dir} does not exist: check the path")
    return directories


def seed_directories(run_dir: Path) -> list[tuple[int, Path]]:
    """The training seeds of a run and their directories, ascending."""
    found = []
    for path in run_dir.glob("seed_*"):
        number = path.name.removeprefix("seed_")
        if path.is_dir() and number.isdecimal():
            found.append((int(number), path))
    return sorted(found)


def _method_directories(folder: Path) -> list[Path]:
    paths = folder.glob("*/")
    # A dot or a .tmp marks what an interrupted write left behind.
    return sorted(path for path in paths if path.name[0] != "." and ".tmp" not in path.name)


def _load_result(path: Path, run_dir: Path, seed: int | None) -> EvaluationResult:
    returns_path, metrics_path = path / "eval_result.npy", path / "metrics.json"
    for file in (returns_path, metrics_path):
        if not file.is_file():
            of_seed = "" if seed is None else f" of seed {seed}"
            raise ResultsError(f"{file} is missing: evaluate '{path.name}'{of_seed} again")
    try:
        returns = np.load(returns_path, allow_pickle=False).astype(np.float64)
    except (ValueError, OSError, EOFError) as error:
        raise ResultsError(f"{returns_path} is damaged ({error}): evaluate again") from error
    metrics = _load_metrics(metrics_path)
    for key, expected in (("method", path.name), ("training_seed", seed)):
        if metrics.get(key) != expected:
            raise ResultsError(
                f"{metrics_path} has {key} {metrics.get(key)!r} but lies in the directory of "
                f"{expected!r}: it was copied or renamed; evaluate again"
            )
    try:
        tasks = tuple(_task(entry) for entry in metrics["tasks"])
        shape = (len(tasks), int(metrics["n_evaluation_seeds"]), int(metrics["n_episodes"]))
        final_episodes = int(metrics["final_episodes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{metrics_path} is damaged ({error!r}): evaluate again") from error
    if returns.shape != shape or returns.size == 0:
        raise ResultsError(
            f"{returns_path} has shape {returns.shape} but its metrics.json describes {shape} "
            "(tasks, evaluation seeds, episodes): evaluate again"
        )
    if not np.isfinite(returns).all():
        raise ResultsError(f"{returns_path} holds returns that are not finite: evaluate again")
    if not 1 <= final_episodes <= shape[2]:
        raise ResultsError(
            f"{metrics_path} has final_episodes {final_episodes}, which is not between 1 and its "
            f"{shape[2]} episodes: evaluate again"
        )
    return EvaluationResult(path.name, path.name, run_dir, seed, returns, tasks, metrics)


def _load_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ResultsError(f"{path} is damaged ({error}): evaluate again") from error
    if not isinstance(metrics, dict):
        raise ResultsError(f"{path} is damaged (not a mapping): evaluate again")
    version = metrics.get("format_version")
    if version != FORMAT_VERSION:
        raise ResultsError(
            f"{path} has format version {version!r}, this code reads {FORMAT_VERSION}: evaluate "
            "again with this version"
        )
    missing = [key for key in REQUIRED_METRICS if metrics.get(key) is None]
    if missing:
        raise ResultsError(f"{path} lacks {', '.join(missing)}: evaluate again")
    return metrics


def _task(entry: dict[str, Any]) -> TaskReference:
    returns = (entry["random_return"], entry["optimal_return"])
    random_return, optimal_return = (np.nan if value is None else float(value) for value in returns)
    return TaskReference(int(entry["index"]), str(entry["name"]), random_return, optimal_return)


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
        counts = [(*result.returns.shape, result.final_episodes) for result in (first, other)]
        if counts[0] != counts[1]:
            raise ResultsError(
                f"shapes disagree: {_where(first)} has (tasks, evaluation seeds, episodes, final "
                f"episodes) {counts[0]}, {_where(other)} has {counts[1]}; evaluate both alike"
            )


def _where(result: EvaluationResult) -> str:
    seed = result.training_seed
    folder = "references" if seed is None else f"seed_{seed}/evaluate"
    return str(result.run_dir / folder / result.method)


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
