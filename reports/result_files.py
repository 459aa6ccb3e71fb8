"""One evaluated method (of one training seed): its files, checked against each other.

    <run_dir>/seed_<n>/evaluate/<method>/eval_result.npy     (tasks, evaluation seeds, episodes)
    <run_dir>/seed_<n>/evaluate/<method>/episode_starts.npy  (tasks, evaluation seeds, episodes)
    <run_dir>/seed_<n>/evaluate/<method>/cells_visited.npy   the same, where it was counted
    <run_dir>/seed_<n>/evaluate/<method>/metrics.json
    <run_dir>/references/<method>/                           the same, of what has no training seed

How results stand to each other is checked in `reports.results`. Nothing is computed here. Shape
letters: T tasks, V evaluation seeds, K in-context episodes.
"""

import json
import math
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from base.errors import UserError
from base.hashes import changed_file, is_signed
from reports.records import MethodRecord, parse_record

FORMAT_VERSION = 1

REQUIRED_METRICS = (
    "method",
    "method_record",
    "split_identity",
    "split_name",
    "family",
    "tasks",
    "region_len",
    "n_evaluation_seeds",
    "n_episodes",
    "final_episodes",
)


class ResultsError(UserError):
    """Result files are missing, damaged, or do not belong together."""


@dataclass(frozen=True)
class TaskReference:
    """What a result says about one task; a return is nan where it is not known.

    Attributes:
        index: in its family.
        name: of the task.
        random_return: of random actions.
        optimal_return: the best there is.
        source_return: the best that sources of the histories have reached, where an evaluation
            was asked to normalise by it.
        group: kind of task, of a family that has several.
    """

    index: int
    name: str
    random_return: float
    optimal_return: float
    source_return: float = np.nan
    group: str = ""

    @property
    def by_source(self) -> bool:
        """Whether what counts as 1 is the sources' return."""
        return bool(np.isnan(self.optimal_return) and np.isfinite(self.source_return))

    @property
    def best_return(self) -> float:
        """What counts as 1: the optimum, else what sources have reached."""
        return self.source_return if self.by_source else self.optimal_return


@dataclass(frozen=True)
class EvaluationResult:
    """One evaluated method, of one training seed where it was trained.

    Attributes:
        record: what the method says of itself.
        label: the method's name, and after "@" what it is told apart by: the name of the run where
            there are several, the settings of a sweep's point (`student@m = 8`).
        run_dir: the run it belongs to.
        training_seed: the n of seed_<n>; None for what is rolled out once, untrained.
        returns: `(T, V, K)` float64 undiscounted episode returns.
        starts: `(T, V, K)` int64 step of the stream, from 0, at which each episode began.
        cells_visited: `(T, V, K)` distinct observations of each episode, None where not counted.
        tasks: the T tasks.
        metrics: metrics.json as it stands.
    """

    record: MethodRecord
    label: str
    run_dir: Path
    training_seed: int | None
    returns: NDArray[np.float64]
    starts: NDArray[np.int64]
    cells_visited: NDArray[np.float64] | None
    tasks: tuple[TaskReference, ...]
    metrics: dict[str, Any]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.record.name

    @property
    def final_episodes(self) -> int:
        """How many of the last episodes count as the method's final level."""
        return int(self.metrics["final_episodes"])

    @property
    def region_len(self) -> int:
        """Steps in a region."""
        return int(self.metrics["region_len"])

    @property
    def part(self) -> str:
        """The part of the split the tasks are from: test, validation or train."""
        return str(self.metrics.get("part") or self.metrics["split_name"])

    @property
    def random_returns(self) -> NDArray[np.float64]:
        """`(T,)`, nan where not known."""
        return np.array([task.random_return for task in self.tasks])

    @property
    def best_returns(self) -> NDArray[np.float64]:
        """`(T,)` what counts as 1, nan where not known."""
        return np.array([task.best_return for task in self.tasks])

    def of_group(self, group: str) -> "EvaluationResult":
        """The result on the tasks of one group alone."""
        kept = [i for i, task in enumerate(self.tasks) if task.group == group]
        visited = self.cells_visited
        return replace(
            self,
            returns=self.returns[kept],
            starts=self.starts[kept],
            cells_visited=None if visited is None else visited[kept],
            tasks=tuple(self.tasks[i] for i in kept),
        )

    @property
    def n_by_source(self) -> int:
        """Tasks whose best return is not an optimum, but what sources have reached."""
        return sum(task.by_source for task in self.tasks)

    @property
    def normalised_by(self) -> str:
        """What counts as 1 in normalised returns: optimal, best source, or both."""
        kinds = {"optimal": self.n_by_source < len(self.tasks), "best source": self.n_by_source}
        return ", ".join(name for name, some in kinds.items() if some)

    def number(self, key: str) -> float | int | None:
        """The number under `key` in metrics.json, None where it is null, absent or not finite."""
        value = self.metrics.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return value if math.isfinite(value) else None


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
    metrics_path = path / "metrics.json"
    for name in ("eval_result.npy", "metrics.json", "episode_starts.npy"):
        if not (path / name).is_file():
            raise ResultsError(f"{path / name} is missing: {_remedy(path)}")
    check_written(path, _remedy(path))
    metrics = _load_metrics(metrics_path)
    for key, expected in (("method", path.name), ("training_seed", seed)):
        if metrics.get(key) != expected:
            raise ResultsError(
                f"{metrics_path} has {key} {metrics.get(key)!r} but lies in the directory of "
                f"{expected!r}: it was copied or renamed; {_remedy(path)}"
            )
    try:
        record = parse_record(metrics["method_record"])
        tasks = tuple(_task(entry) for entry in metrics["tasks"])
        shape = (len(tasks), int(metrics["n_evaluation_seeds"]), int(metrics["n_episodes"]))
        final_episodes, region_len = int(metrics["final_episodes"]), int(metrics["region_len"])
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{metrics_path} is damaged ({error!r}): {_remedy(path)}") from error
    if not 1 <= final_episodes <= shape[2] or region_len < 1:
        raise ResultsError(
            f"{metrics_path} has final_episodes {final_episodes} and region_len {region_len}: "
            f"expected 1 to {shape[2]}, its episodes, and at least 1; {_remedy(path)}"
        )
    visited = path / "cells_visited.npy"
    return EvaluationResult(
        record,
        path.name,
        run_dir,
        seed,
        _load_array(path / "eval_result.npy", shape).astype(np.float64),
        _load_array(path / "episode_starts.npy", shape).astype(np.int64),
        _load_array(visited, shape).astype(np.float64) if visited.is_file() else None,
        tasks,
        metrics,
    )


def _remedy(folder: Path) -> str:
    return f"delete {folder} and run pipelines.evaluate of {folder.name} again"


def check_written(folder: Path, remedy: str, kind: str = "files") -> None:
    """Refuse files that are missing, or not as they were when their stage was marked as done.

    Args:
        folder: of the stage; one that is not done says nothing of its files.
        remedy: what to do.
        kind: `files`, which other stages read too, or `tables`, which reports alone do.

    Raises:
        ResultsError: naming the file.
    """
    meta = folder / "meta.json"
    if not meta.exists():
        return
    try:
        content = json.loads(meta.read_text(encoding="utf-8"))
        changed = changed_file(folder, content.get(kind, {}))
    except (AttributeError, ValueError, OSError) as error:
        raise ResultsError(f"{meta} is damaged ({error}): {remedy}") from error
    if changed or not is_signed(content):
        raise ResultsError(
            f"{folder / (changed or meta.name)} is missing or not as it was written, by "
            f"{meta.name}: {remedy}"
        )


def _load_array(path: Path, shape: tuple[int, int, int]) -> NDArray[Any]:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ResultsError(f"{path} is damaged ({error}): {_remedy(path.parent)}") from error
    if values.shape != shape or values.size == 0:
        raise ResultsError(
            f"{path} has shape {values.shape} but its metrics.json describes {shape} "
            f"(tasks, evaluation seeds, episodes): {_remedy(path.parent)}"
        )
    if not np.isfinite(values).all():
        raise ResultsError(f"{path} holds numbers that are not finite: {_remedy(path.parent)}")
    return values


def _load_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ResultsError(f"{path} is damaged ({error}): {_remedy(path.parent)}") from error
    if not isinstance(metrics, dict):
        raise ResultsError(f"{path} is damaged (not a mapping): {_remedy(path.parent)}")
    version = metrics.get("format_version")
    if version != FORMAT_VERSION:
        raise ResultsError(
            f"{path} has format version {version!r}, this code reads {FORMAT_VERSION}: "
            f"{_remedy(path.parent)} with this version"
        )
    missing = [key for key in REQUIRED_METRICS if metrics.get(key) is None]
    if missing:
        raise ResultsError(f"{path} lacks {', '.join(missing)}: {_remedy(path.parent)}")
    return metrics


def _task(entry: dict[str, Any]) -> TaskReference:
    returns = (entry["random_return"], entry["optimal_return"], entry.get("source_return"))
    known = (np.nan if value is None else float(value) for value in returns)
    group = str(entry.get("group", ""))
    return TaskReference(int(entry["index"]), str(entry["name"]), *known, group=group)
