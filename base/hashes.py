"""Hashes that name configurations and the content of files.

A configuration is hashed by how it differs from its dataclasses' defaults: a key that is added
changes no hash, so no finished work is orphaned by it. What a default is may then not change
silently: tests/golden/defaults.yaml holds them, and `HASH_VERSION` tells old hashes from new.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from base.errors import UserError

CHECKSUMS_NAME = "checksums.json"
"""In a folder that leaves a run: hashes of the files that are read from it."""
HASH_VERSION = 2
"""Raised when the default of an existing key changes, or what is hashed: old hashes are void."""


def to_plain(config: Any) -> dict[str, Any]:
    """A dataclass instance (or mapping) as nested plain dicts and lists, ready for YAML or JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    return json.loads(json.dumps(config))  # tuples become lists, foreign types are refused


def config_hash(section: Any) -> str:
    """16 hex digits of the SHA-256 of a dataclass (or mapping) as canonical JSON.

    Equal values give equal hashes on every machine, whatever the order of their keys. Fields of
    dataclasses that equal their default are left out, at every depth; keys of mappings never are.
    """
    content = {"version": HASH_VERSION, "content": _set_apart(section)}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _set_apart(value: Any) -> Any:
    """What a value holds besides its dataclasses' defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {field.name: (getattr(value, field.name), field) for field in fields(value)}
        return {k: _set_apart(v) for k, (v, field) in given.items() if v != _default(field)}
    if isinstance(value, Mapping):
        return {key: _set_apart(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_set_apart(item) for item in value]
    return value


def _default(field: dataclasses.Field[Any]) -> Any:
    """A field's default; `MISSING`, which equals nothing else, where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def content_hash(*paths: str | Path) -> str:
    """16 hex digits of the SHA-256 of files, or of all files under folders with relative names.

    Times, owners and the paths' own names do not matter.

    Raises:
        FileNotFoundError: a path is neither a file nor a folder.
    """
    digest = hashlib.sha256()
    for path in map(Path, paths):
        files = [path] if not path.is_dir() else sorted(p for p in path.rglob("*") if p.is_file())
        for file in files:
            name = "" if file == path else file.relative_to(path).as_posix()
            digest.update(f"{name}\0{file_hash(file)}\n".encode())
        digest.update(b"\0")  # where one path ends and the next begins
    return digest.hexdigest()[:16]


def hashes_of(folder: str | Path, patterns: Iterable[str]) -> dict[str, str]:
    """`file_hash` of every file in a folder that matches one of the patterns, by relative path."""
    folder = Path(folder)
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in sorted(found)}


def changed_file(folder: str | Path, hashes: Mapping[str, str]) -> str | None:
    """The first of the files that is missing or no longer has its hash; None if all do."""
    for name, expected in hashes.items():
        path = Path(folder) / name
        if not path.is_file():
            return name
        status = path.stat()
        if _hash_of_version(path, status.st_mtime_ns, status.st_size, status.st_ino) != expected:
            return name
    return None


@functools.lru_cache(maxsize=1024)
def _hash_of_version(path: Path, *_: int) -> str:
    """`file_hash`, computed once as long as size, time and file stay the same."""
    return file_hash(path)


def write_checksums(folder: str | Path, patterns: Iterable[str] = ("**/*",)) -> None:
    """Write the hashes of files of a finished folder into it, for `check_checksums`."""
    hashes = hashes_of(folder, patterns)
    text = json.dumps(signed({"files": hashes}), indent=2) + "\n"
    (Path(folder) / CHECKSUMS_NAME).write_text(text, encoding="utf-8")


def check_checksums(folder: str | Path) -> None:
    """Refuse a folder whose files are not those that it was written with, if it says which.

    Raises:
        UserError: Naming the file.
    """
    path = Path(folder) / CHECKSUMS_NAME
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        changed = None if is_signed(content) else CHECKSUMS_NAME
        changed = changed or changed_file(folder, content["files"])
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        changed = CHECKSUMS_NAME
    if changed:
        raise UserError(
            f"{Path(folder) / changed} is missing or not as it was written; bring the folder back, "
            f"or delete its {CHECKSUMS_NAME} if it was changed on purpose."
        )


def signed(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with a hash of themselves as `checksum`, for `is_signed`."""
    content = {key: value for key, value in content.items() if key != "checksum"}
    return {**content, "checksum": _checksum(content)}


def is_signed(content: Mapping[str, Any]) -> bool:
    """Whether values are as `signed` left them; true of such as were never signed."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return content.get("checksum") in (None, _checksum(rest))


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """64 hex digits of the SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
