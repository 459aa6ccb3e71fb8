"""Each field of the configurations x wrong type, NaN, infinite, negative, zero, huge, and names."""

import dataclasses
import json
import random
import tempfile
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pipelines.common
import pipelines.opening
from base.ranges import options_of
from pipelines.config import RunConfig
from pipelines.sweep import SweepConfig, lay_out
from tests.faults.corpus import Case
from training.config import load_config

TINY = """
run_dir: {run_dir}
region_len: 10
methods: [student, teacher]
trackers: []
family: {{kwargs: {{size: 3, horizon: 5}}}}
split: {{n_validation: 2, n_test: 2}}
collect: {{styles: [random], n_streams: 4, n_regions: 4, regions: {{}}}}
model: {{d_model: 16, n_heads: 2}}
compressor: {{n_latents: 4}}
decoder: {{n_layers: 1}}
teacher: {{n_layers: 1}}
long_context: {{n_layers: 1, n_context_regions: 2}}
"""


def bare(hint: Any) -> Any:
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return hint


def leaves(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that holds a value, with its type."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, key = bare(hints[field.name]), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{key}.")
        else:
            yield key, hint


def kinds_of(hint: Any) -> list[Any]:
    return [typing.get_origin(bare(o)) or bare(o) for o in options_of(hint)]


HOSTILE = {
    "a word": "rubbish",
    "a list": [1, "x", None],
    "a mapping": {"a": {"b": 1}},
    "null": None,
    "true": True,
    "nan": float("nan"),
    "infinite": float("inf"),
    "minus infinite": float("-inf"),
    "minus one": -1,
    "zero": 0,
    "half": 0.5,
    "huge": 10**12,
    "huge and negative": -(10**12),
    "huge float": 1e300,
    "beyond 64 bits": 2**80,
    "empty": [],
    "twice": [0, 0],
    "twice the word": ["student", "student"],
    "long": "x" * 300,
    "outside": "../../outside",
    "nothing in it": "a\0b",
    "formula": "=cmd|' /C calc'!A0",
    "an import": "os:system",
    "deep": None,
}


def written(value: Any) -> str:
    text = json.dumps(value)
    return text.replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")


def drawn(rng: random.Random) -> dict[str, Any]:
    """A few values more, others with another seed."""
    return {
        "drawn number": rng.choice([-1, 1]) * 10 ** rng.uniform(-12, 15),
        "drawn whole number": rng.choice([-1, 1]) * rng.randrange(10 ** rng.randrange(1, 20)),
        "drawn word": "".join(chr(rng.randrange(1, 0x3000)) for _ in range(rng.randrange(1, 40))),
        "drawn list": [rng.choice([None, -1, "a", 1e9, [], {}]) for _ in range(rng.randrange(5))],
    }


def cases(work: Path, seed: int) -> list[Case]:
    """All cases; `work` is a folder to write to."""
    rng = random.Random(seed)
    found = []
    run_file, sweep_file = work / "run.yaml", work / "sweep.yaml"
    run_file.write_text(TINY.format(run_dir=work / "run"))
    sweep_file.write_text(f"config: {run_file}\nname: s\ngrid: {{compressor.n_latents: [2, 4]}}\n")
    for cls, file, accept in (
        (RunConfig, run_file, opens),
        (SweepConfig, sweep_file, lays_out),
    ):
        for key, hint in leaves(cls):
            for what, value in {**HOSTILE, **drawn(rng)}.items():
                deep = "[" * 2000 + "]" * 2000 if what == "deep" else written(value)
                kinds = kinds_of(hint)

                def run(cls=cls, file=file, accept=accept, key=key, text=deep, kinds=kinds):
                    config = load_config(cls, file, [f"{key}={text}"])
                    return misfit(config, key, kinds) or accept(config, file)

                name = f"{cls.__name__}: {key} = {what}"
                section = key.rpartition(".")[0]
                named = tuple(filter(None, (key, section.rpartition(".")[2], key.split(".")[-1])))
                draws = what.startswith("drawn")
                found.append(Case(name, run, named, seconds=25, apart=False, drawn=draws))
    return found


def misfit(config: Any, key: str, kinds: list[Any]) -> str | None:
    """What no field may hold: numbers that are none, or below zero; paths that lead outside."""
    value = config
    for part in key.split("."):
        value = getattr(value, part)
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, int | float) and not 0 <= each < float("inf"):
            return f"silent: {key} = {each}"
    twice = isinstance(value, list | tuple) and len({repr(v) for v in value}) < len(value)
    if twice and key != "source.net_arch":
        return f"silent: {key} = {value}"
    if key in ("evaluate.name", "ship.name", "name") and "/" in str(value):
        return f"silent: {key} = {value}"
    if key in ("methods", "seeds", "collect.styles") and not value:
        return f"silent: {key} is empty"
    return None


def opens(config: RunConfig, _: Path) -> str | None:
    """What a stage does before any work, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        if "rubbish" not in config.run_dir and config.run_dir.startswith("/"):
            config = replace(config, run_dir=f"{folder}/run")
        family, split = pipelines.opening.open_tasks(config)
        bare_run = pipelines.common.Run(config, Path(folder), family, split, None)  # type: ignore
        methods = list(dict.fromkeys([*config.methods, config.method]))
        pipelines.opening.check_models(bare_run, methods)
        return check_sources(config)


def check_sources(config: RunConfig) -> str | None:
    from teacher.sources import make_sources

    sections = {"source": config.source, "noise": config.noise, "posterior": config.posterior}
    make_sources(config.collect.styles, sections, config.collect.kwargs)
    return None


def lays_out(config: SweepConfig, file: Path) -> str | None:
    from pipelines import ablate

    if hasattr(ablate, "check_executor"):
        ablate.check_executor(config.executor, config.executor_options)
    lay_out(config, file)
    return None
