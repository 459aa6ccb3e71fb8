import json
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from base.files import atomic_dir, atomic_file, write_json, write_npy, write_text
from base.hashes import content_hash
from training import run_dir as run_dir_module
from training.run_dir import RunDirError, claim_run_dir, git_sha, mark_done, read_meta, stage_done


@dataclass(frozen=True)
class Section:
    lr: float = 0.1
    layers: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Config:
    seed: int = 0
    section: Section = field(default_factory=Section)
    trackers: dict[str, str] = field(default_factory=dict)


def test_first_claim_writes_the_configuration_once(tmp_path: Path):
    claimed = claim_run_dir(tmp_path / "a/b", Config())
    file = claimed / "config.yaml"
    before = (file.read_text(), file.stat().st_mtime_ns)
    assert claim_run_dir(claimed, Config()) == claimed
    assert (file.read_text(), file.stat().st_mtime_ns) == before
    assert "lr: 0.1" in before[0]


def test_another_configuration_is_refused_and_nothing_changed(tmp_path: Path):
    claim_run_dir(tmp_path, Config())
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(
        RunDirError, match=r"section\.lr = 0\.1, but now section\.lr is 0\.2"
    ) as error:
        claim_run_dir(tmp_path, Config(section=Section(lr=0.2)), ignore=("seed",))
    assert "run_dir=..." in str(error.value)
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_section_that_is_none_is_refused(tmp_path: Path):
    file = claim_run_dir(tmp_path, Config()) / "config.yaml"
    file.write_text("section: lr\n")
    with pytest.raises(RunDirError, match=r"config\.yaml is damaged: section is \"lr\""):
        claim_run_dir(tmp_path, Config())
    assert file.read_text() == "section: lr\n"


def test_ignored_keys_and_sections_may_differ(tmp_path: Path):
    claim_run_dir(tmp_path, Config())
    other = Config(seed=4, trackers={"kind": "tensorboard"})
    claim_run_dir(tmp_path, other, ignore=("seed", "trackers"))
    with pytest.raises(RunDirError, match=r"trackers\.kind = nothing, but now"):
        claim_run_dir(tmp_path, other, ignore=("seed", "track"))


@dataclass(frozen=True)
class GrownSection(Section):
    momentum: float = 0.9


@dataclass(frozen=True)
class GrownConfig(Config):
    section: GrownSection = field(default_factory=GrownSection)
    threads: int = 1


def test_a_key_added_since_had_its_default(tmp_path: Path):
    claim_run_dir(tmp_path, Config(seed=1, section=Section(lr=0.2)))
    grown = GrownConfig(seed=1, section=GrownSection(lr=0.2))
    claim_run_dir(tmp_path, grown)
    with pytest.raises(RunDirError, match=r"section\.momentum = 0\.9, but now"):
        claim_run_dir(tmp_path, replace(grown, section=GrownSection(lr=0.2, momentum=0.5)))
    with pytest.raises(RunDirError, match="threads = 1, but now threads is 2"):
        claim_run_dir(tmp_path, replace(grown, threads=2))
    with pytest.raises(RunDirError, match=r"section\.lr = 0\.2"):
        claim_run_dir(tmp_path, GrownConfig(seed=1))


@dataclass(frozen=True)
class WithMapping:
    regions: dict[str, int] = field(default_factory=lambda: {"fast": 8})


def test_a_mapping_stands_for_itself_not_for_its_defaults_and_more(tmp_path: Path):
    for i, regions in enumerate(({}, {"slow": 3}, {"fast": 2})):
        claim_run_dir(tmp_path / str(i), WithMapping(regions))
        claim_run_dir(tmp_path / str(i), WithMapping(regions))
        with pytest.raises(RunDirError, match="regions"):
            claim_run_dir(tmp_path / str(i), WithMapping())


def test_key_that_the_new_configuration_lacks_is_a_difference(tmp_path: Path):
    write_text(tmp_path / "config.yaml", "seed: 0\nold: 1\n")
    with pytest.raises(RunDirError, match="old = 1, but now old is nothing"):
        claim_run_dir(tmp_path, Config(), ignore=("section", "trackers"))


def test_a_file_is_no_run_dir(tmp_path: Path):
    write_text(tmp_path / "x", "")
    with pytest.raises(RunDirError, match="is a file"):
        claim_run_dir(tmp_path / "x", Config())


def test_stage_is_done_after_mark_done_with_equal_inputs(tmp_path: Path):
    assert not stage_done(tmp_path / "stage", "aaaa")
    mark_done(tmp_path / "stage", "distill", "aaaa", seconds=1.5, parents={"t": "ff"}, device="cpu")
    assert stage_done(tmp_path / "stage", "aaaa")
    meta = read_meta(tmp_path / "stage")
    assert meta is not None
    assert meta["format_version"] == 1
    assert (meta["stage"], meta["inputs"], meta["seconds"]) == ("distill", "aaaa", 1.5)
    assert (meta["parents"], meta["device"]) == ({"t": "ff"}, "cpu")


def test_a_stage_of_an_older_version_is_refused_in_one_sentence(tmp_path: Path):
    meta = mark_done(tmp_path, "distill", "aaaa", seconds=0)
    assert stage_done(tmp_path, "aaaa")
    del meta["hash_version"], meta["checksum"]  # as the first version wrote it
    write_json(tmp_path / "meta.json", meta)
    with pytest.raises(RunDirError, match="made by another version of this code") as told:
        stage_done(tmp_path, "bbbb")
    assert "give another run_dir" in str(told.value)


def test_stage_with_other_inputs_is_refused(tmp_path: Path):
    mark_done(tmp_path, "distill", "aaaa", seconds=0)
    with pytest.raises(RunDirError, match="hash aaaa, now bbbb"):
        stage_done(tmp_path, "bbbb")


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 99}'])
def test_unknown_meta_is_refused(tmp_path: Path, text: str):
    write_text(tmp_path / "meta.json", text)
    with pytest.raises(RunDirError, match=r"meta\.json"):
        read_meta(tmp_path)


def test_git_sha_is_none_without_git(monkeypatch: pytest.MonkeyPatch):
    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(run_dir_module.subprocess, "run", absent)
    assert git_sha() is None


def test_git_sha_names_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", *identity, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    (tmp_path / "training").mkdir()
    write_text(tmp_path / "file", "1")
    git("init", "--quiet")
    git("add", "file")
    git("commit", "--quiet", "--message", "first")
    git("tag", "v1")
    monkeypatch.setattr(run_dir_module, "__file__", str(tmp_path / "training/run_dir.py"))
    assert git_sha() == git("rev-parse", "HEAD")
    write_text(tmp_path / "file", "2")
    assert git_sha() == git("rev-parse", "HEAD") + "-dirty"


def test_interrupted_file_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def interrupted() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_dir_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "model"
    with atomic_dir(path) as temporary:
        write_text(temporary / "sub/weights", "old")

    def interrupted() -> None:
        with atomic_dir(path) as temporary:
            write_text(temporary / "weights", "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.relative_to(path).as_posix() for p in path.rglob("*")] == ["sub", "sub/weights"]
    assert list(tmp_path.iterdir()) == [path]


def test_dir_is_replaced_whole(tmp_path: Path):
    for name in ("first", "second"):
        with atomic_dir(tmp_path / "model") as temporary:
            write_text(temporary / name, name)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_json_and_npy_read_back(tmp_path: Path):
    write_json(tmp_path / "a.json", {"x": [1, None, "γ"]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, None, "γ"]}
    write_npy(tmp_path / "a.npy", np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), [[0, 1, 2], [3, 4, 5]])


def test_json_refuses_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


def test_npy_refuses_objects(tmp_path: Path):
    with pytest.raises(ValueError, match="allow_pickle"):
        write_npy(tmp_path / "a.npy", np.array([{}], dtype=object))


def test_content_hash_goes_by_names_and_content(tmp_path: Path):
    for folder in ("a", "b"):
        write_text(tmp_path / folder / "sub/x", "1")
        write_text(tmp_path / folder / "y", "2")
    before = content_hash(tmp_path / "a")
    assert content_hash(tmp_path / "b") == before
    assert content_hash(tmp_path / "a", tmp_path / "b") != before
    write_text(tmp_path / "b/y", "3")
    assert content_hash(tmp_path / "b") != before
    (tmp_path / "a/y").rename(tmp_path / "a/z")
    assert content_hash(tmp_path / "a") != before
    with pytest.raises(FileNotFoundError):
        content_hash(tmp_path / "gone")


def test_claim_survives_a_yaml_round_trip_of_every_type(tmp_path: Path):
    config = replace(Config(), section=Section(lr=1e-5, layers=()), trackers={"a": "1e-4"})
    claim_run_dir(tmp_path, config)
    claim_run_dir(tmp_path, config)
