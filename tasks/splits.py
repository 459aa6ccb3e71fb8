"""Which tasks train, which select, which test: drawn from a seed or named, always disjoint.

Tasks are told apart by their parameters, not their indices; a split's identity is a hash of them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from base.errors import UserError
from tasks.family import Task

SPLIT_PARTS = ("train", "validation", "test")

# Test tasks of published splits: the parameters that a test task must carry, and how many tasks
# the family must have for the name to be true.
NAMED_SPLITS: dict[str, dict] = {
    "darkroom_73_8": {
        "n_tasks": 81,
        "test": [
            {"goal": goal}
            for goal in ([4, 2], [5, 6], [6, 8], [7, 2], [3, 6], [0, 5], [5, 8], [5, 4])
        ],
    },
}


class SplitError(UserError):
    """A split cannot be drawn, or its parts share a task."""


@dataclass(frozen=True)
class Split:
    """Task indices of the three parts, ascending.

    Attributes:
        train: Indices of the tasks learned from.
        validation: Indices of the tasks checkpoints are chosen on.
        test: Indices of the tasks reported.
        identity: sha256 of the parameters of the three lists, 64 hex digits.
        name: The named split, or `seed_<n>`.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    identity: str
    name: str = ""

    def part_of(self, index: int) -> str:
        """`train`, `validation` or `test`; raises SplitError for an index in none of them."""
        for part in SPLIT_PARTS:
            if index in getattr(self, part):
                return part
        raise SplitError(f"task {index} is in no part of split {self.name!r}")

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Split":
        """Inverse of `to_json`; raises SplitError for anything else."""
        try:
            stored = json.loads(text)
            parts = {part: tuple(int(index) for index in stored[part]) for part in SPLIT_PARTS}
            return cls(**parts, identity=stored["identity"], name=stored["name"])
        except (ValueError, KeyError, TypeError) as error:
            raise SplitError(f"not a stored split: {text[:80]!r}") from error


def make_split(
    tasks: Sequence[Task],
    *,
    seed: int,
    n_validation: int,
    n_test: int | None = None,
    named: str | None = None,
) -> Split:
    """Divide `tasks` into train, validation and test.

    Where tasks are of several groups, each gives its share of every part.

    Args:
        tasks: Of one family.
        seed: Draws the test tasks, then the validation tasks; of a named split only the latter.
        n_validation: Number of validation tasks.
        n_test: Number of test tasks; a named split fixes it, give None or the same number.
        named: A key of `NAMED_SPLITS`.

    Raises:
        SplitError: The numbers do not fit, the name is unknown or belongs to another family, or
            two parts hold tasks of equal parameters.
    """
    rng = np.random.default_rng(seed)
    if named is not None:
        test = _named_test(tasks, named, n_test)
    else:
        if n_test is None:
            raise SplitError("n_test is missing; only a named split knows its test tasks")
        _check_counts(len(tasks), n_validation, n_test)
        test = _drawn(tasks, np.arange(len(tasks)), n_test, rng)
    _check_counts(len(tasks), n_validation, len(test))
    rest = np.setdiff1d(np.arange(len(tasks)), test)
    validation = _drawn(tasks, rest, n_validation, rng)
    train = np.setdiff1d(rest, validation).tolist()
    parts = (tuple(train), tuple(validation), tuple(test))
    split = Split(*parts, identity_of(tasks, *parts), named or f"seed_{seed}")
    check_disjoint(tasks, split)
    return split


def identity_of(
    tasks: Sequence[Task],
    train: Sequence[int],
    validation: Sequence[int],
    test: Sequence[int],
) -> str:
    """sha256, 64 hex digits, of the three sets of task parameters; indices do not enter it."""
    keys = [sorted(tasks[index].key() for index in part) for part in (train, validation, test)]
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()


def check_disjoint(tasks: Sequence[Task], split: Split) -> None:
    """Raise SplitError if two parts of `split` hold tasks of equal parameters."""
    seen: dict[str, str] = {}
    for part in SPLIT_PARTS:
        for index in getattr(split, part):
            task = tasks[index]
            other = seen.setdefault(task.key(), part)
            if other != part:
                raise SplitError(
                    f"split {split.name!r} has task {task.name} both in {other} and in {part}; "
                    "draw the split again over tasks of different parameters"
                )


def _check_counts(n_tasks: int, n_validation: int, n_test: int) -> None:
    if n_validation < 0 or n_test < 0 or n_validation + n_test >= n_tasks:
        raise SplitError(
            f"{n_tasks} tasks leave nothing to train on after n_validation={n_validation} "
            f"and n_test={n_test}"
        )


def _drawn(tasks: Sequence[Task], among: np.ndarray, n: int, rng: np.random.Generator) -> list[int]:
    """Draw n of the indices `among` `(k,)`, ascending; of every group its share, rounded."""
    order = rng.permutation(among)
    groups = np.array([tasks[index].group for index in order])
    names, sizes = np.unique(groups, return_counts=True)
    # Shares by largest remainder: whole parts first, then one each to those that lost most.
    exact = n * sizes / max(len(order), 1)
    counts = np.floor(exact).astype(int)
    most = np.argsort(counts - exact, kind="stable")[: n - counts.sum()]
    counts[most] += 1
    chosen = [order[groups == name][:k] for name, k in zip(names, counts, strict=True)]
    return sorted(np.concatenate(chosen).tolist())


def _named_test(tasks: Sequence[Task], named: str, n_test: int | None) -> list[int]:
    if named not in NAMED_SPLITS:
        raise SplitError(f"unknown split {named!r}; known: {', '.join(NAMED_SPLITS)}")
    spec = NAMED_SPLITS[named]
    if len(tasks) != spec["n_tasks"]:
        raise SplitError(
            f"split {named!r} belongs to a family of {spec['n_tasks']} tasks, got {len(tasks)}"
        )
    if n_test not in (None, len(spec["test"])):
        raise SplitError(f"split {named!r} has {len(spec['test'])} test tasks, got n_test={n_test}")
    found = []
    for wanted in spec["test"]:
        matches = [
            task.index
            for task in tasks
            if all(task.params.get(name) == value for name, value in wanted.items())
        ]
        if len(matches) != 1:
            raise SplitError(f"split {named!r} wants one task with {wanted}, found {len(matches)}")
        found.append(matches[0])
    return sorted(found)


FEW_TASKS = 16
"""Training tasks below which learning by heart is as good as learning in context."""


def few_tasks(split: Split) -> str | None:
    """One sentence where a split leaves too few training tasks to learn in context from."""
    if (n := len(split.train)) >= FEW_TASKS:
        return None
    return (
        f"{n} training task{'s' if n > 1 else ''}, fewer than {FEW_TASKS}: a model can learn them "
        "by heart instead of from its context; vary more, or hold fewer out"
    )
