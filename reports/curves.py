"""The figure of in-context learning: return against episode, one curve per method.

Shape letters: S training seeds, T' tasks with references, K in-context episodes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from reports import statistics, style
from reports.columns import axis_title
from reports.files import write_csv
from reports.records import BASELINE, SEARCH
from reports.scores import MethodScores, is_normalized, records_of
from reports.source_curves import SourceCurves
from reports.style import Look

Floats = NDArray[np.float64]

NAME = "learning_curves"
SOURCE_LOOK = Look(style.GREY, "-", "", 0.9)
FINAL_LOOK = Look(style.GREY, (0, (4, 2)), "", 0.7)
MAX_CURVES = 7  # in one panel
BANDS = {
    statistics.NOTHING: "one training seed: no bands",
    statistics.RANGE: "bands: range of the training seeds",
    statistics.BOOTSTRAP: "bands: bootstrap of training seeds, 95 %",
}


@dataclass(frozen=True)
class Curve:
    """One line of the figure.

    Attributes:
        label: method, "source_<style>", or the name of a level.
        title: as the figure calls it.
        look: how it is drawn.
        episodes: `(K,)`, from 1.
        returns: `(K,)`.
        band: bounds `(K,)`, nan where there are none.
        is_ours: whether it is set off.
    """

    label: str
    title: str
    look: Look
    episodes: Floats
    returns: Floats
    band: statistics.Band
    is_ours: bool = False


@dataclass(frozen=True)
class Panel:
    """Methods that share one pair of axes."""

    name: str
    methods: tuple[MethodScores, ...]


def draw_learning_curves(
    methods: Sequence[MethodScores],
    out_dir: Path,
    *,
    sources: Sequence[SourceCurves] = (),
) -> list[Path]:
    """Draw the mean of every method with its band; searches as references in every panel.

    Args:
        methods: from `stack_methods`.
        out_dir: an existing directory; learning_curves.{pdf,png,csv} are written there.
        sources: learning curves of the sources of the histories.

    Returns:
        The PDF and the PNG.
    """
    learners = [method for method in methods if not method.record.is_rollout] or list(methods)
    looks = style.looks(records_of(methods))
    curves = {m.label: method_curve(m, looks[m.label]) for m in learners}
    levels = reference_levels(methods) + search_curves(methods)
    source_curves = [curve for source in sources for curve in source_levels(methods[0], source)]
    drawn = [*curves.values(), *source_curves, *levels]
    write_curves(drawn, out_dir / f"{NAME}.csv")
    across = "in-context episode\n" + band_remark(list(curves.values()))
    with panels_figure(learners, 2.4, across, return_name(methods)) as (figure, panels):
        for position, (axes, panel) in enumerate(panels):
            shown = [*levels, *(source_curves if position == 0 else [])]
            axes.set_ylim(*limits(drawn))
            draw_panel(axes, [curves[method.label] for method in panel.methods], shown)
        return style.save(figure, out_dir, NAME)


def return_name(methods: Sequence[MethodScores]) -> str:
    """What an axis of returns is called."""
    return axis_title("mean" if is_normalized(methods) else "raw_return")


def band_remark(curves: Sequence[Curve]) -> str:
    """What the bands of a figure are, in brackets."""
    kinds = list(dict.fromkeys(curve.band.kind for curve in curves))
    several = [kind for kind in kinds if kind != statistics.NOTHING] or kinds
    return f"({'; '.join(BANDS[kind] for kind in several)})"


def method_curve(method: MethodScores, look: Look) -> Curve:
    """Mean over training seeds, tasks and evaluation seeds, with the band of training seeds."""
    values = method.seed_curves  # (S, K)
    return Curve(
        method.label,
        method.title,
        look,
        np.arange(1.0, method.n_episodes + 1),
        values.mean(axis=0),
        statistics.seed_band(method.replicated(values)),
        method.is_ours,
    )


BEST = {False: "optimal", True: "best source"}
"""What is drawn at a normalised return of 1, by whether it is a source's."""


def reference_levels(methods: Sequence[MethodScores]) -> list[Curve]:
    """Random and optimal, or what stands for it, as constant curves; where they are known."""
    first = methods[0]
    if is_normalized(methods):
        levels = {"random": 0.0, BEST[bool(first.results[0].n_by_source)]: 1.0}
    else:
        levels = {"random": float(first.results[0].random_returns.mean())}
    return [
        _constant(name, name, style.REFERENCE_LOOK, level, first.n_episodes)
        for name, level in levels.items()
        if np.isfinite(level)
    ]


def search_curves(methods: Sequence[MethodScores]) -> list[Curve]:
    """What searches by rule, to be drawn as a reference in every figure over episodes."""
    looks = style.looks(records_of(methods))
    return [method_curve(m, looks[m.label]) for m in methods if m.record.group == SEARCH]


def source_levels(method: MethodScores, source: SourceCurves) -> list[Curve]:
    """A source's curve, where regions can be dated, and its final level."""
    first = method.results[0]
    returns = source.returns  # (C, n_regions)
    if is_normalized([method]):
        random = first.random_returns[source.task_indices, None]
        best = first.best_returns[source.task_indices, None]
        returns = statistics.normalized_return(returns, random, best)
    returns = returns[:, np.isfinite(returns).any(axis=0)]
    returns = returns[np.isfinite(returns).all(axis=1)]  # a task without references, a short curve
    if not returns.size:
        return []
    center = returns.mean(axis=0)  # (n_regions,)
    final = float(center[-max(1, center.size // 10) :].mean())
    label, title = f"source_{source.style}", source.title
    levels = [_constant(f"{label}_final", f"{title}, final", FINAL_LOOK, final, method.n_episodes)]
    horizon = first.number("horizon")
    if horizon:
        per_region = first.region_len / horizon
        regions = np.arange(center.size, dtype=np.float64)
        episodes = (regions + 0.5) * per_region + 0.5  # a region's middle
        levels.insert(0, Curve(label, title, SOURCE_LOOK, episodes, center, _none(center)))
    return levels


def arrange(methods: Sequence[MethodScores]) -> list[Panel]:
    """One panel for few; else full context and controls apart, the student in every panel.

    The points of a sweep come after the methods they share.
    """
    if len(methods) <= MAX_CURVES:
        return [Panel("", tuple(methods))]
    points = [method for method in methods if method.is_point]
    shared = [method for method in methods if not method.is_point]
    if points and len(shared) <= MAX_CURVES:
        panels = [Panel("shared methods", tuple(shared))] if shared else []
        return panels + _chunks("settings", (), points)
    student = tuple(method for method in shared if method.is_ours)
    full = tuple(method for method in shared if method.record.group != BASELINE)
    others = [method for method in shared if method.record.group == BASELINE]
    panels: list[Panel] = []
    if len(full) > len(student):
        rest = [method for method in full if not method.is_ours]
        panels = _chunks("full context and controls", student, rest)
    return panels + _chunks("other contexts", student, others) + _chunks("settings", (), points)


def _chunks(
    name: str, first: tuple[MethodScores, ...], methods: Sequence[MethodScores]
) -> list[Panel]:
    """Panels that share the first methods and divide the others."""
    size = MAX_CURVES - len(first)
    starts = range(0, len(methods), size)
    return [Panel(name, (*first, *methods[start : start + size])) for start in starts]


@contextmanager
def panels_figure(
    methods: Sequence[MethodScores], height: float, across: str, up: str
) -> Iterator[tuple[Figure, list[tuple[Axes, Panel]]]]:
    """A figure of one pair of axes for every panel of the methods, at most two side by side.

    Args:
        methods: to be arranged.
        height: of a panel, inches.
        across: name of the horizontal axis.
        up: name of the vertical axis.
    """
    panels = arrange(methods)
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    with style.new_figure(4.4 * n_columns, height * n_rows) as figure:
        grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True)
        figure.subplots_adjust(wspace=1.25, hspace=0.4)  # room for the longest name
        for axes, panel in zip(grid.flat, panels, strict=False):
            axes.set_title(panel.name)
        for axes in grid[:, 0]:
            axes.set_ylabel(up)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for column in grid.T:
            lowest = [axes for axes in column if axes.get_visible()][-1]
            lowest.tick_params(labelbottom=True)  # off where axes below share the scale
            lowest.set_xlabel(across)
        yield figure, list(zip(grid.flat, panels, strict=False))


def _none(values: Floats) -> statistics.Band:
    unknown = np.full(values.shape, np.nan)
    return statistics.Band(unknown, unknown, statistics.NOTHING)


def _constant(label: str, title: str, look: Look, level: float, n_episodes: int) -> Curve:
    levels = np.full(2, level)
    return Curve(label, title, look, np.array([1.0, n_episodes]), levels, _none(levels))


def limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Limits of the axis of returns that show all of every curve."""
    values = np.concatenate([np.r_[c.returns, c.band.low, c.band.high] for c in curves])
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.04 * (high - low or 1.0)
    return float(low - margin), float(high + margin)


def draw_panel(axes: Axes, curves: Sequence[Curve], levels: Sequence[Curve]) -> None:
    """Draw curves over levels, names at the right edge; limits must be final."""
    last = curves[0].episodes[-1]
    axes.set_xlim(1, max(last, 2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    ends = []
    for level in levels:
        look = level.look
        axes.plot(level.episodes, level.returns, **look.line())
        ends.append((level.title, float(np.interp(last, level.episodes, level.returns)), look))
    for position, curve in enumerate(reversed(curves)):  # the first, ours, on top
        look = curve.look
        band = curve.band
        axes.fill_between(curve.episodes, band.low, band.high, color=look.color, alpha=0.15, lw=0)
        spacing = max(1, len(curve.episodes) // 6)
        axes.plot(
            curve.episodes,
            curve.returns,
            **look.line(),
            ms=3.5,
            clip_on=False,  # a marker at the edge stays whole
            # Markers of different curves stand apart.
            markevery=(position * spacing // len(curves), spacing),
        )
        ends.append((curve.title, float(curve.returns[-1]), look))
    low, high = axes.get_ylim()
    ours = tuple(curve.title for curve in curves if curve.is_ours)
    style.label_ends(axes, ends, gap=0.075 * (high - low), bold=ours)


def write_curves(curves: Sequence[Curve], path: Path) -> None:
    """Write every point of every curve."""
    write_csv(
        path,
        ("curve", "episode", "return", "band_low", "band_high", "band"),
        (
            (curve.label, *point, curve.band.kind)
            for curve in curves
            for point in zip(
                curve.episodes, curve.returns, curve.band.low, curve.band.high, strict=True
            )
        ),
    )
