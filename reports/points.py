"""Points with their intervals and training seeds, joined or not, and the levels beside them."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from reports import statistics, style
from reports.curves import return_name
from reports.records import NO_CONTEXT, TEACHER
from reports.scores import MethodScores, is_normalized, records_of

SEED_MARK: dict[str, Any] = {"marker": "o", "ls": "", "ms": 2.8, "mfc": "none", "mew": 0.7}
SEED_SHIFT = 5.5  # points to the right of the marker, which would cover them


def draw_points(
    panel: Axes,
    x: Sequence[float],
    values: Sequence[Sequence[float]],
    look: style.Look,
    label: str,
    *,
    joined: bool,
    intervals: bool = True,
) -> None:
    """Draw a marker at every mean over training seeds, its interval, and a circle for each seed.

    Args:
        panel: where.
        x: of each point.
        values: by training seed, of each point; of an empty one nothing is drawn.
        look: of all of them.
        label: in the legend.
        joined: by a line, broken at what is empty.
        intervals: whether they are drawn.
    """
    panel.plot(
        x,
        [sum(seeds) / len(seeds) if seeds else float("nan") for seeds in values],
        **look.line(ls=look.dashes if joined else "", marker=look.marker or "o"),
        ms=5,
        label=label,
        zorder=3,
    )
    for at, seeds in zip(x, values, strict=True):
        if intervals:
            bounds = statistics.seed_interval(list(seeds))[:2]
            panel.plot([at, at], bounds, color=look.color, lw=1.6, solid_capstyle="butt", zorder=2)
        if len(set(seeds)) > 1:  # one, or all alike, is what the marker shows
            scale = panel.get_figure(root=True).dpi_scale_trans  # pyright: ignore
            shifted = panel.transData + ScaledTranslation(SEED_SHIFT / 72, 0, scale)
            panel.plot([at] * len(seeds), seeds, mec=look.color, transform=shifted, **SEED_MARK)


def draw_levels(
    panel: Axes,
    methods: Sequence[MethodScores],
    level: Callable[[MethodScores], float] = lambda method: float(method.scores.mean()),
) -> None:
    """The levels of teacher and no context, nothing where a level is nan."""
    looks = style.looks(records_of(methods))
    for method in methods:
        is_level = method.record.group == TEACHER or method.method == NO_CONTEXT
        if is_level and method.label == method.method:
            look = looks[method.label]
            panel.axhline(
                level(method), color=look.color, ls=look.dashes, lw=1, zorder=1, label=method.title
            )


def frame(panel: Axes, methods: Sequence[MethodScores]) -> None:
    """Name the axis of returns, and show all of 0 to 1, so that a small effect looks small."""
    panel.set_ylabel(return_name(methods))
    if is_normalized(methods):
        show_unit(panel)


def show_unit(panel: Axes) -> None:
    """Show all of 0 to 1."""
    low, high = panel.get_ylim()
    panel.set_ylim(min(low, -0.03), max(high, 1.03))


def legend(panel: Axes) -> None:
    """Name the lines beside the panel where there are several."""
    if len(panel.get_legend_handles_labels()[1]) > 1:
        style.legend_beside(panel)


def seed_remark(counts: set[int]) -> str:
    """A line under an axis where no point has more than one training seed."""
    return "\n(one training seed: no intervals)" if counts == {1} else ""
