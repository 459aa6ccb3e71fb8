"""Hashes that name configurations and the content of files.

A configuration is hashed by how it differs from its dataclasses' defaults: a key that is added
changes no hash, so no finished work is orphaned by it. What a default is may then not change
silently: tests/golden/defaults.yaml holds them, and `HASH_VERSION` tells old hashes from new.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

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
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{name}\0{content}\n".encode())
        digest.update(b"\0")  # where one path ends and the next begins
    return digest.hexdigest()[:16]
