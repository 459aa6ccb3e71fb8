"""Regions as rows of an Arrow table, one table per split part, memory-mapped.

A row is one region of one stream, padded to `region_len`. A triple (context, query, target) is two
rows of one stream, so nothing is stored twice: `(row - s, row)` for a stride of s regions.
Reading the tables is in table.py.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from base.files import atomic_dir
from base.hashes import content_hash
from histories.regions import MarkerRule, markers_for, region_bounds
from histories.schema import field_dtypes, field_shapes, space_spec
from histories.store import HistoriesReader, open_histories
from histories.table import (
    FORMAT_VERSION,
    META_NAME,
    REGION_FIELDS,
    TABLE_NAME,
    RegionTable,
    TriplesError,
    load_tables,
    read_meta,
)
from tasks.family import Task, TaskFamily
from tasks.splits import SPLIT_PARTS, Split, SplitError, check_disjoint, identity_of

__all__ = ["RegionTable", "TriplesError", "TriplesSummary", "build_triples", "load_tables"]


@dataclass(frozen=True)
class TriplesSummary:
    """What a call of `build_triples` left behind.

    Attributes:
        out_dir: Holds `train`, `validation` and `test`.
        n_rows: Rows of each part.
        built: False where the tables were already there.
    """

    out_dir: Path
    n_rows: dict[str, int]
    built: bool


def build_triples(
    histories_path: str | Path,
    out_dir: str | Path,
    *,
    family: TaskFamily | None = None,
    split: Split | None = None,
    region_len: int | None = None,
    rule: MarkerRule | None = None,
    styles: Sequence[str] | None = None,
) -> TriplesSummary:
    """Write the region tables of the three parts of a split.

    Args:
        histories_path: A `histories.h5`.
        out_dir: For the three tables; each is written beside its place and renamed.
        family: That the histories must be of; None for any.
        split: None for the split stored with the histories.
        region_len: Transitions in a row, L. None for that of the rule, or for the longest region
            where the rule counts episodes. Without a rule, another length than the recorded one
            divides the histories anew, every `region_len` steps.
        rule: None for the recorded markers, else divides the histories anew.
        styles: Only histories of these styles; None for all.

    Returns:
        A summary; tables made before from equal inputs are left as they are.

    Raises:
        TriplesError: The split does not belong to the histories, two parts share a task, a region
            is longer than `region_len`, or a part would be empty of wanted styles.
        HistoryFileError: The histories cannot be read.
    """
    out_dir = Path(out_dir)
    with open_histories(histories_path) as reader:
        if family is not None:
            _check_family(reader, family)
        split = split or reader.split
        _check_split(reader, split)
        rule, region_len = _resolve(reader.settings, rule, region_len)
        meta = {
            "format_version": FORMAT_VERSION,
            "family": reader.family_name,
            "observation_space": space_spec(reader.observation_space),
            "action_space": space_spec(reader.action_space),
            "split": split.to_json(),
            "split_identity": split.identity,
            "rule": asdict(rule) if rule else None,
            "region_len": region_len,
            "styles": None if styles is None else list(styles),
            "histories": content_hash(histories_path),
        }
        meta["build_key"] = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
        present = _present(out_dir, meta["build_key"])
        if present is not None:
            return TriplesSummary(out_dir, present, built=False)
        episode_len = family.episode_len if family else None
        cut = _Cut(reader, rule, None if styles is None else frozenset(styles))
        surveys = {part: _survey(cut, getattr(split, part), episode_len) for part in SPLIT_PARTS}
        if region_len is None:
            region_len = max(1, *(survey.longest for survey in surveys.values()))
        for part, survey in surveys.items():
            _build_part(cut, survey, region_len, out_dir / part, {**meta, "part": part})
    return TriplesSummary(out_dir, {p: s.total for p, s in surveys.items()}, built=True)


def _check_family(reader: HistoriesReader, family: TaskFamily) -> None:
    for what, theirs, ours in (
        ("of the family", reader.family_name, family.name),
        ("observed in", reader.observation_space, family.observation_space),
        ("acted in", reader.action_space, family.action_space),
    ):
        if theirs != ours:
            raise TriplesError(
                f"{reader.path} was {what} {theirs}, but this run's family has {ours}; name the "
                "histories of this family, or the family of those histories."
            )


def _check_split(reader: HistoriesReader, split: Split) -> None:
    known = set(reader.task_indices())
    wanted = [index for part in SPLIT_PARTS for index in getattr(split, part)]
    missing = [index for index in wanted if index not in known]
    if missing:
        raise TriplesError(
            f"{reader.path} lacks task {missing[0]} of split {split.name!r}; "
            "collect again with that split"
        )
    tasks: list[Task] = [
        reader.task(index) if index in known else Task(index, "", {"absent": index})
        for index in range(max(known) + 1)
    ]
    try:
        check_disjoint(tasks, split)
    except SplitError as error:
        raise TriplesError(str(error)) from error
    found = identity_of(tasks, split.train, split.validation, split.test)
    if found != split.identity:
        raise TriplesError(
            f"split {split.name!r} ({split.identity[:12]}) was drawn over other tasks than those "
            f"of {reader.path} ({found[:12]}); draw it over the family of that file"
        )


def _resolve(
    settings: Mapping[str, Any], rule: MarkerRule | None, region_len: int | None
) -> tuple[MarkerRule | None, int | None]:
    """The rule to divide by, None for the recorded markers, and the row length if known."""
    if rule is not None:
        fixed = rule.name != "episode"
        return rule, region_len or (rule.region_len if fixed else None)
    recorded = settings["region_len"] if settings["marker_rule"] != "episode" else None
    if region_len is None or recorded is None or region_len == recorded:
        return None, region_len or recorded
    return MarkerRule("fixed", region_len), region_len


@dataclass(frozen=True)
class _Cut:
    """Histories and how they are divided, a task at a time: all of them may not fit in memory."""

    reader: HistoriesReader
    rule: MarkerRule | None
    styles: frozenset[str] | None

    def regions(
        self, index: int, episode_len: int | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """A task's arrays, and (n,) stream, region, start and length of each of its regions."""
        arrays = self.reader.arrays(index, episode_len)
        markers = arrays["compress_markers"]
        if (rule := self.rule) is not None:
            ended = arrays["terminated"] | arrays["truncated"]
            markers = markers_for(rule.name, ended, rule.region_len, rule.episodes_per_region)
        found: dict[str, list[np.ndarray]] = {
            name: [np.zeros(0, np.int64)] for name in ("stream", "region", "start", "length")
        }
        for stream in range(len(markers)):
            if self.styles is None or arrays["style"][stream] in self.styles:
                starts, lengths = region_bounds(markers[stream, : arrays["n_transitions"][stream]])
                n = len(starts)
                values = (np.full(n, stream), np.arange(n), starts, lengths)
                for name, value in zip(found, values, strict=True):
                    found[name].append(value)
        return arrays, {name: np.concatenate(each) for name, each in found.items()}


@dataclass
class _Survey:
    """What must be known of a part before its table is written.

    Attributes:
        rows: Regions of each task.
        longest: Transitions of the longest region.
        styles: Who acted.
    """

    rows: dict[int, int]
    longest: int
    styles: set[str]

    @property
    def total(self) -> int:
        """Regions of the part."""
        return sum(self.rows.values())


def _survey(cut: _Cut, indices: Sequence[int], episode_len: int | None) -> _Survey:
    found = _Survey({}, 0, set())
    for index in indices:
        arrays, regions = cut.regions(index, episode_len)
        found.rows[index] = len(regions["start"])
        found.longest = max(found.longest, int(regions["length"].max(initial=0)))
        found.styles |= set(arrays["style"][np.unique(regions["stream"])].tolist())
    if indices and not found.total:
        styles = list(cut.styles or ())
        raise TriplesError(f"{cut.reader.path} holds no history of styles {styles}")
    return found


def _build_part(
    cut: _Cut, survey: _Survey, region_len: int, directory: Path, meta: dict[str, Any]
) -> None:
    reader = cut.reader
    if survey.longest > region_len:
        raise TriplesError(
            f"{reader.path} has a region of {survey.longest} transitions, rows hold {region_len}; "
            f"give region_len={survey.longest} or more"
        )
    style_names = sorted(survey.styles)
    with atomic_dir(directory) as temporary:
        columns = _new_columns(reader, survey.total, region_len, temporary)
        first = 0
        for index, n in survey.rows.items():
            rows = {name: column[first : first + n] for name, column in columns.items()}
            _fill(rows, cut, index, style_names)
            first += n
        tasks = [reader.task(index) for index in sorted(i for i, n in survey.rows.items() if n)]
        meta = {
            **meta,
            "region_len": region_len,
            "style_names": style_names,
            "n_rows": survey.total,
            "shapes": {name: columns[name].shape[1:] for name in REGION_FIELDS},
            "dtypes": {name: columns[name].dtype.name for name in REGION_FIELDS},
            "tasks": [
                {"index": task.index, "name": task.name, "params": task.params} for task in tasks
            ],
        }
        _write_arrow(temporary / TABLE_NAME, columns)
        for name in columns:
            _column_file(temporary, name).unlink(missing_ok=True)
        (temporary / META_NAME).write_text(json.dumps(meta, indent=1))


def _column_file(directory: Path, name: str) -> Path:
    return directory / f".{name}.column"


def _new_columns(
    reader: HistoriesReader, n_rows: int, region_len: int, directory: Path
) -> dict[str, np.ndarray]:
    """Columns of zeros, each a file mapped into memory: a part may be larger than that."""
    spaces = (reader.observation_space, reader.action_space)
    dtypes: dict[str, Any] = {**field_dtypes(*spaces), "mask": np.dtype(bool)}
    shapes = {**field_shapes(*spaces), "mask": ()}
    wanted = {n: ((n_rows, region_len, *shapes[n]), np.dtype(dtypes[n])) for n in REGION_FIELDS}
    integers = {"task": "i4", "stream": "i4", "region": "i4", "style": "i1", "source_seed": "i8"}
    wanted |= {name: ((n_rows,), np.dtype(kind)) for name, kind in integers.items()}
    return {
        name: np.memmap(_column_file(directory, name), dtype, "w+", shape=shape)
        if np.prod(shape)  # nothing can be mapped of no bytes
        else np.zeros(shape, dtype)
        for name, (shape, dtype) in wanted.items()
    }


def _fill(
    rows: Mapping[str, np.ndarray], cut: _Cut, index: int, style_names: Sequence[str]
) -> None:
    """Write a task's regions; zero and mask False beyond a region's length."""
    arrays, regions = cut.regions(index)
    offsets = np.arange(rows["mask"].shape[1])
    mask = offsets < regions["length"][:, None]  # (n, L)
    times = np.where(mask, regions["start"][:, None] + offsets, 0)
    streams = regions["stream"]
    for name in REGION_FIELDS:
        values = mask
        if name != "mask":
            values = arrays[name][streams[:, None], times]  # (n, L, ...)
            values[~mask] = 0
        rows[name][:] = values
    rows["task"][:] = index
    rows["stream"][:] = streams
    rows["region"][:] = regions["region"]
    rows["style"][:] = np.searchsorted(style_names, arrays["style"])[streams]
    rows["source_seed"][:] = arrays["source_seed"][streams]


def _write_arrow(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """One record batch of fixed-size lists, so that a column can be viewed without a copy."""
    import pyarrow as pa
    from datasets.arrow_writer import ArrowWriter

    arrays = {}
    for name, column in columns.items():
        flat = column.view(np.uint8) if column.dtype == bool else column
        values = pa.array(np.ascontiguousarray(flat).reshape(-1))
        if column.ndim > 1:
            values = pa.FixedSizeListArray.from_arrays(values, int(np.prod(column.shape[1:])))
        arrays[name] = values
    table = pa.table(arrays)
    with ArrowWriter(path=str(path), schema=table.schema) as writer:
        writer.write_table(table, writer_batch_size=max(1, len(table)))
        writer.finalize()


def _present(out_dir: Path, build_key: str) -> dict[str, int] | None:
    """Rows of each part if all three were built with this key."""
    n_rows = {}
    for part in SPLIT_PARTS:
        try:
            meta = read_meta(out_dir / part)
        except TriplesError:
            return None
        if meta["build_key"] != build_key or not (out_dir / part / TABLE_NAME).is_file():
            return None
        n_rows[part] = meta["n_rows"]
    return n_rows
