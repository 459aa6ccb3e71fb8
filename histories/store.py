"""Histories on disk: part files written at once, assembled into one HDF5 file, read back.

One group per task, `tasks/<index:05d>`, holds the fields of schema.FIELDS as `(streams, T, ...)`,
streams of all styles and seeds one after the other, plus `style`, `source_seed` and `n_transitions`
per stream. Shorter streams are filled up with zeros to the length of the longest.
Every file is written under a temporary name and renamed, so that a file that exists is whole.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np

from base.errors import UserError
from base.files import atomic_file
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
PART_FORMAT = "cad-history-part"
RANDOM_STYLE = "random"
_STORED: Any = {"compression": "lzf", "shuffle": True, "fletcher32": True}
"""How fields lie in files: with checksums, so that a flipped bit is an error and no other value."""


class HistoryFileError(UserError):
    """A history file is missing, damaged, foreign, of another version or of other settings."""


def write_part(path: Path, history: History, fingerprint: str) -> None:
    """Write one history to its part file.

    Args:
        path: Of the part.
        history: To write.
        fingerprint: Of the settings that made it, checked by `read_part`.
    """
    with atomic_file(path) as temporary, _new_file(temporary) as file:
        file.attrs["format"] = PART_FORMAT
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["fingerprint"] = fingerprint
        file.attrs["style"] = history.style
        file.attrs["source_seed"] = history.source_seed
        file.attrs["settings"] = json.dumps(history.settings)
        for name in FIELDS:
            file.create_dataset(name, data=getattr(history, name), **_STORED)


def part_fingerprint(path: Path) -> str | None:
    """The fingerprint a part was written with, None where the part is missing or damaged.

    Raises:
        HistoryFileError: It is of another schema version.
    """
    if not path.exists():
        return None
    try:
        with _opened(path, PART_FORMAT) as file:
            return str(file.attrs["fingerprint"])
    except DamagedFileError:
        return None


def read_part(path: Path) -> History:
    """Read a part file; raises HistoryFileError."""
    with _opened(path, PART_FORMAT) as file, _readable(path):
        return History(
            **{name: file[name][()] for name in FIELDS},  # pyright: ignore
            style=str(file.attrs["style"]),
            source_seed=int(file.attrs["source_seed"]),  # pyright: ignore
            settings=json.loads(str(file.attrs["settings"])),
        )


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
) -> None:
    """Join part files into one histories file, atomically.

    Args:
        path: Of the file to write.
        parts: Part files of each task index, in the order of its streams.
        tasks: All tasks of the family.
        family_name: Written to the root.
        observation_space: Written to the root, as JSON.
        action_space: Likewise.
        split: Likewise.
        settings: Of the collection, JSON values; `marker_rule` and `region_len` among them.
        references: Random and optimal return of each task index.

    Raises:
        HistoryFileError: A part cannot be read.
    """
    with atomic_file(path) as temporary, _new_file(temporary) as file:
        file.attrs["format"] = FORMAT
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["family"] = family_name
        file.attrs["observation_space"] = json.dumps(space_spec(observation_space))
        file.attrs["action_space"] = json.dumps(space_spec(action_space))
        file.attrs["split"] = split.to_json()
        file.attrs["settings"] = json.dumps(dict(settings))
        for index in sorted(parts):
            group = file.create_group(f"tasks/{index:05d}")
            histories = [read_part(part) for part in parts[index]]
            _write_task(group, histories)
            learned = [each for each in histories if each.style != RANDOM_STYLE]
            best = max(map(_best_region, learned), default=-np.inf)
            group.attrs["source_return"] = best
            random, optimal = references[index]
            group.attrs["name"] = tasks[index].name
            group.attrs["params"] = tasks[index].key()
            group.attrs["random_return"] = random
            group.attrs["optimal_return"] = np.nan if optimal is None else optimal


def _best_region(history: History) -> float:
    """Highest mean return of the episodes that finished in a region; -inf where none did."""
    ended = history.terminated | history.truncated
    returns = region_returns(history.rewards, ended, history.compress_markers)
    return float(np.nanmax(returns, initial=-np.inf))


def _write_task(group: h5py.Group, histories: Sequence[History]) -> None:
    longest = max(history.n_transitions for history in histories)
    for name in FIELDS:
        data = np.concatenate([_filled_up(getattr(each, name), longest) for each in histories])
        group.create_dataset(name, data=data, **_STORED)
    styles = [history.style for history in histories for _ in range(history.n_streams)]
    seeds = [history.source_seed for history in histories for _ in range(history.n_streams)]
    group.create_dataset("style", data=np.array(styles, dtype=h5py.string_dtype()))
    group.create_dataset("source_seed", data=np.array(seeds, dtype=np.int64), fletcher32=True)
    lengths = np.repeat(
        [each.n_transitions for each in histories], [len(each.rewards) for each in histories]
    )
    group.create_dataset("n_transitions", data=lengths, fletcher32=True)
    sources = [
        {"style": history.style, "source_seed": history.source_seed, **history.settings}
        for history in histories
    ]
    group.attrs["sources"] = json.dumps(sources)


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
            self.family_name = str(file.attrs["family"])
            self.observation_space = space_from_spec(_json(file, "observation_space"))
            self.action_space = space_from_spec(_json(file, "action_space"))
            self.split = Split.from_json(str(file.attrs["split"]))
            self.settings: dict[str, Any] = _json(file, "settings")
            tasks: Any = file["tasks"]
            self._tasks = {int(name): tasks[name] for name in tasks}
        except (
            *(AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError),
            AssertionError,  # a space that gymnasium does not make
        ) as error:
            raise DamagedFileError(_damaged(path)) from error

    def task_indices(self) -> list[int]:
        """Indices of the tasks in the file, ascending."""
        return sorted(self._tasks)

    def task(self, index: int) -> Task:
        """The task as it was collected; raises HistoryFileError for an unknown index."""
        group = self._group(index)
        with _readable(self.path):
            params = json.loads(str(group.attrs["params"]))
            return Task(index, str(group.attrs["name"]), params)

    def references(self, index: int) -> tuple[float, float | None]:
        """Random and optimal return of a task, the latter None where unknown."""
        attributes = self._group(index).attrs
        random, optimal = float(attributes["random_return"]), float(attributes["optimal_return"])
        return random, None if np.isnan(optimal) else optimal

    def source_return(self, index: int) -> float | None:
        """What the sources of histories have reached in a task, by whichever of them was best.

        The highest mean return of the episodes that finished in one region, uniformly random
        histories aside; None where no episode did, or a file of an earlier version does not say.
        """
        best = float(self._group(index).attrs.get("source_return", -np.inf))
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
        with _readable(self.path):
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
                f"damaged: {_REMEDY}."
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
    with _opened(path, FORMAT) as file:
        yield HistoriesReader(path, file)


@contextmanager
def _new_file(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file; a full disk ends in an OSError instead of a segmentation fault."""
    with path.open("w+b", buffering=0) as raw:
        spool = _Spool(raw)
        with h5py.File(spool, "w") as file:
            yield file
        if spool.error is not None:
            raise spool.error


class _Spool:
    """A file that HDF5 never hears an error of, for it does not survive one; it is kept."""

    def __init__(self, raw: Any) -> None:
        self.raw, self.error = raw, None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        while len(view) and self.error is None:
            try:
                view = view[self.raw.write(view) :]
            except OSError as error:
                self.error = error
        return len(memoryview(data).cast("B"))

    def truncate(self, size: int) -> int:
        if self.error is None:
            try:
                return self.raw.truncate(size)
            except OSError as error:
                self.error = error
        return size

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


class DamagedFileError(HistoryFileError):
    """A history file is truncated or otherwise unreadable."""


@contextmanager
def _opened(path: Path, file_format: str) -> Iterator[h5py.File]:
    if not path.is_file():
        raise HistoryFileError(f"{path} does not exist; run the collect stage first")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if h5py.is_hdf5(path):
            raise DamagedFileError(_damaged(path)) from error
        if path.stat().st_size == 0:
            raise DamagedFileError(f"{path} is empty; {_REMEDY}") from error
        raise HistoryFileError(
            f"{path} is no HDF5 file, so no histories; name the histories.h5 of a collect stage"
        ) from error
    with file:
        found = file.attrs.get("format")
        if found != file_format:
            raise HistoryFileError(
                f"{path} is an HDF5 file but not of format {file_format!r} (found {found!r}); "
                "name the histories.h5 of a collect stage"
            )
        version = file.attrs.get("schema_version", 0)
        if not isinstance(version, int | np.integer):
            raise DamagedFileError(_damaged(path))
        if version != SCHEMA_VERSION:
            remedy = "update this code" if version > SCHEMA_VERSION else "collect again"
            raise HistoryFileError(
                f"{path} has schema version {version}, this code reads {SCHEMA_VERSION}; {remedy}"
            )
        yield file


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        AttributeError,
        IndexError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise DamagedFileError(_damaged(path)) from error


def _damaged(path: Path) -> str:
    return f"{path} is damaged or was cut short; {_REMEDY}"


_REMEDY = "delete it, and the meta.json beside it if there is one, and collect again"


def _json(file: h5py.File, name: str) -> Any:
    return json.loads(str(file.attrs[name]))
