"""The figure of bits: what a decoder gets for the bits it reads, beside the most it can get.

Its points, measures and bound stand in `reports.bits`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from reports import statistics, style
from reports.bits import (
    BITS,
    MEASURES,
    REGIONS,
    SEES,
    Bound,
    Measure,
    Series,
    context_bits,
    find_bound,
    sees_step,
)
from reports.curves import return_name
from reports.files import write_csv
from reports.points import draw_levels, draw_points, legend, seed_remark, show_unit
from reports.records import REFERENCE
from reports.scores import MethodScores, is_normalized

NAME = "bits"
TASK_BITS = "task_bits"
BOUND_LOOK = style.Look(style.BLACK, "-", "", 0.9)
LEAST_SHARE = 0.25  # of the bits of a task, that the axis shows in any case
MARGIN = 2.0  # an octave on either side


def draw_bits(
    series: Sequence[Series],
    methods: Sequence[MethodScores],
    out_dir: Path,
) -> list[Path]:
    """Draw every measure against the bits of context, with teacher, no context and the bound.

    A vertical line marks `task_bits` of metrics.json, what it takes to name one of the tasks.

    Args:
        series: the points.
        methods: all that are compared, for levels and bound.
        out_dir: an existing directory; bits.{pdf,png,csv}, bits_points.csv and, with a bound,
            bits_bound.csv are written there.

    Returns:
        The PDF and the PNG; nothing where all read the same bits and there is no bound.
    """
    points = [method for line in series for method in line.methods]
    bound = find_bound(methods) if is_normalized(methods) else None
    if not points or (bound is None and len({context_bits(point) for point in points}) == 1):
        return []
    _write(series, bound, out_dir)
    shown = _shown(points)
    limits = _limits(points)
    with style.new_figure(3.1 * len(shown), 2.5) as figure:
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        figure.subplots_adjust(wspace=0.42)
        for panel, measure in zip(panels, shown, strict=True):
            _draw(panel, measure, series)
            draw_levels(panel, methods, lambda method, m=measure: _mean(m, method))
            if measure.bounded == "return" and is_normalized(methods):
                random = next((m for m in methods if m.record.group == REFERENCE), None)
                if random is not None:
                    panel.axhline(0.0, color=style.GREY, lw=0.5, zorder=0)
            if is_normalized(methods) and measure.is_share:
                show_unit(panel)
            _draw_bound(panel, measure, points, bound, limits)
            _draw_axis(panel, points, limits)
            raw = measure.bounded == "return" and not is_normalized(methods)
            panel.set_ylabel(return_name(methods) if raw else measure.title)
        legend(panels[-1])
        return style.save(figure, out_dir, NAME)


def _shown(points: Sequence[MethodScores]) -> list[Measure]:
    """Those that are known of a point, each telling more than those before it."""
    known = {m.name: m for m in MEASURES if any(m.by_seed(point) for point in points)}
    if all(sees_step(point) for point in points):
        known.pop("after_border", None)  # then one episode is as good as another
    if "recall_accuracy" in known:
        known.pop("recall_return", None)
    return list(known.values())


def _mean(measure: Measure, method: MethodScores) -> float:
    values = list(measure.by_seed(method).values())
    return float(np.mean(values)) if values else np.nan


def _draw(panel: Axes, measure: Measure, series: Sequence[Series]) -> None:
    for line in series:
        x = [context_bits(method) or np.nan for method in line.methods]
        values = [list(measure.by_seed(method).values()) for method in line.methods]
        draw_points(panel, x, values, line.look, line.title, joined=line.joined)


def _draw_bound(
    panel: Axes,
    measure: Measure,
    points: Sequence[MethodScores],
    bound: Bound | None,
    limits: tuple[float, float],
) -> None:
    """The curve where it holds for every point, and what lies out of reach above it."""
    if bound is None or measure.bounded not in bound.levels:
        return
    if not all(measure.holds(point, bound) for point in points if measure.by_seed(point)):
        return
    levels = bound.levels[measure.bounded]
    bits = np.unique(np.r_[np.geomspace(*limits, 200), bound.bits[bound.bits > limits[0]]])
    heights = np.interp(bits, bound.bits, levels)
    low, top = panel.get_ylim()
    panel.fill_between(bits, heights, top, color=style.LIGHT_GREY, alpha=0.35, lw=0, zorder=0)
    panel.set_ylim(low, top)
    look = BOUND_LOOK
    panel.plot(bits, heights, color=look.color, lw=look.width, label="bound", zorder=2)


def _limits(points: Sequence[MethodScores]) -> tuple[float, float]:
    """From fewer bits than any point or task has, to more."""
    bits = [b for point in points if (b := context_bits(point))]
    task = [b for point in points if (b := point.number(TASK_BITS))]
    return min([*bits, *(LEAST_SHARE * b for b in task)]) / MARGIN, max([*bits, *task]) * MARGIN


def _draw_axis(panel: Axes, points: Sequence[MethodScores], limits: tuple[float, float]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xlim(*limits)
    panel.xaxis.set_major_locator(LogLocator(base=2, numticks=6))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    regions = sorted({int(point.number(REGIONS) or 1) for point in points})
    counted = (
        "the previous region" if regions == [1] else f"{' or '.join(map(str, regions))} regions"
    )
    panel.set_xlabel(
        f"bits of context, latents of {counted}" + seed_remark({len(p.seeds) for p in points})
    )
    task = next((b for point in points if (b := point.number(TASK_BITS))), None)
    if task:
        panel.axvline(task, color=style.BLACK, lw=0.8, ls=(0, (2, 1.5)), zorder=0)
        panel.annotate(
            f"task: {task:.1f} bits",
            (task, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=7.5,
        )


def _write(series: Sequence[Series], bound: Bound | None, out_dir: Path) -> None:
    points = [(line.title, method) for line in series for method in line.methods]
    first, *others = [measure.name for measure in MEASURES]
    ends = [f"{name}{end}" for name in others for end in ("", "_low", "_high")]
    interval = ("interval_low", "interval_high", "interval_kind")
    write_csv(
        out_dir / f"{NAME}.csv",
        ("series", "method", BITS, REGIONS, "context_bits", SEES, "mean", *interval, *ends),
        (_row(title, method) for title, method in points),
    )
    write_csv(
        out_dir / f"{NAME}_points.csv",
        ("series", "method", "training_seed", "context_bits", first, *others),
        (
            (title, method.label, seed, context_bits(method), *_of_seed(method, seed))
            for title, method in points
            for seed in method.seeds
        ),
    )
    if bound is not None:
        write_csv(
            out_dir / f"{NAME}_bound.csv",
            ("bits", *bound.levels),
            zip(bound.bits, *bound.levels.values(), strict=True),
        )


def _of_seed(method: MethodScores, seed: int) -> list[float | None]:
    return [measure.by_seed(method).get(seed) for measure in MEASURES]


def _row(title: str, method: MethodScores) -> list[object]:
    values = [list(measure.by_seed(method).values()) for measure in MEASURES]
    means = [float(np.mean(seeds)) if seeds else None for seeds in values]
    final, *others = [statistics.seed_interval(seeds) for seeds in values]
    return [
        title,
        method.label,
        float(method.number(BITS) or np.nan),
        method.number(REGIONS),
        context_bits(method),
        method.results[0].metrics.get(SEES),
        means[0],
        *final,
        *(
            cell
            for mean, interval in zip(means[1:], others, strict=True)
            for cell in (mean, *interval[:2])
        ),
    ]
