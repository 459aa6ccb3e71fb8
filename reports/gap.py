"""The figure of the gap recovered: where each method stands between no context and the teacher."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reports import style
from reports.column import number
from reports.columns import axis_title
from reports.files import write_csv
from reports.measures import gap_recovered
from reports.records import NO_CONTEXT, TEACHER
from reports.scores import MethodScores, records_of

NAME = "gap"
MARGIN = 0.06  # of the range, on either side


def draw_gap(methods: Sequence[MethodScores], out_dir: Path) -> list[Path]:
    """Draw the gap recovered of every method that has teacher and no context beside it.

    Args:
        methods: from `stack_methods`.
        out_dir: an existing directory; gap.{pdf,png,csv} and gap_points.csv are written there.

    Returns:
        The PDF and the PNG; nothing without teacher, no context, or a gap between them.
    """
    floor = next((m for m in methods if m.method == NO_CONTEXT), None)
    ceiling = next((m for m in methods if m.record.group == TEACHER), None)
    gaps = {
        method.label: gap_recovered(method, methods)
        for method in methods
        if method.method != NO_CONTEXT and method.record.group != TEACHER
    }
    shown = [m for m in methods if m.label in gaps and np.isfinite(gaps[m.label].share)]
    if not shown or floor is None or ceiling is None:
        return []
    write_csv(
        out_dir / f"{NAME}.csv",
        ("method", "gap_recovered"),
        ((method.label, gaps[method.label].share) for method in shown),
    )
    write_csv(
        out_dir / f"{NAME}_points.csv",
        ("method", "training_seed", "gap_recovered"),
        ((m.label, *point) for m in shown for point in gaps[m.label].by_seed.items()),
    )
    with style.new_figure(5.0, 0.65 + 0.25 * len(shown)) as figure:
        axes = figure.subplots()
        looks = style.looks(records_of(methods))
        for row, method in enumerate(shown):
            look, gap = looks[method.label], gaps[method.label]
            axes.plot([0, gap.share], [row, row], color=look.color, lw=1.6, solid_capstyle="butt")
            values = list(gap.by_seed.values())
            axes.plot(values, [row] * len(values), "o", ms=5.5, mfc="none", mec=style.GREY, mew=0.7)
            axes.plot(gap.share, row, marker=look.marker or "o", color=look.color, ms=5)
            axes.text(
                1.02,
                row,
                number(gap.share, 2),
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=7.5,
            )
        for line, at in ((floor, 0.0), (ceiling, 1.0)):
            axes.axvline(at, color=style.BLACK, lw=0.7, ls=(0, (4, 2)), zorder=0)
            axes.text(at, -0.75, line.record.title, ha="center", va="bottom", fontsize=7.5)
        every = [0.0, 1.0]
        for method in shown:
            every += [gaps[method.label].share, *gaps[method.label].by_seed.values()]
        low, high = float(np.nanmin(every)), float(np.nanmax(every))
        axes.set_xlim(low - MARGIN * (high - low), high + MARGIN * (high - low))
        style.name_rows(axes, [m.title for m in shown], [m.is_ours for m in shown])
        axes.set_xlabel(axis_title("gap_recovered"))
        return style.save(figure, out_dir, NAME)
