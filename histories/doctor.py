"""A look at histories before anything is trained on them: can improvement be learned from these?

Every finding is a judgement of a whole file. What tables would refuse is a failure here too, and so
is what would be learned without an error but in vain.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from base.findings import Finding
from histories.curves import Curve, curve_warning, learning_curves
from histories.regions import RegionError, region_bounds
from histories.replay import replay, steps_that_differ
from histories.store import HistoriesReader, HistoryFileError, open_histories
from tasks.family import Task, TaskFamily
from tasks.splits import SPLIT_PARTS, Split, few_tasks

IMPROVES = 0.1  # of the way from random to optimal, from the first quarter to the last
ARRIVED = 0.9  # of the rise
FEW_IMPROVE, FEW_RISING = 0.5, 0.1
FEW_ENDS = 3
PLAYED_STREAMS, PLAYED_EPISODES = 4, 4


def examine(
    path: Path, family: TaskFamily, split: Split, region_len: int, marker_rule: str
) -> Iterator[Finding]:
    """Look at a file of histories as those of a family, split and region length.

    Args:
        path: A `histories.h5`.
        family: That a run would have.
        split: Likewise.
        region_len: Likewise.
        marker_rule: Likewise.

    Yields:
        Findings, in order; after a file that is none of the family's nothing more.
    """
    try:
        with open_histories(path) as reader:
            yield from _examine(reader, family, split, region_len, marker_rule)
    except HistoryFileError as error:
        yield Finding("failure", "file", str(error))


def _examine(
    reader: HistoriesReader, family: TaskFamily, split: Split, region_len: int, marker_rule: str
) -> Iterator[Finding]:
    foreign = _foreign(reader, family)
    if foreign:
        yield Finding("failure", "family", foreign)
        return
    yield Finding("ok", "family", f"{family.name}, {len(reader.task_indices())} tasks")
    yield from _tasks(reader, family, split)
    seen = _Seen(region_len, marker_rule, recorded=reader.settings.get("region_len"))
    for index in reader.task_indices():
        try:
            arrays = reader.arrays(index, family.episode_len)
        except HistoryFileError as error:
            seen.damaged.append(str(error).removeprefix(f"{reader.path}, "))
            continue
        seen.look(index, _part(split, index), arrays)
        if not seen.n_breaks and seen.played is None:
            seen.played = _play(family, family.tasks()[index], arrays)
    yield from seen.findings(family)
    if not seen.damaged:
        yield from _curves(list(learning_curves(reader)))


def _foreign(reader: HistoriesReader, family: TaskFamily) -> str:
    """What says that histories are not of a family; empty if nothing does."""
    for what, theirs, ours in (
        ("family", reader.family_name, family.name),
        ("observations", reader.observation_space, family.observation_space),
        ("actions", reader.action_space, family.action_space),
    ):
        if theirs != ours:
            return f"{what} of the file {theirs}, of the configuration {ours}"
    tasks = family.tasks()
    for index in reader.task_indices():
        if index >= len(tasks) or tasks[index].key() != reader.task(index).key():
            return f"task {index} of the file is {reader.task(index).name}, not the family's"
    return ""


def _tasks(reader: HistoriesReader, family: TaskFamily, split: Split) -> Iterator[Finding]:
    """Whether the split's tasks are there, enough, and different."""
    there = set(reader.task_indices())
    wanted = [index for part in SPLIT_PARTS for index in getattr(split, part)]
    missing = [family.tasks()[index].name for index in wanted if index not in there]
    if missing:
        yield Finding("failure", "tasks", f"{len(missing)} of the split missing: {missing[0]}, ...")
    else:
        sizes = ", ".join(f"{len(getattr(split, part))} {part}" for part in SPLIT_PARTS)
        yield Finding("ok", "tasks", sizes)
    if told := few_tasks(split):
        yield Finding("warning", "train tasks", told)
    parts: dict[str, list[int]] = {}
    for index in wanted:
        parts.setdefault(family.tasks()[index].key(), []).append(index)
    equal = [indices for indices in parts.values() if len(indices) > 1]
    if equal:
        crossing = [i for i in equal if len({_part(split, index) for index in i}) > 1]
        first = (crossing or equal)[0]
        where = ", ".join(f"{index} ({_part(split, index)})" for index in first[:3])
        status = "failure" if crossing else "warning"
        yield Finding(status, "equal tasks", f"tasks {where} have equal parameters")


def _part(split: Split, index: int) -> str:
    return next((part for part in SPLIT_PARTS if index in getattr(split, part)), "no part")


@dataclass
class _Seen:
    """What all tasks together show, task after task.

    Attributes:
        region_len: Of the configuration.
        marker_rule: Likewise.
        recorded: Region length the file was recorded with, if known.
        played: Ends of episodes in the family's own environment, and those at which the last
            observation was not the reset one; None where it was not needed.
    """

    region_len: int
    marker_rule: str
    recorded: int | None
    damaged: list[str] = field(default_factory=list)
    markers: list[str] = field(default_factory=list)
    lengths: set[int] = field(default_factory=set)
    contents: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    streams: dict[str, list[int]] = field(default_factory=dict)
    unpaid: int = 0
    n_tasks: int = 0
    n_ends: int = 0
    n_breaks: int = 0
    varies: bool = False
    most_regions: int = 0
    played: tuple[int, int] | None = None

    def look(self, index: int, part: str, arrays: dict[str, np.ndarray]) -> None:
        """Take a task in."""
        self.n_tasks += 1
        rewards = arrays["rewards"]
        constant = bool((rewards == rewards[0, 0]).all())
        self.unpaid += constant
        if not constant:
            names = ("observations", "actions", "rewards")
            digest = hashlib.sha256(b"".join(arrays[name].tobytes() for name in names)).hexdigest()
            self.contents.setdefault(digest, []).append((index, part))
        ends, breaks = _ends(arrays)
        self.n_ends += ends
        self.n_breaks += breaks
        observations = arrays["observations"]
        self.varies = self.varies or bool((observations != observations[0, 0]).any())
        for stream, length in enumerate(arrays["n_transitions"].tolist()):
            actions = arrays["actions"][stream, :length]
            still = bool((actions == actions[0]).all())
            counted = self.streams.setdefault(str(arrays["style"][stream]), [0, 0])
            counted[0] += still
            counted[1] += 1
            self._look_at_markers(index, stream, arrays["compress_markers"][stream, :length])

    def _look_at_markers(self, index: int, stream: int, markers: np.ndarray) -> None:
        try:
            lengths = region_bounds(markers)[1]
        except RegionError as error:
            self.markers.append(f"task {index}, stream {stream}: {error}")
            return
        self.most_regions = max(self.most_regions, len(lengths))
        whole = lengths if markers[-1] == 2 else lengths[:-1]  # the last may be broken off
        self.lengths |= set(whole.tolist())

    def findings(self, family: TaskFamily) -> Iterator[Finding]:
        """What to say of all tasks."""
        if self.damaged:
            text = f"{len(self.damaged)} of {self.n_tasks + len(self.damaged)} tasks: "
            yield Finding("failure", "values", text + self.damaged[0])
        else:
            text = "numbers, every one of its space, no episode too long"
            yield Finding("ok", "values", text)
        if not self.n_tasks:
            return
        yield self._markers()
        yield self._terminal(family)
        yield from self._actions()
        yield self._rewards()
        yield from self._copies()

    def _markers(self) -> Finding:
        if self.markers:
            return Finding("failure", "markers", self.markers[0])
        found = ", ".join(map(str, sorted(self.lengths)[:4])) or "none whole"
        anew = self.recorded is not None and self.recorded != self.region_len
        if self.marker_rule != "episode" and anew:
            text = f"every {found} steps; cut anew every region_len={self.region_len}"
            return Finding("warning", "markers", text)
        wrong = self.marker_rule != "episode" and self.lengths - {self.region_len}
        if wrong or max(self.lengths, default=0) > self.region_len:
            text = f"regions of {found} steps, expected region_len={self.region_len}"
            return Finding("failure", "markers", text)
        if self.most_regions < 2:
            text = "no stream has two regions: nothing has a context"
            return Finding("failure", "markers", text)
        return Finding("ok", "markers", f"regions of {found} steps, at most {self.most_regions}")

    def _terminal(self, family: TaskFamily) -> Finding:
        if self.n_breaks or self.n_ends < FEW_ENDS or not self.varies:
            text = f"true ones, {self.n_breaks} of {self.n_ends} differ from the reset"
            return Finding("ok", "terminal obs", text)
        if self.played is not None and not self.played[1]:
            return Finding("ok", "terminal obs", "those of the reset, as in the environment")
        text = (
            f"all {self.n_ends} last observations of episodes are those of the reset; the "
            "environment's are not"
        )
        return Finding("failure", "terminal obs", text)

    def _actions(self) -> Iterator[Finding]:
        for style, (still, n) in sorted(self.streams.items()):
            text = f"{style}: the same all along in {still} of {n} streams"
            status = "ok" if not still else "failure" if still == n else "warning"
            yield Finding(status, "actions", text)

    def _rewards(self) -> Finding:
        text = f"in {self.unpaid} of {self.n_tasks} tasks every reward is the same"
        share = self.unpaid / self.n_tasks
        return Finding(
            "ok" if not share else "failure" if share == 1 else "warning", "rewards", text
        )

    def _copies(self) -> Iterator[Finding]:
        copies = [found for found in self.contents.values() if len(found) > 1]
        crossing = [found for found in copies if len({part for _, part in found}) > 1]
        if copies:
            first = (crossing or copies)[0]
            where = ", ".join(f"{index} ({part})" for index, part in first[:3])
            status = "failure" if crossing else "warning"
            yield Finding(status, "equal histories", f"tasks {where} hold the same transitions")


def _ends(arrays: dict[str, np.ndarray]) -> tuple[int, int]:
    """Ends of episodes that another follows, and those whose last observation is no reset one."""
    ended = (arrays["terminated"] | arrays["truncated"])[:, :-1].copy()
    steps = np.arange(1, ended.shape[1] + 1)
    ended &= steps < arrays["n_transitions"][:, None]
    differs = steps_that_differ(arrays["next_observations"][:, :-1], arrays["observations"][:, 1:])
    return int(ended.sum()), int((ended & differs).sum())


def _play(family: TaskFamily, task: Task, arrays: dict[str, np.ndarray]) -> tuple[int, int]:
    """The same of the family's own environment, acting as recorded."""
    some = np.s_[:PLAYED_STREAMS, : PLAYED_EPISODES * family.episode_len]
    played = vars(replay(family, task, arrays["actions"][some]))
    size = played["rewards"].shape
    return _ends({**played, "n_transitions": np.full(size[0], size[1])})


def _curves(curves: Sequence[Curve]) -> Iterator[Finding]:
    """Whether there is anything to distil: a style whose returns rise."""
    improves = False
    for style in sorted({curve.style for curve in curves}):
        own = [curve for curve in curves if curve.style == style]
        rises = [_rise(curve, _span(own)) for curve in own]
        better = [rise for rise in rises if rise is not None]
        n_improve, share = len(better), float(np.mean(better)) if better else 0.0
        text = f"{style}: {n_improve} of {len(own)} improve"
        if better:
            text += f", in {share:.0%} of regions"
        random = style == "random"
        improves = improves or n_improve >= FEW_IMPROVE * len(own)
        few = n_improve < FEW_IMPROVE * len(own) or share < FEW_RISING
        yield Finding("warning" if few and not random else "ok", "curves", text)
        told = [warning for curve in own if (warning := curve_warning(curve))]
        for kind in ("collapsed", "flat"):
            same = [text for text in told if text.startswith(kind)]
            if same:
                yield Finding("warning", kind, f"{len(same)} of {len(own)}, {same[0]}")
    if not improves:
        text = "no style improves: there is nothing to learn but a fixed policy"
        yield Finding("failure", "improvement", text)


def _span(curves: Sequence[Curve]) -> float:
    """From random to optimal return; where the latter is not known, to the best of the curves."""
    best = [curve.optimal_return for curve in curves]
    tops = [np.nanmax(curve.returns, initial=-np.inf) for curve in curves]
    pairs = zip(best, tops, curves, strict=True)
    spans = [(top if known is None else known) - c.random_return for known, top, c in pairs]
    return max(float(np.mean(spans)), 1e-9)


def _rise(curve: Curve, span: float) -> float | None:
    """Share of the regions in which the return still rises; None where it does not."""
    returns = curve.returns[~np.isnan(curve.returns)]
    if len(returns) < 2:
        return None
    quarter = max(1, len(returns) // 4)
    first, last = returns[:quarter].mean(), returns[-quarter:].mean()
    if last - first < IMPROVES * span:
        return None
    arrived = returns >= first + ARRIVED * (last - first)
    return float(np.argmax(arrived) / len(returns))
