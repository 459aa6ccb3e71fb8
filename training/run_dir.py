"""What a run directory belongs to, and which of its stages are done.

    <run_dir>/config.yaml      the resolved configuration that claimed the directory
    <run_dir>/<stage>/meta.json   written last: the stage is done, and from which inputs

A stage is a function of its inputs' hashes. With equal inputs it is done and need not run again;
with other inputs it would overwrite results, so it is refused. Nothing here ever deletes a result.
"""

import dataclasses
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from base.errors import UserError
from base.files import write_json, write_text
from base.hashes import HASH_VERSION, changed_file, hashes_of, is_signed, signed, to_plain
from training.config import read_yaml, to_yaml

FORMAT_VERSION = 1
_MISSING = object()


class RunDirError(UserError):
    """A run directory that belongs to something else; the message says what to do."""


def claim_run_dir(run_dir: str | Path, config: Any, ignore: Sequence[str] = ()) -> Path:
    """Make `run_dir` the directory of this configuration, or check that it already is.

    Args:
        run_dir: created when missing; its `config.yaml` is written at the first claim only.
        config: the resolved configuration, a dataclass that can be built from its defaults alone:
            a key that the directory's older `config.yaml` does not know yet had its default.
        ignore: dotted keys that may differ from use to use of one directory, such as `run_dir`,
            `seed` or `trackers`; a section's name covers all keys in it.

    Returns:
        `run_dir` as a Path.

    Raises:
        RunDirError: another configuration claimed the directory before, its `config.yaml` is
            damaged, or it is a file. Nothing is changed.
    """
    run_dir = Path(run_dir)
    file = run_dir / "config.yaml"
    if run_dir.exists() and not run_dir.is_dir():
        raise RunDirError(f"{run_dir} is a file; set run_dir to a folder.")
    if not file.exists():
        write_text(file, to_yaml(config))
        return run_dir
    known = _with_defaults(read_yaml(file), type(config)(), file)
    for key, old, new in _differences(known, to_plain(config)):
        if not any(f"{key}.".startswith(f"{ignored}.") for ignored in ignore):
            raise RunDirError(
                f"{run_dir} belongs to a run with {key} = {_show(old)}, but now {key} is "
                f"{_show(new)}; give another run_dir=..., or delete {run_dir} to start anew."
            )
    return run_dir


def stage_done(stage_dir: str | Path, inputs_hash: str) -> bool:
    """Whether the stage of this directory is already done with these inputs.

    Args:
        stage_dir: the stage's own directory; may be missing.
        inputs_hash: hash of everything the result depends on: its configuration and its parents.

    Raises:
        RunDirError: it was done with other inputs; running it would overwrite that result.
    """
    meta = read_meta(stage_dir)
    if meta is None:
        return False
    if meta.get("inputs") != inputs_hash:
        if meta.get("hash_version") != HASH_VERSION:
            raise RunDirError(
                f"{stage_dir} was made by another version of this code, whose hashes of inputs "
                f"(version {meta.get('hash_version', 1)}, now {HASH_VERSION}) cannot be compared; "
                f"use that version, give another run_dir=..., or delete {stage_dir} to make it "
                "anew."
            )
        raise RunDirError(
            f"{stage_dir} was made from other inputs (hash {meta.get('inputs')}, now "
            f"{inputs_hash}): its configuration or a stage before it has changed; give another "
            f"run_dir=..., or delete {stage_dir} to make it anew."
        )
    return True


def mark_done(
    stage_dir: str | Path,
    stage: str,
    inputs_hash: str,
    *,
    seconds: float,
    parents: Mapping[str, str] | None = None,
    results: Sequence[str] = (),
    **extra: Any,
) -> dict[str, Any]:
    """Write meta.json, the last file of a stage: from now on `stage_done` is true.

    Args:
        stage_dir: the stage's own directory.
        stage: its name, e.g. "distill".
        inputs_hash: what `stage_done` will be asked with.
        seconds: how long the stage took.
        parents: hashes of the stages it was made from, by name.
        results: patterns of the files that others read; their hashes are written too.
        extra: further JSON values worth keeping, e.g. `config_hash=...`, `split_identity=...`.

    Returns:
        What was written.
    """
    meta = {
        "format_version": FORMAT_VERSION,
        "stage": stage,
        "inputs": inputs_hash,
        "hash_version": HASH_VERSION,
        "parents": dict(parents or {}),
        "git_sha": git_sha(),
        "created": now(),
        "seconds": round(seconds, 3),
        "files": hashes_of(stage_dir, results),
        "tables": hashes_of(stage_dir, ("*.csv",)),  # that reports read, and no stage
        **extra,
    }
    meta = signed(to_plain(meta))
    write_json(Path(stage_dir) / "meta.json", meta)
    return meta


def read_meta(stage_dir: str | Path) -> dict[str, Any] | None:
    """The meta.json of a stage; None if the stage is not done.

    Raises:
        RunDirError: the file is unreadable, or of a format this code does not know.
    """
    file = Path(stage_dir) / "meta.json"
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunDirError(
            f"{file} is no JSON ({error}); delete {file.parent} to redo it."
        ) from error
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION:
        raise RunDirError(
            f"{file} has format_version {version}, but this code reads {FORMAT_VERSION}; use the "
            f"code that wrote it, or delete {file.parent} to make it anew."
        )
    lacking = [name for name in ("stage", "inputs") if not isinstance(meta.get(name), str)]
    if lacking or not is_signed(meta) or not isinstance(meta.get("files", {}), dict):
        why = f"lacks {lacking[0]}" if lacking else "is not as it was written"
        raise RunDirError(f"{file} is damaged: it {why}; delete {file.parent} to make it anew.")
    return meta


def check_files(stage_dir: str | Path, meta: Mapping[str, Any]) -> None:
    """Refuse a stage whose files are not those it was marked as done with.

    Raises:
        RunDirError: naming the file.
    """
    if name := changed_file(stage_dir, meta.get("files", {})):
        raise RunDirError(
            f"{Path(stage_dir) / name} is missing or not as it was written, by the meta.json "
            f"beside it; delete {stage_dir} and run pipelines.{meta['stage']} again, or bring it "
            "back."
        )


def git_sha() -> str | None:
    """The commit of this checkout, `-dirty` if tracked files were changed; None outside git."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _with_defaults(known: dict[str, Any], defaults: Any, file: Path) -> dict[str, Any]:
    """`known` with what only `defaults`, a dataclass, has; section by section, mappings whole."""
    filled = dict(known)
    for field in dataclasses.fields(defaults):
        default, name = getattr(defaults, field.name), field.name
        if dataclasses.is_dataclass(default):
            section = known.get(name) or {}
            if not isinstance(section, dict):
                raise RunDirError(
                    f"{file} is damaged: {name} is {_show(section)}, where a section of keys is "
                    f"expected; bring it back, or delete {file.parent} to start anew."
                )
            filled[name] = _with_defaults(section, default, file)
        elif name not in known:
            filled[name] = to_plain({name: default})[name]
    return filled


def _differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, in the new configuration's order, then the old one's."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new:
            yield prefix, old, new
        return
    for name in dict.fromkeys([*new, *old]):
        key = f"{prefix}.{name}" if prefix else str(name)
        yield from _differences(old.get(name, _MISSING), new.get(name, _MISSING), key)


def _show(value: Any) -> str:
    return "nothing" if value is _MISSING else json.dumps(value, ensure_ascii=False)
