"""Histories made elsewhere, as they lie in their files: groups of streams, not yet understood.

A format is a function of a path that yields a `Foreign` per group; `FORMATS` names ours, anybody's
own is named by import path. What is missing in a group is filled in by completion.py.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from base.errors import UserError
from base.imports import ImportPathError, import_object
from histories.schema import FIELDS
from histories.store import open_histories

DONES = "dones"
NAMES = {
    "observations": ("observations", "states", "obs"),
    "actions": ("actions",),
    "rewards": ("rewards",),
    "next_observations": ("next_observations", "next_states", "next_obs"),
    "terminated": ("terminated", "terminations", "terminals"),
    "truncated": ("truncated", "truncations", "timeouts"),
    DONES: (DONES,),
    "compress_markers": ("compress_markers",),
}
"""What a field is called in files, ours first."""
NEEDED = ("observations", "actions", "rewards")
FORMATS = {
    "cad": "histories.foreign:read_own",
    "time_first": "histories.foreign:read_time_first",
    "stream_first": "histories.foreign:read_stream_first",
    "minari": "histories.minari_files:read_minari",
    "datasets": "histories.datasets_files:read_datasets",
}


class ImportHistoriesError(UserError):
    """Histories from elsewhere cannot be read, or do not say what they would have to say."""


@dataclass
class Foreign:
    """Streams of one task as a file holds them.

    Attributes:
        name: Of the group, unique up to groups of the same task.
        fields: `(S, T, ...)` of `NAMES`, whatever their dtypes; those of `NEEDED` at least.
        attributes: What the group says of itself, its task's parameters perhaps.
        style: Who acted; empty where not said.
        source_seed: Of the source algorithm.
        settings: Of the source algorithm, JSON values.
    """

    name: str
    fields: dict[str, np.ndarray]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    style: str = ""
    source_seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


Reader = Callable[[Path], Iterator[Foreign]]


def reader_of(name: str) -> Reader:
    """The reader of a format: a name of `FORMATS`, or `module:function` of somebody's own.

    Raises:
        ImportHistoriesError: There is none of that name.
    """
    try:
        return import_object(FORMATS.get(name, name))
    except ImportPathError as error:
        raise ImportHistoriesError(
            f"import_histories.format is {name!r}, expected one of {', '.join(FORMATS)}, or "
            f"module:function of your own: {error}"
        ) from error


def read_own(path: Path) -> Iterator[Foreign]:
    """A `histories.h5` of this schema, checked; one group per task, style, seed and length."""
    with open_histories(path) as reader:
        for index in reader.task_indices():
            arrays, task = reader.arrays(index), reader.task(index)
            labels = list(
                zip(
                    arrays["style"].tolist(),
                    arrays["source_seed"].tolist(),
                    arrays["n_transitions"].tolist(),
                    strict=True,
                )
            )
            for first, stop in runs_of_equals(labels):
                style, seed, length = labels[first]
                fields = {name: arrays[name][first:stop, :length] for name in FIELDS}
                attributes = {"params": task.key()}
                yield Foreign(task.name, fields, attributes, style, seed)


def read_time_first(path: Path) -> Iterator[Foreign]:
    """HDF5, a group per task, fields `(T, S, ...)`."""
    for foreign in _read_groups(path):
        for name, array in foreign.fields.items():
            foreign.fields[name] = np.swapaxes(array, 0, 1)
        yield foreign


def read_stream_first(path: Path) -> Iterator[Foreign]:
    """HDF5, a group per task, fields `(S, T, ...)`."""
    yield from _read_groups(path)


def runs_of_equals(labels: list[Any]) -> Iterator[tuple[int, int]]:
    """First and stop of every longest run of equal neighbours."""
    first = 0
    for index in range(1, len(labels) + 1):
        if index == len(labels) or labels[index] != labels[first]:
            yield first, index
            first = index


def plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a file as JSON values."""
    return {name: _plain(value) for name, value in attributes.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _read_groups(path: Path) -> Iterator[Foreign]:
    if not path.is_file() or not h5py.is_hdf5(path):
        raise ImportHistoriesError(
            f"{path} is no HDF5 file; name another import_histories.source, or its "
            "import_histories.format"
        )
    with unreadable_as_refusal(path):
        file = h5py.File(path, "r")
    with file:
        groups: list[str] = []
        with unreadable_as_refusal(path):
            file.visititems(lambda name, it: groups.append(name) if _holds_streams(it) else None)
        if not groups:
            raise ImportHistoriesError(
                f"{path} holds no group with states, actions and rewards; found "
                f"{', '.join(list(file)[:5]) or 'nothing'} (import_histories.format may be another)"
            )
        for name in sorted(groups, key=_in_order):
            with unreadable_as_refusal(f"{path}, group {name}"):
                read = _read_group(path, name, file[name])
            yield read


@contextmanager
def unreadable_as_refusal(where: Any) -> Iterator[None]:
    """Tell in one sentence what a library says of a file that it cannot read.

    Raises:
        ImportHistoriesError: Instead of whatever the library raised.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries have no one class for what is damaged
        told = " ".join(str(error).split()).partition(", errno")[0][:200]
        raise ImportHistoriesError(
            f"{where} cannot be read, or is damaged ({told or type(error).__name__}); name another "
            "import_histories.source"
        ) from error


def _holds_streams(item: Any) -> bool:
    return isinstance(item, h5py.Group) and all(_called(item, name) for name in NEEDED)


def _called(group: Any, name: str) -> str | None:
    return next((called for called in NAMES[name] if called in group), None)


def _read_group(path: Path, name: str, group: Any) -> Foreign:
    called = {own: found for own in NAMES if (found := _called(group, own))}
    fields = {own: np.asarray(group[found][()]) for own, found in called.items()}
    shapes = {called[own]: array.shape for own, array in fields.items()}
    size = fields["rewards"].shape[:2]
    if len(size) != 2 or 0 in size or any(shape[:2] != size for shape in shapes.values()):
        told = ", ".join(f"{field} {shape}" for field, shape in shapes.items())
        raise ImportHistoriesError(
            f"{path}, group {name}: the first two axes of all fields must be time and streams and "
            f"alike, got {told}"
        )
    attributes = plain_attributes(group.attrs)
    style = str(attributes.get("style", ""))
    return Foreign(name, fields, attributes, style)


def _in_order(name: str) -> tuple[int, str]:
    last = name.rpartition("/")[2]
    return (int(last) if last.isdecimal() else -1, name)


def params_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that attributes state: those of a JSON text `params`, else all attributes."""
    stated = attributes.get("params")
    if isinstance(stated, str):
        try:
            read = json.loads(stated)
        except ValueError:
            return dict(attributes)
        return read if isinstance(read, dict) else dict(attributes)
    return dict(stated) if isinstance(stated, Mapping) else dict(attributes)
