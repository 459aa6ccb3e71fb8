"""Histories as a folder that `datasets.load_from_disk` opens: a row per episode, a split per part.

Columns: `task` (index), `task_name`, `params` (JSON), `stream`, `episode`, `style`, `source_seed`,
`observations` (n + 1 of n steps, the true last one included), `actions`, `rewards`, `terminated`,
`truncated`, `compress_markers`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from histories.episodes import STEP_FIELDS, Episode, episodes_of, streams_of
from histories.foreign import Foreign, ImportHistoriesError, runs_of_equals, unreadable_as_refusal
from histories.store import HistoriesReader
from tasks.splits import SPLIT_PARTS

LABELS = ("task", "task_name", "params", "stream", "episode", "style", "source_seed")
LISTS = ("observations", *STEP_FIELDS)


def write_datasets(reader: HistoriesReader, out: Path) -> None:
    """Write the folder; tasks of no part of the split are left out."""
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

    parts: Any = {
        part: Dataset(
            pa.concat_tables([_table(reader, index) for index in getattr(reader.split, part)])
        )
        for part in SPLIT_PARTS
        if getattr(reader.split, part)
    }
    DatasetDict(parts).save_to_disk(str(out))


def _table(reader: HistoriesReader, index: int) -> Any:
    """A row per episode of one task."""
    import pyarrow as pa

    task, episodes = reader.task(index), list(episodes_of(reader, index))
    n = len(episodes)
    streams = [episode.stream for episode in episodes]
    numbers = [i - first for first, stop in runs_of_equals(streams) for i in range(first, stop)]
    columns: dict[str, Any] = {
        "task": pa.array(np.full(n, index, dtype=np.int32)),
        "task_name": pa.array([task.name] * n),
        "params": pa.array([task.key()] * n),
        "stream": pa.array(np.array(streams, dtype=np.int32)),
        "episode": pa.array(np.array(numbers, dtype=np.int32)),
        "style": pa.array([episode.style for episode in episodes]),
        "source_seed": pa.array(np.array([e.source_seed for e in episodes], dtype=np.int64)),
    }
    for name in LISTS:
        columns[name] = _lists([episode.fields[name] for episode in episodes])
    return pa.table(columns)


def _lists(arrays: Sequence[np.ndarray]) -> Any:
    """Arrays `(n_i, ...)` as one column of lists, of fixed lengths inside."""
    import pyarrow as pa

    joined = np.concatenate(arrays)
    values: Any = pa.array(np.ascontiguousarray(joined).reshape(-1))
    for size in reversed(joined.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    offsets = np.cumsum([0, *map(len, arrays)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def read_datasets(path: Path) -> Iterator[Foreign]:
    """A folder that `write_datasets` wrote, or one of the same columns."""
    from datasets import Dataset, DatasetDict, load_from_disk

    with unreadable_as_refusal(f"{path} by datasets.load_from_disk"):
        loaded = load_from_disk(str(path))
    parts: dict[Any, Dataset] = (
        dict(loaded.items()) if isinstance(loaded, DatasetDict) else {"": loaded}
    )
    for dataset in parts.values():
        if missing := [n for n in (*LABELS, *LISTS) if n not in dataset.column_names]:
            raise ImportHistoriesError(f"{path} lacks the columns {', '.join(missing)}")
        groups = _groups(dataset)
        while True:
            with unreadable_as_refusal(path):
                group = next(groups, None)
            if group is None:
                break
            yield group


def _groups(dataset: Any) -> Iterator[Foreign]:
    if dataset._indices is not None:
        dataset = dataset.flatten_indices()
    table = dataset.data.table.combine_chunks()
    labels = {name: table[name].to_pylist() for name in LABELS}
    rows = zip(labels["task"], labels["stream"], labels["episode"], strict=True)
    order = [index for _, index in sorted((row, index) for index, row in enumerate(rows))]
    columns = {name: _flat(table[name]) for name in LISTS}
    tasks = [labels["task"][row] for row in order]
    for first, stop in runs_of_equals(tasks):
        episodes = [
            Episode(
                {
                    n: flat[offsets[row] : offsets[row + 1]]
                    for n, (flat, offsets) in columns.items()
                },
                labels["stream"][row],
                labels["style"][row],
                labels["source_seed"][row],
            )
            for row in order[first:stop]
        ]
        row = order[first]
        attributes = {"params": labels["params"][row]}
        yield from streams_of(labels["task_name"][row], episodes, attributes)


def _flat(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """All steps of a column of lists `(N, ...)`, and where each row's begin."""
    import pyarrow as pa

    lists = pa.concat_arrays(column.chunks)
    offsets = np.asarray(lists.offsets) - lists.offsets[0].as_py()
    values, shape = lists.flatten(), []
    while pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type):
        inner = values.flatten()
        shape.append(len(inner) // max(1, len(values)))
        values = inner
    flat = values.to_numpy(zero_copy_only=False)
    return flat.reshape(-1, *shape), offsets
