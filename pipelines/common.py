"""What all stage scripts share: a run, its directories, batches of its regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from ad.batches import TripleSource
from ad.evaluate import normalized
from ad.model import InContextModel
from base.seeding import derive
from histories.collection import HISTORIES_NAME
from histories.store import open_histories
from histories.triples import RegionTable
from nets.regions import Regions
from nets.spaces import FieldSpec, field_spec
from pipelines.config import RunConfig
from pipelines.methods import UNTRAINED
from pipelines.stage import StageError
from pipelines.stages import STAGES, Inputs, before, has_teacher
from tasks.family import Task, TaskFamily
from tasks.splits import Split
from training.run_dir import check_files, read_meta, stage_done

N_FIT_REGIONS = 4096
"""Training regions that scaling, and compressors without gradients, are fitted on."""
N_CODED_REGIONS = 16_384
"""Training regions that a codebook is fitted on: each code needs many to stand for."""


@dataclass
class Run:
    """An opened run: its configuration, directory, tasks and accelerator.

    Attributes:
        config: Resolved configuration.
        root: Run directory.
        family: Tasks.
        split: Train, validation and test tasks.
        accelerator: Device, processes, trackers.
        inputs: Inputs hashes of its stages.
    """

    config: RunConfig
    root: Path
    family: TaskFamily
    split: Split
    accelerator: Accelerator
    inputs: Inputs = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is hashed yet."""
        self.inputs = Inputs(self.split)

    def of(self, method: str) -> Run:
        """Return the same run for another method."""
        return self._with(replace(self.config, method=method))

    def _with(self, config: RunConfig) -> Run:
        other = replace(self, config=config)
        other.inputs = self.inputs
        return other

    @property
    def seed_dir(self) -> Path:
        """Of this training seed."""
        return self.root / f"seed_{self.config.seed}"

    def folder(self, stage: str) -> Path:
        """Return the (first) directory of a stage of this method and training seed."""
        return self.root / STAGES[stage].folders(self.config)[0]

    def inputs_of(self, stage: str) -> str:
        """Return the inputs hash of a stage of this method and training seed."""
        return self.inputs.of(STAGES[stage], self.config)

    def tasks(self, part: str) -> list[Task]:
        """Tasks of a part of the split."""
        every = self.family.tasks()
        return [every[i] for i in getattr(self.split, part)]

    @property
    def observation(self) -> FieldSpec:
        """The observation field."""
        return field_spec(self.family.observation_space, "observation")

    @property
    def action(self) -> FieldSpec:
        """The action field."""
        return field_spec(self.family.action_space, "action")

    def sources(self) -> dict[int, float | None]:
        """What is 1 in returns whose optimum is not known, by task index; empty for nothing.

        Raises:
            StageError: There are no histories, or they do not say what their sources have reached.
        """
        if self.config.evaluate.normalise != "source":
            return {}
        path = histories_file(self.config)
        with open_histories(path) as reader:
            found = {index: reader.source_return(index) for index in reader.task_indices()}
        if all(value is None for value in found.values()):
            raise StageError(
                f"evaluate.normalise is source, but {path} does not say what sources have reached: "
                "it holds random histories alone, or is of an earlier version; collect again, or "
                "set evaluate.normalise to optimal."
            )
        return found

    def normalized(self, returns: np.ndarray, tasks: Sequence[Task]) -> np.ndarray:
        """As `ad.evaluate.normalized`, as `evaluate.normalise` asks for."""
        return normalized(returns, self.family, tasks, self.sources())

    def table(self, part: str) -> RegionTable:
        """Load the regions of a part, checked to belong to this run's split."""
        self.require("build_triples")
        folder = self.folder("build_triples") / part
        table = RegionTable.load(folder)
        if table.split_identity != self.split.identity:
            raise StageError(
                f"{folder} was built for another task split (identity "
                f"{table.split_identity[:12]}, this run's is {self.split.identity[:12]}); "
                "use the run_dir it belongs to, or build the triples in a new one."
            )
        return table

    def require(self, stage: str) -> dict[str, Any]:
        """Return the meta.json of a stage that must be done, from the inputs of this run.

        Raises:
            UserError: Naming the command that does it, or what else it was made from.
        """
        folder = self.folder(stage)
        otherwise = stage == "evaluate" and self.evaluated_otherwise()
        if not (otherwise or stage_done(folder, self.inputs_of(stage))):
            own = "" if STAGES[stage].shared else self._own()
            raise StageError(
                f"{folder} is not finished, and this stage needs it; run `accelerate launch -m "
                f"pipelines.{stage} --config ...{own}` with the same run_dir first."
            )
        meta = read_meta(folder) or {}
        check_files(folder, meta)
        return meta

    def evaluated_otherwise(self) -> bool:
        """Whether this method was evaluated with the teacher, which is not listed now, or without.

        The teacher adds a divergence to a student's numbers and changes none of them.
        """
        methods = [name for name in self.config.methods if name != "teacher"]
        if not has_teacher(self.config):
            methods.append("teacher")
        turned = Inputs(self.split).of(STAGES["evaluate"], replace(self.config, methods=methods))
        found = (read_meta(self.folder("evaluate")) or {}).get("inputs")
        return found == turned and found != self.inputs_of("evaluate")

    def parents(self, stage: str) -> dict[str, dict[str, Any]]:
        """Return the meta.json of every stage that a stage is made from, by its job's name.

        Raises:
            UserError: One of them is not done, or was made from other inputs.
        """
        return {
            parent.job(config): self._with(config).require(parent.name)
            for parent, config in before(STAGES[stage], self.config)
        }

    def _own(self) -> str:
        seed = "" if self.config.method in UNTRAINED else f" seed={self.config.seed}"
        return f"{seed} method={self.config.method}"

    def say(self, text: str) -> None:
        """Print on the main process."""
        self.accelerator.print(text, flush=True)


def histories_file(config: RunConfig) -> Path:
    """Return the file of histories that a configuration names, else its run's own.

    Raises:
        StageError: There is neither.
    """
    path = Path(config.histories or Path(config.run_dir) / "collect" / HISTORIES_NAME)
    if not (config.histories or config.run_dir) or not path.is_file():
        raise StageError(
            f"{path} is no file; give histories=data/mine.h5, or the run_dir of a run whose "
            "pipelines.collect is done."
        )
    if not config.histories and (meta := read_meta(path.parent)):
        check_files(path.parent, meta)
    return path


def split_settings(config: RunConfig) -> dict[str, Any]:
    """Return the arguments with which `tasks.splits.make_split` makes a configuration's split."""
    split = asdict(config.split)
    return {**split, "n_test": None if split["named"] else split["n_test"]}


def source(
    run: Run,
    part: str,
    batch_size: int,
    n_context_regions: int,
    *,
    windows: bool = False,
    **kwargs: Any,
) -> TripleSource:
    """Return batches of triples of a part of the split, in windows if so and if configured."""
    table, sampling = run.table(part), run.config.sampling
    try:
        return TripleSource(
            table,
            sampling if windows else replace(sampling, window=1),
            batch_size=batch_size,
            n_context_regions=n_context_regions,
            device=run.accelerator.device,
            **kwargs,
        )
    except ValueError as error:
        raise StageError(f"{error}.") from error


def fit_statistics(run: Run, model: InContextModel) -> None:
    """Fit what a model does not learn by gradient on regions of training tasks."""
    model.to(run.accelerator.device)
    model.fit_statistics(fitting_regions(run))


def fitting_regions(run: Run, n: int = N_FIT_REGIONS) -> Regions:
    """Regions (N, L, ...) of training tasks to fit on what is not learned by gradient."""
    batches = source(run, "train", 1, 1)
    rng = np.random.default_rng(derive(run.config.seed, "fit statistics"))
    # Every region at most once: drawn twice, it would count for two.
    rows = rng.permutation(batches.rows)[:n]
    return batches.gather(rows, np.ones(len(rows), dtype=np.int64)).query
