"""Each file a stage reads x missing, empty, truncated, another's, flipped, a pickle, a folder.

A tiny run is made once. A case copies it, takes out what its stage makes, damages one file, runs
the stage, and compares: the stage is refused, or ends with the very bytes of the run that was
made undisturbed; what is not its own stays as it was.
"""

import importlib
import json
import pickle
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import training.loop
from pipelines.config import RunConfig
from tests.faults.configs import TINY
from tests.faults.corpus import Case, tree
from training.config import load_config

OPTIM = "{updates: 4, batch_size: 8, log_every: 2, validate_every: 2, checkpoint_every: 2}"
SMALL = f"""
train_teacher: {{optim: {OPTIM}}}
pretrain: {{optim: {OPTIM}}}
distill: {{optim: {OPTIM}, loss: {{alpha: 0.5, beta: 0.5}}}}
finetune: {{optim: {OPTIM}}}
validation: {{n_episodes: 2, n_seeds: 1}}
evaluate: {{n_episodes: 4, n_seeds: 2, n_offline: 16, reading_updates: 2, final_episodes: 2}}
n_workers: 1
"""
CHAIN = (
    *(("collect", "student"), ("build_triples", "student"), ("train_teacher", "teacher")),
    *(("pretrain_compressor", "student"), ("distill", "student"), ("finetune", "student")),
    *(("evaluate", "student"), ("cost", "student")),
)


@dataclass(frozen=True)
class Stage:
    """A stage under test.

    Attributes:
        module: What runs it.
        method: For which.
        own: Folders it makes, taken out before.
        reads: Files it reads, as patterns.
        results: Files that must come out as before, as patterns.
        resumes: Whether it goes on from a checkpoint.
    """

    module: str
    method: str
    own: tuple[str, ...]
    reads: tuple[str, ...]
    results: tuple[str, ...]
    resumes: bool = False


TRIPLES = ("triples/meta.json", "triples/*/meta.json", "triples/*/regions.arrow")
MODEL = ("meta.json", "model/config.json", "model/model.safetensors")
STAGES = (
    Stage(
        "build_triples",
        "student",
        ("triples",),
        ("collect/histories.h5", "collect/meta.json", "config.yaml"),
        ("triples/*/regions.arrow",),
    ),
    Stage(
        "train_teacher",
        "teacher",
        ("seed_0/teacher",),
        TRIPLES,
        ("seed_0/teacher/model/model.safetensors",),
    ),
    Stage(
        "train_teacher",
        "teacher",
        (),
        (
            "seed_0/teacher/checkpoints/*/*",
            "seed_0/teacher/checkpoints",
            "seed_0/teacher/inputs",
            "seed_0/teacher/log.csv",
        ),
        ("seed_0/teacher/model/model.safetensors",),
        resumes=True,
    ),
    Stage(
        "distill",
        "student",
        ("seed_0/student/distill",),
        tuple(
            f"seed_0/{where}/{name}" for where in ("student/pretrain", "teacher") for name in MODEL
        ),
        ("seed_0/student/distill/model/model.safetensors",),
    ),
    Stage(
        "evaluate",
        "student",
        ("seed_0/evaluate",),
        (*(f"seed_0/student/finetune/{name}" for name in MODEL), "triples/test/regions.arrow"),
        ("seed_0/evaluate/*/eval_result.npy",),
    ),
    Stage(
        "results",
        "student",
        (),
        (
            "seed_0/evaluate/student/eval_result.npy",
            "seed_0/evaluate/student/episode_starts.npy",
            "seed_0/evaluate/student/metrics.json",
            "seed_0/evaluate/student/meta.json",
            "cost/cost.csv",
            "seed_0/teacher/log.csv",
        ),
        (),
    ),
    Stage(
        "model",
        "student",
        (),
        tuple(f"seed_0/student/finetune/{name}" for name in MODEL[1:]),
        (),
    ),
)


def make_run(work: Path) -> Path:
    """A tiny run, and beside it `partial`: its teacher as it stood after two updates."""
    run = work / "run"
    file = work / "small.yaml"
    file.write_text(TINY.format(run_dir=run) + SMALL)
    config = load_config(RunConfig, file)
    save = training.loop.save_checkpoint

    def save_and_copy(stage_dir: Path, step: int, *rest: Any) -> Any:
        saved = save(stage_dir, step, *rest)
        if step == 2 and stage_dir.name == "teacher":
            shutil.copytree(stage_dir, work / "partial")
        return saved

    training.loop.save_checkpoint = save_and_copy
    try:
        for module, method in CHAIN:
            importlib.import_module(f"pipelines.{module}").main(replace(config, method=method))
    finally:
        training.loop.save_checkpoint = save
    return run


Damage = Callable[[Path, random.Random], None]


def missing(path: Path, _: random.Random) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def written(content: bytes) -> Damage:
    def write(path: Path, rng: random.Random) -> None:
        missing(path, rng)
        path.write_bytes(content)

    return write


def truncated(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(max(1, len(content)))])


def flipped(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 4)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def zeroed(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    content[start : start + 64] = bytes(len(content[start : start + 64]))
    path.write_bytes(content)


def folder(path: Path, rng: random.Random) -> None:
    missing(path, rng)
    path.mkdir()


def exchanged(path: Path, rng: random.Random) -> None:
    """The file of another stage, part or run that has the same name."""
    root = next(parent for parent in path.parents if (parent / "config.yaml").exists())
    same = [p for p in sorted(root.rglob(path.name)) if p != path and p.is_file()]
    same = [p for p in same if p.read_bytes() != path.read_bytes()]
    other = rng.choice(same) if same else root / "config.yaml"
    path.write_bytes(other.read_bytes())


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def pickled(path: Path, rng: random.Random) -> None:
    root = next(parent for parent in path.parents if (parent / "config.yaml").exists())
    written(pickle.dumps(Trap(root / "sprung")))(path, rng)


def edited(path: Path, rng: random.Random) -> None:
    """One value of a JSON file is another, or gone."""
    content = json.loads(path.read_text())
    keys = sorted(content) if isinstance(content, dict) else []
    if not keys:
        return written(b"{}")(path, rng)
    key = rng.choice(keys)
    if rng.random() < 0.3:
        del content[key]
    else:
        values = (None, -5, 999, "x", [], {}, 1e30, [1], {"a": 1}, True)
        content[key] = rng.choice([v for v in values if v != content[key]])
    path.write_text(json.dumps(content))


ANY: dict[str, Damage] = {
    "missing": missing,
    "empty": written(b""),
    "rubbish": written(b"\x00\xff rubbish\n" * 9),
    "text": written(b"hello,world\n1,2\n"),
    "truncated": truncated,
    "flipped": flipped,
    "flipped again": flipped,
    "zeroed": zeroed,
    "a folder": folder,
    "another's": exchanged,
    "a pickle": pickled,
}
JSON: dict[str, Damage] = {
    "{}": written(b"{}"),
    "[]": written(b"[]"),
    **{f"edited {n}": edited for n in range(6)},
}


def cases(work: Path, seed: int) -> list[Case]:
    """All cases; the run is made in `work`."""
    run = make_run(work)
    rng = random.Random(seed)
    found = []
    for stage in STAGES:
        if stage.resumes:
            shutil.rmtree(run / "seed_0/teacher.partial", ignore_errors=True)
        for path in _read(stage, run, work):
            damages = ANY if path.suffix != ".json" else {**ANY, **JSON}
            if path.name == "checkpoints":
                damages = {"missing": missing, "empty": written(b"")}
            for what, damage in damages.items():
                name = f"{stage.module}{' resumed' * stage.resumes}: {path} {what}"
                number = rng.randrange(10**9)

                def run_case(stage=stage, path=path, damage=damage, number=number):
                    return try_stage(work, stage, path, damage, number)

                named = (path.name, str(path.parent), path.parent.name + "/", stage.method)
                found.append(Case(name, run_case, named, seconds=60))
    return found


def _read(stage: Stage, run: Path, work: Path) -> Iterator[Path]:
    for pattern in stage.reads:
        if stage.resumes:
            inner = pattern.removeprefix("seed_0/teacher/")
            for path in sorted((work / "partial").glob(inner)):
                yield Path("seed_0/teacher") / path.relative_to(work / "partial")
        else:
            yield from (path.relative_to(run) for path in sorted(run.glob(pattern)))


def try_stage(work: Path, stage: Stage, path: Path, damage: Damage, number: int) -> str | None:
    """Damage a copy of the run, run the stage on it, compare."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        copy = Path(folder) / "run"
        shutil.copytree(work / "run", copy)
        for own in stage.own:
            shutil.rmtree(copy / own)
        if stage.resumes:
            shutil.rmtree(copy / "seed_0/teacher")
            shutil.copytree(work / "partial", copy / "seed_0/teacher")
        # Paths are hashed nowhere, so that a copied run is the same run.
        config = load_config(RunConfig, work / "small.yaml", [f"run_dir={copy}"])
        damage(copy / path, random.Random(number))
        made = [copy / own for own in stage.own or ("seed_0/teacher",)]
        apart = [*made, copy / "config.yaml", copy / "logs", copy / ".locks", copy / "trackers"]
        before = tree(copy, apart)
        try:
            run_stage(stage, replace(config, method=stage.method), copy)
        finally:
            if (copy / "sprung").exists():
                return "pickle: it was unpickled"  # noqa: B012
            after = tree(copy, apart)
            if changed := sorted(k for k in before | after if before.get(k) != after.get(k)):
                return f"changed: {changed[0]}"  # noqa: B012
        for pattern in stage.results:
            for result in sorted((work / "run").glob(pattern)):
                again = copy / result.relative_to(work / "run")
                if not again.is_file() or again.read_bytes() != result.read_bytes():
                    return f"silent: {again.relative_to(copy)} is another"
    return None


def run_stage(stage: Stage, config: RunConfig, copy: Path) -> None:
    if stage.module == "results":
        from reports.cost import load_cost
        from reports.result_files import load_run
        from reports.training_logs import load_stage_logs

        load_run(copy)
        load_cost([copy])
        load_stage_logs([copy])
    elif stage.module == "model":
        from ad.student import CADStudent

        CADStudent.from_pretrained(str(copy / "seed_0/student/finetune/model"))
    else:
        importlib.import_module(f"pipelines.{stage.module}").main(config)
