"""CSV files of a report: empty cells for what is not known, equal numbers, equal bytes."""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows under a header; None, nan and what is not finite become empty cells."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow("" if is_unknown(value) else as_text(value) for value in row)


def as_text(value: object) -> object:
    """A cell that no spreadsheet takes for a formula: a quote stands before one."""
    if not (isinstance(value, str) and value.startswith(_FORMULA)):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def is_unknown(value: object) -> bool:
    """Whether a value is None, nan or infinite, which in a column of episodes is never."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))
