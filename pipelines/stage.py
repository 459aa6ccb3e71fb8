"""What is known of a stage, whichever it is; all of them are listed in `pipelines.stages`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ad.losses import LossConfig
from base.errors import UserError
from pipelines.config import RunConfig
from pipelines.methods import UNTRAINED
from tasks.splits import Split


class StageError(UserError):
    """A stage that cannot start: something before it is missing or does not fit."""


Folders = Callable[[RunConfig], tuple[str, ...]]
Sections = Callable[[RunConfig, Split], Mapping[str, Any]]
Parents = Callable[[RunConfig], tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Stage:
    """One stage. What it is for, a method and a training seed, stands in the configuration.

    Attributes:
        name: The module of `pipelines` whose `main` runs it.
        folders: Its directories in the run directory; the first is marked as done last.
        sections: What its result depends on besides its parents: parts of the configuration, and
            whatever else can be hashed.
        parents: The stages it is made from, each with the method it is for.
        wanted: Whether a configuration has this stage in its method's chain.
        shared: Whether it is the same for all methods and training seeds.
        section: Of a training stage, the section of the configuration that holds its settings.
        batches: Of a training stage, what its batches are drawn for: two stages of one training
            seed and one purpose draw the same.
        results: Files in its directories that others read, as patterns.
        stacks: Of a training stage, whether several training seeds can be trained as one model:
            its module then has `prepare`.
    """

    name: str
    folders: Folders
    sections: Sections
    parents: Parents = lambda config: ()
    wanted: Callable[[RunConfig], bool] = lambda config: True
    shared: bool = False
    section: str = ""
    batches: str = ""
    results: tuple[str, ...] = ("model/config.json", "model/model.safetensors")
    stacks: bool = False

    def job(self, config: RunConfig) -> str:
        """Return its name among the stages of a run."""
        if self.shared:
            return self.folders(config)[0]
        seed = "" if config.method in UNTRAINED else f"seed_{config.seed}/"
        return f"{seed}{config.method}/{self.name}"

    def settings(self, config: RunConfig) -> Any:
        """Return the settings of a training stage."""
        return getattr(config, self.section)

    def target(self, config: RunConfig) -> str:
        """Return what a training stage learns the actions from, besides what is recorded."""
        settings = self.settings(config)
        loss = getattr(settings, "loss", None)
        if isinstance(loss, LossConfig):
            return loss.target if loss.beta > 0 else ""
        return getattr(settings, "target", "")
