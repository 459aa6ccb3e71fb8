"""How figures look: colours, line styles, labels that do not overlap, saving.

Colours are those of Okabe and Ito, told apart by colour-blind readers; dashes and markers differ
as well, so that a figure survives a greyscale printer. No global state of matplotlib is touched.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from reports.records import (
    BASELINE,
    CONTROL,
    NO_CONTEXT,
    RAW_CONTEXT,
    REFERENCE,
    SEARCH,
    STUDENT,
    TEACHER,
    MethodRecord,
)

BLACK, GREY, LIGHT_GREY = "#000000", "#6E6E6E", "#C8C8C8"
ORANGE, SKY, GREEN = "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
SHADES = "cividis"  # runs evenly from dark to light, in grey too

RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "reports",  # equal data, equal bytes
    "figure.dpi": 100,
    "savefig.dpi": 200,
}


@dataclass(frozen=True)
class Look:
    """How one method is drawn."""

    color: str
    dashes: Any = "-"
    marker: str = ""
    width: float = 1.2

    def line(self, **changed: Any) -> dict[str, Any]:
        """What `Axes.plot` takes of it, some of it changed."""
        given = {"color": self.color, "ls": self.dashes, "lw": self.width, "marker": self.marker}
        return given | changed


STUDENT_LOOK = Look(BLUE, "-", "o", 2.0)
NO_CONTEXT_LOOK = Look(VERMILLION, (0, (1, 1)), "x")
REFERENCE_LOOK = Look(GREY, "-", "", 0.5)
GROUP_LOOKS = {
    STUDENT: (STUDENT_LOOK,),
    TEACHER: (Look(BLACK, (0, (5, 1.5)), "s"), Look(BLACK, (0, (2, 1)), "8")),
    RAW_CONTEXT: (Look(GREEN, (0, (8, 1.5)), "p"), Look(PURPLE, (0, (8, 1.5, 2, 1.5)), "H")),
    BASELINE: (
        Look(ORANGE, (0, (5, 1.5)), "v"),
        Look(SKY, (0, (2, 1)), "^"),
        Look(GREEN, (0, (3, 1, 1, 1)), "D"),
        Look(PURPLE, (0, (6, 1, 1, 1, 1, 1)), "P"),
    ),
    CONTROL: (
        Look(PURPLE, (0, (2, 1)), "<"),
        Look(ORANGE, (0, (1, 1)), ">"),
        Look(SKY, (0, (4, 1)), "d"),
    ),
    SEARCH: (
        Look("#4D4D4D", (0, (6, 2)), "", 1.0),
        Look("#8C8C8C", (0, (3, 1.5)), "", 1.0),
        Look("#B0B0B0", (0, (1.5, 1)), "", 1.0),
        Look("#6E6E6E", (0, (1, 2)), "", 1.0),
        Look("#A0A0A0", (0, (8, 1, 1, 1)), "", 1.0),
    ),
    REFERENCE: (REFERENCE_LOOK, REFERENCE_LOOK),
}
"""How the methods of a group are drawn, in their order."""

SPARE_DASHES = ("-", (0, (4, 1)), (0, (1, 1.5)))
SPARE_LOOKS = tuple(
    Look(color, SPARE_DASHES[(turn + position) % len(SPARE_DASHES)], marker)
    for turn in range(len(SPARE_DASHES))
    for position, (color, marker) in enumerate(
        zip((BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK), "*Xdh1+2", strict=True)
    )
)


def looks(records: Mapping[str, MethodRecord]) -> dict[str, Look]:
    """A look for every label; methods take those of their group in turn, others spare ones.

    Args:
        records: by label. A label that is more than a name, "@" and a run or setting, stands for
            one of many of its group.
    """
    found: dict[str, Look] = {}
    spare = 0
    taken = dict.fromkeys(GROUP_LOOKS, 0)
    for label, record in records.items():
        offered = GROUP_LOOKS[record.group]
        if label == NO_CONTEXT:
            found[label] = NO_CONTEXT_LOOK
        elif label == record.name and taken[record.group] < len(offered):
            found[label] = offered[taken[record.group]]
            taken[record.group] += 1
        else:
            found[label] = SPARE_LOOKS[spare % len(SPARE_LOOKS)]
            spare += 1
    return found


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` by `height` inches in this style, which pyplot knows nothing of."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure


def save(figure: Figure, out_dir: Path, name: str) -> list[Path]:
    """Write `name`.pdf and `name`.png; equal figures give equal files."""
    paths = [out_dir / f"{name}.pdf", out_dir / f"{name}.png"]
    figure.savefig(paths[0], bbox_inches="tight", metadata={"CreationDate": None})
    figure.savefig(paths[1], bbox_inches="tight")
    return paths


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions as little as needed to stand `gap` apart, within low and high if they fit.

    Clusters that touch are merged and centred on the mean of their members, which is the least
    squares solution (pool adjacent violators).
    """
    order = np.argsort(positions, kind="stable")
    clusters: list[list[int]] = []
    starts: list[float] = []
    for index in order:
        clusters.append([int(index)])
        starts.append(float(np.clip(positions[index], low, high)))
        while len(clusters) > 1 and starts[-1] < starts[-2] + gap * len(clusters[-2]):
            merged = clusters[-2] + clusters[-1]
            offsets = [positions[member] - gap * rank for rank, member in enumerate(merged)]
            highest = max(low, high - gap * (len(merged) - 1))
            clusters[-2:] = [merged]
            starts[-2:] = [float(np.clip(np.mean(offsets), low, highest))]
    moved = [0.0] * len(positions)
    for start, cluster in zip(starts, clusters, strict=True):
        for rank, member in enumerate(cluster):
            moved[member] = start + gap * rank
    return moved


def bare(axes: Axes) -> None:
    """A map needs no ticks and no frame."""
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def colour_bar(
    image: Any, panels: Axes | Sequence[Axes], label: str, *, fraction: float = 0.03, pad: float
) -> None:
    """What the colours of a map mean, beside it."""
    bar = image.figure.colorbar(image, ax=panels, fraction=fraction, pad=pad)
    bar.set_label(label)
    bar.outline.set_visible(False)


def legend_beside(axes: Axes, *entries: Any, at: float = 1.03, **changed: Any) -> Legend:
    """The legend at the right of the axes, from `at` of their height down."""
    given = {"frameon": False, "handlelength": 3, **changed}
    return axes.legend(*entries, loc="upper left", bbox_to_anchor=(1.02, at), **given)


def name_rows(axes: Axes, titles: Sequence[str], bold: Sequence[bool]) -> None:
    """Name the rows of a figure from 0 down, some of them set off."""
    axes.set_yticks(range(len(titles)), labels=titles)
    for tick, is_bold in zip(axes.get_yticklabels(), bold, strict=True):
        tick.set_fontweight("bold" if is_bold else "normal")
    axes.set_ylim(len(titles) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def label_ends(
    axes: Axes, ends: Sequence[tuple[str, float, Look]], *, gap: float, bold: Sequence[str] = ()
) -> None:
    """Write each curve's name at the right edge, at its final height, with a leader line.

    Args:
        axes: limits must be final.
        ends: (name, final height, look) of each curve.
        gap: least distance between names, in data units.
        bold: names to emphasise.
    """
    low, high = axes.get_ylim()
    heights = spread([height for _, height, _ in ends], gap, low, high)
    transform = axes.get_yaxis_transform()  # x in axes, y in data
    for (name, end, look), height in zip(ends, heights, strict=True):
        outside: dict[str, Any] = {"transform": transform, "clip_on": False, "color": look.color}
        axes.plot([1.0, 1.03, 1.06], [end, end, height], lw=0.6, **outside)
        axes.plot([1.07, 1.16], [height] * 2, ls=look.dashes, lw=look.width, **outside)
        axes.plot([1.115], [height], marker=look.marker, ms=3.5, **outside)
        axes.text(
            1.18,
            height,
            name,
            transform=transform,
            va="center",
            fontsize=7.5,
            fontweight="bold" if name in bold else "normal",
        )
