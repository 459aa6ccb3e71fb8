"""Each file a stage reads x missing, empty, truncated, another's, flipped, a pickle, a folder.

A tiny run is made once. A case copies it, takes out what its stage makes, damages one file, runs
the stage, and compares: the stage is refused, or ends with the very bytes of the run that was
made undisturbed; what is not its own stays as it was.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import histories.collection
import training.loop
from tests.faults.configs import TINY
from tests.faults.corpus import Case
from tests.faults.damages import Subject, trials
from tests.faults.launch import command, import_all

OPTIM = "{updates: 4, batch_size: 8, log_every: 2, validate_every: 2, checkpoint_every: 2}"
OWN = """
enabled: true, rollouts: {n_tasks: 2, n_streams: 2, n_regions: 2},
optim: {updates: 2, batch_size: 8, log_every: 1, validate_every: 1, checkpoint_every: 1}
"""
SMALL = f"""
train_teacher: {{optim: {OPTIM}}}
pretrain: {{optim: {OPTIM}}}
distill: {{optim: {OPTIM}, loss: {{alpha: 0.5, beta: 0.5}}}}
finetune: {{optim: {OPTIM}}}
policy_gradient: {{{OWN}}}
on_policy: {{{OWN}}}
validation: {{n_episodes: 2, n_seeds: 1}}
evaluate:
  n_episodes: 4
  n_seeds: 2
  n_offline: 16
  reading_updates: 2
  final_episodes: 2
  recall_regions: [0, 2]
  prompt_skills: [0.5]
  prompt_episodes: 2
probe: {{n_regions: 32, n_pairs: 1, n_seeds: 1, swap_after: 1, n_regions_after: 1, n_episodes: 5}}
n_workers: 1
"""
CHAIN = (
    *(("collect", "student"), ("build_triples", "student"), ("train_teacher", "teacher")),
    *(("pretrain_compressor", "student"), ("distill", "student"), ("finetune", "student")),
    *(("policy_gradient", "student"), ("on_policy", "student"), ("evaluate", "student")),
    *(("train_teacher", "dpt"), ("evaluate", "dpt"), ("cost", "student")),
)
FILE = "small.yaml"


def do(module: str, copy: Path, *overrides: str) -> str:
    """A command on a copied run: paths are hashed nowhere, so it is the same run."""
    settings = ("--config", str(copy / FILE), f"run_dir={copy}", *overrides)
    return command(f"pipelines.{module}", *settings)


def running(module: str, method: str = "student") -> Callable[[Path], None]:
    def run(copy: Path) -> None:
        do(module, copy, f"method={method}")

    return run


def stage(
    name: str, folder: str, reads: tuple[str, ...], *, method: str = "student", **more: Any
) -> Subject:
    """A training stage, that must save the same weights."""
    made = (f"{folder}/model/model.safetensors",)
    run = running(name, method)
    return Subject(f"{name} {method}", run, reads, own=(folder,), made=made, **more)


def read_results(copy: Path) -> None:
    from reports.cost import load_cost
    from reports.result_files import load_run
    from reports.training_logs import load_stage_logs

    load_run(copy)
    load_cost([copy])
    load_stage_logs([copy])


def read_model(copy: Path) -> None:
    from ad.student import CADStudent

    CADStudent.from_pretrained(str(copy / "seed_0/student/on_policy/model"))


TRIPLES = ("triples/meta.json", "triples/*/meta.json", "triples/*/regions.arrow")
MODEL = ("meta.json", "model/config.json", "model/model.safetensors")


def models(*folders: str) -> tuple[str, ...]:
    return tuple(f"seed_0/{folder}/{name}" for folder in folders for name in MODEL)


SUBJECTS = (
    Subject(
        "collect resumed",
        running("collect"),
        ("collect/parts/*", "collect/parts"),
        writes=("collect",),
        made=("collect/histories.h5", "collect/learning_curves.csv"),
        origin="collecting",
    ),
    Subject(
        "build_triples",
        running("build_triples"),
        ("collect/histories.h5", "collect/meta.json", "config.yaml"),
        own=("triples",),
        made=("triples/*/regions.arrow",),
    ),
    stage("train_teacher", "seed_0/teacher", TRIPLES, method="teacher"),
    Subject(
        "train_teacher resumed",
        running("train_teacher", "teacher"),
        tuple(
            f"seed_0/teacher/{name}"
            for name in ("checkpoints/*/*", "checkpoints", "inputs", "log.csv")
        ),
        writes=("seed_0/teacher",),
        made=("seed_0/teacher/model/model.safetensors",),
        origin="training",
    ),
    stage("train_teacher", "seed_0/dpt", TRIPLES[1:], method="dpt", draws=3),
    stage("pretrain_compressor", "seed_0/student/pretrain", TRIPLES[1:], draws=3),
    stage("distill", "seed_0/student/distill", models("student/pretrain", "teacher")),
    stage("finetune", "seed_0/student/finetune", models("student/distill"), draws=5),
    stage("policy_gradient", "seed_0/student/policy_gradient", models("student/finetune"), draws=5),
    stage("on_policy", "seed_0/student/on_policy", models("student/policy_gradient"), draws=5),
    Subject(
        "evaluate",
        running("evaluate"),
        (*models("student/on_policy"), "triples/test/regions.arrow"),
        own=("seed_0/evaluate",),
        made=("seed_0/evaluate/student*/*.npy",),
    ),
    Subject(
        "evaluate dpt",
        running("evaluate", "dpt"),
        models("dpt"),
        own=("seed_0/evaluate/dpt",),
        made=("seed_0/evaluate/dpt/*.npy",),
        draws=5,
    ),
    Subject(
        "results",
        read_results,
        (
            *(f"seed_0/evaluate/student/{name}" for name in ("*.npy", "metrics.json", "meta.json")),
            "cost/cost.csv",
            "seed_0/teacher/log.csv",
        ),
        apart=True,
    ),
    Subject("model", read_model, models("student/on_policy")[1:], apart=True),
)


def make_run(work: Path) -> Path:
    """A tiny run; `training`, where the teacher has made two updates; `collecting`, its parts.

    Made once for all parts of the corpus, whose folders lie side by side.
    """
    import_all()
    made = work.parent / "made"
    if not made.exists():
        made.mkdir()
        _make(made)
    for folder in made.iterdir():
        shutil.copytree(folder, work / folder.name)
    return work / "run"


def _make(work: Path) -> None:
    run = work / "run"
    run.mkdir()
    (run / FILE).write_text(TINY.format(run_dir=run) + SMALL)
    save, assemble = training.loop.save_checkpoint, histories.collection._assemble_parts

    # In this process, of which the commands are forks.
    def copy_and_assemble(*arguments: Any) -> Any:
        shutil.copytree(run, work / "collecting")
        return assemble(*arguments)

    def save_and_copy(stage_dir: Path, step: int, *rest: Any) -> Any:
        saved = save(stage_dir, step, *rest)
        if step == 2 and stage_dir.name == "teacher":
            shutil.copytree(run, work / "training")
        return saved

    training.loop.save_checkpoint = save_and_copy
    histories.collection._assemble_parts = copy_and_assemble
    try:
        for module, method in CHAIN:
            running(module, method)(run)
    finally:
        training.loop.save_checkpoint = save
        histories.collection._assemble_parts = assemble


def cases(work: Path, seed: int) -> list[Case]:
    """All cases; the run is made in `work`."""
    make_run(work)
    rng = random.Random(seed)
    return [case for subject in SUBJECTS for case in trials(subject, work, rng)]
