"""Reading region tables: columns viewed once as numpy arrays, rows gathered by index.

Writing them is in triples.py.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from base.errors import UserError
from histories.schema import HistoryError, space_from_spec
from tasks.family import Task
from tasks.splits import SPLIT_PARTS, Split, SplitError

FORMAT_VERSION = 1
META_NAME = "meta.json"
TABLE_NAME = "regions.arrow"
REGION_FIELDS = (
    *("observations", "actions", "rewards", "next_observations"),
    *("terminated", "truncated", "mask"),
)


class TriplesError(UserError):
    """Region tables cannot be built or read, or tables of one run do not belong together."""


@dataclass
class RegionTable:
    """The regions of one part of a split; row = one region of one stream.

    Rows of one stream are consecutive and their regions ascend from 0, so the region s before
    row i is row i - s as long as `region[i] >= s`. All arrays are read-only views of the mapped
    file.

    Attributes:
        columns: `observations`, `next_observations` `(N, L, ...)`, `actions` `(N, L, ...)` in the
            small dtypes of schema.py, `rewards` `(N, L)` float32, `terminated`, `truncated` and
            `mask` `(N, L)` bool; mask is False beyond the end of a short region.
        task: `(N,)` int32 index of the task.
        stream: `(N,)` int32, unique within a task over styles and seeds.
        region: `(N,)` int32.
        style: `(N,)` int8 index into `style_names`.
        source_seed: `(N,)` int64.
        style_names: Who acted.
        part: `train`, `validation` or `test`.
        split: Of all parts.
        observation_space: Of one environment.
        action_space: Of one environment.
        region_len: Transitions in a row, L.
        tasks: Of this part, by index.
        meta: All of meta.json.
    """

    columns: dict[str, np.ndarray]
    task: np.ndarray
    stream: np.ndarray
    region: np.ndarray
    style: np.ndarray
    source_seed: np.ndarray
    style_names: tuple[str, ...]
    part: str
    split: Split
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    region_len: int
    tasks: dict[int, Task]
    meta: dict[str, Any] = field(repr=False)

    def __len__(self) -> int:
        return len(self.task)

    @property
    def split_identity(self) -> str:
        """Hash of the tasks of all parts."""
        return self.split.identity

    @classmethod
    def load(cls, directory: str | Path) -> "RegionTable":
        """Map the table in `directory`; raises TriplesError where it cannot be read."""
        directory = Path(directory)
        meta = read_meta(directory)
        path = directory / TABLE_NAME
        try:
            table = _mapped(path)
            columns = {
                name: _view(table, name, meta["shapes"][name], meta["dtypes"][name])
                for name in REGION_FIELDS
            }
            labels = {
                name: _view(table, name, (), None)
                for name in ("task", "stream", "region", "style", "source_seed")
            }
            return cls(
                columns=columns,
                **labels,
                style_names=tuple(meta["style_names"]),
                part=meta["part"],
                split=Split.from_json(meta["split"]),
                observation_space=space_from_spec(meta["observation_space"]),
                action_space=space_from_spec(meta["action_space"]),
                region_len=meta["region_len"],
                tasks={entry["index"]: Task(**entry) for entry in meta["tasks"]},
                meta=meta,
            )
        except (OSError, ValueError, KeyError, TypeError, SplitError, HistoryError) as error:
            raise TriplesError(
                f"{path} is missing, damaged or does not fit its {META_NAME}; {_remedy(directory)}"
            ) from error

    def rows(self, max_region: int | None = None) -> np.ndarray:
        """Row indices `(n,)` of the regions 0 to `max_region`, that one included; None: all."""
        if max_region is None:
            return np.arange(len(self))
        return np.flatnonzero(self.region <= max_region)

    def gather(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Copies of the region fields at `rows` `(B,)`: each `(B, L, ...)`."""
        return {name: column[rows] for name, column in self.columns.items()}


def load_tables(triples_dir: str | Path) -> dict[str, RegionTable]:
    """The tables `train`, `validation` and `test` of one directory, checked against each other.

    Raises:
        TriplesError: One cannot be read, or they do not belong together.
    """
    tables = {part: RegionTable.load(Path(triples_dir) / part) for part in SPLIT_PARTS}
    check_tables(tables)
    return tables


def check_tables(tables: dict[str, RegionTable]) -> None:
    """Raise TriplesError where tables have different splits or share a task.

    Args:
        tables: By the part each is used for.
    """
    seen: dict[str, str] = {}
    identities = {table.split_identity for table in tables.values()}
    if len(identities) > 1:
        raise TriplesError(
            "region tables come from different splits ("
            + ", ".join(f"{part}: {table.split_identity[:12]}" for part, table in tables.items())
            + "); build all of them from one histories file"
        )
    for part, table in tables.items():
        if table.part != part:
            raise TriplesError(f"the table given for {part} holds the {table.part} tasks")
        for task in table.tasks.values():
            other = seen.setdefault(task.key(), part)
            if other != part:
                raise TriplesError(
                    f"task {task.name} stands both in the {other} and the {part} table; "
                    "build the triples of a disjoint split in another run_dir"
                )


def read_meta(directory: Path) -> dict[str, Any]:
    """The meta.json of a table; raises TriplesError where it is missing, damaged or too new."""
    path = directory / META_NAME
    if not path.is_file():
        raise TriplesError(f"{directory} holds no region table; run the build_triples stage first")
    try:
        meta = json.loads(path.read_text())
        version = meta["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise TriplesError(f"{path} is damaged; {_remedy(directory)}") from error
    if version != FORMAT_VERSION:
        raise TriplesError(
            f"{path} has format version {version}, this code reads {FORMAT_VERSION}; "
            f"{_remedy(directory)}"
        )
    return meta


def _remedy(directory: Path) -> str:
    return f"delete {directory.parent} and run pipelines.build_triples again"


def _mapped(path: Path) -> Any:
    """The table in a file, without `datasets`, which takes as long to import as half of torch."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_stream(file).read_all()


def _view(table: Any, name: str, shape: Any, dtype: str | None) -> np.ndarray:
    column = table.column(name)
    # One chunk as written; `combine_chunks` would copy it into memory all the same.
    column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    values = column.flatten() if shape else column
    array = np.from_dlpack(values)  # without a copy; `to_numpy` would import pandas
    array = array.reshape(len(column), *shape) if shape else array
    return array.view(bool) if dtype == "bool" else array
