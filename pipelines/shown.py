"""Who acts in a demonstration: a model's folder, or a method of a run's directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ad.policy import ContextPolicy, Policy
from ad.student import CADStudent
from ad.student_config import StudentConfig
from base.errors import UserError
from pipelines.common import split_settings
from pipelines.config import RunConfig
from pipelines.methods import METHODS, TRAINED, UNTRAINED
from pipelines.stages import STAGES, chain, own_config
from tasks.family import FAMILIES, Task, TaskFamily, load_family
from tasks.splits import SplitError, make_split
from teacher.model import TeacherModelConfig, teacher_class
from training.config import load_config
from training.run_dir import check_files, read_meta

CONFIG, MODEL_CONFIG, WEIGHTS = "config.yaml", "config.json", "model.safetensors"
TARGETS = tuple(
    f"teacher.{name}:" for name in ("model", "apart", "sliding_window", "causal_decoder", "dpt")
)


class DemoError(UserError):
    """A demonstration that cannot be given."""


@dataclass
class Actor:
    """Who acts, and where.

    Attributes:
        title: Who it is, of what it remembers.
        family: Of the tasks.
        tasks: Held out in training.
        policy_for: A policy in one stream of a task.
    """

    title: str
    family: TaskFamily
    tasks: list[Task]
    policy_for: Callable[[Task], Policy]


def actor_of(
    folder: Path, *, method: str = "", seed: int | None = None, trust_model_code: bool = False
) -> Actor:
    """Find who acts: the model in a folder, or a method of a run.

    Args:
        folder: Of a model (`config.json`, `model.safetensors`), shipped or inside a run; or a run's
            directory (`config.yaml`).
        method: Of a run, `student` unless given; references and searches act too.
        seed: Training seed of a run, its first one unless given.
        trust_model_code: Whether a shipped model may name classes and families of somebody's own.
            A run's own are imported as by any stage of it.

    Raises:
        DemoError: Nothing of the kind is there, or it does not tell its tasks.
        UserError: A model or configuration is damaged.
    """
    if (folder / MODEL_CONFIG).is_file():
        inside = _run_around(folder)
        if inside is None:
            return _shipped(folder, trust_model_code=trust_model_code)
        return _of_run(inside, *_origin(folder, method), folder)
    if (folder / CONFIG).is_file():
        return _of_run(folder, method or "student", seed)
    raise DemoError(
        f"{folder} holds no model ({MODEL_CONFIG} and {WEIGHTS} missing) and is no run's directory "
        f"({CONFIG} missing); give one or the other with --model."
    )


def _origin(folder: Path, method: str) -> tuple[str, int]:
    """Method and training seed of a model inside a run; a method given is for one without."""
    _check(folder)
    file = folder / MODEL_CONFIG
    stored = _json(file).get("provenance")
    origin = stored if isinstance(stored, dict) else {}
    told, seed = origin.get("method") or method, origin.get("training_seed") or 0
    if not told:
        raise DemoError(
            f"{file} does not tell of which method the model is; bring the file back, or name it "
            "with --method."
        )
    if told not in TRAINED or not isinstance(seed, int):
        raise DemoError(
            f"{file} says that the model is of method {told!r}, training seed {seed!r}; expected "
            f"one of {', '.join(TRAINED)} and a whole number: bring the file back."
        )
    return told, seed


def _check(model: Path) -> None:
    """Refuse a model inside a run that is not what its stage left."""
    if meta := read_meta(model.parent):
        check_files(model.parent, meta)


def _run_around(folder: Path) -> Path | None:
    """The directory of the run that a stage's model lies in."""
    above = folder.resolve().parents
    found = (p for p in above if p.name.startswith("seed_") and (p.parent / CONFIG).is_file())
    return next((path.parent for path in found), None)


def _of_run(root: Path, method: str, seed: int | None, folder: Path | None = None) -> Actor:
    if method not in (*TRAINED, *UNTRAINED):
        raise DemoError(
            f"--method is {method!r}, expected one of {', '.join((*TRAINED, *UNTRAINED))}."
        )
    seeds = sorted(int(p.name[5:]) for p in root.glob("seed_*") if p.name[5:].isdecimal())
    seed = (seeds[0] if seeds else 0) if seed is None else seed
    config = load_config(RunConfig, root / CONFIG, [f"method={method}", f"seed={seed}"])
    family = load_family(config.family.target, config.family.kwargs)
    split = make_split(family.tasks(), **split_settings(config))
    tasks = [family.tasks()[index] for index in split.test]
    record = METHODS[method]
    if record.act is not None:
        if not record.supported(family):
            raise DemoError(f"--method={method}: the family {family.name} does not offer it.")
        act = record.act
        return Actor(record.title, family, tasks, lambda task: act(family, [task]))
    folder = folder or _last_model(root, config)
    _check(folder)
    model: Any = CADStudent
    if "train_teacher" in record.stages:
        model = teacher_class(own_config(config).teacher.target)
    loaded = model.from_pretrained(str(folder), local_files_only=True, trust_model_code=True)
    own = (loaded.config.provenance or {}).get("split_identity", split.identity)
    if own != split.identity:
        raise DemoError(
            f"the model in {folder} is of a run with other tasks held out than {root / CONFIG} "
            "names; bring that file back."
        )
    return _with_model(loaded, family, tasks, config.evaluate.temperature, record.title)


def _last_model(root: Path, config: RunConfig) -> Path:
    """The model of the last stage that a run's method has been through."""
    folders = [root / STAGES[s].folders(config)[0] / "model" for s in reversed(chain(config))]
    folders = [folder for folder in folders if not folder.parent.name.startswith("pretrain")]
    for folder in folders:
        if (folder / WEIGHTS).is_file():
            return folder
    raise DemoError(
        f"{root} has no trained model of --method={config.method} --training-seed={config.seed} "
        f"({folders[0]} missing); train it with pipelines.run, or name another."
    )


def _shipped(folder: Path, *, trust_model_code: bool) -> Actor:
    if not (folder / WEIGHTS).is_file():
        raise DemoError(f"{folder} holds no model ({WEIGHTS} missing); ship it again.")
    trust: Any = {"trust_model_code": trust_model_code, "local_files_only": True}
    stored = _json(folder / MODEL_CONFIG)
    model: Any = CADStudent
    if stored.get("model_type") == TeacherModelConfig.model_type:
        target = str((stored.get("teacher") or {}).get("target", ""))
        if not target.startswith(TARGETS) and not trust_model_code:
            raise DemoError(
                f"the model's {MODEL_CONFIG} has the class {target!r}, code of whoever saved it; "
                "read that code, and give --trust-model-code if you trust it."
            )
        model = teacher_class(target)
    elif stored.get("model_type") != StudentConfig.model_type:
        raise DemoError(
            f"{folder / MODEL_CONFIG} is of a model of type {stored.get('model_type')!r}, expected "
            f"{StudentConfig.model_type} or {TeacherModelConfig.model_type}."
        )
    loaded = model.from_pretrained(str(folder), **trust)
    origin = loaded.config.provenance
    family = _family_of(origin, trust_model_code=trust_model_code)
    title = METHODS[origin["method"]].title if origin.get("method") in METHODS else "model"
    tasks = _held_out_tasks(origin, family)
    return _with_model(loaded, family, tasks, origin.get("temperature", 1.0), title)


def _with_model(
    model: Any, family: TaskFamily, tasks: list[Task], temperature: float, title: str
) -> Actor:
    model.eval()
    regions = f"the last {model.n_context_regions} x {model.region_len} steps"
    if model.n_latents is not None:
        memory = f"{model.n_latents} latents of each of {regions}, and the steps since"
    else:
        memory = f"{regions} as they are, and the steps since"
    how = f"sampled at temperature {temperature:g}" if temperature > 0 else "the likeliest"
    return Actor(
        f"{title}: weights frozen, actions {how}; context: {memory}",
        family,
        tasks,
        lambda task: ContextPolicy(model, temperature=temperature),
    )


def _family_of(provenance: dict[str, Any], *, trust_model_code: bool) -> TaskFamily:
    target, kwargs = provenance.get("family"), provenance.get("family_kwargs") or {}
    if not (isinstance(target, str) and isinstance(kwargs, dict)):
        raise DemoError("the model's config.json names no family in its provenance; ship it again.")
    if _imports(target, kwargs) and not trust_model_code:
        raise DemoError(
            f"the model's config.json has the family {target!r} {kwargs or ''}, code of whoever "
            "saved it; read that code, and give --trust-model-code if you trust it."
        )
    return load_family(target, kwargs)


def _imports(target: Any, kwargs: Any) -> bool:
    """Whether a family imports code from elsewhere, itself or by what its arguments name."""
    return target not in FAMILIES or _names_code(kwargs)


def _names_code(value: Any) -> bool:
    """Whether something in an argument may be an import path that is not a shipped family's."""
    if isinstance(value, dict):
        return any(map(_names_code, value.values()))
    if isinstance(value, list):
        return any(map(_names_code, value))
    return isinstance(value, str) and ":" in value and value not in FAMILIES


def _held_out_tasks(provenance: dict[str, Any], family: TaskFamily) -> list[Task]:
    """The test tasks of the split a model was trained on."""
    tasks, settings = family.tasks(), provenance.get("split_settings")
    try:
        if settings is None:  # the test tasks of a named split are known by its name
            name = provenance.get("split")
            split = make_split(tasks, seed=0, n_validation=0, named=name or "none")
        else:
            split = make_split(tasks, **settings)
            if split.identity != provenance.get("split_identity"):
                raise SplitError("they make another split than the one it was trained on")
    except SplitError as error:
        raise DemoError(
            f"the model's config.json does not tell its held-out tasks ({error}); ship it again."
        ) from error
    return [tasks[i] for i in split.test]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DemoError(f"{path} is damaged ({error}); ship the model again.") from error
    return found if isinstance(found, dict) else {}
