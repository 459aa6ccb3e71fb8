"""What a terminal can show of acting: returns as bars, paths over a grid in characters."""

import re
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_HIGHLIGHTED = re.compile(r"\x1b\[(?:\d+;)*4\d(?:;\d+)*m(.*?)\x1b\[0m")  # where an agent is
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
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


def moments(texts: Sequence[str], *, n: int = 4, page_width: int = 80) -> list[str]:
    """First, last and evenly spread texts of an episode side by side, each under its step."""
    chosen = np.unique(np.linspace(0, len(texts) - 1, min(n, len(texts))).round().astype(int))
    plain = [_plain(texts[int(i)]).rstrip("\n").splitlines() or [""] for i in chosen]
    height = max(map(len, plain))
    blocks = {
        f"step {i}": [line[:page_width] for line in lines] + [""] * (height - len(lines))
        for i, lines in zip(chosen, plain, strict=True)
    }
    return beside(blocks, page_width=page_width)


def _plain(text: str) -> str:
    """A text without colours; what had a background of its own becomes `LAST`."""
    marked = _HIGHLIGHTED.sub(lambda found: LAST * len(found[1]), text)
    return _ESCAPES.sub("", marked)


def steps(
    actions: NDArray[np.generic], rewards: NDArray[np.float64], *, page_width: int = 80
) -> list[str]:
    """Actions (T, ...) in order, each with what it was paid unless that is nothing."""
    words = []
    for action, reward in zip(actions, rewards, strict=True):
        told = ",".join(f"{value:.3g}" for value in np.atleast_1d(action).ravel().tolist())
        words.append(f"{told}({reward:+.3g})" if reward else told)
    return textwrap.wrap(" ".join(words), page_width, break_on_hyphens=False)
