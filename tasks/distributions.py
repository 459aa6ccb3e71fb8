"""Parameters of tasks drawn from distributions that a YAML file names; no two tasks alike."""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from base.imports import ImportPathError, import_object
from tasks.draws import MOST, check_counts
from tasks.family import FamilyError

DIGITS = 4
"""Significant ones of a drawn real number: short in names, exact in files."""
MOST_REPEATS = 1000
"""Draws in a row that repeat earlier tasks before no other task is thought to be left."""

Draw = Callable[[np.random.Generator], Any]


def varied_values(
    grid: Mapping[str, Sequence[Any]],
    draw: Mapping[str, Mapping[str, Any]],
    n_tasks: int | None,
    seed: int,
) -> list[dict[str, Any]]:
    """What is varied, task by task.

    Args:
        grid: Values of each name; all combinations, the last name varying fastest.
        draw: A distribution of each name: `{uniform: [low, high]}`, `{log_uniform: [low, high]}`,
            `{integers: [low, high]}`, both included, `{choice: [value, ...]}`, or
            `{call: module:function, kwargs: {...}}`, a function that is given a `seed` besides.
        n_tasks: Where something is drawn, how many tasks; they take the combinations in turn.
        seed: Of the draws; fewer tasks of one seed are the first of more.

    Raises:
        FamilyError: A name is varied twice, a list or distribution is none, or fewer tasks than
            asked for can differ.
    """
    if twice := sorted(set(grid) & set(draw)):
        raise FamilyError(f"{twice[0]!r} stands both in grid and in draw; leave one out")
    if bad := [name for name, values in grid.items() if not isinstance(values, list | tuple)]:
        raise FamilyError(
            f"grid of {bad[0]!r} must be a list of values, got {grid[bad[0]]!r}; distributions "
            "stand in draw"
        )
    if empty := [name for name, values in grid.items() if not len(values)]:
        raise FamilyError(f"grid lists no value for {empty[0]!r}")
    if (count := math.prod(len(values) for values in grid.values())) > MOST:
        raise FamilyError(f"grid makes {count} tasks, at most {MOST} are possible")
    products = itertools.product(*grid.values())
    combinations = [dict(zip(grid, values, strict=True)) for values in products]
    if not draw:
        if n_tasks not in (None, count):
            raise FamilyError(
                f"n_tasks is {n_tasks}, but grid makes {count} tasks and nothing is drawn; leave "
                "n_tasks out"
            )
        return combinations
    if n_tasks is None:
        raise FamilyError("draw needs n_tasks, the number of tasks to draw")
    check_counts(n_tasks=n_tasks)
    return _drawn(combinations, draw, n_tasks, np.random.default_rng(seed))


def _drawn(
    combinations: Sequence[Mapping[str, Any]],
    draw: Mapping[str, Mapping[str, Any]],
    n_tasks: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    draws = {name: _distribution(name, stated) for name, stated in draw.items()}
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    repeats = 0
    while len(found) < n_tasks:
        values = {name: one(rng) for name, one in draws.items()}
        task = {**combinations[len(found) % len(combinations)], **values}
        key = json.dumps(task, sort_keys=True)
        repeats = repeats + 1 if key in seen else 0
        if repeats > MOST_REPEATS:
            raise FamilyError(
                f"n_tasks is {n_tasks}, but hardly more than {len(found)} can differ; ask for "
                "fewer, or draw from more values"
            )
        if not repeats:
            seen.add(key)
            found.append(task)
    return found


def _distribution(name: str, stated: Any) -> Draw:
    if isinstance(stated, Mapping) and "call" in stated and set(stated) <= {"call", "kwargs"}:
        return _called(name, stated["call"], stated.get("kwargs") or {})
    kinds = {"uniform": _uniform, "log_uniform": _log_uniform, "integers": _integers}
    if isinstance(stated, Mapping) and len(stated) == 1:
        ((kind, values),) = stated.items()
        if kind == "choice" and isinstance(values, list | tuple) and len(values):
            return lambda rng: values[int(rng.integers(len(values)))]
        if kind in kinds and _is_range(kind, values):
            return kinds[kind](*values)
    raise FamilyError(
        f"draw of {name!r} must be one of uniform: [low, high], log_uniform: [low, high] with low "
        "above 0, integers: [low, high], choice: [value, ...] and call: module:function, got "
        f"{stated!r}"
    )


def _called(name: str, path: Any, kwargs: Mapping[str, Any]) -> Draw:
    try:
        function = import_object(str(path))
    except ImportPathError as error:
        raise FamilyError(f"draw of {name!r}: {error}") from error

    def draw(rng: np.random.Generator) -> Any:
        seed = int(rng.integers(2**31))
        try:
            return json.loads(json.dumps(function(**kwargs, seed=seed)))
        except Exception as error:
            raise FamilyError(
                f"draw of {name!r}: {path} with {dict(kwargs)} and seed={seed} must return a JSON "
                f"value, but it raised {type(error).__name__}: {error}"
            ) from error

    return draw


def _is_range(kind: str, values: Any) -> bool:
    types = int if kind == "integers" else int | float
    if not (isinstance(values, list | tuple) and len(values) == 2):
        return False
    if any(isinstance(v, bool) or not isinstance(v, types) for v in values):
        return False
    low, high = values
    return math.isfinite(high) and (0 if kind == "log_uniform" else -math.inf) < low < high


def _uniform(low: float, high: float) -> Draw:
    return lambda rng: _rounded(rng.uniform(low, high), low, high)


def _log_uniform(low: float, high: float) -> Draw:
    return lambda rng: _rounded(math.exp(rng.uniform(math.log(low), math.log(high))), low, high)


def _integers(low: int, high: int) -> Draw:
    return lambda rng: int(rng.integers(low, high, endpoint=True))


def _rounded(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.{DIGITS}g}"), float(low)), float(high))
