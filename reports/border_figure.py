"""The figure of borders: what the first episode after a border loses, for every method.

Left the return against the place of an episode within its region, from the second region on, late
in the context; right the return against in-context episode with a line at every border.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from reports import measures, style
from reports.curves import (
    arrange,
    band_remark,
    draw_panel,
    limits,
    method_curve,
    reference_levels,
    return_name,
    search_curves,
)
from reports.files import write_csv
from reports.scores import MethodScores, records_of
from reports.style import Look

Floats = NDArray[np.float64]

NAME = "borders"
SHARED = 0.5  # of the streams that must have a border at an episode for it to be marked


def draw_borders(methods: Sequence[MethodScores], out_dir: Path) -> list[Path]:
    """Draw what happens at borders; searches stand beside as references.

    Args:
        methods: from `stack_methods`.
        out_dir: an existing directory; borders.{pdf,png,csv} and borders_positions.csv are written
            there.

    Returns:
        The PDF and the PNG; nothing where no method has a border among its late episodes.
    """
    learners = [method for method in methods if not method.record.is_rollout]
    learners = [method for method in learners if measures.border(method) is not None]
    if not learners:
        return []
    positions = {method.label: measures.by_position(method) for method in learners}
    _write(learners, positions, out_dir)
    looks = style.looks(records_of(methods))
    curves = {method.label: method_curve(method, looks[method.label]) for method in learners}
    levels = reference_levels(methods) + search_curves(methods)
    panels = arrange(learners)
    with style.new_figure(7.2, 2.5 * len(panels)) as figure:
        grid = figure.subplots(
            len(panels), 2, squeeze=False, gridspec_kw={"width_ratios": [1, 2.4], "wspace": 0.18}
        )
        figure.subplots_adjust(hspace=0.4)
        for (left, right), panel in zip(grid, panels, strict=True):
            left.set_title(panel.name)
            left.set_ylabel(return_name(methods))
            _draw_positions(left, panel.methods, positions, looks)
            right.set_ylim(*limits([*curves.values(), *levels]))
            _mark_borders(right, panel.methods)
            draw_panel(right, [curves[method.label] for method in panel.methods], levels)
        grid[-1, 1].set_xlabel(
            f"in-context episode; lines: borders\n{band_remark(list(curves.values()))}"
        )
        late = learners[0].episodes[..., measures.late(learners[0])].shape[-1]
        grid[-1, 0].set_xlabel(f"episode of its region\n(of the last {late})")
        return style.save(figure, out_dir, NAME)


def border_share(method: MethodScores) -> Floats:
    """`(K,)` share of streams of which each episode is the first after a border."""
    return method.is_border.mean(axis=(0, 1, 2))


def _mark_borders(axes: Axes, methods: Sequence[MethodScores]) -> None:
    """A thin line before every episode that follows a border in most streams of all methods."""
    shares = np.min([border_share(method) for method in methods], axis=0)  # (K,)
    for episode in np.flatnonzero(shares > SHARED) + 1:
        axes.axvline(episode - 0.5, color=style.LIGHT_GREY, lw=0.5, zorder=0)


def _draw_positions(
    axes: Axes,
    methods: Sequence[MethodScores],
    positions: Mapping[str, Floats],
    looks: Mapping[str, Look],
) -> None:
    for method in methods:
        look, values = looks[method.label], positions[method.label].mean(axis=0)  # (P,)
        axes.plot(
            np.arange(1, values.size + 1),
            values,
            **look.line(marker=look.marker or "."),
            ms=3.5,
        )
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _write(methods: Sequence[MethodScores], positions: Mapping[str, Floats], out_dir: Path) -> None:
    write_csv(
        out_dir / f"{NAME}.csv",
        ("method", "episode", "return", "share_after_border"),
        (
            (method.label, episode, *point)
            for method in methods
            for episode, point in enumerate(
                zip(method.seed_curves.mean(axis=0), border_share(method), strict=True), start=1
            )
        ),
    )
    write_csv(
        out_dir / f"{NAME}_positions.csv",
        ("method", "training_seed", "episode_of_region", "return"),
        (
            (method.label, seed, place, value)
            for method in methods
            for seed, values in zip(method.seeds, positions[method.label], strict=True)
            for place, value in enumerate(values, start=1)
        ),
    )
