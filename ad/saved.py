"""Models as folders users keep: `config.json`, all a model is built from, and `model.safetensors`.

No library is asked for this: `transformers` alone takes several seconds of every process to import.
Other folders than local ones are fetched from a model hub.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from safetensors.torch import load_file, save_file
from torch import nn

from nets.spaces import FieldSpec
from training.checkpoint import load_weights

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"


def unknown_field() -> dict[str, Any]:
    """Return the description of a field that stands where a config is given none."""
    return FieldSpec("classes", (), (2,)).to_json()


@dataclass
class SavedConfig:
    """Base of what a `config.json` holds; subclasses are dataclasses with a default everywhere."""

    model_type: ClassVar[str] = ""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write it into a folder."""
        stored = {"model_type": self.model_type, **asdict(self)}
        (Path(folder) / CONFIG_NAME).write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, local_files_only: bool = False) -> Self:
        """Read the one of a model, `folder` as in `SavedModel.from_pretrained`."""
        stored = json.loads((_local(folder, local_files_only) / CONFIG_NAME).read_text())
        return cls(**{f.name: stored[f.name] for f in fields(cls) if f.name in stored})


class SavedModel(nn.Module):
    """A module that is built from a config and saved with it.

    Args:
        config: An instance of the class's `config_class`.

    Attributes:
        config_class: Of its config.
    """

    config_class: type[Any]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config and weights into a folder, made if need be."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(weights, Path(folder) / WEIGHTS_NAME)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, local_files_only: bool = False) -> Self:
        """Build a saved model with its weights, in evaluation mode.

        Args:
            folder: A local one, or the name of a repository on the model hub.
            local_files_only: Whether to take a repository only if it has been fetched before.

        Raises:
            CheckpointError: The weights are not those of a model with this config.
            OSError: There is no such folder, or nothing in it.
        """
        local = _local(folder, local_files_only)
        model = cls(cls.config_class.from_pretrained(local))
        load_weights(model, load_file(local / WEIGHTS_NAME), local)
        return model.eval()


def _local(folder: str | Path, local_files_only: bool) -> Path:
    """Return where a model's folder lies, fetched if it is no local one."""
    if Path(folder).is_dir():
        return Path(folder)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(folder), local_files_only=local_files_only))
