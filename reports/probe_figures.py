"""The figures of `pipelines.probe`, each as PDF and PNG with the plotted numbers as CSV beside it.

`probes`: scores of linear probes. `cosine`: likeness of the latents. `attention`: what they read.
`swap` and `swap_rooms`: what becomes of an agent that is given another one's latents. `strip`:
episodes as pictures.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from reports import style
from reports.files import write_csv
from reports.film import Picture, background, trail
from reports.style import Look

Floats = NDArray[np.float64]

PROBE_LOOKS = {
    "chance": Look(style.GREY, marker="|"),
    "untrained": Look(style.SKY, marker="^"),
    "raw": Look(style.ORANGE, marker="s"),
    "raw_pooled": Look(style.GREEN, marker="D"),
    "latents": Look(style.BLUE, marker="o"),
}
PROBE_NAMES = {
    "chance": "chance",
    "untrained": "untrained compressor",
    "raw": "raw region, flat",
    "raw_pooled": "raw region, pooled",
    "latents": "latents",
}


def draw_probes(rows: Sequence[Mapping[str, Any]], out_dir: Path) -> list[Path]:
    """Scores of every probe, one line each, for held-out tasks and for other streams.

    Args:
        rows: From `probes.probing.run_probes`.
        out_dir: An existing directory; probes.{pdf,png,csv} are written there.
    """
    write_csv(out_dir / "probes.csv", list(rows[0]), (list(row.values()) for row in rows))
    parts = ("held-out tasks", "other streams")
    shown = [[row for row in rows if row["tested_on"] == part] for part in parts]
    names = [probe_name(row) for row in shown[0]]
    with style.new_figure(7.2, 0.9 + 0.21 * len(names)) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, part, lines in zip(panels, parts, shown, strict=True):
            for kind, look in PROBE_LOOKS.items():
                scores = [np.nan if row[kind] is None else max(row[kind], 0.0) for row in lines]
                axes.plot(
                    scores,
                    range(len(lines)),
                    look.marker,
                    color=look.color,
                    mfc=look.color if kind == "latents" else "none",
                    ms=9 if kind == "chance" else 5,
                    mew=1.2,
                    label=PROBE_NAMES[kind],
                    clip_on=False,
                )
            axes.hlines(range(len(lines)), 0, 1, color=style.LIGHT_GREY, lw=0.4, zorder=0)
            axes.set_title(part)
            axes.set_xlim(0, 1)
            axes.set_xlabel("score on regions not fitted on")
            axes.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(names)), labels=names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        style.legend_beside(panels[1], handlelength=2)
        return style.save(figure, out_dir, "probes")


def probe_name(row: Mapping[str, Any]) -> str:
    """What a probe was asked, on which regions, in which score."""
    regions = "" if row["regions"] == "all" else f", {row['regions']}"
    return f"{row['target']}{regions} ({row['score'].replace('R2', 'R²')})"


def draw_cosine(plain: Floats, centred: Floats, out_dir: Path) -> list[Path]:
    """Mean cosines between the latents, as they are and without their means over regions.

    Args:
        plain: (M, M).
        centred: (M, M).
        out_dir: An existing directory; cosine.{pdf,png,csv} are written there.
    """
    n = len(plain)
    write_csv(
        out_dir / "cosine.csv",
        ("latent", "other", "cosine", "cosine_centred"),
        ((i, j, plain[i, j], centred[i, j]) for i in range(n) for j in range(n)),
    )
    with style.new_figure(5.6, 2.6) as figure:
        panels = figure.subplots(1, 2)
        for axes, values, name in zip(
            panels, (plain, centred), ("as they are", "means taken away"), strict=True
        ):
            image = axes.imshow(values, cmap=style.SHADES, vmin=-1, vmax=1)
            style.bare(axes)
            axes.set_title(name)
            axes.set_xlabel("latent")
            axes.set_xticks(range(n), labels=range(1, n + 1))
            axes.set_yticks(range(n), labels=range(1, n + 1))
            if n <= 10:
                _write_values(axes, values)
        panels[0].set_ylabel("latent")
        style.colour_bar(image, list(panels), "mean cosine", pad=0.03)
        return style.save(figure, out_dir, "cosine")


def draw_attention(
    mean: Floats, example: Floats, rewards: Floats, ended: NDArray[np.bool_], out_dir: Path
) -> list[Path]:
    """What every latent attends to: the mean over regions, and one region with its rewards.

    Args:
        mean: (M, L).
        example: (M, L).
        rewards: (L,) of the example.
        ended: (L,) where its episodes end.
        out_dir: An existing directory; attention.{pdf,png,csv} are written there.
    """
    n_latents, length = mean.shape
    write_csv(
        out_dir / "attention.csv",
        ("latent", "step", "mean", "example", "example_reward", "example_episode_ends"),
        (
            (m, t, mean[m, t], example[m, t], rewards[t], int(ended[t]))
            for m in range(n_latents)
            for t in range(length)
        ),
    )
    with style.new_figure(6.4, 1.4 + 0.32 * n_latents) as figure:
        panels = figure.subplots(2, 1, sharex=True)
        names = (
            "mean over regions",
            "one region; triangles: rewarded steps, lines: episodes' ends",
        )
        for axes, values, name in zip(panels, (mean, example), names, strict=True):
            image = axes.imshow(values * length, cmap=style.SHADES, aspect="auto", vmin=0)
            style.bare(axes)
            axes.set_title(name, pad=10)
            axes.set_ylabel("latent")
            axes.set_yticks(range(n_latents), labels=range(1, n_latents + 1))
            style.colour_bar(image, axes, "times uniform", fraction=0.05, pad=0.02)
        paid = np.flatnonzero(rewards)
        panels[1].plot(
            paid, np.full(len(paid), -0.8), "v", ms=3.5, color=style.VERMILLION, clip_on=False
        )
        for end in np.flatnonzero(ended)[:-1]:
            panels[1].axvline(end + 0.5, color="white", lw=1.0)
        panels[1].set_ylim(n_latents - 0.5, -0.5)
        panels[1].set_xlabel("step of the region")
        figure.subplots_adjust(hspace=0.45)
        return style.save(figure, out_dir, "attention")


def draw_swap(rows: Sequence[Mapping[str, Any]], out_dir: Path) -> list[Path]:
    """Share of steps at the own goal and at that of the other task, before and after a swap.

    Args:
        rows: `probes.swap.Swap.by_episode`.
        out_dir: An existing directory; swap.{pdf,png,csv} are written there.
    """
    write_csv(out_dir / "swap.csv", list(rows[0]), (list(row.values()) for row in rows))
    looks = {"own": Look(style.BLUE, "-", "o"), "swapped": Look(style.VERMILLION, "--", "x")}
    titles = {
        "at_own_goal": "at the own goal",
        "at_other_goal": "at the goal the latents speak of",
    }
    with style.new_figure(6.4, 2.3) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (column, title) in zip(panels, titles.items(), strict=True):
            for kind, look in looks.items():
                line = [row for row in rows if row["latents"] == kind]
                axes.plot(
                    [row["block"] + 1 for row in line],
                    [row[column] for row in line],
                    **look.line(),
                    ms=3,
                    label=f"{kind} latents",
                )
            axes.axvline(0.5, color=style.GREY, lw=0.8, ls=":")
            axes.set_title(title)
            axes.set_xlabel("episode, 1 is the first after the exchange")
            axes.set_ylim(0, 1)
        panels[0].set_ylabel("share of steps")
        panels[1].legend(frameon=False, loc="upper left")
        return style.save(figure, out_dir, "swap")


def draw_swap_rooms(
    visits: Mapping[str, Floats], goals: Mapping[str, Sequence[int]], title: str, out_dir: Path
) -> list[Path]:
    """Where agents on one task were in the region after the exchange.

    Args:
        visits: (X, Y) shares of steps, by whose latents the agents had.
        goals: Cells (x, y) to mark, by name: at most two.
        title: What the tasks are.
        out_dir: An existing directory; swap_rooms.{pdf,png,csv} are written there.
    """
    shape = next(iter(visits.values())).shape
    write_csv(
        out_dir / "swap_rooms.csv",
        ("x", "y", *visits),
        ((x, y, *(v[x, y] for v in visits.values())) for x, y in np.ndindex(*shape)),
    )
    with style.new_figure(2.6 * len(visits) + 0.6, 2.9) as figure:
        panels = figure.subplots(1, len(visits), squeeze=False)[0]
        most = max(float(v.max()) for v in visits.values())
        for axes, (name, values) in zip(panels, visits.items(), strict=True):
            image = axes.imshow(values.T, origin="lower", cmap=style.SHADES, vmin=0, vmax=most)
            style.bare(axes)
            axes.set_title(name)
            axes.set_xticks([0, shape[0] - 1])
            axes.set_yticks([0, shape[1] - 1])
            for (mark, cell), edge in zip(goals.items(), ("-", ":"), strict=False):
                _mark_cell(axes, cell, mark, edge)
        style.colour_bar(image, list(panels), "share of steps", pad=0.03)
        figure.suptitle(title, fontsize=8, x=0.125, ha="left", y=0.98)
        return style.save(figure, out_dir, "swap_rooms")


def draw_strip(
    films: Mapping[str, Sequence[tuple[int, float, Sequence[Picture]]]], out_dir: Path, title: str
) -> list[Path]:
    """Episodes as pictures: a row per agent, a column per episode, trails from faint to bright.

    Args:
        films: By agent (number of the episode, return, frames).
        out_dir: An existing directory; strip.{pdf,png,csv} are written there.
        title: Which task.
    """
    write_csv(
        out_dir / "strip.csv",
        ("agent", "episode", "return"),
        ((name, number, total) for name, shown in films.items() for number, total, _ in shown),
    )
    scene = background([f for shown in films.values() for _, _, film in shown for f in film])
    columns = max(len(shown) for shown in films.values())
    with style.new_figure(1.6 * columns, 1.85 * len(films)) as figure:
        grid = figure.subplots(len(films), columns, squeeze=False)
        for line, (name, shown) in zip(grid, films.items(), strict=True):
            for axes, (number, total, frames) in zip(line, shown, strict=False):
                axes.imshow(trail(frames, scene), interpolation="nearest")
                style.bare(axes)
                axes.set_xticks([])
                axes.set_yticks([])
                axes.set_title(f"episode {number}", fontweight="normal", pad=3)
                axes.set_xlabel(f"return {total:g}", labelpad=3)
            line[0].set_ylabel(name, fontweight="bold")
        figure.suptitle(title, fontsize=8, y=0.96)
        return style.save(figure, out_dir, "strip")


def _write_values(axes: Axes, values: Floats) -> None:
    for (i, j), value in np.ndenumerate(values):
        text = f"{value:.2f}".replace("-", "−").replace("0.", ".", 1)
        color = "black" if value > 0.1 else "white"
        axes.text(j, i, text, ha="center", va="center", fontsize=5.5, color=color)


def _mark_cell(axes: Axes, cell: Sequence[int], name: str, edge: str) -> None:
    x, y = cell
    outline = {"ls": edge, "lw": 1.6, "color": style.VERMILLION}
    axes.plot(*zip(*_corners(x, y), strict=True), **outline)
    above = y < axes.get_ylim()[1] - 1
    side = {0: "left", round(axes.get_xlim()[1] - 0.5): "right"}.get(x, "center")
    axes.text(
        x + {"left": -0.45, "center": 0.0, "right": 0.45}[side],
        y + (0.62 if above else -0.62),
        name,
        color="white",
        ha=side,
        va="bottom" if above else "top",
        fontsize=7,
        fontweight="bold",
    )


def _corners(x: int, y: int) -> list[tuple[float, float]]:
    return [
        (x + dx, y + dy)
        for dx, dy in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5))
    ]
