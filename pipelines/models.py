"""Models of a run: built from its configuration, loaded from its stages, made to act.

A model is always built from the run's own configuration. What an earlier stage saved is taken only
where everything that describes it is the same in the run.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from ad.controls import Control, LatentControl
from ad.model import InContextModel
from ad.policy import ContextPolicy
from ad.recall import FrozenPolicy
from ad.student import CADStudent
from ad.student_config import StudentConfig, StudentParts
from base.hashes import to_plain
from nets.regions import Regions
from pipelines.methods import METHODS
from pipelines.stage import StageError
from pipelines.stages import chain, own_config
from tasks.family import Task
from teacher.model import TeacherModelConfig, teacher_class
from training.checkpoint import load_weights
from training.run_dir import git_sha

if TYPE_CHECKING:
    from pipelines.common import Run

COMPRESSOR_PARTS = ("scaling", "compressor", "bottleneck", "transition_encoder", "reconstruction")
"""Modules of a student that pretraining fits or trains."""
COMPRESSOR_SECTIONS = ("model", "compressor", "reconstruction")


def student_config(run: Run, stage: str = "") -> StudentConfig:
    """Return the model configuration of this run's method, a student, in a stage or at the end."""
    config = own_config(run.config, stage)
    parts = StudentParts(
        model=config.model,
        compressor=config.compressor,
        memory=config.memory,
        reconstruction=config.reconstruction,
        decoder=config.decoder,
    )
    return StudentConfig(
        run.observation.to_json(),
        run.action.to_json(),
        config.region_len,
        to_plain(parts),
        provenance=_provenance(run),
        longest_region=_longest(run),
    )


def teacher_config(run: Run) -> TeacherModelConfig:
    """Return the model configuration of this run's method, a raw-context model."""
    config = own_config(run.config)
    return TeacherModelConfig(
        run.observation.to_json(),
        run.action.to_json(),
        config.region_len,
        asdict(config.model),
        asdict(config.teacher),
        provenance=_provenance(run),
        longest_region=_longest(run),
    )


def _longest(run: Run) -> int:
    """Return the most transitions of a region, 0 where all have as many."""
    longest, usual = run.config.longest_region, run.config.region_len
    return 0 if longest == usual else longest


def build_model(run: Run, stage: str = "") -> Any:
    """Build the untrained model of this run's method, as a stage trains it or as it is in the end.

    Raises:
        UserError: Its sizes are impossible, or its class cannot be imported.
    """
    if _keeps_raw_context(run):
        return teacher_class(own_config(run.config).teacher.target)(teacher_config(run))
    return CADStudent(student_config(run, stage))


def load_model(run: Run, stage: str) -> Any:
    """Load the model that a stage of this run's method has saved.

    Raises:
        StageError: It is damaged, or not the model that the run's configuration describes.
    """
    cls, expected = CADStudent, student_config(run, stage)
    if _keeps_raw_context(run):
        cls, expected = teacher_class(own_config(run.config).teacher.target), teacher_config(run)
    folder = run.folder(stage)
    _check(folder, cls, expected)
    try:
        # Its config.json names the classes that the run's own configuration names.
        model: Any = cls.from_pretrained(
            str(folder / "model"), local_files_only=True, trust_model_code=True
        )
    except Exception as error:
        raise _damaged(folder, error) from error
    return model.to(run.accelerator.device).eval()


def load_compressor(run: Run, student: CADStudent) -> None:
    """Load what pretraining trained into a student built from the run's configuration.

    The decoder of the pretrained student may be another: pretraining does not train it.

    Raises:
        StageError: It is damaged, or another compressor than the run's.
    """
    folder = run.folder("pretrain_compressor")
    _check(folder, CADStudent, student.config, COMPRESSOR_SECTIONS)
    try:
        weights = load_file(folder / "model" / "model.safetensors")
    except Exception as error:
        raise _damaged(folder, error) from error
    for name in COMPRESSOR_PARTS:
        prefix = f"{name}."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        load_weights(getattr(student, name), own, folder / "model")


def load_student(run: Run) -> tuple[CADStudent, Path]:
    """Load the student that evaluation uses, and name the directory of its stage.

    Raises:
        StageError: It is not trained, or damaged.
    """
    last = chain(run.config)[-1]
    run.require(last)
    return load_model(run, last), run.folder(last)


def load_teacher(run: Run) -> Any:
    """Load this seed's teacher, frozen.

    Raises:
        StageError: It is not trained, or damaged.
    """
    as_teacher = run.of("teacher")
    as_teacher.require("train_teacher")
    return load_model(as_teacher, "train_teacher").requires_grad_(False)


def policy_of(
    model: InContextModel,
    run: Run,
    temperature: float,
    *,
    control: Control | None = None,
    tasks: Sequence[Task] = (),
    context: Sequence[Regions] | None = None,
    region_len: int = 0,
) -> ContextPolicy:
    """Return the policy that acts with a model, or with a control around it.

    Args:
        model: A student, baseline or raw-context model.
        run: Whose device it acts on.
        temperature: Of the sampled actions.
        control: What is done to a student's latents.
        tasks: Of the streams, which a control must know.
        context: Completed regions to act after, the context being frozen; none to go on as usual.
        region_len: Transitions of a region while acting; 0 for those of training.
    """
    acting: Any = model
    if control is not None:
        acting = LatentControl(acting, control, [task.index for task in tasks])
    settings: Any = {"temperature": temperature, "device": run.accelerator.device}
    settings["region_len"] = region_len or None
    if context is not None:
        return FrozenPolicy(acting, context, **settings)
    return ContextPolicy(acting, **settings)


def _keeps_raw_context(run: Run) -> bool:
    return "train_teacher" in METHODS[run.config.method].stages


def _provenance(run: Run) -> dict[str, Any]:
    """What a saved model says of its origin."""
    return {
        "method": run.config.method,
        "training_seed": run.config.seed,
        "family": run.config.family.target,
        "family_kwargs": run.config.family.kwargs,
        "split_identity": run.split.identity,
        "split": run.split.name,
        "git_sha": _git_sha(),
    }


_git_sha = functools.cache(git_sha)  # asked for with every model that is built


def _check(folder: Path, cls: Any, expected: Any, sections: Sequence[str] | None = None) -> None:
    """Refuse a saved model that is not the one its run describes.

    Args:
        folder: Of the stage that saved it.
        cls: Its class.
        expected: The model configuration it should have.
        sections: Names of those that must be the same; all unless given.
    """
    try:
        found = cls.config_class.from_pretrained(str(folder / "model"), local_files_only=True)
        saved, wanted = _described(found), _described(expected)
        theirs, ours = dict(found.provenance), expected.provenance
    except Exception as error:
        raise _damaged(folder, error) from error
    if theirs.get("split_identity") != ours["split_identity"]:
        raise StageError(
            f"{folder / 'model'} was trained on the task split {theirs.get('split')!r}, not on "
            f"this run's {ours['split']!r}: its training tasks may be test tasks here; use its own "
            "run_dir."
        )
    for key, value in wanted.items():
        compared = sections is None or "." not in key or key.partition(".")[0] in sections
        if compared and saved.get(key) != value:
            raise StageError(
                f"{folder / 'model'} was trained with {key} = {saved.get(key)!r}, but this run has "
                f"{value!r}; use the run_dir it belongs to, or delete {folder} to train it anew."
            )


def _described(config: StudentConfig | TeacherModelConfig) -> dict[str, Any]:
    """Everything a model is built from, by dotted key; a key that is not there has its default."""
    if isinstance(config, StudentConfig):
        sections = vars(config.student_parts)
    else:
        sections = {
            "model": config.sizes,
            "teacher": config.settings,
        }
    plain = {name: to_plain(section) for name, section in sections.items()}
    return {
        "observation": config.observation,
        "action": config.action,
        "region_len": config.region_len,
        "longest_region": config.longest_region or config.region_len,
        **{f"{name}.{key}": value for name, part in plain.items() for key, value in part.items()},
    }


def _damaged(folder: Path, error: Exception) -> StageError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    return StageError(
        f"{folder / 'model'} cannot be loaded ({reason}); delete {folder} and run its stage again."
    )
