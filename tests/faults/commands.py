"""Files that commands besides the stages of a run read: others' histories, models, tables, sweeps.

As in files.py: each file x each damage; a command refuses, or tells and makes what it would have.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from base.errors import UserError
from tests.faults.corpus import Case
from tests.faults.damages import Subject, trials
from tests.faults.files import FILE, do, make_run, models
from tests.faults.launch import command

FORMATS = {
    "cad": "histories.h5",
    "time_first": "time_first.h5",
    "stream_first": "stream_first.h5",
    "datasets": "datasets",
    "minari": "minari",
}
READ = {
    "datasets": ("datasets/*.json", "datasets/train/*", "datasets/test", "datasets"),
    "minari": ("minari/*/task-00000*/data/*", "minari/*/task-00001*", "minari"),
}
"""Of folders not everything: one part, one task stand for the others."""
SHIPPED = "models/small"
PAGE = """# A page

<!-- table: table.csv
rows: student, teacher
columns: seeds, mean, interval, worst_task
-->
<!-- end of table -->
"""
SWEEP = """
config: {folder}/config.yaml
run_dir: {folder}/sweep
store: {folder}/store
name: small
grid: {{compressor.n_latents: [4, 2]}}
controls: [teacher]
settings: {{run_dir: {folder}/run}}
n_workers: 1
"""
LIST = """
publish_to: {folder}/published
experiments:
  first: {{config: {folder}/sweep.yaml, publish: [sweep.csv]}}
"""


def findings(module: str, copy: Path, *overrides: str) -> str:
    """What a command finds; a finding that has failed is a refusal.

    That histories so small show no improvement is no damage of theirs.
    """
    try:
        return elsewhere(module, copy, *overrides)
    except UserError as refused:
        failed = [line for line in str(refused).splitlines() if line.startswith("fail")]
        if not failed:
            raise
        failed = [line for line in failed if line.split()[1:2] != ["improvement"]]
        if failed:
            raise UserError(failed[0]) from None
        return str(refused)


def elsewhere(module: str, copy: Path, *overrides: str) -> str:
    """A command with the run's configuration without its directory."""
    settings = ("--config", str(copy / "config.yaml"), 'run_dir=""', *overrides)
    return command(f"pipelines.{module}", *settings)


def imports(form: str) -> Callable[[Path], Any]:
    """Import; what counts is what the histories hold."""

    def run(copy: Path) -> Any:
        source = f"import_histories.source={copy / FORMATS[form]}"
        made = f"histories={copy / 'mine.h5'}"
        elsewhere("import_histories", copy, made, source, f"import_histories.format={form}")
        return held(copy / "mine.h5")

    return run


def held(file: Path) -> dict[str, Any]:
    """Arrays and attributes of a file of histories, but those that say what it was made from."""
    found: dict[str, Any] = {}
    with h5py.File(file) as opened:

        def take(name: str, item: Any) -> None:
            for key, value in item.attrs.items():
                found[f"{name}.{key}"] = np.asarray(value).tolist()
            if isinstance(item, h5py.Dataset):
                values = item[()]  # replayed up to rounding
                found[name] = (values.round(3) if values.dtype.kind == "f" else values).tolist()

        opened.visititems(take)
        found |= {key: opened.attrs[key] for key in ("family", "split", "observation_space")}
    return found


def exports(form: str) -> Callable[[Path], Any]:
    """Export; what counts is what is imported again."""

    def run(copy: Path) -> Any:
        target, again = copy.parent / form, copy.parent / "again.h5"
        export(form, copy, target)
        overrides = (f"histories={again}", f"import_histories.source={target}")
        elsewhere("import_histories", copy, *overrides, f"import_histories.format={form}")
        return held(again)

    return run


def export(form: str, copy: Path, target: Path) -> None:
    overrides = (f"export_histories.target={target}", f"export_histories.format={form}")
    do("export_histories", copy, *overrides)


def looks(module: str, *overrides: str) -> Callable[[Path], Any]:
    """A command that prints findings."""

    def run(copy: Path) -> Any:
        return findings(module, copy, *(text.format(copy=copy) for text in overrides))

    return run


def demonstrates(model: str, *arguments: str) -> Callable[[Path], Any]:
    def run(copy: Path) -> Any:
        gif = copy.parent / "demo.gif"
        line = ("--model", str(copy / model), "--episodes", "3", "--gif", str(gif), *arguments)
        told = command("pipelines.demo", *line)
        return told, gif.read_bytes()

    return run


def ships(copy: Path) -> Any:
    do("ship", copy, f"ship.folder={copy.parent / 'shipped'}", "ship.name=small")
    folder = copy.parent / "shipped" / "small"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def probes(copy: Path) -> Any:
    do("probe", copy)
    found = json.loads((copy / "seed_0/probe/student/probe.json").read_text())
    return {name: value for name, value in found.items() if name != "created"}


def compares(copy: Path) -> None:
    do("compare", copy)


def publishes(copy: Path) -> str:
    command("reports.published", str(copy / "page.md"))
    return (copy / "page.md").read_text()


def sweeps(file: str) -> Callable[[Path], Any]:
    def run(copy: Path) -> None:
        command("pipelines.ablate", "--config", str(copy / file))

    return run


HISTORIES = "collect/histories.h5"
SUBJECTS = (
    *(
        Subject(
            f"import_histories {form}",
            imports(form),
            READ.get(form, (name,)),
            writes=("mine.h5",),
            origin="elsewhere",
            named=(name, form, "group", "import_histories"),
        )
        for form, name in FORMATS.items()
    ),
    Subject(
        "import_histories again",
        imports("cad"),
        ("mine.h5",),
        origin="imported",
    ),
    Subject("export_histories datasets", exports("datasets"), (HISTORIES, "collect/meta.json")),
    Subject("export_histories minari", exports("minari"), (HISTORIES,)),
    Subject(
        "doctor",
        looks("doctor", "histories={copy}/histories.h5"),
        ("histories.h5", "config.yaml"),
        origin="elsewhere",
        free=("config.yaml",),
        named=("task", "family"),
    ),
    Subject(
        "check_family",
        looks("check_family"),
        ("config.yaml",),
        origin="elsewhere",
        free=("config.yaml",),
        named=("split", "family"),
    ),
    Subject(
        "demo shipped",
        demonstrates(SHIPPED),
        (f"{SHIPPED}/config.json", f"{SHIPPED}/model.safetensors"),
        origin="elsewhere",
        named=("model",),
    ),
    Subject(
        "demo of a run",
        demonstrates("."),
        ("config.yaml", *models("student/on_policy")),
        free=("config.yaml",),
        named=("model", "--method"),
    ),
    Subject(
        "demo inside a run",
        demonstrates("seed_0/student/distill/model"),
        models("student/distill")[1:],
        named=("model",),
    ),
    Subject("demo dpt", demonstrates(".", "--method", "dpt"), models("dpt"), named=("model",)),
    Subject(
        "ship",
        ships,
        (
            *models("student/on_policy"),
            "comparison/table.csv",
            *(
                f"seed_0/evaluate/student/{n}"
                for n in ("metrics.json", "eval_result.npy", "meta.json")
            ),
        ),
    ),
    Subject(
        "probe",
        probes,
        (*models("student/on_policy")[1:], "triples/test/regions.arrow"),
        own=("seed_0/probe",),
    ),
    Subject(
        "compare",
        compares,
        (
            *(f"seed_0/evaluate/student/{n}.npy" for n in ("recall", "prompted", "cells_visited")),
            "collect/learning_curves.csv",
            "cost/cost.csv",
            "seed_0/student/on_policy/log.csv",
            "seed_0/student/on_policy/meta.json",
        ),
        own=("comparison",),
        made=("comparison/*.csv",),
    ),
    Subject(
        "published",
        publishes,
        ("page.md", "table.csv"),
        origin="elsewhere",
        writes=("page.md",),
        free=("page.md", "table.csv"),
    ),
    Subject(
        "ablate",
        sweeps("sweep.yaml"),
        (
            "sweep.yaml",
            "sweep/sweep.json",
            "sweep/config.yaml",
            "store/seed_0-student-evaluate-[0-9a-f]*/meta.json",
            "store/seed_0-student-evaluate-[0-9a-f]*/eval_result.npy",
        ),
        origin="swept",
        writes=("sweep", "store"),
        made=("sweep/report/*.csv",),
        free=("sweep.yaml", "sweep.json"),
        seconds=200,
    ),
    Subject(
        "ablate a list",
        sweeps("list.yaml"),
        ("list.yaml", "sweep/report/sweep.csv"),
        origin="swept",
        writes=("sweep", "store", "published"),
        made=("published/*/*",),
        free=("list.yaml",),
        seconds=200,
    ),
)


def make_all(work: Path) -> None:
    """The run compared and shipped, its histories in every format, a sweep."""
    run, other = make_run(work), work / "elsewhere"
    compares(run)
    other.mkdir()
    for name in ("config.yaml", HISTORIES, "comparison/table.csv"):
        shutil.copyfile(run / name, other / Path(name).name)
    (other / "page.md").write_text(PAGE)
    do("ship", run, f"ship.folder={other / 'models'}", "ship.name=small")
    for form in ("datasets", "minari"):
        export(form, run, other / form)
    for form in ("time_first", "stream_first"):
        write_plain(run / HISTORIES, other / FORMATS[form], time_first=form == "time_first")
    shutil.copytree(other, work / "imported")
    imports("cad")(work / "imported")
    make_sweep(run, work)


def make_sweep(run: Path, work: Path) -> None:
    """A sweep that is done, made where copies of it will lie: it holds its own path."""
    folder = work / "copy" / "swept"
    shutil.copytree(run, folder / "run")
    shutil.copyfile(run / FILE, folder / "config.yaml")
    (folder / "sweep.yaml").write_text(SWEEP.format(folder=folder))
    (folder / "list.yaml").write_text(LIST.format(folder=folder))
    sweeps("list.yaml")(folder)
    shutil.move(folder, work / "swept")


def write_plain(source: Path, target: Path, *, time_first: bool) -> None:
    """Histories as others keep them: a group per task, its parameters as attributes."""
    names = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
    with h5py.File(source) as ours, h5py.File(target, "w") as theirs:
        for task, group in ours["tasks"].items():  # pyright: ignore
            out = theirs.create_group(task)
            out.attrs["params"] = group.attrs["params"]
            for name in names:
                values = group[name][()]
                out[name] = np.swapaxes(values, 0, 1) if time_first else values


def cases(work: Path, seed: int) -> list[Case]:
    """All cases; everything is made in `work`."""
    make_all(work)
    rng = random.Random(seed)
    return [case for subject in SUBJECTS for case in trials(subject, work, rng)]
