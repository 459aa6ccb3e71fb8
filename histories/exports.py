"""Exporting a `histories.h5` to formats that others read: a Minari folder, a `datasets` folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from base.errors import UserError
from base.files import atomic_dir
from base.hashes import write_checksums
from base.ranges import PathText
from histories.datasets_files import write_datasets
from histories.minari_files import write_minari
from histories.store import open_histories
from tasks.family import Task


class ExportError(UserError):
    """Histories cannot be exported to where they should go."""


@dataclass(frozen=True)
class ExportConfig:
    """Where histories are exported to.

    Attributes:
        format: `datasets`, a folder for `datasets.load_from_disk`, a row per episode; or `minari`,
            a Minari dataset per task, which takes hours and gigabytes for millions of episodes.
        target: Folder to write; it must not exist.
    """

    format: Literal["datasets", "minari"] = "datasets"
    target: Annotated[str, PathText()] = ""


def export_histories(
    path: Path, config: ExportConfig, spec_of: Callable[[Task], Any] = lambda task: None
) -> None:
    """Write the folder, whole or not at all.

    Args:
        path: A `histories.h5`.
        config: Format and folder.
        spec_of: The gymnasium spec of a task's environment or None, for Minari.

    Raises:
        ExportError: The target is not given, or exists.
        HistoryFileError: The histories cannot be read.
        ImportHistoriesError: Minari is missing, or a stream has gaps.
    """
    target = Path(config.target).expanduser()
    if not config.target or target.exists():
        raise ExportError(
            f"export_histories.target is {config.target!r}, expected a folder that does not exist "
            "yet"
        )
    with open_histories(path) as reader, atomic_dir(target) as folder:
        if config.format == "minari":
            write_minari(reader, folder, spec_of)
        else:
            write_datasets(reader, folder)
        write_checksums(folder)
