"""Files that commands besides the stages of a run read: others' histories, models, tables, sweeps.

As in files.py: each file x each damage; a command refuses, or tells and makes what it would have.
"""

import importlib
import json
import random
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from base.errors import UserError
from pipelines.config import RunConfig
from tests.faults.corpus import Case
from tests.faults.damages import Subject, trials
from tests.faults.files import FILE, make_run, models, settings
from training.config import load_config

MODULES = (
    *(f"pipelines.{name}" for name in ("ablate", "check_family", "compare", "demonstration")),
    *(f"pipelines.{name}" for name in ("doctor", "export_histories", "import_histories", "probe")),
    *("pipelines.ship", "datasets", "minari.data_collector", "reports.published"),
)
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


def said(act: Callable[[], Any]) -> str:
    """What a command prints; a finding that has failed is a refusal.

    That histories so small show no improvement is no damage of theirs.
    """
    with redirect_stdout(StringIO()) as out:
        try:
            act()
        except SystemExit:
            failed = [line for line in out.getvalue().splitlines() if line.startswith("fail")]
            failed = [line for line in failed if line.split()[1:2] != ["improvement"]]
            if failed or "improvement" not in out.getvalue():
                raise UserError(failed[0] if failed else out.getvalue()) from None
    return out.getvalue()


def elsewhere(copy: Path, *overrides: str) -> RunConfig:
    """The run's configuration without its directory."""
    return load_config(RunConfig, copy / "config.yaml", ['run_dir=""', *overrides])


def imports(form: str) -> Callable[[Path], Any]:
    """Import; what counts is what the histories hold."""

    def run(copy: Path) -> Any:
        source = f"import_histories.source={copy / FORMATS[form]}"
        made = f"histories={copy / 'mine.h5'}"
        config = elsewhere(copy, made, source, f"import_histories.format={form}")
        importlib.import_module("pipelines.import_histories").main(config)
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
        target = copy.parent / form
        config = settings(
            copy, f"export_histories.target={target}", f"export_histories.format={form}"
        )
        importlib.import_module("pipelines.export_histories").main(config)
        overrides = (f"histories={copy.parent / 'again.h5'}", f"import_histories.source={target}")
        again = elsewhere(copy, *overrides, f"import_histories.format={form}")
        importlib.import_module("pipelines.import_histories").main(again)
        return held(copy.parent / "again.h5")

    return run


def looks(module: str, *overrides: str) -> Callable[[Path], Any]:
    """A command that prints findings."""

    def run(copy: Path) -> Any:
        values = [text.format(copy=copy) for text in overrides]
        config = load_config(RunConfig, copy / "config.yaml", ['run_dir=""', *values])
        return said(lambda: importlib.import_module(f"pipelines.{module}").main(config))

    return run


def demonstrates(model: str, *arguments: str) -> Callable[[Path], Any]:
    def run(copy: Path) -> Any:
        from pipelines.demo import parser
        from pipelines.demonstration import demonstrate

        gif = copy.parent / "demo.gif"
        line = ["--model", str(copy / model), "--episodes", "3", "--gif", str(gif), *arguments]
        told = said(lambda: demonstrate(parser().parse_args(line)))
        return told, gif.read_bytes()

    return run


def ships(copy: Path) -> Any:
    config = settings(copy, f"ship.folder={copy.parent / 'shipped'}", "ship.name=small")
    importlib.import_module("pipelines.ship").main(config)
    folder = copy.parent / "shipped" / "small"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def probes(copy: Path) -> Any:
    importlib.import_module("pipelines.probe").main(settings(copy))
    found = json.loads((copy / "seed_0/probe/student/probe.json").read_text())
    return {name: value for name, value in found.items() if name != "created"}


def compares(copy: Path) -> None:
    said(lambda: importlib.import_module("pipelines.compare").main(settings(copy)))


def publishes(copy: Path) -> str:
    from reports.published import published

    return published(copy / "page.md")


def sweeps(file: str) -> Callable[[Path], Any]:
    def run(copy: Path) -> None:
        from pipelines import ablate
        from pipelines.experiments import ExperimentsConfig
        from pipelines.sweep import SweepConfig

        kind = SweepConfig if file == "sweep.yaml" else ExperimentsConfig
        ablate.main(load_config(kind, copy / file), str(copy / file))

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
    ship = settings(run, f"ship.folder={other / 'models'}", "ship.name=small")
    importlib.import_module("pipelines.ship").main(ship)
    for form in ("datasets", "minari"):
        target = f"export_histories.target={other / form}"
        config = settings(run, target, f"export_histories.format={form}")
        importlib.import_module("pipelines.export_histories").main(config)
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
    for name in MODULES:  # forks then need not import them, each anew
        importlib.import_module(name)
    make_all(work)
    rng = random.Random(seed)
    return [case for subject in SUBJECTS for case in trials(subject, work, rng)]
