"""The figures of a sweep: return against a setting, against bits of context, and as a map of two.

`sweep_<axis>`: the student's return above the accuracy of reconstruction, one line per combination
of the other settings. `bits`: return against the bits of the latents. `heatmap`: two settings.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from reports import style
from reports.column import number
from reports.columns import axis_title
from reports.curves import return_name
from reports.files import write_csv
from reports.records import NO_CONTEXT, TEACHER
from reports.scores import MethodScores, is_normalized
from reports.sweep_axes import Axis, PlacedPoint, lines, show

Floats = NDArray[np.float64]

ACCURACY = "reconstruction_accuracy"
POINT_COLUMNS = ("mean", "interval_low", "interval_high", "interval_kind")
DODGE = 0.14  # between lines, so that intervals do not cover each other
SEED_MARK: dict[str, Any] = {"marker": "o", "ls": "", "ms": 2.8, "mfc": "none", "mew": 0.7}
SEED_SHIFT = 5.5  # points to the right of the marker, which would cover them
LINE_LOOKS = tuple(
    style.Look(color, dashes, marker)
    for color, dashes, marker in zip(
        (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.SKY, style.BLACK),
        ("-", (0, (4, 1)), (0, (6, 1, 1, 1)), (0, (1, 1)), (0, (2, 1)), "-"),
        "osD^vP",
        strict=True,
    )
)
CAPTIONS = {
    "bits": (
        "Return against bits of context",
        "Return of the student against the bits one region is kept in. Left of the "
        "vertical line, latents could not name the task even if no bit were wasted.",
    ),
    "heatmap": (
        "Both settings at once",
        "Mean of the final return, over training seeds and tasks, for every "
        "combination of values. Hatched: not evaluated.",
    ),
}


def draw_sweep(
    axes: Sequence[Axis],
    points: Sequence[PlacedPoint],
    methods: Sequence[MethodScores],
    out_dir: Path,
) -> dict[str, list[Path]]:
    """Write every figure the sweep allows.

    Args:
        axes: what was varied.
        points: every combination, evaluated or not.
        methods: all methods; those labelled teacher and none are drawn as levels.
        out_dir: an existing directory.

    Returns:
        PDF and PNG of each figure, by its name.
    """
    varied = [axis for axis in axes if len(axis.values) > 1]
    figures = {
        figure_name(axis): draw_axis(axis, axes, points, methods, out_dir) for axis in varied
    }
    if len({bits for point in points if (bits := point.number("latent_bits"))}) > 1:
        figures["bits"] = draw_bits(axes, points, methods, out_dir)
    if len(varied) == len(axes) == 2:
        figures["heatmap"] = draw_heatmap(axes[0], axes[1], points, methods, out_dir)
    return figures


def figure_name(axis: Axis) -> str:
    """Name of the figure and files of an axis."""
    return f"sweep_{axis.stem.replace('.', '_')}"


def sweep_captions(axes: Sequence[Axis]) -> dict[str, tuple[str, str]]:
    """Heading and caption of every figure."""
    others = "; a line for each combination of the other settings" if len(axes) > 1 else ""
    captions = {
        figure_name(axis): (
            f"Return against {axis.key}",
            "Mean of the final return over training seeds and tasks, its 95 % interval, "
            f"and a circle for each training seed{others}. Below, where it was measured: the share "
            "of a region's observations, actions and next observations that can be read back from "
            "its latents.",
        )
        for axis in axes
    }
    return captions | CAPTIONS


def draw_axis(
    axis: Axis,
    axes: Sequence[Axis],
    points: Sequence[PlacedPoint],
    methods: Sequence[MethodScores],
    out_dir: Path,
) -> list[Path]:
    """Draw the return against one setting, and reconstruction accuracy below it where known.

    Writes <name>.{pdf,png,csv} and <name>_points.csv, with the name of `figure_name`.
    """
    name = figure_name(axis)
    _write_points(axes, points, out_dir, name)
    drawn = lines(axis, axes, points)
    has_accuracy = any(point.number(ACCURACY) is not None for point in points)
    width = max(3.2, 0.55 * len(axis.values) + 0.8)
    with style.new_figure(width, 3.6 if has_accuracy else 2.5) as figure:
        panels = figure.subplots(
            1 + has_accuracy,
            sharex=True,
            squeeze=False,
            gridspec_kw={"height_ratios": [2.2, 1][: 1 + has_accuracy], "hspace": 0.12},
        )[:, 0]
        for (label, line), look, offset in zip(
            drawn.items(), _line_looks(drawn), _offsets(len(drawn)), strict=True
        ):
            x = [axis.position(point.values[axis.key]) + offset for point in line]
            _draw_line(panels[0], x, line, look, label, axis.is_ordered)
            if has_accuracy:
                _draw_accuracy(panels[1], x, line, look, axis.is_ordered)
        _draw_levels(panels[0], [] if axis.is_method else methods)
        _frame(panels[0], methods)
        if has_accuracy:
            panels[0].tick_params(axis="x", length=0)
            panels[1].set_ylabel(axis_title(ACCURACY))
            panels[1].margins(y=0.15)
        panels[-1].set_xticks(range(len(axis.values)), [axis.tick(v) for v in axis.values])
        panels[-1].set_xlim(-0.5, len(axis.values) - 0.5)
        if max(len(axis.tick(value)) for value in axis.values) > 7:
            panels[-1].tick_params(axis="x", rotation=30)
            for tick in panels[-1].get_xticklabels():
                tick.set(ha="right", rotation_mode="anchor")
        panels[-1].set_xlabel(axis.key + _seed_remark(points))
        _legend(panels[0])
        return style.save(figure, out_dir, name)


def draw_bits(
    axes: Sequence[Axis],
    points: Sequence[PlacedPoint],
    methods: Sequence[MethodScores],
    out_dir: Path,
) -> list[Path]:
    """Draw the return against the bits of the latents; bits.{pdf,png,csv} are written.

    A vertical line marks `task_bits` of metrics.json, what it takes to name one of the tasks.
    """
    known = [point for point in points if point.number("latent_bits")]
    write_csv(
        out_dir / "bits.csv",
        (
            *(axis.key for axis in axes),
            "latent_bits",
            "mean",
            "interval_low",
            "interval_high",
            "interval_kind",
        ),
        ((*_shown(axes, p), p.number("latent_bits"), p.center, *p.interval) for p in known),
    )
    axis = _bits_axis(axes, known)
    drawn = lines(axis, axes, known)
    with style.new_figure(3.8, 2.5) as figure:
        panel = figure.subplots()
        for (label, line), look in zip(drawn.items(), _line_looks(drawn), strict=True):
            ordered = sorted(line, key=lambda point: point.number("latent_bits") or 0.0)
            x = [point.number("latent_bits") or np.nan for point in ordered]
            _draw_line(panel, x, ordered, look, label, axis.is_ordered)
        _draw_levels(panel, methods)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_locator(LogLocator(base=2, numticks=8))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        panel.set_xlabel(axis_title("latent_bits") + _seed_remark(points))
        _frame(panel, methods)
        floor = next((b for point in known if (b := point.number("task_bits"))), None)
        if floor:
            panel.axvline(floor, color=style.BLACK, lw=0.8, ls=(0, (2, 1.5)), zorder=0)
            panel.annotate(
                f"task: {floor:.1f} bits",
                (floor, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7.5,
            )
        _legend(panel)
        return style.save(figure, out_dir, "bits")


def draw_heatmap(
    down: Axis,
    across: Axis,
    points: Sequence[PlacedPoint],
    methods: Sequence[MethodScores],
    out_dir: Path,
) -> list[Path]:
    """Draw the return of every combination of two settings; heatmap.{pdf,png,csv} are written."""
    values = np.full((len(down.values), len(across.values)), np.nan)
    for point in points:
        cell = down.position(point.values[down.key]), across.position(point.values[across.key])
        values[cell] = point.center
    write_csv(
        out_dir / "heatmap.csv",
        (down.key, across.key, "mean"),
        (
            (show(first), show(second), float(values[i, j]))
            for (i, first), (j, second) in product(enumerate(down.values), enumerate(across.values))
        ),
    )
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    width = 1.5 + 0.62 * len(across.values)
    with style.new_figure(width, 0.9 + 0.4 * len(down.values)) as figure:
        panel = figure.subplots()
        image = panel.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if np.isnan(value):
                panel.add_patch(
                    Rectangle(
                        (j - 0.5, i - 0.5), 1, 1, fc="white", ec=style.GREY, hatch="////", lw=0
                    )
                )
                continue
            is_dark = value < low + 0.55 * (high - low)
            text = number(value, 2)
            panel.text(j, i, text, ha="center", va="center", color="white" if is_dark else "black")
        panel.set_xticks(range(len(across.values)), [across.tick(v) for v in across.values])
        panel.set_yticks(range(len(down.values)), [down.tick(v) for v in down.values])
        panel.set_xlabel(across.key)
        panel.set_ylabel(down.key)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=panel, fraction=0.05, pad=0.04)
        bar.set_label(return_name(methods))
        bar.outline.set_visible(False)
        return style.save(figure, out_dir, "heatmap")


def _bits_axis(axes: Sequence[Axis], points: Sequence[PlacedPoint]) -> Axis:
    """The first axis along which the bits change while the others stay."""
    for axis in axes:
        for line in lines(axis, axes, points).values():
            if len({bits for point in line if (bits := point.number("latent_bits"))}) > 1:
                return axis
    return axes[0]


def _line_looks(drawn: Mapping[str, object]) -> list[style.Look]:
    if len(drawn) == 1:
        return [style.STUDENT_LOOK]
    return [LINE_LOOKS[i % len(LINE_LOOKS)] for i in range(len(drawn))]


def _offsets(n: int) -> Floats:
    step = min(DODGE, 0.6 / n)
    return step * (np.arange(n, dtype=np.float64) - (n - 1) / 2)


def _draw_line(
    panel: Axes,
    x: Sequence[float],
    line: Sequence[PlacedPoint],
    look: style.Look,
    label: str,
    connected: bool,
) -> None:
    panel.plot(
        x,
        [point.center for point in line],
        color=look.color,
        ls=look.dashes if connected else "",
        lw=look.width,
        marker=look.marker or "o",
        ms=5,
        label=label,
        zorder=3,
    )
    for at, point in zip(x, line, strict=True):
        interval = point.interval[:2]
        panel.plot([at, at], interval, color=look.color, lw=1.6, solid_capstyle="butt", zorder=2)
        _draw_seeds(panel, at, list(point.by_seed.values()), look)


def _draw_seeds(panel: Axes, at: float, seeds: Sequence[float], look: style.Look) -> None:
    if len(set(seeds)) > 1:  # one, or all alike, is what the marker shows
        scale = panel.get_figure(root=True).dpi_scale_trans  # pyright: ignore
        shifted = panel.transData + ScaledTranslation(SEED_SHIFT / 72, 0, scale)
        panel.plot([at] * len(seeds), seeds, mec=look.color, transform=shifted, **SEED_MARK)


def _draw_accuracy(
    panel: Axes, x: Sequence[float], line: Sequence[PlacedPoint], look: style.Look, connected: bool
) -> None:
    means = [point.number(ACCURACY) for point in line]
    panel.plot(
        x,
        [np.nan if mean is None else mean for mean in means],
        color=look.color,
        ls=look.dashes if connected else "",
        lw=look.width,
        marker=look.marker or "o",
        ms=4,
    )
    for at, point in zip(x, line, strict=True):
        _draw_seeds(panel, at, list(point.number_by_seed(ACCURACY).values()), look)


def _frame(panel: Axes, methods: Sequence[MethodScores]) -> None:
    """Name the axis of returns, and show all of 0 to 1, so that a small effect looks small."""
    panel.set_ylabel(return_name(methods))
    if is_normalized(methods):
        low, high = panel.get_ylim()
        panel.set_ylim(min(low, -0.03), max(high, 1.03))


def _draw_levels(panel: Axes, methods: Sequence[MethodScores]) -> None:
    """The levels of teacher and no context, which all points share."""
    looks = style.looks({method.label: method.record for method in methods})
    for method in methods:
        is_level = method.record.group == TEACHER or method.method == NO_CONTEXT
        if is_level and method.label == method.method:
            look, level = looks[method.label], float(method.scores.mean())
            panel.axhline(
                level, color=look.color, ls=look.dashes, lw=1, zorder=1, label=method.title
            )


def _legend(panel: Axes) -> None:
    if len(panel.get_legend_handles_labels()[1]) > 1:
        panel.legend(loc="upper left", bbox_to_anchor=(1.02, 1.03), frameon=False, handlelength=3)


def _seed_remark(points: Sequence[PlacedPoint]) -> str:
    counts = {len(point.by_seed) for point in points if point.scores}
    return "\n(one training seed: no intervals)" if counts == {1} else ""


def _shown(axes: Sequence[Axis], point: PlacedPoint) -> list[str]:
    return [show(point.values[axis.key]) for axis in axes]


def _write_points(
    axes: Sequence[Axis],
    points: Sequence[PlacedPoint],
    out_dir: Path,
    name: str,
) -> None:
    keys = [axis.key for axis in axes]
    write_csv(
        out_dir / f"{name}.csv",
        (*keys, *POINT_COLUMNS, ACCURACY),
        (
            (
                *_shown(axes, point),
                point.center,
                *point.interval,
                point.number(ACCURACY),
            )
            for point in points
        ),
    )
    write_csv(
        out_dir / f"{name}_points.csv",
        (*keys, "training_seed", "mean", ACCURACY),
        (
            (
                *_shown(axes, point),
                seed,
                center,
                point.number_by_seed(ACCURACY).get(seed),
            )
            for point in points
            for seed, center in point.by_seed.items()
        ),
    )
