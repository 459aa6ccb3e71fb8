import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from base.errors import UserError
from base.hashes import config_hash
from training.config import ConfigError, load_config, read_yaml, to_yaml


@dataclass(frozen=True)
class Pooling:
    kind: Literal["query_pooling", "pca", "none"] = "query_pooling"
    n_latents: int = 8
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n_latents < 1:
            raise ValueError(f"n_latents is {self.n_latents}, expected at least 1")


@dataclass(frozen=True)
class Optim:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    milestones: list[int] = field(default_factory=list)
    nesterov: bool = False


@dataclass(frozen=True)
class Run:
    run_dir: str
    seed: int = 0
    max_region: int | None = None
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
    assert config.pooling == Pooling("pca", 4, {"size": 5, "start": [2, 2]})


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
        ("optim.lr=fast", "command line: optim.lr: expected float, got 'fast' (str)."),
        ("optim.nesterov=1", "command line: optim.nesterov: expected bool, got 1 (int)."),
        ("run_dir=3", "command line: run_dir: expected str, got 3 (int)."),
        ("max_region=a", "command line: max_region: expected int or null, got 'a' (str)."),
        ("optim.milestones=[1, a]", "optim.milestones[1]: expected int, got 'a' (str)."),
        ("optim.betas=[1]", "optim.betas: expected a list of 2 values (float, float), got [1]"),
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
    message = refusal(file, "pooling.n_latents=0")
    assert message.startswith(f"{file} and command line: pooling: n_latents is 0")


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
