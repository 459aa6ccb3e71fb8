"""The figure of performance profiles: which share of (training seed, task) reaches which return.

After Agarwal et al. 2021 (arXiv 2108.13264, section 4.2). A line shows how the return is spread
over seeds and tasks, which one average hides. A line above another at every return is the better
method throughout; lines that cross are better at different tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from reports import statistics, style
from reports.aggregate import MethodScores, is_normalized
from reports.curves import REFERENCES, arrange, place_panels
from reports.files import write_csv
from reports.statistics import DEFAULT_BOOTSTRAP, Bootstrap

Floats = NDArray[np.float64]

NAME = "profiles"
THRESHOLDS: Floats = np.arange(101) / 100


@dataclass(frozen=True)
class Profile:
    """One line of the figure, over `THRESHOLDS`.

    Attributes:
        label: the method.
        shares: share of (training seed, task) that reaches each threshold.
        low: lower bound, nan where there is no interval.
        high: upper bound.
    """

    label: str
    shares: Floats
    low: Floats
    high: Floats


def draw_profiles(
    methods: Sequence[MethodScores],
    out_dir: Path,
    *,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> list[Path]:
    """Draw the profile of every method that acts by itself, panels as in the learning curves.

    Args:
        methods: from `stack_methods`.
        out_dir: an existing directory; profiles.{pdf,png,csv} are written there.
        bootstrap: how intervals are drawn.

    Returns:
        The PDF and the PNG; nothing where returns are not normalised or no method is left.
    """
    learners = [method for method in methods if method.label not in REFERENCES]
    if not learners or not is_normalized(methods):
        return []
    profiles = {method.label: profile(method, bootstrap) for method in learners}
    write_csv(
        out_dir / f"{NAME}.csv",
        ("method", "threshold", "share", "ci_low", "ci_high"),
        (
            (curve.label, *point)
            for curve in profiles.values()
            for point in zip(THRESHOLDS, curve.shares, curve.low, curve.high, strict=True)
        ),
    )
    panels = arrange(list(profiles))
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    looks = style.looks(list(profiles))
    with style.new_figure(3.7 * n_columns, 2.3 * n_rows) as figure:
        grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True)
        figure.subplots_adjust(wspace=0.85, hspace=0.4)
        for axes, panel in zip(grid.flat, panels, strict=False):
            axes.set_title(panel.name)
            _draw_panel(axes, [profiles[label] for label in panel.labels], looks)
        for axes in grid[:, 0]:
            axes.set_ylabel("share of seeds and tasks\nthat reach it")
        for axes in place_panels(grid, len(panels)):
            axes.set_xlabel("normalised final return")
        return style.save(figure, out_dir, NAME)


def profile(method: MethodScores, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP) -> Profile:
    """Share of (training seed, task) that reaches each of `THRESHOLDS`, with its pointwise band."""
    reached = statistics.reached(method.scores, THRESHOLDS)  # (S, T', thresholds)
    low, high = statistics.bootstrap_band(reached, statistics.mean, bootstrap)
    return Profile(method.label, reached.mean(axis=(0, 1)), low, high)


def _draw_panel(axes: Axes, curves: Sequence[Profile], looks: dict[str, style.Look]) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.02, 1.02)
    for position, curve in enumerate(reversed(curves)):  # the first, ours, on top
        look = looks[curve.label]
        axes.fill_between(
            THRESHOLDS, curve.low, curve.high, color=look.color, alpha=0.12, lw=0, step="pre"
        )
        axes.plot(
            THRESHOLDS,
            curve.shares,
            drawstyle="steps-pre",
            color=look.color,
            ls=look.dashes,
            lw=look.width,
            marker=look.marker,
            ms=3.5,
            clip_on=False,
            markevery=(2 + position * 18 // len(curves), 18),
            label=style.title(curve.label),
        )
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.legend(
        handles[::-1],
        labels[::-1],
        loc="upper left",
        bbox_to_anchor=(1.02, 1.03),
        frameon=False,
        handlelength=3,
    )
    for text in legend.get_texts():
        text.set_fontweight("bold" if text.get_text() == style.title("student") else "normal")
