"""The figure of the gap recovered: where each method stands between no context and the teacher."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reports import style
from reports.aggregate import MethodScores, gap_recovered, gap_recovered_by_seed
from reports.files import write_csv

NAME = "gap"
LINES = {"none": 0.0, "teacher": 1.0}
NOT_SHOWN = ("teacher", "none", "random", "optimal")
MARGIN = 0.06  # of the range, on either side


def draw_gap(methods: Sequence[MethodScores], out_dir: Path) -> list[Path]:
    """Draw (method - none) / (teacher - none) of every method that has both to be set against.

    Args:
        methods: from `stack_methods`.
        out_dir: an existing directory; gap.{pdf,png,csv} and gap_points.csv are written there.

    Returns:
        The PDF and the PNG; nothing without teacher, no context, or a gap between them.
    """
    shares = {
        method.label: gap_recovered(method, methods)
        for method in methods
        if method.method not in NOT_SHOWN
    }
    shown = [method for method in methods if np.isfinite(shares.get(method.label, np.nan))]
    if not shown:
        return []
    points = {method.label: gap_recovered_by_seed(method, methods) for method in shown}
    write_csv(
        out_dir / f"{NAME}.csv",
        ("method", "gap_recovered"),
        ((method.label, shares[method.label]) for method in shown),
    )
    write_csv(
        out_dir / f"{NAME}_points.csv",
        ("method", "training_seed", "gap_recovered"),
        ((label, *point) for label, found in points.items() for point in found),
    )
    with style.new_figure(5.0, 0.65 + 0.25 * len(shown)) as figure:
        axes = figure.subplots()
        looks = style.looks([method.label for method in shown])
        for row, method in enumerate(shown):
            look, share = looks[method.label], shares[method.label]
            axes.plot([0, share], [row, row], color=look.color, lw=1.6, solid_capstyle="butt")
            values = [value for _, value in points[method.label]]
            axes.plot(values, [row] * len(values), "o", ms=5.5, mfc="none", mec=style.GREY, mew=0.7)
            axes.plot(share, row, marker=look.marker or "o", color=look.color, ms=5)
            axes.text(
                1.02,
                row,
                f"{round(share, 2) + 0.0:.2f}".replace("-", "−"),
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=7.5,
            )
        for name, at in LINES.items():
            axes.axvline(at, color=style.BLACK, lw=0.7, ls=(0, (4, 2)), zorder=0)
            axes.text(at, -0.75, style.title(name), ha="center", va="bottom", fontsize=7.5)
        every = [*LINES.values(), *shares.values(), *(v for f in points.values() for _, v in f)]
        low, high = float(np.nanmin(every)), float(np.nanmax(every))
        axes.set_xlim(low - MARGIN * (high - low), high + MARGIN * (high - low))
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_yticks(range(len(shown)), labels=[style.title(m.label) for m in shown])
        for tick, method in zip(axes.get_yticklabels(), shown, strict=True):
            tick.set_fontweight("bold" if method.label == "student" else "normal")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("gap recovered, mean normalised final return")
        return style.save(figure, out_dir, NAME)
