"""From a foreign group to a `History`: what is missing is filled in only where it is certain.

Certain is what the file says, what a replay in the family's environment proves, or what the user
has stated; anything else is refused with the key that states it. Each thing filled in is told.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from base.ranges import PathText
from histories.foreign import DONES, NEEDED, Foreign, ImportHistoriesError
from histories.regions import MarkerRule, RegionError, markers_for, region_bounds
from histories.replay import Replayed, draws, first_difference, replay, steps_that_differ
from histories.schema import (
    History,
    HistoryError,
    check_history,
    check_values,
    field_dtypes,
    field_shapes,
)
from histories.task_names import TaskRule
from tasks.family import Task, TaskFamily

CHECKED_STREAMS = 4
"""Streams of a task that are replayed where nothing is missing."""
FEW_ENDS = 3


@dataclass(frozen=True)
class ImportConfig:
    """Histories made elsewhere, and how they are to be understood.

    Attributes:
        source: File or folder that is imported into the file that `histories` names.
        format: `cad` (a histories.h5 of this project), `time_first` or `stream_first` (HDF5, a
            group per task, fields (T, S, ...) or (S, T, ...)), `minari` (a Minari dataset or a
            folder of them, one per task), `datasets` (a folder of this project's export), or
            `module:function` of your own.
        tasks: How the task of a group is known: `certain` by its attributes or else its name;
            `params` or `name` by one of them; `index` if groups are called after indices.
        mapping: Names or indices of tasks by group instead; other groups are left out.
        replay: Whether recorded actions are played again in the family's environment, where it
            draws nothing, to check and complete what the file says.
        ends: Where episodes end if neither file nor replay says it; `episode_len` states that
            every one lasts the family's episode_len.
        dones: What ends of a field `dones` are if no replay says it; `by_length` truncates at the
            family's episode_len and terminates before it.
        terminal: `recorded` takes next observations at episodes' ends as they are even where all
            of them equal the reset ones.
        markers: `recorded` asks for those of the file, if it has any, to be those of
            `region_len` and `collect.marker_rule`; `anew` makes them whatever the file says.
        style: Who acted, where the file does not say.
    """

    source: Annotated[str, PathText()] = ""
    format: str = "time_first"
    tasks: TaskRule = "certain"
    mapping: dict[str, Any] = field(default_factory=dict)
    replay: bool = True
    ends: Literal["stated", "episode_len"] = "stated"
    dones: Literal["unknown", "terminated", "truncated", "by_length"] = "unknown"
    terminal: Literal["true", "recorded"] = "true"
    markers: Literal["recorded", "anew"] = "recorded"
    style: str = "imported"


@dataclass
class Completion:
    """Makes histories of groups of one family, and counts what it had to fill in.

    Attributes:
        family: Of the tasks.
        rule: By which regions end.
        config: How groups are to be understood.
        told: What was filled in or not checked, and in how many groups.
    """

    family: TaskFamily
    rule: MarkerRule
    config: ImportConfig
    told: dict[str, int] = field(default_factory=dict)

    def history(self, group: Foreign, task: Task) -> History:
        """The history of a group.

        Raises:
            ImportHistoriesError: Something is missing that is not certain, what is there
                contradicts the family, the settings or itself, or a value is none of its space's.
        """
        try:
            return self._history(group, task)
        except (ImportHistoriesError, HistoryError) as error:
            raise ImportHistoriesError(f"group {group.name} ({task.name}): {error}") from error

    def _history(self, group: Foreign, task: Task) -> History:
        fields = self._conform(group.fields)
        self._check_axes(fields)
        check_values(fields, self.family.observation_space, self.family.action_space)
        played = self._replayed(fields, task)
        fields |= self._ends(fields, played)
        ended = fields["terminated"] | fields["truncated"]
        fields["next_observations"] = self._next_observations(fields, ended, played)
        fields["compress_markers"] = self._markers(fields.get("compress_markers"), ended)
        fields.pop(DONES, None)
        history = History(
            **fields,
            style=group.style or self.config.style,
            source_seed=group.source_seed,
            settings=group.settings,
        )
        spaces = self.family.observation_space, self.family.action_space
        check_history(history, *spaces, episode_len=self.family.episode_len)
        return history

    def _tell(self, text: str) -> None:
        self.told[text] = self.told.get(text, 0) + 1

    def _conform(self, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Fields in the shapes and dtypes of the family's spaces, values unchanged.

        But an end that is stated as terminated and truncated is terminated.
        """
        spaces = self.family.observation_space, self.family.action_space
        dtypes = {**field_dtypes(*spaces), DONES: np.dtype(bool)}
        shapes = {**field_shapes(*spaces), DONES: ()}
        if missing := [name for name in NEEDED if name not in fields]:
            raise ImportHistoriesError(f"{', '.join(missing)} missing, which no replay can tell")
        size = fields["rewards"].shape[:2]
        cast = {
            name: _cast(name, array, (*size, *shapes[name]), dtypes[name])
            for name, array in fields.items()
        }
        if {"terminated", "truncated"} <= set(cast):
            cast["truncated"] = cast["truncated"] & ~cast["terminated"]  # an end is of one kind
        return cast

    def _check_axes(self, fields: Mapping[str, np.ndarray]) -> None:
        """Refuse streams and time exchanged: a next observation comes next along time."""
        if "next_observations" not in fields:
            return
        shares = []
        now, then = fields["observations"], fields["next_observations"]
        for following, before in ((now[1:], then[:-1]), (now[:, 1:], then[:, :-1])):
            same = ~steps_that_differ(following, before)
            shares.append(float(same.mean()) if same.size else 0.0)
        if shares[1] < 0.5 < shares[0] and fields["rewards"].shape[0] > 1:
            raise ImportHistoriesError(
                f"next observations follow along the axis of streams ({shares[0]:.0%}) and not "
                f"along time ({shares[1]:.0%}); the other of import_histories.format=time_first "
                "and stream_first is meant"
            )

    def _replayed(self, fields: Mapping[str, np.ndarray], task: Task) -> Replayed | None:
        """All streams played again, None where that proves nothing or nothing is missing."""
        if not self.config.replay:
            self._tell("not replayed, as asked: the file's word is taken for its tasks")
            return None
        if draws(self.family, task, fields["actions"]):
            self._tell("not replayed: the environment draws, the file's word is taken for tasks")
            return None
        needed = {"terminated", "truncated", "next_observations"} <= set(fields)
        complete = needed and not self._ends_look_reset(fields)
        n = CHECKED_STREAMS if complete else len(fields["rewards"])
        played = replay(self.family, task, fields["actions"][:n])
        self._compare(played, {name: array[:n] for name, array in fields.items()})
        if complete:
            self._check_following(played, fields)
            self._tell(f"replayed: up to {CHECKED_STREAMS} streams of a task met every record")
            return None
        return played

    def _compare(self, played: Replayed, fields: Mapping[str, np.ndarray]) -> None:
        if (differs := first_difference(played, fields)) is not None:
            name, stream, step = differs
            own = getattr(played, name)[stream, step]
            raise ImportHistoriesError(
                f"{name} of stream {stream}, step {step} are {fields[name][stream, step]} in the "
                f"file, but the family's environment has {own} there after the recorded actions; "
                "it is another task (import_histories.tasks, mapping), another environment "
                "(family), or its streams have gaps (import_histories.replay=false takes them)"
            )
        ended = played.terminated | played.truncated
        recorded = {
            "terminated": played.terminated,
            "truncated": played.truncated,
            DONES: ended,
        }
        for name, own in recorded.items():
            if name in fields and (fields[name] != own).any():
                stream, step = np.argwhere(fields[name] != own)[0]
                raise ImportHistoriesError(
                    f"{name} of stream {stream}, step {step} is {fields[name][stream, step]} in "
                    f"the file and {own[stream, step]} in the family's environment; give the "
                    "family that the histories are of, or import_histories.replay=false"
                )

    def _check_following(self, played: Replayed, fields: Mapping[str, np.ndarray]) -> None:
        """Next observations are what the replay saw, and in all streams what is observed next."""
        recorded = fields["next_observations"]
        ended = fields["terminated"] | fields["truncated"]
        n = len(played.rewards)
        wrong = np.zeros(ended.shape, dtype=bool)
        wrong[:n] = steps_that_differ(played.next_observations, recorded[:n])
        wrong[:, :-1] |= _breaks(fields) & ~ended[:, :-1]  # pyright: ignore
        if self.config.terminal == "recorded":
            wrong &= ~ended
        if wrong.any():
            stream, step = np.argwhere(wrong)[0]
            raise ImportHistoriesError(
                f"the next observation of stream {stream}, step {step} is "
                f"{recorded[stream, step]}, which is not what followed; the file contradicts "
                "itself (import_histories.replay=false takes it as it is)"
            )

    def _ends(
        self, fields: Mapping[str, np.ndarray], played: Replayed | None
    ) -> dict[str, np.ndarray]:
        """`terminated` and `truncated`."""
        if "terminated" in fields and "truncated" in fields:
            return {}
        if played is not None:
            self._tell("replayed: terminated and truncated, every record being met")
            return {"terminated": played.terminated, "truncated": played.truncated}
        if DONES in fields:
            return self._of_dones(fields[DONES])
        one = next((name for name in ("terminated", "truncated") if name in fields), None)
        if one is not None:
            raise ImportHistoriesError(
                f"it has {one} but not the other of terminated and truncated; add it to the file"
            )
        return self._by_episode_len(fields)

    def _of_dones(self, dones: np.ndarray) -> dict[str, np.ndarray]:
        meant, none = self.config.dones, np.zeros_like(dones)
        if meant == "unknown":
            raise ImportHistoriesError(
                "it has dones, which do not tell terminated from truncated, and cannot be "
                "replayed; state import_histories.dones=terminated, truncated or by_length"
            )
        self._tell(f"as stated: dones are {meant}")
        if meant != "by_length":
            other = "truncated" if meant == "terminated" else "terminated"
            return {meant: dones, other: none}
        whole = _steps_since_start(dones) == self.family.episode_len
        return {"terminated": dones & ~whole, "truncated": dones & whole}

    def _by_episode_len(self, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Ends every `episode_len` steps, where that is stated and gaps agree, or is certain."""
        length, n = self.family.episode_len, fields["rewards"].shape[1]
        truncated = np.zeros(fields["rewards"].shape, dtype=bool)
        truncated[:, length - 1 :: length] = True
        inside = truncated[:, :-1]
        breaks = _breaks(fields)
        if breaks is not None and (breaks & ~inside).any():
            stream, step = np.argwhere(breaks & ~inside)[0]
            raise ImportHistoriesError(
                f"no field says where episodes end, and they do not end every {length} steps, the "
                f"family's episode_len: what follows step {step} of stream {stream} is not its "
                "next observation; add dones, or terminated and truncated, to the file"
            )
        agrees = breaks is not None and inside.any() and (breaks & inside).sum() > inside.sum() / 2
        if agrees:
            self._tell(f"ends every {length} steps (episode_len), where alone observations break")
        elif self.config.ends == "episode_len":
            self._tell(f"as stated: ends every {length} steps; no break in observations shows it")
        else:
            raise ImportHistoriesError(
                f"no field says where episodes end (of {n} steps), it cannot be replayed, and "
                "observations do not show it; add dones, or terminated and truncated, or state "
                f"import_histories.ends=episode_len if every episode lasts {length} steps"
            )
        return {"terminated": np.zeros_like(truncated), "truncated": truncated}

    def _next_observations(
        self, fields: Mapping[str, np.ndarray], ended: np.ndarray, played: Replayed | None
    ) -> np.ndarray:
        recorded = fields.get("next_observations")
        if played is not None:
            dtype = fields["observations"].dtype
            own = played.next_observations.astype(dtype)
            if recorded is None:
                self._tell("replayed: next observations, every record being met")
                return own
            wrong = steps_that_differ(own, recorded)
            if (wrong & ~ended).any():
                stream, step = np.argwhere(wrong & ~ended)[0]
                raise ImportHistoriesError(
                    f"the next observation of stream {stream}, step {step} is "
                    f"{recorded[stream, step]}, but the family's environment leads to "
                    f"{own[stream, step]}; the file contradicts itself"
                )
            if wrong.any():
                self._tell("replayed: true last observations, where reset ones were recorded")
            return np.where(ended.reshape(*ended.shape, *[1] * (own.ndim - 2)), own, recorded)
        if recorded is None:
            raise ImportHistoriesError(
                "it has no next observations, and cannot be replayed; add next_observations, the "
                "true last one at an episode's end"
            )
        if _looks_reset(fields, ended):
            if self.config.terminal == "true":
                raise ImportHistoriesError(
                    f"at all {int(ended[:, :-1].sum())} ends of episodes the next observation is "
                    "that of the reset, and it cannot be replayed; record the true last ones, or "
                    "state import_histories.terminal=recorded if these are true"
                )
            self._tell("as stated: last observations that all equal those of the reset")
        return recorded

    def _ends_look_reset(self, fields: Mapping[str, np.ndarray]) -> bool:
        return _looks_reset(fields, fields["terminated"] | fields["truncated"])

    def _markers(self, recorded: np.ndarray | None, ended: np.ndarray) -> np.ndarray:
        rule = self.rule
        made = markers_for(rule.name, ended, rule.region_len, rule.episodes_per_region)
        if recorded is None or self.config.markers == "anew":
            self._tell(f"markers made: collect.marker_rule={rule.name}")
            return made
        if not np.array_equal(recorded, made):
            raise ImportHistoriesError(
                f"its compress_markers cut {_lengths(recorded)}, but {_settings(rule)} cuts "
                f"{_lengths(made)}; set them as recorded, or take import_histories.markers=anew"
            )
        return recorded


def _cast(name: str, array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    one_more = array.shape == (*shape, 1) or (*array.shape, 1) == shape
    array = array.reshape(shape) if one_more else array
    if array.shape != shape:
        raise ImportHistoriesError(
            f"{name} are {array.shape} as (streams, steps, ...), expected {shape} by the "
            "family's spaces; give the family that these histories are of"
        )
    if array.dtype.kind not in "biuf":
        raise ImportHistoriesError(f"{name} are no numbers but {array.dtype}")
    with np.errstate(invalid="ignore"):
        cast = array.astype(dtype)
    if dtype.kind != "f" and (cast != array).any():
        wrong = array[cast != array][0]
        raise ImportHistoriesError(f"{name} hold {wrong}, which {dtype}, as stored, does not")
    return cast


def _steps_since_start(ended: np.ndarray) -> np.ndarray:
    """Steps of the open episode at each step of `(S, T)`, itself included."""
    counted, steps = np.zeros(len(ended), dtype=np.int64), np.zeros(ended.shape, dtype=np.int64)
    for time in range(ended.shape[1]):
        counted += 1
        steps[:, time] = counted
        counted[ended[:, time]] = 0
    return steps


def _breaks(fields: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """`(S, T - 1)` where the following observation is not the next one; None if not recorded."""
    if "next_observations" not in fields:
        return None
    following, then = fields["observations"][:, 1:], fields["next_observations"][:, :-1]
    return steps_that_differ(following, then)


def _looks_reset(fields: Mapping[str, np.ndarray], ended: np.ndarray) -> bool:
    """Whether last observations are all the reset ones, and observations differ otherwise."""
    breaks, ends = _breaks(fields), ended[:, :-1]
    if breaks is None or ends.sum() < FEW_ENDS or (breaks & ends).any():
        return False
    seen = fields["observations"]
    return bool((seen != seen[:1, :1]).any())


def _lengths(markers: np.ndarray) -> str:
    try:
        found = sorted({int(n) for row in markers for n in region_bounds(row)[1]})
    except RegionError:
        return "no regions (1 must start a region and 2 end it, in turn)"
    shown = ", ".join(map(str, found[:3])) + (", ..." if len(found) > 3 else "")
    return f"regions of {shown} steps"


def _settings(rule: MarkerRule) -> str:
    if rule.name == "episode":
        return f"collect.marker_rule=episode with {rule.episodes_per_region} episodes_per_region"
    return f"collect.marker_rule={rule.name} with region_len={rule.region_len}"
