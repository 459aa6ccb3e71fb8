"""The figure of performance profiles: which share of (training seed, task) reaches which return.

After Agarwal et al. 2021 (arXiv 2108.13264, section 4.2). A line shows how the return is spread
over seeds and tasks, which one average hides. A line above another at every return is the better
method throughout; lines that cross are better at different tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from reports import statistics, style
from reports.curves import panels_figure
from reports.files import write_csv
from reports.scores import MethodScores, is_normalized, records_of

Floats = NDArray[np.float64]

NAME = "profiles"
THRESHOLDS: Floats = np.arange(101) / 100


@dataclass(frozen=True)
class Profile:
    """One line of the figure, over `THRESHOLDS`.

    Attributes:
        method: whose it is.
        shares: share of (training seed, task) that reaches each threshold.
        band: its bounds, nan where there are none.
    """

    method: MethodScores
    shares: Floats
    band: statistics.Band


def draw_profiles(methods: Sequence[MethodScores], out_dir: Path) -> list[Path]:
    """Draw the profile of every trained method, panels as in the learning curves.

    Args:
        methods: from `stack_methods`.
        out_dir: an existing directory; profiles.{pdf,png,csv} are written there.

    Returns:
        The PDF and the PNG; nothing where returns are not normalised or no method is left.
    """
    learners = [method for method in methods if not method.record.is_rollout]
    if not learners or not is_normalized(methods):
        return []
    profiles = {method.label: profile(method) for method in learners}
    write_csv(
        out_dir / f"{NAME}.csv",
        ("method", "threshold", "share", "band_low", "band_high", "band"),
        (
            (label, *point, line.band.kind)
            for label, line in profiles.items()
            for point in zip(THRESHOLDS, line.shares, line.band.low, line.band.high, strict=True)
        ),
    )
    looks = style.looks(records_of(methods))
    across, up = "normalised final return", "share of seeds and tasks\nthat reach it"
    with panels_figure(learners, 2.3, across, up) as (figure, panels):
        for axes, panel in panels:
            _draw_panel(axes, [profiles[method.label] for method in panel.methods], looks)
        return style.save(figure, out_dir, NAME)


def profile(method: MethodScores) -> Profile:
    """Share of (training seed, task) that reaches each of `THRESHOLDS`; equal to it counts too."""
    shares = (method.scores[..., None] >= THRESHOLDS).mean(axis=1)  # (S, thresholds)
    return Profile(method, shares.mean(axis=0), statistics.seed_band(method.replicated(shares)))


def _draw_panel(axes: Axes, lines: Sequence[Profile], looks: dict[str, style.Look]) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.02, 1.02)
    for position, line in enumerate(reversed(lines)):  # the first, ours, on top
        look, band = looks[line.method.label], line.band
        axes.fill_between(
            THRESHOLDS, band.low, band.high, color=look.color, alpha=0.12, lw=0, step="pre"
        )
        axes.plot(
            THRESHOLDS,
            line.shares,
            drawstyle="steps-pre",
            **look.line(),
            ms=3.5,
            clip_on=False,
            markevery=(2 + position * 18 // len(lines), 18),
            label=line.method.title,
        )
    handles, titles = axes.get_legend_handles_labels()
    legend = style.legend_beside(axes, handles[::-1], titles[::-1])
    for text, line in zip(legend.get_texts(), lines, strict=True):
        text.set_fontweight("bold" if line.method.is_ours else "normal")
