"""Saved models: a weight too few or too many, of another shape, or code of a stranger's."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ad.loading import ModelError
from ad.student import CADStudent
from pipelines.shown import DemoError, actor_of
from tests.fixtures import FirstTokens, make_student

Weights = dict[str, torch.Tensor]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_student().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: {k: v for k, v in w.items() if not k.startswith("decoder")}, "lacks decoder"),
        (lambda w: {**w, "another": torch.zeros(1)}, "has besides another"),
        (lambda w: {k: v[:1].clone() if v.ndim else v for k, v in w.items()}, "of another shape"),
        (lambda w: {k: v * float("nan") for k, v in w.items()}, "no finite number"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    saved: Path, change: Callable[[Weights], Weights], told: str
):
    weights = load_file(saved / "model.safetensors")
    save_file(change(weights), saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=told) as error:
        CADStudent.from_pretrained(saved)
    assert str(saved) in str(error.value)


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_no_other_file_of_weights_is_read(saved: Path, tmp_path: Path):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ModelError, match="no other file of weights is read"):
        CADStudent.from_pretrained(saved)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"parts": [1]},
        {"region_len": "x"},
        {"observation": {"kind": 3}},
        {"parts": {"model": {"d_model": -4}}},
    ],
)
def test_a_damaged_config_is_told_in_a_sentence(saved: Path, change: dict):
    config = json.loads((saved / "config.json").read_text())
    for key, value in change.items():
        section = config[key] if isinstance(value, dict) else None
        config[key] = {**section, **value} if section else value
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="model"):
        CADStudent.from_pretrained(saved)


def test_code_that_a_model_names_is_imported_only_on_trust(tmp_path: Path):
    kind = f"{FirstTokens.__module__}:FirstTokens"
    student = make_student(kind)
    with open("models/darkroom-student/config.json", encoding="utf-8") as file:
        student.config.provenance = json.load(file)["provenance"]
    student.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"compressor\.kind = .*trust_model_code=True"):
        actor_of(tmp_path)
    actor = actor_of(tmp_path, trust_model_code=True)
    policy: Any = actor.policy_for(actor.tasks[0])
    assert isinstance(policy.model.compressor, FirstTokens)


@pytest.mark.parametrize(
    "provenance",
    [
        {"family": "os:getcwd"},
        {
            "family": "tasks.gymnasium_family:GymnasiumFamily",
            "family_kwargs": {"env_id": "antigravity:CartPole-v1"},
        },
    ],
)
def test_a_family_that_a_model_names_is_imported_only_on_trust(provenance: dict, tmp_path: Path):
    student = make_student()
    student.config.provenance = provenance
    student.save_pretrained(tmp_path)
    with pytest.raises(DemoError, match="--trust-model-code"):
        actor_of(tmp_path)


def test_a_copy_of_what_is_shipped_needs_no_trust(tmp_path: Path):
    shutil.copytree("models/darkroom-student", tmp_path / "copy")
    assert actor_of(tmp_path / "copy").family.name.startswith("darkroom")
