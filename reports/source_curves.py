"""How sources of histories learned the compared tasks: collect/learning_curves.csv, read."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reports.result_files import ResultsError, TaskReference, check_written

PLAIN = "random"
"""The style that learns nothing; the level of random is drawn anyhow."""


@dataclass(frozen=True)
class SourceCurves:
    """How one source learned the compared tasks.

    Attributes:
        style: what collection calls it.
        task_indices: `(C,)` for each curve the position of its task among the compared ones.
        returns: `(C, n_regions)` mean episode return in each region, nan after a shorter curve.
    """

    style: str
    task_indices: NDArray[np.int64]
    returns: NDArray[np.float64]

    @property
    def title(self) -> str:
        """As figures call it: "source PPO", "source posterior sampling"."""
        name = self.style.rpartition(":")[2].replace("_", " ")
        return f"source {name.upper() if name == 'ppo' else name}"


def load_source_curves(
    run_dirs: Iterable[str | Path], tasks: Sequence[TaskReference], part: str
) -> list[SourceCurves]:
    """Learning curves on the compared tasks, of every style of the histories that has some.

    Args:
        run_dirs: run directories; the first with usable curves in collect/learning_curves.csv
            serves, the others having collected the same tasks.
        tasks: the compared tasks.
        part: of the split; rows of other parts are left out.

    Raises:
        ResultsError: one cannot be read, or is not what the stage has written.
    """
    positions = {str(task.index): position for position, task in enumerate(tasks)}
    positions |= {task.name: position for position, task in enumerate(tasks)}
    for run_dir in map(Path, run_dirs):
        path = run_dir / "collect" / "learning_curves.csv"
        remedy = f"bring {path} back, or delete {path.parent} and collect again"
        check_written(path.parent, remedy, "tables")
        if not path.is_file():
            continue
        try:
            curves = _read_curves(path, positions, part)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ResultsError(
                f"{path} cannot be read ({type(error).__name__}: {error}): expected the columns "
                f"task, split, style, source_seed, region, mean_return; {remedy}"
            ) from error
        if curves:
            return [_stack_curves(style, found) for style, found in curves.items()]
    return []


def _read_curves(
    path: Path, positions: dict[str, int], part: str
) -> dict[str, dict[tuple[int, str], dict[int, float]]]:
    """Mean return by region, for every (task position, source seed) of every style."""
    curves: dict[str, dict[tuple[int, str], dict[int, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            wanted = row["split"] == part and row["style"] != PLAIN
            # No episode may have ended in a region: its mean return is empty then.
            if wanted and row["task"] in positions and row["mean_return"]:
                of_style = curves.setdefault(row["style"], {})
                curve = of_style.setdefault((positions[row["task"]], row["source_seed"]), {})
                curve[int(row["region"])] = float(row["mean_return"])
    return curves


def _stack_curves(style: str, curves: dict[tuple[int, str], dict[int, float]]) -> SourceCurves:
    n_regions = 1 + max(max(curve) for curve in curves.values())
    returns = np.full((len(curves), n_regions), np.nan)
    for values, curve in zip(returns, curves.values(), strict=True):
        values[list(curve)] = list(curve.values())
    return SourceCurves(style, np.array([position for position, _ in curves]), returns)
