"""The figures of a comparison, each as PDF and PNG with the plotted numbers as CSV beside it.

`learning_curves`, `profiles`, `gap` and `cost` stand in modules of their own.

`bars`: final return per method. `tasks`: student, teacher and no context, task by task. Colours and
shapes come from reports.style.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from reports import statistics, style
from reports.border_figure import draw_borders
from reports.column import number
from reports.curves import draw_learning_curves, return_name
from reports.files import write_csv
from reports.gap import draw_gap
from reports.measures import SOLVED_THRESHOLD
from reports.pairs_figure import draw_pairs
from reports.profiles import draw_profiles
from reports.records import (
    BASELINE,
    CONTROL,
    NO_CONTEXT,
    RAW_CONTEXT,
    REFERENCE,
    SEARCH,
    STUDENT,
    TEACHER,
)
from reports.scores import MethodScores, is_normalized, records_of
from reports.source_curves import SourceCurves
from reports.statistics import Interval

Floats = NDArray[np.float64]

MAX_DOT_TASKS = 30
MAX_MAP_TASKS = 120
TASKS_PER_BLOCK = 30
MAX_POINTS = 400  # of one bar; more would be a smear
GROUP_COLORS = {
    STUDENT: style.BLUE,
    TEACHER: style.GREY,
    RAW_CONTEXT: style.GREY,
    BASELINE: style.SKY,
    CONTROL: style.VERMILLION,
    REFERENCE: style.LIGHT_GREY,
    SEARCH: style.LIGHT_GREY,
}


def write_figures(
    methods: Sequence[MethodScores],
    out_dir: Path,
    *,
    sources: Sequence[SourceCurves] = (),
    solved_threshold: float = SOLVED_THRESHOLD,
) -> dict[str, list[Path]]:
    """Write every figure the results allow.

    Args:
        methods: from `stack_methods`.
        out_dir: an existing directory.
        sources: learning curves of the sources of the histories.
        solved_threshold: marked in the figure of tasks.

    Returns:
        PDF and PNG of each figure, by its name.
    """
    written = {
        "learning_curves": draw_learning_curves(methods, out_dir, sources=sources),
        "pairs": draw_pairs(methods, out_dir),
        "borders": draw_borders(methods, out_dir),
        "bars": draw_bars(methods, out_dir),
    }
    shown = shown_per_task(methods)
    if shown:
        written["tasks"] = draw_tasks(shown, out_dir, solved_threshold=solved_threshold)
    written["profiles"] = draw_profiles(methods, out_dir)
    written["gap"] = draw_gap(methods, out_dir)
    return {name: paths for name, paths in written.items() if paths}


def shown_per_task(methods: Sequence[MethodScores]) -> list[MethodScores]:
    """The few methods whose returns are shown task by task: student, teacher, no context."""
    return [
        method
        for method in methods
        if method.label == method.method
        and (method.record.group in (STUDENT, TEACHER) or method.method == NO_CONTEXT)
    ]


def draw_bars(methods: Sequence[MethodScores], out_dir: Path) -> list[Path]:
    """Mean of the final return per method, interval, seeds, and a point per (seed, task).

    Args:
        methods: from `stack_methods`.
        out_dir: an existing directory; bars.{pdf,png,csv} and bars_points.csv are written there.

    Returns:
        The PDF and the PNG.
    """
    means = [float(method.scores.mean()) for method in methods]
    iqms = [float(statistics.iqm(method.scores)) for method in methods]
    intervals = [
        statistics.seed_interval(method.replicated(method.seed_scores)) for method in methods
    ]
    write_csv(
        out_dir / "bars.csv",
        ("method", "mean", "interval_low", "interval_high", "interval_kind", "iqm"),
        (
            (method.label, mean, *interval, iqm)
            for method, mean, interval, iqm in zip(methods, means, intervals, iqms, strict=True)
        ),
    )
    write_csv(
        out_dir / "bars_points.csv", ("method", "training_seed", "task", "return"), _points(methods)
    )
    with style.new_figure(5.0, 0.6 + 0.27 * len(methods)) as figure:
        axes = figure.subplots()
        for row, (method, mean, interval) in enumerate(zip(methods, means, intervals, strict=True)):
            _draw_bar(axes, row, method, mean, interval)
        style.name_rows(axes, [m.title for m in methods], [m.is_ours for m in methods])
        for at, heading, values in ((1.02, "mean", means), (1.11, "IQM", iqms)):
            axes.text(at, 1.0, heading, transform=axes.transAxes, color=style.GREY, va="bottom")
            for row, value in enumerate(values):
                place = axes.get_yaxis_transform()
                axes.text(at, row, number(value, 2), transform=place, va="center", fontsize=7.5)
        axes.set_xlabel(_final_return_name(methods))
        if is_normalized(methods):
            for reference in (0, 1):
                axes.axvline(reference, color=style.GREY, lw=0.5, zorder=0)
        return style.save(figure, out_dir, "bars")


def _draw_bar(axes: Axes, row: int, method: MethodScores, mean: float, interval: Interval) -> None:
    color = GROUP_COLORS[method.record.group]
    axes.barh(row, mean, height=0.66, color=color, alpha=0.55, edgecolor=style.BLACK, lw=0.5)
    scores = method.scores.ravel()
    generator = np.random.default_rng(0)
    if scores.size > MAX_POINTS:
        scores = generator.choice(scores, MAX_POINTS, replace=False)
    heights = row + generator.uniform(-0.24, 0.24, size=scores.size)
    axes.plot(scores, heights, "o", ms=2.2, mfc="none", mec=style.BLACK, mew=0.4, alpha=0.5)
    if interval.kind:
        axes.plot(interval[:2], [row, row], color=style.BLACK, lw=1.4, solid_capstyle="butt")
        seeds = method.seed_scores
        axes.plot(seeds, [row] * seeds.size, "|", ms=7, mew=1.4, color=style.BLACK)


def _points(methods: Sequence[MethodScores]) -> list[tuple[str, int | None, str, float]]:
    return [
        (method.label, seed, task.name, score)
        for method in methods
        for seed, scores in zip(method.seeds, method.task_scores, strict=True)
        for task, score in zip(method.results[0].tasks, scores, strict=True)
    ]


def _final_return_name(methods: Sequence[MethodScores]) -> str:
    n = methods[0].final_episodes
    return f"{return_name(methods)}, last {f'{n} episodes' if n > 1 else 'episode'}"


def draw_tasks(
    methods: Sequence[MethodScores],
    out_dir: Path,
    *,
    solved_threshold: float = SOLVED_THRESHOLD,
) -> list[Path]:
    """Final return of each task, averaged over training seeds: dots for few tasks, else a map.

    Args:
        methods: the few to set against each other.
        out_dir: an existing directory; tasks.{pdf,png,csv} are written there.
        solved_threshold: marked among the dots where returns are normalised.

    Returns:
        The PDF and the PNG.
    """
    names = [task.name for task in methods[0].results[0].tasks]
    per_seed = [method.task_scores for method in methods]  # (S, T) each
    write_csv(
        out_dir / "tasks.csv",
        ("task", *(method.label for method in methods)),
        zip(names, *(scores.mean(axis=0) for scores in per_seed), strict=True),
    )
    known = np.isfinite(per_seed[0][0])
    order = np.flatnonzero(known)
    order = order[np.argsort(-per_seed[0].mean(axis=0)[order], kind="stable")]
    width, height = _task_figure_size(order.size)
    with style.new_figure(width, height) as figure:
        if order.size > MAX_DOT_TASKS:
            _draw_task_map(figure, methods, names, order)
        else:
            _draw_task_dots(figure, methods, names, order)
            if is_normalized(methods):
                _mark_solved(figure.axes[0], solved_threshold)
        return style.save(figure, out_dir, "tasks")


def _task_figure_size(n_tasks: int) -> tuple[float, float]:
    if n_tasks <= MAX_DOT_TASKS:
        return 4.2, 0.7 + 0.24 * n_tasks
    n_blocks = -(-min(n_tasks, MAX_MAP_TASKS) // TASKS_PER_BLOCK)
    return 1.7 * n_blocks + 0.4, 4.2


def _draw_task_dots(
    figure: Figure, methods: Sequence[MethodScores], names: list[str], order: NDArray[np.int64]
) -> None:
    axes = figure.subplots()
    rows = np.arange(order.size)
    looks = style.looks(records_of(methods))
    axes.hlines(rows, 0, 1, color=style.LIGHT_GREY, lw=0.4, transform=axes.get_yaxis_transform())
    offsets = 0.2 * (np.arange(len(methods)) - (len(methods) - 1) / 2)
    for method, offset in zip(methods, offsets, strict=True):
        look = looks[method.label]
        scores = method.task_scores[:, order]  # (S, T)
        bounds = scores.min(axis=0), scores.max(axis=0)
        axes.hlines(rows + offset, *bounds, color=look.color, lw=1.2)
        axes.plot(
            scores.mean(axis=0),
            rows + offset,
            look.marker,
            color=look.color,
            ms=4,
            label=method.title,
        )
    axes.set_yticks(rows, labels=[names[task] for task in order])
    axes.set_ylim(order.size - 0.5, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(_final_return_name(methods))
    several = len(methods[0].results) > 1
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        title="mean and range\nover training seeds" if several else None,
        alignment="left",
    )


def _mark_solved(axes: Axes, threshold: float) -> None:
    axes.axvline(threshold, color=style.GREY, lw=0.6, ls=(0, (2, 2)), zorder=0)
    axes.text(threshold, -0.8, "solved", ha="center", color=style.GREY, fontsize=7)


def _draw_task_map(
    figure: Figure, methods: Sequence[MethodScores], names: list[str], order: NDArray[np.int64]
) -> None:
    shown = order[-MAX_MAP_TASKS:]  # the hardest, where there are too many
    blocks = [shown[i : i + TASKS_PER_BLOCK] for i in range(0, shown.size, TASKS_PER_BLOCK)]
    grid = figure.subplots(1, len(blocks), squeeze=False)[0]
    figure.subplots_adjust(wspace=1.3)
    means = np.stack([method.task_scores.mean(axis=0) for method in methods], axis=1)  # (T, M)
    limits = (0.0, 1.0) if is_normalized(methods) else (np.nanmin(means), np.nanmax(means))
    for axes, block in zip(grid, blocks, strict=True):
        image = axes.imshow(
            means[block], cmap=style.SHADES, vmin=limits[0], vmax=limits[1], aspect="auto"
        )
        axes.set_ylim(TASKS_PER_BLOCK - 0.5, -0.5)
        axes.set_yticks(range(len(block)), labels=[names[task] for task in block], fontsize=5.5)
        axes.xaxis.tick_top()
        axes.set_xticks(
            range(len(methods)),
            labels=[method.title for method in methods],
            rotation=60,
            ha="left",
            rotation_mode="anchor",
        )
        style.bare(axes)
    style.colour_bar(image, list(grid), _final_return_name(methods), pad=0.04)
    if shown.size < order.size:
        figure.suptitle(f"the {shown.size} of {order.size} tasks hardest for the student", y=1.08)
