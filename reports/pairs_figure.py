"""The figure of supervised families: the error against the number of pairs seen before.

An episode is one pair, so that the first is predicted from none and the last from all before it.
Squared errors are in variances of the outputs, on a logarithmic axis; of classes it is the share of
wrong ones.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reports import style
from reports.files import write_csv
from reports.records import REFERENCE
from reports.scores import MethodScores, records_of

Floats = NDArray[np.float64]

NAME = "pairs"
FAMILY = "supervised"
LEAST = 1e-5
"""The lowest squared error that is drawn."""


def draw_pairs(methods: Sequence[MethodScores], out_dir: Path) -> list[Path]:
    """Draw the mean error of every method but random and optimal.

    Args:
        methods: from `stack_methods`.
        out_dir: an existing directory; pairs.{pdf,png,csv} are written there.

    Returns:
        The PDF and the PNG; nothing for other families than supervised ones.
    """
    shown = [method for method in methods if method.record.group != REFERENCE]
    if not shown or methods[0].results[0].metrics.get("family") != FAMILY:
        return []
    errors = {method.label: error_by_pairs(method) for method in shown}  # (S, K) each
    write_csv(
        out_dir / f"{NAME}.csv",
        ("method", "training_seed", "pairs", "error"),
        (
            (method.label, seed, n_pairs, error)
            for method in shown
            for seed, of_seed in zip(method.seeds, errors[method.label], strict=True)
            for n_pairs, error in enumerate(of_seed)
        ),
    )
    looks = style.looks(records_of(methods))
    in_classes = n_classes(methods[0]) > 0
    with style.new_figure(4.6, 2.8) as figure:
        axes = figure.subplots()
        for method in shown:
            found = errors[method.label].mean(axis=0)
            axes.plot(
                np.arange(found.size),
                found if in_classes else found.clip(LEAST),
                **looks[method.label].line(marker=""),
                label=method.title,
            )
        if not in_classes:
            axes.set_yscale("log")
        axes.set_xlabel("pairs seen before")
        axes.set_ylabel("share of wrong classes" if in_classes else "mean squared error")
        style.legend_beside(axes)
        return style.save(figure, out_dir, NAME)


def n_classes(method: MethodScores) -> int:
    """Classes of the outputs; 0 for numbers."""
    return int(method.results[0].metrics["tasks"][0]["params"]["n_classes"])


def error_by_pairs(method: MethodScores) -> Floats:
    """`(S, K)` mean error over tasks and streams after 0, 1, ... pairs."""
    returns = method.returns.mean(axis=(1, 2))
    return 1 - returns if n_classes(method) else -returns
