"""What a method says of itself: its name, title, group and place among the others.

Evaluation writes this record into every metrics.json, so that reports hold no list of methods:
order, headings, colours and which rows are baselines all follow from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STUDENT, TEACHER, RAW_CONTEXT, BASELINE = "student", "teacher", "raw_context", "baseline"
CONTROL, SEARCH, REFERENCE = "control", "search", "reference"
GROUPS = (STUDENT, TEACHER, RAW_CONTEXT, BASELINE, CONTROL, REFERENCE, SEARCH)
"""In the order of tables: what searches by rule stands below the references."""

ROLLOUTS = (REFERENCE, SEARCH)
"""Groups of which nothing is trained: one policy is rolled out, and no seed is replicated."""

NO_CONTEXT = "none"
"""Name of the method without a previous region, the floor of the gap recovered."""

KEYS = ("name", "title", "group", "order")


@dataclass(frozen=True)
class MethodRecord:
    """One method as evaluation describes it.

    Attributes:
        name: as files and commands call it, e.g. "mean_pooling".
        title: as figures and tables call it.
        group: one of `GROUPS`.
        order: place within the group, ascending.
    """

    name: str
    title: str
    group: str
    order: int

    @property
    def rank(self) -> tuple[int, int, str]:
        """Sort key of tables and figures."""
        return GROUPS.index(self.group), self.order, self.name

    @property
    def is_rollout(self) -> bool:
        """Whether this is one policy rolled out, with no training seed behind it."""
        return self.group in ROLLOUTS


def parse_record(entry: Mapping[str, Any]) -> MethodRecord:
    """Read the `method_record` of a metrics.json.

    Raises:
        KeyError, TypeError, ValueError: a key is missing or of another kind, or the group unknown.
    """
    record = MethodRecord(*(entry[key] for key in KEYS))
    if record.group not in GROUPS:
        raise ValueError(f"group {record.group!r} is none of {', '.join(GROUPS)}")
    return MethodRecord(str(record.name), str(record.title), record.group, int(record.order))


def unknown_record(name: str) -> MethodRecord:
    """A record for a method of which only the name is known, behind those that are."""
    return MethodRecord(name, name.replace("_", " "), BASELINE, 1_000)


def is_point(label: str) -> bool:
    """Whether a label is that of a point of a sweep, `student@m = 8`, and not of a run."""
    return " = " in label.partition("@")[2]


def title_of(label: str, record: MethodRecord) -> str:
    """What figures and tables call a label; "m = 8" for the student of a sweep's point."""
    where = label.partition("@")[2]
    if not where:
        return record.title
    if not is_point(label):
        return f"{record.title}@{where}"
    return where if record.group == STUDENT else f"{record.title}, {where}"
