"""Hashes that name configurations and the content of files."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any


def to_plain(config: Any) -> dict[str, Any]:
    """A dataclass instance (or mapping) as nested plain dicts and lists, ready for YAML or JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    return json.loads(json.dumps(config))  # tuples become lists, foreign types are refused


def config_hash(section: Any) -> str:
    """16 hex digits of the SHA-256 of a dataclass (or mapping) as canonical JSON.

    Equal values give equal hashes on every machine, whatever the order of their keys.
    """
    canonical = json.dumps(to_plain(section), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


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
