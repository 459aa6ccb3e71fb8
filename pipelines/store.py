"""Finished stages by the hash of their inputs, so that no sweep runs the same stage twice.

A cell's stage folders are links into the store (or into a run that has the stage already), and the
stages themselves do not know. What is in the store is never deleted here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from pipelines.plan import PlannedStage
from training.run_dir import read_meta

PATTERNS = (
    "*/meta.json",
    "references*/*/meta.json",
    "seed_*/*/meta.json",
    "seed_*/*/*/meta.json",
)
"""Where a run directory's stages are marked as done."""


class StageStore:
    """A directory of stages, and the run directories that may serve beside it.

    Args:
        root: The store; made when first needed.
        reuse: Run directories that are only read.
    """

    def __init__(self, root: str | Path, reuse: Iterable[str | Path] = ()) -> None:
        self.root = Path(root)
        self.elsewhere: dict[tuple[str, str], Path] = {}
        for run_dir in map(Path, reuse):
            for pattern in PATTERNS:
                for path in sorted(run_dir.glob(pattern)):
                    meta = read_meta(path.parent) or {}
                    key = (str(meta.get("inputs")), path.parent.name)
                    self.elsewhere.setdefault(key, path.parent)

    def folder(self, stage: PlannedStage, position: int = 0) -> Path:
        """Return where the stage's folder of this position is, or will be."""
        last = Path(stage.folders[position]).name
        return self.elsewhere.get((stage.inputs, last)) or self.root / name_of(stage, position)

    def done(self, stage: PlannedStage) -> bool:
        """Whether the stage is finished, here or elsewhere."""
        folders = [self.folder(stage, i) for i in range(len(stage.folders))]
        metas = [read_meta(folder) for folder in folders]
        return all(meta is not None and meta["inputs"] == stage.inputs for meta in metas)

    def link(self, stage: PlannedStage, run_dir: Path) -> None:
        """Make the stage's folders in a run directory links to where they really are.

        A folder that is there already is left alone, unless it is a link to elsewhere.
        """
        for position, name in enumerate(stage.folders):
            target, link = self.folder(stage, position), run_dir / name
            target.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            to = os.path.relpath(target.resolve(), link.parent.resolve())
            if link.is_symlink() and os.readlink(link) != to:
                link.unlink()
            if not link.exists() and not link.is_symlink():
                link.symlink_to(to, target_is_directory=True)

    @contextmanager
    def lock(self, stage: PlannedStage) -> Iterator[None]:
        """Let one process at a time work on a stage; a killed one's lock is free again."""
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{stage.module}-{stage.inputs}"):
            yield


def name_of(stage: PlannedStage, position: int) -> str:
    """Return what the stage's folder of this position is called in a store."""
    last, parts = Path(stage.folders[position]).name, stage.name.split("/")
    return "-".join([*parts, *([] if last in parts else [last]), stage.inputs])
