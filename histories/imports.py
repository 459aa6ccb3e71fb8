"""Importing: a foreign file becomes a `histories.h5`, its tasks the family's, or is refused.

Formats are in foreign.py, what is filled in in completion.py.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from base.files import put, work_dir
from base.hashes import check_checksums, config_hash, content_hash
from histories.completion import Completion, ImportConfig
from histories.foreign import Foreign, ImportHistoriesError, reader_of
from histories.regions import MarkerRule
from histories.store import HistoryFileError, assemble, open_histories, write_part
from histories.task_names import TaskNames
from tasks.family import TaskFamily
from tasks.splits import SPLIT_PARTS, Split


@dataclass(frozen=True)
class ImportSummary:
    """What an import left behind.

    Attributes:
        path: The file.
        n_tasks: Tasks in it.
        n_streams: Streams in it.
        n_transitions: Of all streams together.
        told: What was filled in, or not checked: a line each.
        made: False where the file was there from equal inputs.
    """

    path: Path
    n_tasks: int = 0
    n_streams: int = 0
    n_transitions: int = 0
    told: tuple[str, ...] = ()
    made: bool = True


def import_histories(
    path: Path,
    family: TaskFamily,
    split: Split,
    rule: MarkerRule,
    config: ImportConfig,
    family_settings: Mapping[str, Any],
) -> ImportSummary:
    """Write the histories of a foreign file, understood as those of a family's tasks.

    Args:
        path: To write; whole or absent.
        family: Its tasks.
        split: All of its tasks must be among them.
        rule: By which regions end.
        config: Source, format, and what the user states of it.
        family_settings: JSON values written to the file.

    Returns:
        A summary; a file made before from equal inputs is left as it is.

    Raises:
        ImportHistoriesError: The source is not what the settings say, lacks tasks, or leaves
            uncertain what a history needs; or another file lies at `path`.
    """
    source = Path(config.source).expanduser()
    if not config.source or not source.exists():
        raise ImportHistoriesError(
            f"import_histories.source is {config.source!r}, which does not exist; name the file or "
            "folder to import"
        )
    check_checksums(source)
    made_from = {
        "family": dict(family_settings),
        "split": split.identity,
        "rule": asdict(rule),
        "config": replace(config, source=""),  # wherever it lies
        "source": content_hash(source),
    }
    fingerprint = config_hash(made_from)
    if path.exists():
        return _found(path, fingerprint)
    completion, tasks = Completion(family, rule, config), family.tasks()
    with work_dir(path) as folder:
        groups = reader_of(config.format)(source)
        names = TaskNames(tasks, config.tasks, config.mapping)
        parts = _write_parts(groups, names, completion, folder, fingerprint)
        _check_tasks(family, split, parts.of_task, source)
        told = [f"{text} ({n} groups)" for text, n in completion.told.items()]
        if parts.n_left_out:
            told.append(f"left out, not in import_histories.mapping ({parts.n_left_out} groups)")
        imported = {
            "source": source.name,
            "format": config.format,
            "told": told,
            "fingerprint": fingerprint,
        }
        whole = folder / path.name
        assemble(
            whole,
            parts.of_task,
            tasks,
            family_name=family.name,
            observation_space=family.observation_space,
            action_space=family.action_space,
            split=split,
            settings={
                "marker_rule": rule.name,
                "region_len": rule.region_len,
                "episodes_per_region": rule.episodes_per_region,
                "family": dict(family_settings),
                "imported": imported,
            },
            references={
                index: (family.random_return(tasks[index]), family.optimal_return(tasks[index]))
                for index in parts.of_task
            },
        )
        put(whole, path)
    n_tasks = len(parts.of_task)
    return ImportSummary(path, n_tasks, parts.n_streams, parts.n_transitions, tuple(told))


@dataclass
class _Parts:
    """What has been written of a foreign file, group by group.

    Attributes:
        of_task: Files by task index.
        n_streams: In all of them.
        n_transitions: Likewise.
        n_left_out: Groups that are no task's.
    """

    of_task: dict[int, list[Path]] = field(default_factory=dict)
    n_streams: int = 0
    n_transitions: int = 0
    n_left_out: int = 0


def _write_parts(
    groups: Iterable[Foreign],
    names: TaskNames,
    completion: Completion,
    folder: Path,
    fingerprint: str,
) -> _Parts:
    """Write each group's completed history to a file of its own."""
    parts, group_of = _Parts(), dict[int, str]()
    for number, group in enumerate(groups):
        task = names.task_of(group)
        if task is None:
            parts.n_left_out += 1
            continue
        if group_of.setdefault(task.index, group.name) != group.name:
            raise ImportHistoriesError(
                f"groups {group_of[task.index]} and {group.name} are both task {task.name}; a "
                "task has one group, so state import_histories.mapping"
            )
        history = completion.history(group, task)
        part = folder / f"{number:06d}.h5"
        write_part(part, {task.index: history}, fingerprint)
        parts.of_task.setdefault(task.index, []).append(part)
        parts.n_streams += history.n_streams
        parts.n_transitions += history.rewards.size
    return parts


def _found(path: Path, fingerprint: str) -> ImportSummary:
    """What is said of a file that is there already: all of it is read, for it may be damaged."""
    made = None
    with suppress(HistoryFileError, AttributeError), open_histories(path) as reader:
        made = reader.settings.get("imported", {}).get("fingerprint")
    if made != fingerprint:
        raise ImportHistoriesError(
            f"{path} exists and was made otherwise; delete it, or let histories name another file"
        )
    with open_histories(path) as reader:
        for index in reader.task_indices():
            reader.task(index)
            reader.references(index)
            reader.arrays(index)
    return ImportSummary(path, made=False)


def _check_tasks(
    family: TaskFamily, split: Split, parts: Mapping[int, list[Path]], source: Path
) -> None:
    wanted = [index for part in SPLIT_PARTS for index in getattr(split, part)]
    missing = [family.tasks()[index].name for index in wanted if index not in parts]
    if missing:
        raise ImportHistoriesError(
            f"{source} lacks {len(missing)} of the {len(wanted)} tasks of the split, first "
            f"{missing[0]}; every task needs a history: give a family of the tasks there are"
        )
