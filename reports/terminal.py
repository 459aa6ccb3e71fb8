"""What a terminal can show of acting: returns as bars, paths over a grid in characters."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

EIGHTHS = " ▏▎▍▌▋▊▉"
EMPTY, VISITED, GOAL, REACHED, LAST = "·", "o", "G", "★", "@"
LEGEND = f"{VISITED} path   {LAST} end   {GOAL} goal, unseen by the agent   {REACHED} goal reached"


def bar(value: float, most: float, width: int) -> str:
    """A bar of `width` characters at most, as exact as an eighth of one."""
    share = min(max(value / most, 0.0), 1.0) if most > 0 else 0.0
    eighths = round(share * width * 8)
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()).ljust(width)


def room(path: NDArray[np.int64], shape: Sequence[int], goal: Sequence[int] | None) -> list[str]:
    """A path (T, 2) of cells (x, y) over a grid, as lines; x to the right, y upwards.

    Args:
        path: Cells in order.
        shape: Cells along x and y.
        goal: Its cell, if there is one.
    """
    cells = np.full(tuple(shape), EMPTY)
    cells[tuple(path.T)] = VISITED
    cells[tuple(path[-1])] = LAST
    if goal is not None:
        reached = bool((path == np.asarray(goal)).all(-1).any())
        cells[tuple(goal)] = REACHED if reached else GOAL
    return [" ".join(row) for row in cells.T[::-1]]


def beside(blocks: Mapping[str, Sequence[str]], *, gap: int = 3, page_width: int = 80) -> list[str]:
    """Blocks of equally many lines, each under its name, as many side by side as a page holds."""
    width = max(len(line) for name, lines in blocks.items() for line in (name, *lines))
    columns = [[line.ljust(width) for line in (name, *lines)] for name, lines in blocks.items()]
    n = max(1, (page_width + gap) // (width + gap))
    found: list[str] = []
    for start in range(0, len(columns), n):
        rows = zip(*columns[start : start + n], strict=True)
        found += ["", *((" " * gap).join(row).rstrip() for row in rows)]
    return found[1:]
