"""Drawing the tasks of a family from a seed, no two alike."""

import math
from collections.abc import Sequence

import numpy as np

from tasks.family import FamilyError

MOST_BY_DEFAULT = 1000


MOST = 1_000_000
"""Of anything that is counted: more tasks, steps or states than anybody waits for."""


def check_counts(**counts: int) -> None:
    """Raise FamilyError for a count below 1."""
    for name, count in counts.items():
        if type(count) is not int or not 1 <= count <= MOST:
            raise FamilyError(
                f"{name} must be at least 1 and at most {MOST}, a whole number, got {count!r}"
            )


def distinct_rows(n_rows: int | None, n_values: Sequence[int], seed: int) -> np.ndarray:
    """Different rows of numbers, evenly drawn.

    Args:
        n_rows: Rows, of which fewer from the same seed are the first; None for 1000, or for as many
            as can differ where that is less.
        n_values: The numbers in column i lie below `n_values[i]`.
        seed: Of the draws.

    Returns:
        `(n_rows, len(n_values))` int64.

    Raises:
        FamilyError: More rows are asked for than can differ, or none.
    """
    possible = math.prod(n_values)
    n_rows = min(possible, MOST_BY_DEFAULT) if n_rows is None else n_rows
    check_counts(n_tasks=n_rows)
    if n_rows > possible:
        raise FamilyError(
            f"n_tasks is {n_rows}, but only {possible} tasks can differ; ask for fewer"
        )
    rng, rows = np.random.default_rng(seed), np.zeros((0, len(n_values)), dtype=np.int64)
    while len(rows) < n_rows:
        rows = np.concatenate([rows, rng.integers(n_values, size=(n_rows, len(n_values)))])
        _, first = np.unique(rows, axis=0, return_index=True)
        rows = rows[np.sort(first)]
    return rows[:n_rows]
