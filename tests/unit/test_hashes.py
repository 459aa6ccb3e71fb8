"""Hashes of configurations: keys may be added, and no default changes in silence."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from base.hashes import HASH_VERSION, config_hash, to_plain
from pipelines.config import FamilyConfig, RunConfig, SplitConfig
from pipelines.methods import METHODS, TRAINED
from pipelines.opening import open_tasks
from pipelines.stages import STAGES

GOLDEN = Path(__file__).resolve().parents[1] / "golden/defaults.yaml"


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclass(frozen=True)
class Section:
    layers: tuple[int, ...] = (1, 2)
    inner: Inner = field(default_factory=Inner)
    other: Inner = field(default_factory=lambda: Inner(0.5))


@dataclass(frozen=True)
class GrownInner(Inner):
    momentum: float = 0.9


@dataclass(frozen=True)
class GrownSection(Section):
    inner: Inner = field(default_factory=GrownInner)
    other: Inner = field(default_factory=lambda: GrownInner(0.5))
    depth: int = 4
    more: float | None = None


@pytest.mark.parametrize("given", [{}, {"layers": (3,)}])
@pytest.mark.parametrize("rate", [0.1, 0.2])
def test_a_new_key_changes_the_hash_only_where_it_is_set(given, rate):
    before = config_hash({"section": Section(**given, inner=Inner(rate))})
    assert config_hash({"section": GrownSection(**given, inner=GrownInner(rate))}) == before
    for changed in (
        GrownSection(**given, inner=GrownInner(rate), depth=5),
        GrownSection(**given, inner=GrownInner(rate), more=0.0),
        GrownSection(**given, inner=GrownInner(rate, momentum=0.8)),
    ):
        assert config_hash({"section": changed}) != before


def test_a_nested_section_has_the_default_its_owner_gives_it():
    assert config_hash(Section(other=Inner(0.5))) == config_hash(Section())
    hashes = {config_hash(Section(other=Inner(rate))) for rate in (0.1, 0.2, 0.5)}
    assert len(hashes) == 3


def test_keys_of_mappings_are_never_left_out():
    assert config_hash({"kwargs": {}}) != config_hash({"kwargs": {"size": 9}})
    assert config_hash({"kwargs": None}) != config_hash({})


def hashed_sections() -> Iterator[type]:
    """The dataclasses that any stage of any method hashes."""
    family = FamilyConfig(kwargs={"size": 3, "horizon": 5})
    config = RunConfig(family=family, split=SplitConfig(n_validation=1, n_test=1))
    _, split = open_tasks(config)
    for method in TRAINED:
        own = dataclasses.replace(config, method=method)
        for stage in STAGES.values():
            if stage.section and stage.name not in METHODS[method].stages:
                continue
            for value in stage.sections(own, split).values():
                yield from dataclasses_in(value)


def dataclasses_in(value: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(value):
        yield type(value)
        for entry in dataclasses.fields(value):
            yield from dataclasses_in(getattr(value, entry.name))


def defaults() -> dict[str, Any]:
    sections = {cls.__name__: to_plain(cls()) for cls in hashed_sections()}
    return {"hash_version": HASH_VERSION, **dict(sorted(sections.items()))}


def changed(golden: Any, now: Any, key: str) -> Iterator[str]:
    """Keys of the golden file that have another default now, or none."""
    if isinstance(golden, dict) and isinstance(now, dict):
        for name, value in golden.items():
            yield from changed(value, now.get(name, "nothing"), f"{key}.{name}".lstrip("."))
    elif golden != now:
        yield f"{key}: {golden} -> {now}"


def test_defaults_of_hashed_keys_are_what_they_were():
    golden, now = yaml.safe_load(GOLDEN.read_text()), defaults()
    told = "\n".join(changed(golden, now, ""))
    assert not told, (
        f"{told}\nA default that changes gives old hashes another meaning: raise "
        "base.hashes.HASH_VERSION, then write the file anew with `python tests/unit/test_hashes.py`"
    )


def test_every_hashed_key_has_its_default_on_record():
    golden = yaml.safe_load(GOLDEN.read_text())
    told = "\n".join(changed(defaults(), golden, ""))
    assert not told, f"{told}\nwrite the new keys down with `python tests/unit/test_hashes.py`"


def test_a_changed_default_is_noticed():
    golden = {"LossConfig": {"alpha": 1.0}}
    assert list(changed(golden, {"LossConfig": {"alpha": 0.5, "new": 1}}, "")) == [
        "LossConfig.alpha: 1.0 -> 0.5"
    ]
    assert list(changed(golden, {"LossConfig": {"alpha": 1.0, "new": 1}}, "")) == []
    assert list(changed(golden, {"LossConfig": {}}, "")) == ["LossConfig.alpha: 1.0 -> nothing"]


def write() -> None:
    """Write the golden file anew, unless that would hide a changed default."""
    known = yaml.safe_load(GOLDEN.read_text()) if GOLDEN.exists() else {}
    told = list(changed(known, defaults(), ""))
    if told and known["hash_version"] == HASH_VERSION:
        raise SystemExit("raise base.hashes.HASH_VERSION first:\n" + "\n".join(told))
    GOLDEN.write_text(
        "# Defaults of all keys that inputs hashes are made of; see base/hashes.py.\n"
        + yaml.safe_dump(defaults(), sort_keys=False, allow_unicode=True)
    )


if __name__ == "__main__":
    write()
