"""Histories on disk: part files written at once, assembled into one HDF5 file, read back.

One group per task, `tasks/<index:05d>`, holds the fields of schema.FIELDS as `(streams, T, ...)`,
streams of all styles and seeds one after the other, plus `style`, `source_seed` and `n_transitions`
per stream. Shorter streams are filled up with zeros to the length of the longest.
Every file is written under a temporary name and renamed, so that a file that exists is whole.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np

from base.files import atomic_file
from histories.hdf5 import (
    REMEDY,
    STORED,
    DamagedFileError,
    HistoryFileError,
    damaged,
    new_file,
    opened,
    read_text,
    readable,
    write_text,
)
from histories.regions import region_returns
from histories.schema import (
    FIELDS,
    SCHEMA_VERSION,
    History,
    HistoryError,
    check_fields,
    space_from_spec,
    space_spec,
)
from tasks.family import Task
from tasks.splits import Split

FORMAT = "cad-histories"
PART_FORMAT = "cad-history-parts"
RANDOM_STYLE = "random"
CHUNK_BYTES = 2**20
"""What of a field is compressed together in a part, no more than HDF5 keeps at hand."""


def write_part(path: Path, histories: Mapping[int, History], fingerprint: str) -> None:
    """Write the histories of one or several tasks to a part file, one after the other.

    Args:
        path: Of the part.
        histories: By task index.
        fingerprint: Of the settings that made them, told by `part_fingerprint`.
    """
    every = list(histories.values())
    labels = [
        [index, [each.n_streams, each.n_transitions], each.style, each.source_seed, each.settings]
        for index, each in histories.items()
    ]
    with atomic_file(path) as temporary, new_file(temporary) as file:
        write_text(file.attrs, "format", PART_FORMAT)
        file.attrs["schema_version"] = SCHEMA_VERSION
        write_text(file.attrs, "fingerprint", fingerprint)
        text = np.frombuffer(json.dumps(labels).encode(), dtype=np.uint8)
        file.create_dataset("labels", data=text, **STORED)
        for name in FIELDS:
            arrays = [getattr(each, name) for each in every]
            _write_rows(file, name, [array.reshape(-1, *array.shape[2:]) for array in arrays])


def _write_rows(file: h5py.File, name: str, arrays: Sequence[np.ndarray]) -> None:
    """Write arrays `(n_i, ...)` below each other; the first, if it is small, as one chunk."""
    row = arrays[0][0]
    size = min(len(arrays[0]), max(1, CHUNK_BYTES // row.nbytes))
    shape, chunks = (sum(map(len, arrays)), *row.shape), (size, *row.shape)
    dataset = file.create_dataset(name, shape, row.dtype, chunks=chunks, **STORED)
    ends = np.cumsum([len(array) for array in arrays])
    for array, end in zip(arrays, ends, strict=True):
        dataset[end - len(array) : end] = array


def part_fingerprint(path: Path) -> str | None:
    """The fingerprint a part was written with, None where the part is missing or damaged.

    Raises:
        HistoryFileError: It is of another schema version.
    """
    if not path.exists():
        return None
    try:
        with opened(path, PART_FORMAT) as file:
            return read_text(file.attrs, "fingerprint")
    except DamagedFileError:
        return None


class PartReader:
    """An open part file, read a task at a time."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        """See `open_part`."""
        stored: Any = file
        self.path, self.fields = path, [stored[name] for name in FIELDS]
        self.labels, end = {}, 0
        for index, shape, *labelled in json.loads(stored["labels"][()].tobytes()):
            self.labels[index] = (end, shape, *labelled)
            end += shape[0] * shape[1]

    def history(self, index: int) -> History:
        """The history of a task; raises HistoryFileError."""
        with readable(self.path):
            first, shape, style, source_seed, settings = self.labels[index]
            rows = np.s_[first : first + shape[0] * shape[1]]
            arrays = {
                name: field[rows].reshape(*shape, *field.shape[1:])
                for name, field in zip(FIELDS, self.fields, strict=True)
            }
            return History(**arrays, style=style, source_seed=source_seed, settings=settings)


@contextmanager
def open_part(path: Path) -> Iterator[PartReader]:
    """Open a part file; raises HistoryFileError."""
    with opened(path, PART_FORMAT) as file:
        with readable(path):
            reader = PartReader(path, file)
        yield reader


def assemble(
    path: Path,
    parts: Mapping[int, Sequence[Path]],
    tasks: Sequence[Task],
    *,
    family_name: str,
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    split: Split,
    settings: Mapping[str, Any],
    references: Mapping[int, tuple[float, float | None]],
) -> dict[int, list[np.ndarray]]:
    """Join part files into one histories file, atomically.

    Args:
        path: Of the file to write.
        parts: Part files that have a history of each task index, in the order of its streams.
        tasks: All tasks of the family.
        family_name: Written to the root.
        observation_space: Written to the root, as JSON.
        action_space: Likewise.
        split: Likewise.
        settings: Of the collection, JSON values; `marker_rule` and `region_len` among them.
        references: Random and optimal return of each task index.

    Returns:
        Of each task index the `region_returns` of each of its histories.

    Raises:
        HistoryFileError: A part cannot be read.
    """
    returns: dict[int, list[np.ndarray]] = {}
    with atomic_file(path) as temporary, new_file(temporary) as file:
        write_text(file.attrs, "format", FORMAT)
        file.attrs["schema_version"] = SCHEMA_VERSION
        write_text(file.attrs, "family", family_name)
        write_text(file.attrs, "observation_space", json.dumps(space_spec(observation_space)))
        write_text(file.attrs, "action_space", json.dumps(space_spec(action_space)))
        write_text(file.attrs, "split", split.to_json())
        write_text(file.attrs, "settings", json.dumps(dict(settings)))
        for paths, indices in groupby(sorted(parts), key=lambda index: tuple(parts[index])):
            with ExitStack() as stack:
                readers = [stack.enter_context(open_part(part)) for part in paths]
                for index in indices:
                    group = file.create_group(f"tasks/{index:05d}")
                    histories = [reader.history(index) for reader in readers]
                    _write_task(group, histories)
                    returns[index] = [_returns(history) for history in histories]
                    _describe(group, tasks[index], histories, returns[index], references[index])
    return returns


def _describe(
    group: h5py.Group,
    task: Task,
    histories: Sequence[History],
    returns: Sequence[np.ndarray],
    references: tuple[float, float | None],
) -> None:
    """Write what a task is, and the best region of the sources of its histories."""
    learned = [r for h, r in zip(histories, returns, strict=True) if h.style != RANDOM_STYLE]
    best = max((float(np.nanmax(each, initial=-np.inf)) for each in learned), default=-np.inf)
    random, optimal = references
    group.attrs["source_return"] = best
    write_text(group.attrs, "name", task.name)
    write_text(group.attrs, "params", task.key())
    group.attrs["random_return"] = random
    group.attrs["optimal_return"] = np.nan if optimal is None else optimal


def _returns(history: History) -> np.ndarray:
    ended = history.terminated | history.truncated
    return region_returns(history.rewards, ended, history.compress_markers)


def _write_task(group: h5py.Group, histories: Sequence[History]) -> None:
    longest = max(history.n_transitions for history in histories)
    for name in FIELDS:
        data = np.concatenate([_filled_up(getattr(each, name), longest) for each in histories])
        group.create_dataset(name, data=data, **STORED)
    styles = [history.style for history in histories for _ in range(history.n_streams)]
    seeds = [history.source_seed for history in histories for _ in range(history.n_streams)]
    group.create_dataset("style", data=np.array([s.encode() for s in styles]), fletcher32=True)
    group.create_dataset("source_seed", data=np.array(seeds, dtype=np.int64), fletcher32=True)
    lengths = np.repeat(
        [each.n_transitions for each in histories], [len(each.rewards) for each in histories]
    )
    group.create_dataset("n_transitions", data=lengths, fletcher32=True)
    sources = [
        {"style": history.style, "source_seed": history.source_seed, **history.settings}
        for history in histories
    ]
    write_text(group.attrs, "sources", json.dumps(sources))


def _filled_up(array: np.ndarray, n_transitions: int) -> np.ndarray:
    """`(S, T, ...)` to `(S, n_transitions, ...)`."""
    missing = n_transitions - array.shape[1]
    return np.pad(array, [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2)) if missing else array


class HistoriesReader:
    """An open histories file.

    Attributes:
        path: Of the file.
        family_name: As collected.
        observation_space: Of one environment.
        action_space: Of one environment.
        split: Stored with the histories.
        settings: Of the collection.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        """See `open_histories`."""
        self.path, self._file = path, file
        try:
            self.family_name = read_text(file.attrs, "family")
            self.observation_space = space_from_spec(_json(file, "observation_space"))
            self.action_space = space_from_spec(_json(file, "action_space"))
            self.split = Split.from_json(read_text(file.attrs, "split"))
            self.settings: dict[str, Any] = _json(file, "settings")
            tasks: Any = file["tasks"]
            self._tasks = {int(name): tasks[name] for name in tasks}
        except (
            *(AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError),
            AssertionError,  # a space that gymnasium does not make
        ) as error:
            raise DamagedFileError(damaged(path)) from error

    def task_indices(self) -> list[int]:
        """Indices of the tasks in the file, ascending."""
        return sorted(self._tasks)

    def task(self, index: int) -> Task:
        """The task as it was collected; raises HistoryFileError for an unknown index."""
        group = self._group(index)
        with readable(self.path):
            params = json.loads(read_text(group.attrs, "params"))
            return Task(index, read_text(group.attrs, "name"), params)

    def references(self, index: int) -> tuple[float, float | None]:
        """Random and optimal return of a task, the latter None where unknown."""
        group = self._group(index)
        with readable(self.path):
            random = float(group.attrs["random_return"])
            optimal = float(group.attrs["optimal_return"])
        return random, None if np.isnan(optimal) else optimal

    def source_return(self, index: int) -> float | None:
        """What the sources of histories have reached in a task, by whichever of them was best.

        The highest mean return of the episodes that finished in one region, uniformly random
        histories aside; None where no episode did, or a file of an earlier version does not say.
        """
        group = self._group(index)
        with readable(self.path):
            best = float(group.attrs.get("source_return", -np.inf))
        return best if np.isfinite(best) else None

    def arrays(self, index: int, episode_len: int | None = None) -> dict[str, np.ndarray]:
        """All fields `(streams, T, ...)` of a task, and what tells its streams apart.

        `style`, `source_seed` and `n_transitions` are `(streams,)`; beyond its `n_transitions` a
        stream holds nothing but zeros.

        Args:
            index: Of the task.
            episode_len: Longest possible episode, to check against.

        Raises:
            HistoryFileError: The index is unknown, the data are damaged, or they are none that
                could have been collected.
        """
        group = self._group(index)
        with readable(self.path):
            arrays = {name: group[name][()] for name in (*FIELDS, "source_seed")}
            arrays["style"] = group["style"].asstr()[()].astype(str)
            full = np.full(arrays["rewards"].shape[0], arrays["rewards"].shape[1])
            arrays["n_transitions"] = (
                group["n_transitions"][()] if "n_transitions" in group else full
            )
            for name in ("style", "source_seed"):
                if arrays[name].shape != full.shape:
                    raise ValueError(f"{name} is not one per stream")
        spaces = self.observation_space, self.action_space
        try:
            check_fields(arrays, *spaces, lengths=arrays["n_transitions"], episode_len=episode_len)
        except HistoryError as error:
            raise HistoryFileError(
                f"{self.path}, task {index}: {error}; it was not collected by this code, or is "
                f"damaged: {REMEDY}."
            ) from error
        return arrays

    def _group(self, index: int) -> Any:
        if index not in self._tasks:
            raise HistoryFileError(
                f"{self.path} holds no task {index}; it was collected without it"
            )
        return self._tasks[index]


@contextmanager
def open_histories(path: str | Path) -> Iterator[HistoriesReader]:
    """Open a histories file for reading.

    Raises:
        HistoryFileError: The file is missing, damaged, no histories file, or of another schema
            version; the message names the file and what to do.
    """
    path = Path(path)
    with opened(path, FORMAT) as file:
        yield HistoriesReader(path, file)


def _json(file: h5py.File, name: str) -> Any:
    return json.loads(read_text(file.attrs, name))
