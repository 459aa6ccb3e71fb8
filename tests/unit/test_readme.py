"""README and docs are tested: snippets run, YAML loads, commands parse, links lead somewhere."""

import importlib.util
import re
import shlex
import types
import typing
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from ad.model import InContextModel, ModelConfig, Triple
from ad.policy import OptimalPolicy
from ad.rollout import rollout
from ad.student import CADStudent
from compression.memory import MemoryConfig
from histories.regions import MarkerRule
from histories.schema import check_history
from histories.sources import SourceJob
from histories.triples import build_triples
from nets.regions import Steps
from pipelines.cli import (
    EXPERIMENTS_CONFIG,
    SWEEP_CONFIG,
    run_or_sweep,
    stage_parser,
    sweep_or_list,
)
from pipelines.common import Run
from pipelines.config import RunConfig
from pipelines.demo import parser as demo_parser
from pipelines.experiments import ExperimentsConfig, read
from pipelines.models import build_model
from pipelines.opening import check_models, open_tasks
from pipelines.sweep import SweepConfig, lay_out
from tasks.family import TaskFamily, load_family
from tasks.search import search_policies
from teacher.model import TeacherConfig, TeacherModelConfig, teacher_class
from teacher.sources import make_sources
from training.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.name != "LOG.md"]
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "docs/LOG.md", *(ROOT / "docs/results").glob("*.md")]
STAGE_CALL = re.compile(r"^    run_stage\(\s*\"(\w+)\"", re.MULTILINE)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Snippet(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    @property
    def saved_as(self) -> str | None:
        """The file a reader is told to save it as, by its first line."""
        named = re.match(r"# (\S+\.(?:py|yaml))\n", self.text)
        return named.group(1) if named else None


def snippets(*languages: str) -> list[Snippet]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            line = text.count("\n", 0, block.start()) + 1
            found.append(Snippet(page.name, line, block.group(1), block.group(2)))
    return [snippet for snippet in found if snippet.language in languages]


def name_of(snippet: Snippet) -> str:
    return f"{snippet.page}:{snippet.line}"


def commands() -> list[str]:
    """Every launching command, in blocks and in backquotes, that names a stage."""
    lines = [line for snippet in snippets("bash") for line in snippet.text.splitlines()]
    for page in PAGES:
        lines += re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text(encoding="utf-8")))
    stage = re.compile(r"^(accelerate launch|torchrun|python) .*-m pipelines\.\w+ ")
    return sorted({line for line in lines if stage.match(line)})


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it: configs, the files shown, and an (untrained) student."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "configs").symlink_to(ROOT / "configs")
    for snippet in snippets("python", "yaml"):
        if snippet.saved_as:
            (folder / snippet.saved_as).write_text(snippet.text)
    config = load_config(RunConfig, ROOT / "configs/darkroom.yaml")
    student = build_model(opened(config))
    student.save_pretrained(str(folder / "runs/darkroom/seed_0/student/finetune/model"))
    return folder


@pytest.fixture
def there(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))
    return workplace


def opened(config: RunConfig) -> Run:
    """A run without its directory and accelerator, as far as `open_run` would let it come."""
    family, split = open_tasks(config)
    return Run(config, Path(config.run_dir), family, split, typing.cast(Any, None))


def check_run(config: RunConfig) -> None:
    """Every model the configuration asks for can be built."""
    check_models(opened(config), (config.method, *config.methods))


def write_results(folder: Path) -> None:
    """Evaluated methods under the run directories that a snippet compares."""
    from reports_data import write_run

    for name in ("m1", "darkroom"):
        write_run(folder / "runs" / name, methods=("student", "none"), seeds=(0,), source=False)


@pytest.mark.parametrize("snippet", snippets("python"), ids=name_of)
def test_python_snippet_runs(snippet: Snippet, there: Path, capsys: pytest.CaptureFixture[str]):
    if "write_comparison" in snippet.text:
        write_results(there)
    if "data/levers.h5" in snippet.text and "assemble" not in snippet.text:
        importing = next(s for s in snippets("python") if s.saved_as == "import_levers.py")
        exec(compile(importing.text, name_of(importing), "exec"), {})
    space = {"__name__": "snippet"}
    exec(compile(snippet.text, name_of(snippet), "exec"), space)
    if "print(" in snippet.text:
        assert capsys.readouterr().out.strip()


@pytest.mark.filterwarnings("ignore:.*Overriding environment")  # a snippet has registered it
@pytest.mark.parametrize("snippet", snippets("yaml"), ids=name_of)
def test_yaml_snippet_makes_a_run(snippet: Snippet, there: Path):
    assert snippet.saved_as, f"{name_of(snippet)} does not say which file it is"
    if run_or_sweep(snippet.saved_as) == SWEEP_CONFIG:
        lay_out(load_config(SweepConfig, snippet.saved_as), snippet.saved_as)
        return
    check_run(load_config(RunConfig, there / snippet.saved_as))


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.split("-m ")[1][:70])
def test_command_parses(command: str, there: Path):
    words = shlex.split(re.sub(r"\$\w+", "0", command))
    if words[0] == "torchrun":
        given = get_args_parser().parse_args(words[1:])
        assert given.module
    elif words[0] == "accelerate":
        given = launch_command_parser().parse_args(words[2:])
        assert given.module
        assert given.config_file is None or Path(given.config_file).is_file()
        # The trap: accelerate starts one process then, whatever it is told.
        assert not (given.cpu and given.num_processes)
    else:
        given = types.SimpleNamespace(
            training_script=words[2], training_script_args=words[3:], module=words[1] == "-m"
        )
    spec = importlib.util.find_spec(given.training_script)
    assert spec is not None, f"no stage {given.training_script}"
    if given.training_script == "pipelines.demo":  # knows no run, and no configuration
        demo_parser().parse_args(given.training_script_args)
        return
    path = Path(str(spec.origin))
    called = STAGE_CALL.search(path.read_text())
    assert called
    assert called.group(1) == path.stem
    dry = given.training_script in ("pipelines.ablate", "pipelines.run")
    flags = {"dry_run": ""} if dry else {}
    stage = stage_parser(given.training_script, None, flags).parse_intermixed_args(
        given.training_script_args
    )
    if sweep_or_list(stage.config) == EXPERIMENTS_CONFIG:
        assert given.training_script == "pipelines.ablate"
        read(load_config(ExperimentsConfig, stage.config, stage.overrides), stage.config)
        return
    if run_or_sweep(stage.config) == SWEEP_CONFIG:
        assert given.training_script in ("pipelines.ablate", "pipelines.compare")
        lay_out(load_config(SweepConfig, stage.config, stage.overrides), stage.config)
        return
    config = load_config(RunConfig, stage.config, stage.overrides)
    if given.training_script == "pipelines.run":
        check_run(config)


def test_every_stage_is_shown():
    told = " ".join(commands())
    for path in (ROOT / "pipelines").glob("*.py"):
        if STAGE_CALL.search(path.read_text()):
            assert f"pipelines.{path.stem} " in told


def anchors(page: Path) -> set[str]:
    """What headings of a page are linked by."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_and_make_targets_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in (*PAGES, *OTHERS):
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for link in re.findall(r"\]\(([^)]+)\)", text):
            if link.startswith("https://"):
                continue
            path, _, anchor = link.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), (page, link)
            assert not anchor or anchor in anchors(linked), (page, link)
        for target in re.findall(r"[`\n]make (?:\w+=\S+\s+)?(\w+)", page.read_text()):
            assert target in targets, (page, target)


def test_own_family_is_one(there: Path):
    family = load_family("my_levers:LeverFamily", {"horizon": 5})
    assert isinstance(family, TaskFamily)
    tasks = list(family.tasks())
    returns = rollout(OptimalPolicy(family, tasks), family, tasks, n_episodes=2, seed=0).returns
    assert (returns == [[family.optimal_return(task)] * 2 for task in tasks]).all()


def student_of(**settings) -> CADStudent:
    import fixtures

    torch.manual_seed(0)
    return fixtures.make_student(n_latents=3, **settings).eval()


def raw_context_model_of(target: str, n_context_regions: int) -> InContextModel:
    import fixtures

    torch.manual_seed(0)
    settings = asdict(TeacherConfig(target=target, n_context_regions=n_context_regions))
    fields = (fixtures.CELLS.to_json(), fixtures.CHOICE.to_json())
    model = asdict(ModelConfig(fixtures.WIDTH, fixtures.HEADS))
    config = TeacherModelConfig(*fields, fixtures.REGION_LEN, model, settings)
    return typing.cast(Any, teacher_class(target))(config).eval()


OWN_MODELS: dict[str, Callable[[], InContextModel]] = {
    "compressor": lambda: student_of(kind="my_compressor:LastStates"),
    "quantising compressor": lambda: student_of(kind="quantised_means:QuantisedMeans"),
    "bottleneck": lambda: student_of(bottleneck="signs:Signs"),
    "memory": lambda: student_of(memory=MemoryConfig("gated:Gated", 2)),
    "raw context": lambda: raw_context_model_of("recurrent:Recurrent", 2),
}


@pytest.mark.parametrize("name", OWN_MODELS)
def test_own_parts_act_as_they_are_trained(there: Path, name: str):
    import fixtures

    model = OWN_MODELS[name]()
    batch: Triple = fixtures.make_triple(4, model.n_context_regions)
    output = model(batch)
    assert output.parameters.shape[:2] == batch.query.mask.shape
    sum(output.losses.values(), output.parameters.sum()).backward()
    own = model.action_head if name == "raw context" else model.compressor
    assert all(p.grad is not None for p in own.parameters())

    batch.has_context[:], batch.context.mask[:] = True, True
    state, steps = model.start(4), Steps.of(batch.query)
    for k in range(model.n_context_regions):
        state = model.border(batch.context.map(lambda field, k=k: field[:, k]), state)
    acted = []
    for time in range(fixtures.REGION_LEN):
        fields = {n: field[:, time, None] for n, field in vars(steps).items() if n != "first"}
        acted.append(model.step(Steps(**fields, first=steps.first[time, None]), state))
    torch.testing.assert_close(torch.stack(acted, 1), model(batch).parameters)
    assert state.n_bytes > 0


def test_own_bits_are_counted(there: Path):
    import fixtures

    regions = fixtures.make_triple(4).query
    quantised = student_of(kind="quantised_means:QuantisedMeans", kwargs={"n_codes": 16})
    assert quantised.compress(regions).bits_per_region == 3 * 4
    signs = student_of(bottleneck="signs:Signs").compress(regions)
    assert signs.bits_per_region == 3 * fixtures.WIDTH
    assert set(signs.values.unique().tolist()) == {-1.0, 1.0}


def test_own_source_makes_histories(there: Path):
    config = load_config(RunConfig, there / "sticky.yaml")
    family, _ = open_tasks(config)
    (style,) = config.collect.styles
    source = make_sources([style], {}, config.collect.kwargs)[style]
    rule = MarkerRule("rollout", config.region_len)
    history = source(SourceJob(family, (family.tasks()[3],), (0, 1), style, 0, 4, 2, rule))[0]
    check_history(history, family.observation_space, family.action_space)
    paid = history.rewards[:, :-1] > 0
    assert paid.any()
    assert (history.actions[:, 1:] == history.actions[:, :-1])[paid].all()


def test_own_family_searches(there: Path):
    family = load_family("my_levers:LeverFamily", {"horizon": 5})
    task = family.tasks()[7]
    policy = search_policies(family, family.tasks())["posterior_sampling"]()
    returns = rollout(policy, family, [task] * 8, n_episodes=4, seed=0).returns
    assert (returns[:, 2:] == 5).all()  # ten levers are ruled out within two episodes of five pulls


def test_own_histories_become_triples(there: Path):
    importing = next(s for s in snippets("python") if s.saved_as == "import_levers.py")
    exec(compile(importing.text, name_of(importing), "exec"), {})
    config = load_config(RunConfig, there / "levers.yaml")
    built = build_triples(
        "data/levers.h5", "triples", split=opened(config).split, region_len=config.region_len
    )
    assert built.n_rows == {"train": 6 * 8 * 6, "validation": 2 * 8 * 6, "test": 2 * 8 * 6}
