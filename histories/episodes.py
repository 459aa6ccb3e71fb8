"""Streams as their episodes one after the other, and back: what Minari and `datasets` hold.

An episode of n steps has n + 1 observations, the true last one included.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from histories.foreign import Foreign, ImportHistoriesError, runs_of_equals
from histories.replay import steps_that_differ
from histories.store import HistoriesReader

STEP_FIELDS = ("actions", "rewards", "terminated", "truncated", "compress_markers")


@dataclass
class Episode:
    """One episode of one stream, the last of a stream perhaps broken off.

    Attributes:
        fields: `observations` `(n + 1, ...)` and those of `STEP_FIELDS` `(n, ...)`, markers and
            whatever else a file lacks left out.
        stream: Number of its stream within the task.
        style: Who acted; empty where not said.
        source_seed: Of the source algorithm.
    """

    fields: dict[str, np.ndarray]
    stream: int = 0
    style: str = ""
    source_seed: int = 0


def episodes_of(reader: HistoriesReader, index: int) -> Iterator[Episode]:
    """Episodes of a task of an open histories file, stream after stream, in order.

    Raises:
        ImportHistoriesError: A stream has gaps, so that its observations are no such sequence.
    """
    arrays = reader.arrays(index)
    for stream, length in enumerate(arrays["n_transitions"].tolist()):
        own = {name: arrays[name][stream, :length] for name in ("observations", *STEP_FIELDS)}
        following = arrays["next_observations"][stream, :length]
        ended = own["terminated"] | own["truncated"]
        gaps = steps_that_differ(own["observations"][None, 1:], following[None, :-1])[0]
        if (gaps & ~ended[:-1]).any():
            step = int(np.flatnonzero(gaps & ~ended[:-1])[0])
            raise ImportHistoriesError(
                f"{reader.path}, task {index}, stream {stream}: the observation after step {step} "
                "is not its next one, though no episode ends there; files of episodes cannot hold "
                "that"
            )
        stops = [*(np.flatnonzero(ended) + 1).tolist(), length]
        starts = [0, *stops[:-1]]
        for start, stop in zip(starts, stops, strict=True):
            if start == stop:  # the last episode has ended
                continue
            fields = {name: own[name][start:stop] for name in STEP_FIELDS}
            last = following[stop - 1 : stop]
            fields["observations"] = np.concatenate([own["observations"][start:stop], last])
            style, seed = str(arrays["style"][stream]), int(arrays["source_seed"][stream])
            yield Episode(fields, stream, style, seed)


def streams_of(
    name: str, episodes: Sequence[Episode], attributes: Mapping[str, Any]
) -> Iterator[Foreign]:
    """Groups of a task, one per run of streams of one style, seed and length.

    Args:
        name: Of the task's group.
        episodes: In the order they were lived through, of all streams.
        attributes: Of the group.

    Raises:
        ImportHistoriesError: There is none, or one is broken off before another begins.
    """
    by_stream: dict[int, list[Episode]] = {}
    for episode in episodes:
        by_stream.setdefault(episode.stream, []).append(episode)
    streams = [(_label(own), _joined(name, own)) for _, own in sorted(by_stream.items())]
    if not streams:
        raise ImportHistoriesError(f"{name} holds no episode")
    labels = [(*label, len(fields["rewards"])) for label, fields in streams]
    for first, stop in runs_of_equals(labels):
        own = [fields for _, fields in streams[first:stop]]
        fields = {key: np.stack([each[key] for each in own]) for key in own[0]}
        style, seed, _ = labels[first]
        yield Foreign(name, fields, attributes, style, seed)


def _label(episodes: Sequence[Episode]) -> tuple[str, int]:
    return episodes[0].style, episodes[0].source_seed


def _joined(name: str, episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    """Fields `(T, ...)` of a stream."""
    for number, episode in enumerate(episodes[:-1]):
        if not (episode.fields["terminated"][-1] or episode.fields["truncated"][-1]):
            raise ImportHistoriesError(
                f"{name}: episode {number} of stream {episode.stream} neither terminates nor is "
                "truncated, and another follows; mark its last step as truncated"
            )
    parts = [episode.fields for episode in episodes]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    joined["observations"] = np.concatenate([part["observations"][:-1] for part in parts])
    joined["next_observations"] = np.concatenate([part["observations"][1:] for part in parts])
    return joined
