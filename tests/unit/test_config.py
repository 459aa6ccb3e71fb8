import dataclasses
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from base.errors import UserError
from base.hashes import config_hash
from base.ranges import (
    Above,
    AtLeast,
    Between,
    Choices,
    NonEmpty,
    describe,
    describe_range,
    describe_type,
    split_hint,
)
from pipelines.config import RunConfig
from pipelines.describe import main as describe_main
from pipelines.experiments import ExperimentsConfig
from pipelines.sweep import SweepConfig
from training.config import ConfigError, load_config, read_yaml, to_yaml


@dataclass(frozen=True)
class Pooling:
    kind: Literal["query_pooling", "pca", "none"] = "query_pooling"
    n_latents: Annotated[int, AtLeast(1)] = 8
    most_latents: int = 16
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n_latents > self.most_latents:
            raise ValueError(f"n_latents is {self.n_latents}, expected 1 ... {self.most_latents}")


@dataclass(frozen=True)
class Optim:
    lr: Annotated[float, Above(0)] = 1e-3
    betas: tuple[Annotated[float, Between(0, 1)], float] = (0.9, 0.999)
    milestones: list[int] = field(default_factory=list)
    widths: Annotated[tuple[Annotated[int, AtLeast(1)], ...], NonEmpty()] = (4,)
    dropout: Annotated[float, Between(0, 1, high_open=True)] | None = None
    nesterov: bool = False


@dataclass(frozen=True)
class Run:
    run_dir: str
    seed: int = 0
    max_region: int | None = None
    method: Annotated[str, Choices(("student", "teacher"))] = "student"
    methods: list[Annotated[str, Choices(("student", "teacher"))]] = field(default_factory=list)
    pooling: Pooling = field(default_factory=Pooling)
    optim: Optim = field(default_factory=Optim)
    second: Optim | None = None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        "run_dir: runs/a\npooling:\n  n_latents: 4\n  kwargs: {size: 5, start: [2, 2]}\n"
    )
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_file_over_defaults_and_overrides_over_file(file: Path):
    config = load_config(Run, file, ["seed=3", "pooling.n_latents=2", "optim.lr=1e-4"])
    assert config.run_dir == "runs/a"
    assert config.seed == 3
    assert config.pooling == Pooling(n_latents=2, kwargs={"size": 5, "start": [2, 2]})
    assert config.optim == Optim(lr=1e-4)


def test_later_override_wins(file: Path):
    assert load_config(Run, file, ["seed=3", "seed=4"]).seed == 4


def test_base_is_inherited_relative_to_the_file(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "root.yaml").write_text("run_dir: a\nseed: 1\noptim: {lr: 0.1, nesterov: true}\n")
    (tmp_path / "sub/mid.yaml").write_text("base: ../root.yaml\noptim: {lr: 0.2}\n")
    (tmp_path / "sub/leaf.yaml").write_text("base: mid.yaml\nseed: 2\n")
    config = load_config(Run, tmp_path / "sub/leaf.yaml")
    assert config == Run(run_dir="a", seed=2, optim=Optim(lr=0.2, nesterov=True))


def test_free_mapping_is_replaced_by_an_inheriting_file(tmp_path: Path, file: Path):
    child = tmp_path / "child.yaml"
    child.write_text("base: run.yaml\npooling: {kwargs: {arms: 3}}\n")
    assert load_config(Run, child).pooling == Pooling(n_latents=4, kwargs={"arms": 3})


def test_override_changes_one_entry_of_a_free_mapping_or_replaces_it(file: Path):
    assert load_config(Run, file, ["pooling.kwargs.size=7"]).pooling.kwargs == {
        "size": 7,
        "start": [2, 2],
    }
    assert load_config(Run, file, ["pooling.kwargs={}"]).pooling.kwargs == {}


def test_whole_section_as_override_keeps_its_other_keys(file: Path):
    config = load_config(Run, file, ["pooling={kind: pca}"])
    assert config.pooling == Pooling("pca", 4, kwargs={"size": 5, "start": [2, 2]})


def test_optional_section_opens_by_override(file: Path):
    assert load_config(Run, file).second is None
    assert load_config(Run, file, ["second.lr=2"]).second == Optim(lr=2.0)
    assert load_config(Run, file, ["second.lr=2", "second=null"]).second is None


def test_interpolation(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("run_dir: runs/n${seed}\nseed: 5\nmax_region: ${seed}\n")
    config = load_config(Run, path, ["seed=6"])
    assert (config.run_dir, config.max_region) == ("runs/n6", 6)


def test_types_are_those_of_the_fields(file: Path):
    config = load_config(Run, file, ["optim.lr=2", "optim.betas=[0, 1]", "optim.milestones=[1, 2]"])
    assert type(config.optim.lr) is float
    assert config.optim.betas == (0.0, 1.0)
    assert type(config.optim.betas[0]) is float
    assert config.optim.milestones == [1, 2]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1.0", "command line: seed: expected int, got 1.0 (float)."),
        ("seed='1'", "command line: seed: expected int, got '1' (str)."),
        ("seed=true", "command line: seed: expected int, got True (bool)."),
        ("seed=null", "command line: seed: expected int, got null."),
        ("optim.lr=fast", "optim.lr: expected float of more than 0, got 'fast' (str)."),
        ("optim.nesterov=1", "command line: optim.nesterov: expected bool, got 1 (int)."),
        ("run_dir=3", "command line: run_dir: expected str, got 3 (int)."),
        ("max_region=a", "command line: max_region: expected int or null, got 'a' (str)."),
        ("optim.milestones=[1, a]", "optim.milestones[1]: expected int, got 'a' (str)."),
        (
            "optim.betas=[1]",
            "betas: expected a list of 2 values (float of 0 ... 1, float), got [1]",
        ),
        ("optim=3", "command line: optim: expected a section, got 3 (int)."),
        ("second=3", "command line: second: expected a section or null, got 3 (int)."),
        ("pooling.kwargs=3", "command line: pooling.kwargs: expected a mapping, got 3 (int)."),
        (
            "pooling.kind=query",
            "pooling.kind: expected one of 'query_pooling', 'pca', 'none', got 'query' (str).",
        ),
        ("pooling.kind=pcs", "(did you mean 'pca'?)"),
        ("sed=1", "command line: sed: unknown key (did you mean 'seed'?); the top level has max_"),
        ("optim.lrr=1", "optim.lrr: unknown key (did you mean 'lr'?); section 'optim' has betas,"),
        ("n_latents=1", "n_latents: unknown key (did you mean 'pooling.n_latents'?);"),
        ("optin.lr=1", "command line: optin: unknown key (did you mean 'optim'?)"),
        ("seed.value=1", "command line: seed.value: seed is no section, it is int."),
        ("seed", "command line: 'seed' is no override; expected section.key=value."),
        ("=1", "is no override"),
        ("optim..lr=1", "is no override"),
        ("seed=[", "command line: 'seed=[' is not YAML: "),
        ("run_dir=${nowhere}", "nowhere"),
    ],
)
def test_a_mistaken_override_is_one_sentence(file: Path, override: str, said: str):
    assert said in refusal(file, override)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: x\nrun_dir: a", "bad.yaml: seed: expected int, got 'x' (str)."),
        ("seed: 3", "bad.yaml: run_dir: is missing and has no default; give str."),
        ("seed: [", "bad.yaml: not readable as YAML: "),
        ("seed: 1\nseed: 2", "duplicate key"),
        ("- 1", "bad.yaml: expected 'key: value' lines, got a list."),
        ("base: gone.yaml", "bad.yaml: base: no such file: "),
        ("base: 3", "bad.yaml: base: expected the path of a YAML file, got 3 (int)."),
        ("base: bad.yaml", "goes round in a circle"),
    ],
)
def test_a_mistaken_file_is_one_sentence(tmp_path: Path, text: str, said: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert said in refusal(path)


def test_mistake_in_a_base_names_the_base(tmp_path: Path):
    (tmp_path / "root.yaml").write_text("run_dir: a\nseed: x\n")
    (tmp_path / "leaf.yaml").write_text("base: root.yaml\noptim: {lr: 1}\n")
    assert refusal(tmp_path / "leaf.yaml").startswith(f"{tmp_path / 'root.yaml'}: seed: ")


def test_missing_file_names_its_neighbour(file: Path):
    assert "(did you mean 'run.yaml'?)" in refusal(file.with_name("runn.yaml"))


def test_refusal_of_post_init_names_section_and_places(file: Path):
    message = refusal(file, "pooling.most_latents=3")
    assert message.startswith(f"{file} and command line: pooling: n_latents is 4")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("pooling.n_latents=0", "pooling.n_latents: expected int of at least 1, got 0 (int)."),
        ("pooling={n_latents: 0}", "pooling.n_latents: expected int of at least 1, got 0 (int)."),
        ("second.lr=0", "second.lr: expected float of more than 0, got 0 (int)."),
        ("optim.lr=.nan", "optim.lr: expected a finite float of more than 0, got nan."),
        ("optim.lr=.inf", "optim.lr: expected a finite float of more than 0, got inf."),
        ("optim.betas=[0.5, -.inf]", "optim.betas[1]: expected a finite float, got -inf."),
        ("optim.betas=[1.5, 2]", "optim.betas[0]: expected float of 0 ... 1, got 1.5 (float)."),
        ("optim.dropout=1", "dropout: expected float of 0 ... 1 without 1 or null, got 1 (int)."),
        ("optim.dropout=.nan", "optim.dropout: expected a finite float of 0 ... 1 without 1 or "),
        ("optim.widths=[2, 0]", "optim.widths[1]: expected int of at least 1, got 0 (int)."),
        (
            "optim.widths=[]",
            "optim.widths: expected a list of int of at least 1, not empty, got [] (list).",
        ),
        (
            "method=techer",
            "method: expected one of 'student', 'teacher', got 'techer' (str) "
            "(did you mean 'teacher'?).",
        ),
        ("methods=[student, pca]", "methods[1]: expected one of 'student', 'teacher', got 'pca'"),
    ],
)
def test_a_value_out_of_range_is_one_sentence(file: Path, override: str, said: str):
    message = refusal(file, override)
    assert message.startswith("command line: ")
    assert said in message


def test_ends_of_a_range_are_in_it(file: Path):
    overrides = ["pooling.n_latents=1", "optim.betas=[1, -7]", "optim.dropout=0"]
    config = load_config(Run, file, [*overrides, "method=teacher", "methods=[teacher]"])
    assert config.pooling.n_latents == 1
    assert config.optim.betas == (1.0, -7.0)
    assert config.optim.dropout == 0.0
    assert (config.method, config.methods) == ("teacher", ["teacher"])
    assert load_config(Run, file, ["optim.dropout=null"]).optim.dropout is None


@pytest.mark.parametrize(
    ("hint", "kind", "limits", "whole"),
    [
        (Annotated[int, AtLeast(0)], "int", "0 or more", "int of 0 or more"),
        (Literal["a", "b"], "str", "one of 'a', 'b'", "one of 'a', 'b'"),
        (
            Annotated[float, Between(0, 1, low_open=True, high_open=True)],
            "float",
            "0 ... 1 without 0 and 1",
            "float of 0 ... 1 without 0 and 1",
        ),
        (
            typing.get_type_hints(Optim, include_extras=True)["widths"],
            "a list of int",
            "not empty, each at least 1",
            "a list of int of at least 1, not empty",
        ),
        (
            Annotated[int, Above(2)] | None,
            "int or null",
            "more than 2",
            "int of more than 2 or null",
        ),
        (dict[str, Any], "a mapping", "", "a mapping"),
    ],
)
def test_a_range_in_words(hint: Any, kind: str, limits: str, whole: str):
    assert (describe_type(hint), describe_range(hint), describe(hint)) == (kind, limits, whole)


def numbers_without_range(hint: Any, key: str = "") -> list[str]:
    """Keys below a section, optional ones too, whose numbers may be anything."""
    bare, ranges = split_hint(hint)
    if dataclasses.is_dataclass(bare):
        fields = typing.get_type_hints(bare, include_extras=True).items()
        return [
            found for name, of in fields for found in numbers_without_range(of, f"{key}.{name}")
        ]
    if bare in (int, float):
        return [] if ranges else [key]
    inside = typing.get_args(bare)
    return [found for each in inside for found in numbers_without_range(each, key)]


def test_every_number_has_a_range():
    optim = ["betas", "milestones"]
    assert numbers_without_range(Run) == [
        ".seed",
        ".max_region",
        ".pooling.most_latents",
        *(f".{section}.{name}" for section in ("optim", "second") for name in optim),
    ]
    assert numbers_without_range(RunConfig) == []
    assert numbers_without_range(SweepConfig) == []
    assert numbers_without_range(ExperimentsConfig) == []


@pytest.mark.parametrize(
    "override",
    [
        "distill.loss.tau=0",
        "distill.loss.beta=-1",
        "finetune.loss.label_smoothing=1",
        "train_teacher.optim.learning_rate=0",
        "train_teacher.optim.updates=0",
        "train_teacher.optim.log_every=0",
        "decoder.n_layers=0",
        "long_context.n_context_regions=0",
        "compressor.n_pooling_layers=0",
        "sampling.history_stride=0",
        "probe.n_pairs=0",
        "split.n_test=0",
        "noise.anneal_ratio=0",
        "source.batch_size=1",
        "collect.marker_rule=weekly",
        "collect.source_seeds=[]",
        "evaluate.part=all",
        "evaluate.temperature=-1",
        "seeds=[-1]",
    ],
)
def test_impossible_settings_of_a_run_are_refused(tmp_path: Path, override: str):
    (tmp_path / "run.yaml").write_text("run_dir: a\n")
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^command line: {key}(\[0\])?: expected "):
        load_config(RunConfig, tmp_path / "run.yaml", [override])


@pytest.mark.parametrize("cls", [RunConfig, SweepConfig])
def test_defaults_lie_in_their_ranges(cls: Any, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(to_yaml(cls()))
    assert load_config(cls, tmp_path / "config.yaml") == cls()


# --- the page of all keys -------------------------------------------------------------------------


def test_the_page_is_written_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- generated: begin -->\nold\n<!-- generated: end -->\nbelow\n")
    with pytest.raises(SystemExit) as told:
        describe_main(["--check", str(page)])
    assert told.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert "\nold\n" in page.read_text()
    describe_main([str(page)])
    describe_main(["--check", str(page)])
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    assert "old" not in text.split("## ")[0]
    rows = {row.split("|")[1].strip(): row for row in text.splitlines() if row.startswith("| `")}
    assert rows["`history_stride`"].startswith(
        "| `history_stride` | int | 1 ... 1000000 | `8` | Larg"
    )
    assert "| `1`; `long_context`: `4` | R, raw" in rows["`n_context_regions`"]
    assert "| one of 'local', 'ray', 'slurm' |" in rows["`executor`"]


def test_a_page_without_markers_is_refused(tmp_path: Path):
    (tmp_path / "page.md").write_text("nothing\n")
    with pytest.raises(SystemExit) as told:
        describe_main([str(tmp_path / "page.md")])
    assert told.value.code == 2
    assert (tmp_path / "page.md").read_text() == "nothing\n"


def test_config_error_is_a_user_error():
    assert issubclass(ConfigError, UserError)
    assert issubclass(UserError, ValueError)


def test_yaml_round_trip(tmp_path: Path):
    config = Run(
        run_dir="1e-4",  # a string that looks like a number
        max_region=None,
        pooling=Pooling(kwargs={"map": {"a": [1, 2.5, "x", None, True]}}),
        optim=Optim(lr=1e-5, betas=(0.5, 1.0), milestones=[1]),
        second=Optim(),
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(Run, path) == config


def test_read_yaml_is_what_the_file_says(file: Path):
    assert read_yaml(file)["pooling"]["n_latents"] == 4


def test_config_hash_goes_by_values():
    assert re.fullmatch("[0-9a-f]{16}", config_hash(Optim()))
    assert config_hash(Optim()) == config_hash(Optim(lr=0.001))
    assert config_hash(Optim()) != config_hash(Optim(lr=0.002))
    assert config_hash({"a": 1, "b": (2,)}) == config_hash({"b": [2], "a": 1})


def test_config_hash_stays_what_it_was():
    """Hashes are stored beside results; a change would make every finished stage look stale."""
    assert config_hash({"lr": 0.001, "betas": [0.9, 0.999]}) == "ca35345b99d38698"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seeds=[0,0]", "seeds: expected a list of .*nothing twice"),
        ("methods=[]", "methods: expected .*not empty"),
        ("methods=[student,student]", "methods: expected .*nothing twice"),
        ("evaluate.name=../../x", r"evaluate\.name: expected a plain name"),
        ("ship.name=a/b", r"ship\.name: expected a plain name"),
        ("run_dir=" + "x" * 300, "run_dir: expected a path"),
        ("seed=100000000000000000000", "seed: expected int .*at most 4294967295"),
        ("distill.loss={alpha: 0, beta: 0}", "alpha and beta are both 0"),
        ("compressor.kwargs=" + "[" * 2000 + "]" * 2000, "nested too deeply"),
    ],
)
def test_what_no_run_could_mean_is_refused(tmp_path: Path, override: str, told: str):
    (tmp_path / "a.yaml").write_text("seed: 0\n")
    with pytest.raises(ConfigError, match=told):
        load_config(RunConfig, tmp_path / "a.yaml", [override])


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("run_dir: ~/runs/a\ncompare: {also: [~/b]}\n")
    config = load_config(RunConfig, "~/a.yaml")
    assert config.run_dir == f"{tmp_path}/runs/a"
    assert config.compare.also == (f"{tmp_path}/b",)


def test_a_folder_is_no_configuration(tmp_path: Path):
    with pytest.raises(ConfigError, match=f"{tmp_path} is a folder"):
        load_config(RunConfig, tmp_path)


def test_a_batch_that_is_no_whole_windows_is_refused(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("sampling: {window: 4}\n")
    with pytest.raises(ConfigError, match=r"distill.optim.batch_size is 6, but sampling.window=4"):
        load_config(RunConfig, file, ["distill.optim.batch_size=6"])
    load_config(RunConfig, file, [])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["evaluate.number=int8", "compressor.bottleneck=fsq"], "bits of its own"),
        (["evaluate.n_shown=9"], "expected at most 8"),
        (
            [
                "compressor.bottleneck=vq",
                "compressor.bottleneck_kwargs.fitted=true",
                "finetune.enabled=false",
            ],
            "nothing would ever be coded",
        ),
        (["evaluate.n_shown=2"], "compressor.nested=true"),
        (
            ["evaluate.n_shown=2", "compressor.nested=true", "memory.kind=mine:Memory"],
            "memory.kind",
        ),
    ],
)
def test_latents_that_cannot_be_cut_down_are_refused(tmp_path, overrides, told):
    (tmp_path / "run.yaml").write_text("run_dir: runs/x\n")
    with pytest.raises(ConfigError, match=told):
        load_config(RunConfig, tmp_path / "run.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["sampling.jitter=0.02"], "less than a step"),
        (["sampling.jitter=0.2", "collect.marker_rule=episode"], "marker_rule=episode"),
        (["evaluate.region_len=81"], "more than 80 transitions"),
        (["evaluate.region_len=97", "sampling.jitter=0.2"], "more than 96 transitions"),
    ],
)
def test_lengths_that_regions_cannot_have_are_refused(tmp_path, overrides, told):
    file = tmp_path / "run.yaml"
    file.write_text("region_len: 80\n")
    with pytest.raises(ConfigError, match=told):
        load_config(RunConfig, file, overrides)
    given = ["evaluate.region_len=96", "sampling.jitter=0.2"]
    assert load_config(RunConfig, file, given).longest_region == 96


def test_codes_without_positions_are_refused(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("compressor: {latent_positions: none}\n")
    with pytest.raises(ConfigError, match="does not say which latent it is"):
        load_config(RunConfig, file, ["compressor.bottleneck=fsq"])
    load_config(RunConfig, file, ["compressor.bottleneck=gaussian"])


def test_a_memory_of_one_region_has_no_more(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("memory: {kind: accumulate, n_regions: 2}\n")
    load_config(RunConfig, file)
    load_config(RunConfig, file, ["memory.kind=one_shot", "memory.n_regions=1"])
    with pytest.raises(ConfigError, match=r"memory.n_regions is 2, but memory.kind=one_shot"):
        load_config(RunConfig, file, ["memory.kind=one_shot"])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["memory={kind: recurrent, n_regions: 2}"], "does not tell how far back"),
        (["memory={kind: retrieval, n_regions: 3}"], "does not tell how far back"),
        (["decoder.reads=prefix"], "read by self-attention"),
        (["compressor.online=8"], "have no place yet"),
        (["model.d_model=36", "model.n_heads=4"], "odd width"),
        (["finetune.loss.attention=1"], "finetune.loss.attention compares"),
    ],
)
def test_rotary_positions_are_refused_where_nothing_has_a_place(tmp_path, overrides, told):
    file = tmp_path / "run.yaml"
    file.write_text("compressor: {latent_positions: rotary}\n")
    load_config(RunConfig, file)
    with pytest.raises(ConfigError, match=told):
        load_config(RunConfig, file, overrides)
