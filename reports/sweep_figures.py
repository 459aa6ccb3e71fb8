"""The figures of a sweep: return against a setting, and as a map of two.

`sweep_<axis>`: the student's return above the accuracy of reconstruction, one line per combination
of the other settings. `heatmap`: two settings.
"""

from collections.abc import Collection, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from reports import bits_figure, style
from reports.bits import Series, context_bits, known_bits
from reports.column import number
from reports.columns import axis_title
from reports.curves import return_name
from reports.files import write_csv
from reports.page import CAPTIONS as PAGE_CAPTIONS
from reports.points import draw_levels, draw_points, frame, legend, seed_remark
from reports.scores import MethodScores
from reports.sweep_axes import Axis, PlacedPoint, lines, show

Floats = NDArray[np.float64]

ACCURACY = "reconstruction_accuracy"
POINT_COLUMNS = ("mean", "interval_low", "interval_high", "interval_kind")
DODGE = 0.14  # between lines, so that intervals do not cover each other
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
    bits = bits_series(axes, points)
    figures[bits_figure.NAME] = bits_figure.draw_bits(bits, methods, out_dir)
    if len(varied) == len(axes) == 2:
        figures["heatmap"] = draw_heatmap(axes[0], axes[1], points, methods, out_dir)
    return {name: paths for name, paths in figures.items() if paths}


def bits_series(axes: Sequence[Axis], points: Sequence[PlacedPoint]) -> list[Series]:
    """Lines along the first axis that changes the bits; of none, every point by itself."""
    known = [p for p in points if p.scores is not None and context_bits(p.scores) is not None]
    axis = bits_axis(axes, known)
    if axis is None:
        drawn = {
            ", ".join(a.setting(point.values[a.key]) for a in axes): [point] for point in known
        }
    else:
        drawn = lines(axis, axes, known)
    return [
        Series(
            label,
            known_bits([point.scores for point in line if point.scores]),
            look,
            joined=axis is not None and axis.is_ordered,
        )
        for (label, line), look in zip(drawn.items(), line_looks(drawn), strict=True)
    ]


def bits_axis(axes: Sequence[Axis], points: Sequence[PlacedPoint]) -> Axis | None:
    """The first axis along which the bits change while the others stay."""
    for axis in axes:
        for line in lines(axis, axes, points).values():
            if len({context_bits(point.scores) for point in line if point.scores}) > 1:
                return axis
    return None


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
    return captions | CAPTIONS | {"bits": PAGE_CAPTIONS["bits"]}


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
            drawn.items(), line_looks(drawn), _offsets(len(drawn)), strict=True
        ):
            x = [axis.position(point.values[axis.key]) + offset for point in line]
            drawing = {"look": look, "label": label, "joined": axis.is_ordered}
            draw_points(panels[0], x, [list(point.by_seed.values()) for point in line], **drawing)
            if has_accuracy:
                read = [list(point.number_by_seed(ACCURACY).values()) for point in line]
                draw_points(panels[1], x, read, **drawing, intervals=False)
        draw_levels(panels[0], [] if axis.is_method else methods)
        frame(panels[0], methods)
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
        panels[-1].set_xlabel(axis.key + seed_remark({len(p.by_seed) for p in points if p.scores}))
        legend(panels[0])
        return style.save(figure, out_dir, name)


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
        image = panel.imshow(values, cmap=style.SHADES, vmin=low, vmax=high, aspect="auto")
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
        style.bare(panel)
        style.colour_bar(image, panel, return_name(methods), fraction=0.05, pad=0.04)
        return style.save(figure, out_dir, "heatmap")


def line_looks(drawn: Collection[object]) -> list[style.Look]:
    """Of the lines of a figure, in order; of a line alone that of the student."""
    if len(drawn) == 1:
        return [style.STUDENT_LOOK]
    return [LINE_LOOKS[i % len(LINE_LOOKS)] for i in range(len(drawn))]


def _offsets(n: int) -> Floats:
    step = min(DODGE, 0.6 / n)
    return step * (np.arange(n, dtype=np.float64) - (n - 1) / 2)


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
