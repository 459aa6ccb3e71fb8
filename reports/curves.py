"""The figure of in-context learning: return against episode, one curve per method.

Shape letters: S training seeds, T' tasks with references, K in-context episodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from reports import statistics, style
from reports.aggregate import MethodScores, is_normalized
from reports.files import write_csv
from reports.results import SourceCurves, is_point
from reports.statistics import DEFAULT_BOOTSTRAP, Bootstrap
from reports.style import Look

Floats = NDArray[np.float64]

NAME = "learning_curves"
SOURCE_LOOK = Look(style.GREY, "-", "", 0.9)
FINAL_LOOK = Look(style.GREY, (0, (4, 2)), "", 0.7)
REFERENCE_LOOK = Look(style.GREY, "-", "", 0.5)
REFERENCES = ("random", "optimal")
FULL_CONTEXT = ("student", "teacher", "long_context", "student_zeroed", "student_shuffled")
MAX_CURVES = 7  # in one panel


@dataclass(frozen=True)
class Curve:
    """One line of the figure.

    Attributes:
        label: method, "source_ppo", or the name of a level.
        episodes: `(K,)`, from 1.
        returns: `(K,)`.
        low: `(K,)` lower bound, nan where there is no interval.
        high: `(K,)` upper bound.
    """

    label: str
    episodes: Floats
    returns: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Panel:
    """Labels of the curves that share one pair of axes."""

    name: str
    labels: tuple[str, ...]


def draw_learning_curves(
    methods: Sequence[MethodScores],
    out_dir: Path,
    *,
    source: SourceCurves | None = None,
    region_len: int | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> list[Path]:
    """Draw the interquartile mean of every method with its bootstrap band.

    Args:
        methods: from `stack_methods`.
        out_dir: an existing directory; learning_curves.{pdf,png,csv} are written there.
        source: the source algorithm's learning curves, if any.
        region_len: transitions in a region; without it the source's regions have no place on the
            axis of episodes and only its final level is drawn.
        bootstrap: how intervals are drawn.

    Returns:
        The PDF and the PNG.
    """
    learners = [method for method in methods if method.label not in REFERENCES]
    curves = {m.label: method_curve(m, bootstrap) for m in learners or methods}
    levels = reference_levels(methods)
    source_curves = source_levels(methods[0], source, region_len)
    _write_curves([*curves.values(), *source_curves, *levels], out_dir / f"{NAME}.csv")
    panels = arrange(list(curves))
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    with style.new_figure(3.7 * n_columns, 2.4 * n_rows) as figure:
        grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True)
        figure.subplots_adjust(wspace=0.85, hspace=0.4)
        all_looks = style.looks(list(curves))
        for position, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
            shown = [*levels, *(source_curves if position == 0 else [])]
            axes.set_title(panel.name)
            axes.set_ylim(*_limits([*curves.values(), *source_curves, *levels]))
            _draw_panel(axes, [curves[label] for label in panel.labels], all_looks, shown)
        for axes in grid[:, 0]:
            axes.set_ylabel("normalised return, IQM" if is_normalized(methods) else "return, IQM")
        one_seed = all(np.isnan(curve.low).all() for curve in curves.values())
        for axes in place_panels(grid, len(panels)):
            axes.set_xlabel(
                "in-context episode" + ("\n(one training seed: no bands)" if one_seed else "")
            )
        return style.save(figure, out_dir, NAME)


def method_curve(method: MethodScores, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP) -> Curve:
    """Interquartile mean over training seeds and tasks, evaluation seeds averaged before."""
    values = method.curves  # (S, T', K)
    n_seeds, n_tasks, n_episodes = values.shape
    center = statistics.iqm(values.reshape(n_seeds * n_tasks, n_episodes), axis=0)
    low, high = statistics.bootstrap_band(values, statistics.iqm, bootstrap)
    return Curve(method.label, np.arange(1.0, n_episodes + 1), center, low, high)


def reference_levels(methods: Sequence[MethodScores]) -> list[Curve]:
    """Random and optimal as constant curves; optimal only where it is known."""
    first = methods[0]
    n_episodes = first.returns.shape[-1]
    if is_normalized(methods):
        levels = {"random": 0.0, "optimal": 1.0}
    else:
        levels = {"random": float(statistics.iqm(first.results[0].random_returns))}
    known = {name: level for name, level in levels.items() if np.isfinite(level)}
    return [_constant(name, level, n_episodes) for name, level in known.items()]


def source_levels(
    method: MethodScores, source: SourceCurves | None, region_len: int | None
) -> list[Curve]:
    """The source algorithm's curve, where regions can be dated, and its final level."""
    if source is None:
        return []
    first = method.results[0]
    returns = source.returns  # (C, n_regions)
    if is_normalized([method]):
        random = first.random_returns[source.task_indices, None]
        optimal = first.optimal_returns[source.task_indices, None]
        returns = statistics.normalized_return(returns, random, optimal)
    returns = returns[:, np.isfinite(returns).any(axis=0)]
    returns = returns[np.isfinite(returns).all(axis=1)]  # a task without references, a short curve
    if not returns.size:
        return []
    center = statistics.iqm(returns, axis=0)  # (n_regions,)
    n_final = max(1, center.size // 10)
    n_episodes = method.returns.shape[-1]
    levels = [_constant("source_ppo_final", float(center[-n_final:].mean()), n_episodes)]
    horizon = first.number("horizon")
    if region_len and horizon:
        per_region = region_len / horizon
        regions = np.arange(center.size, dtype=np.float64)
        episodes = (regions + 0.5) * per_region + 0.5  # a region's middle
        unknown = np.full(center.size, np.nan)
        levels.insert(0, Curve("source_ppo", episodes, center, unknown, unknown))
    return levels


def arrange(labels: Sequence[str]) -> list[Panel]:
    """One panel for few; else full context and controls apart, the student in every panel.

    The points of a sweep come after the methods they share.
    """
    if len(labels) <= MAX_CURVES:
        return [Panel("", tuple(labels))]
    points = [label for label in labels if is_point(label)]
    shared = [label for label in labels if not is_point(label)]
    student = tuple(label for label in labels if label == "student")
    full = tuple(label for label in shared if label in FULL_CONTEXT)
    others = [label for label in shared if label not in FULL_CONTEXT]
    if points and len(shared) <= MAX_CURVES:
        panels = [Panel("shared methods", tuple(shared))] if shared else []
        return panels + _chunks("settings", (), points)
    panels = [Panel("full context and controls", full)] if len(full) > len(student) else []
    return panels + _chunks("other contexts", student, others) + _chunks("settings", (), points)


def _chunks(name: str, first: tuple[str, ...], labels: Sequence[str]) -> list[Panel]:
    """Panels that share the first labels and divide the others."""
    size = MAX_CURVES - len(first)
    starts = range(0, len(labels), size)
    return [Panel(name, (*first, *labels[start : start + size])) for start in starts]


def place_panels(grid: NDArray[Any], n_panels: int) -> list[Axes]:
    """Hide the axes of a grid that no panel needs; return the lowest shown of each column."""
    for axes in grid.flat[n_panels:]:
        axes.set_visible(False)
    lowest = [[axes for axes in column if axes.get_visible()][-1] for column in grid.T]
    for axes in lowest:
        axes.tick_params(labelbottom=True)  # off where axes below share the scale
    return lowest


def _constant(label: str, level: float, n_episodes: int) -> Curve:
    unknown = np.full(2, np.nan)
    return Curve(label, np.array([1.0, n_episodes]), np.full(2, level), unknown, unknown)


def _limits(curves: Sequence[Curve]) -> tuple[float, float]:
    values = np.concatenate([np.r_[curve.returns, curve.low, curve.high] for curve in curves])
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.04 * (high - low or 1.0)
    return float(low - margin), float(high + margin)


def _draw_panel(
    axes: Axes, curves: Sequence[Curve], looks: dict[str, Look], levels: Sequence[Curve]
) -> None:
    last = curves[0].episodes[-1]
    axes.set_xlim(1, max(last, 2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    ends = []
    for level in levels:
        look = {"source_ppo": SOURCE_LOOK, "source_ppo_final": FINAL_LOOK}.get(
            level.label, REFERENCE_LOOK
        )
        axes.plot(level.episodes, level.returns, color=look.color, ls=look.dashes, lw=look.width)
        end = float(np.interp(last, level.episodes, level.returns))
        ends.append((style.title(level.label), end, look))
    for position, curve in enumerate(reversed(curves)):  # the first, ours, on top
        look = looks[curve.label]
        axes.fill_between(curve.episodes, curve.low, curve.high, color=look.color, alpha=0.15, lw=0)
        spacing = max(1, len(curve.episodes) // 6)
        axes.plot(
            curve.episodes,
            curve.returns,
            color=look.color,
            ls=look.dashes,
            lw=look.width,
            marker=look.marker,
            ms=3.5,
            clip_on=False,  # a marker at the edge stays whole
            # Markers of different curves stand apart.
            markevery=(position * spacing // len(curves), spacing),
        )
        ends.append((style.title(curve.label), float(curve.returns[-1]), look))
    low, high = axes.get_ylim()
    style.label_ends(axes, ends, gap=0.075 * (high - low), bold=(style.title("student"),))


def _write_curves(curves: Sequence[Curve], path: Path) -> None:
    write_csv(
        path,
        ("curve", "episode", "return", "ci_low", "ci_high"),
        (
            (curve.label, *point)
            for curve in curves
            for point in zip(curve.episodes, curve.returns, curve.low, curve.high, strict=True)
        ),
    )
