"""Minari datasets: one per task, its episodes in the order of their ids.

Episodes we export carry stream, style and seed; those of others are one stream. The package
`minari` is an extra, imported where it is needed.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Dict, Text, Tuple

from histories.episodes import Episode, episodes_of, streams_of
from histories.foreign import Foreign, ImportHistoriesError, unreadable_as_refusal
from histories.store import HistoriesReader
from tasks.family import Task

METADATA = "data/metadata.json"
OUR_TASK = "cad_task"


def read_minari(path: Path) -> Iterator[Foreign]:
    """A Minari dataset, or every one below a folder; a group is called after its folder."""
    minari = _minari()
    found = sorted(file.parent for file in path.rglob("metadata.json") if _is_dataset(file))
    if not found:
        raise ImportHistoriesError(
            f"{path} holds no Minari dataset (a folder with {METADATA}); name the folder of one, "
            "or of several, below ~/.minari/datasets"
        )
    for folder in found:
        where = folder.parent.relative_to(path).as_posix()
        name = path.name if where == "." else where
        with unreadable_as_refusal(f"{folder} (Minari)"):
            dataset: Any = minari.MinariDataset(folder)
            episodes = list(_episodes(name, dataset))
        own: dict[str, Any] = dataset.storage.metadata.get(OUR_TASK) or {}
        attributes = {"params": json.dumps(own["params"])} if own else {}
        yield from streams_of(name, episodes, attributes)


def _is_dataset(file: Path) -> bool:
    return file.parent.name == "data"


def _episodes(name: str, dataset: Any) -> Iterator[Episode]:
    for space in (dataset.observation_space, dataset.action_space):
        if isinstance(space, Dict | Tuple | Text):
            raise ImportHistoriesError(
                f"{name} has the space {space}; flatten it before, histories hold arrays"
            )
    indices = sorted(int(index) for index in dataset.episode_indices)
    labels = dataset.storage.get_episode_metadata(indices)
    for episode, label in zip(dataset.iterate_episodes(indices), labels, strict=True):
        fields = {
            "observations": np.asarray(episode.observations),
            "actions": np.asarray(episode.actions),
            "rewards": np.asarray(episode.rewards),
            "terminated": np.asarray(episode.terminations, dtype=bool),
            "truncated": np.asarray(episode.truncations, dtype=bool),
        }
        if len(fields["observations"]) != len(fields["rewards"]) + 1:
            raise ImportHistoriesError(
                f"{name}, episode {episode.id}: {len(fields['observations'])} observations of "
                f"{len(fields['rewards'])} steps, expected one more than steps"
            )
        if "compress_markers" in (episode.infos or {}):
            fields["compress_markers"] = np.asarray(episode.infos["compress_markers"])
        yield Episode(
            fields,
            int(label.get("stream", 0)),
            str(label.get("style", "")),
            int(label.get("source_seed", 0)),
        )


def write_minari(reader: HistoriesReader, out: Path, spec_of: Any = lambda task: None) -> None:
    """Write a dataset per task, `out/<family>/task-<index>-v0`; `out` is an empty folder.

    Args:
        reader: Open histories.
        out: May be given to Minari as MINARI_DATASETS_PATH.
        spec_of: The gymnasium spec of a task's environment, or None.
    """
    family = re.sub(r"[^A-Za-z0-9]+", "-", reader.family_name).strip("-") or "family"
    for index in reader.task_indices():
        task = reader.task(index)
        _write_task(reader, task, f"{family}/task-{index:05d}-v0", out, spec_of(task))


def _write_task(reader: HistoriesReader, task: Task, dataset_id: str, out: Path, spec: Any) -> None:
    minari = _minari()
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    folder = out.absolute() / dataset_id / "data"  # Minari puts a relative one before itself
    folder.mkdir(parents=True)
    storage = MinariStorage.new(
        folder,
        observation_space=reader.observation_space,
        action_space=reader.action_space,
        env_spec=spec,
        jpeg_encoding=False,  # which loses
    )
    storage.update_metadata(
        {
            "dataset_id": dataset_id,
            "minari_version": minari.__version__,
            "description": f"Learning histories of {reader.family_name}, {task.name}",
            OUR_TASK: {"name": task.name, "params": task.params},
        }
    )
    episodes = list(episodes_of(reader, task.index))
    buffers = (_buffer(each.fields, EpisodeBuffer) for each in episodes)
    storage.update_episodes(buffers)
    labels = (
        {"stream": each.stream, "style": each.style, "source_seed": each.source_seed}
        for each in episodes
    )
    storage.update_episode_metadata(labels)


def _buffer(fields: dict[str, Any], kind: Any) -> Any:
    return kind(
        observations=fields["observations"],
        actions=fields["actions"],
        rewards=fields["rewards"],
        terminations=fields["terminated"],
        truncations=fields["truncated"],
        infos={"compress_markers": fields["compress_markers"]},
    )


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise ImportHistoriesError(
            "the format minari needs the package minari; install it with `pip install "
            "'.[minari]'` in the checkout"
        ) from error
    return minari
