"""Learning curves of collected histories: return per region, and those that went wrong."""

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from base.files import atomic_file
from histories.regions import region_returns
from histories.store import HistoriesReader
from tasks.splits import SplitError

CURVES_NAME = "learning_curves.csv"
CURVE_COLUMNS = ("task", "split", "style", "source_seed", "region", "mean_return")
COLLAPSED_BELOW = 0.7  # of the peak
FLAT_BELOW = 0.2  # of the way from random to optimal
MOST_ROWS = 24  # of the printed table


@dataclass(frozen=True)
class Curve:
    """One learning curve.

    Attributes:
        task: Index.
        task_name: For messages.
        split: Part the task belongs to, empty where none.
        style: Who acted.
        source_seed: Of the source algorithm.
        returns: `(regions,)` mean undiscounted return of the episodes that finished in a region,
            NaN where none did.
        random_return: Reference.
        optimal_return: Reference, None where unknown.
    """

    task: int
    task_name: str
    split: str
    style: str
    source_seed: int
    returns: np.ndarray
    random_return: float
    optimal_return: float | None


def learning_curves(reader: HistoriesReader) -> Iterator[Curve]:
    """One curve per task, style and source seed of an open histories file."""
    for index in reader.task_indices():
        arrays = reader.arrays(index)
        ended = arrays["terminated"] | arrays["truncated"]
        try:
            part = reader.split.part_of(index)
        except SplitError:
            part = ""
        labels = zip(arrays["style"].tolist(), arrays["source_seed"].tolist(), strict=True)
        for style, seed in dict.fromkeys(labels):
            rows = (arrays["style"] == style) & (arrays["source_seed"] == seed)
            recorded = np.s_[: arrays["n_transitions"][rows].max()]  # one history: all as long
            returns = region_returns(
                arrays["rewards"][rows, recorded],
                ended[rows, recorded],
                arrays["compress_markers"][rows, recorded],
            )
            name = reader.task(index).name
            yield Curve(index, name, part, style, seed, returns, *reader.references(index))


def curve_warning(curve: Curve) -> str | None:
    """One line if a curve collapsed or stayed flat, else None.

    Collapsed: the last region's return has lost more than 0.3 of the peak's lead over random.
    Flat: no region lies above random + 0.2 (optimal - random). Uniformly random histories are never
    judged.
    """
    finished = curve.returns[~np.isnan(curve.returns)]
    if curve.style == "random" or len(finished) == 0:
        return None
    label = f"task {curve.task} {curve.task_name}, {curve.style}, seed {curve.source_seed}"
    peak, final = float(finished.max()), float(finished[-1])
    if curve.optimal_return is not None:
        span = curve.optimal_return - curve.random_return
        if peak < curve.random_return + FLAT_BELOW * span:
            return (
                f"flat: {label}: never above {peak:.2f}, random {curve.random_return:.2f}, "
                f"optimal {curve.optimal_return:.2f}"
            )
    if final - curve.random_return < COLLAPSED_BELOW * (peak - curve.random_return):
        return f"collapsed: {label}: ended at {final:.2f} after a peak of {peak:.2f}"
    return None


def write_learning_curves(curves: Sequence[Curve], path: Path) -> None:
    """Write a CSV file with the columns CURVE_COLUMNS."""
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CURVE_COLUMNS)
        for curve in curves:
            labels = (curve.task, curve.split, curve.style, curve.source_seed)
            for region, mean_return in enumerate(curve.returns):
                value = "" if np.isnan(mean_return) else f"{mean_return:.6g}"
                writer.writerow([*labels, region, value])


def curve_table(curves: Sequence[Curve]) -> Table:
    """Table of learning curves: return at a quarter, half, three quarters and the end.

    One row per curve; where that makes more than MOST_ROWS, one per split part, style and seed,
    the mean over its tasks.
    """
    title = "mean return of the episodes of a region, along the histories"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("task", "split", "style", "seed"):
        table.add_column(heading, no_wrap=True)
    for heading in ("25 %", "50 %", "75 %", "end", "best"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for curve in curves if len(curves) <= MOST_ROWS else _means(curves):
        ends = [max(0, len(curve.returns) * part // 4 - 1) for part in (1, 2, 3, 4)]
        best = "–" if curve.optimal_return is None else f"{curve.optimal_return:.1f}"
        note = (curve_warning(curve) or "").partition(":")[0]
        values = [f"{curve.returns[end]:.2f}" for end in ends]
        labels = [curve.task_name, curve.split, curve.style, str(curve.source_seed)]
        table.add_row(*map(Text, labels), *values, best, note)
    return table


def _means(curves: Sequence[Curve]) -> Iterator[Curve]:
    """Mean curves over the tasks of a part, style and seed."""

    def label(curve: Curve) -> tuple[str, str, int]:
        return curve.split, curve.style, curve.source_seed

    for (split, style, seed), same in itertools.groupby(sorted(curves, key=label), label):
        group = list(same)
        known = [each.optimal_return for each in group if each.optimal_return is not None]
        yield Curve(
            task=-1,
            task_name=f"mean of {len(group)}",
            split=split,
            style=style,
            source_seed=seed,
            returns=np.mean([each.returns for each in group], axis=0),
            random_return=float(np.mean([each.random_return for each in group])),
            optimal_return=float(np.mean(known)) if len(known) == len(group) else None,
        )
