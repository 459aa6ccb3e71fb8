"""Checkpoints to resume from, written under a temporary name and renamed; read without pickle.

    <stage>/checkpoints/000500/
        model.safetensors     weights of what is trained
        best.safetensors      weights with the best validation score so far, if any
        optimizer.pt          optimiser and schedule state (tensors and numbers only)
        state.json            step, best score, best step, training seconds; hashes of all of it

Random numbers need no state: every update seeds them from (seed, step, rank).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from base.errors import UserError
from base.files import atomic_dir
from base.hashes import changed_file, hashes_of, is_signed, signed


class CheckpointError(UserError):
    """A checkpoint that cannot be read or does not fit."""


def save_checkpoint(
    stage_dir: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    best: dict[str, Tensor] | None,
) -> Path:
    """Write the checkpoint of a step and delete older ones.

    Args:
        stage_dir: The stage's directory.
        step: Updates done.
        model: What is trained.
        optimizer: Its optimiser.
        state: JSON-able progress.
        best: Best weights so far.

    Returns:
        The checkpoint's directory.
    """
    folder = stage_dir / "checkpoints"
    target = folder / f"{step:06d}"
    with atomic_dir(target) as temporary:
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, temporary / "model.safetensors")
        if best is not None:
            save_file(best, temporary / "best.safetensors")
        with (temporary / "optimizer.pt").open("wb") as file:  # a full disk is then told as one
            torch.save(optimizer.state_dict(), file)
        files = hashes_of(temporary, ["*"])
        content = signed({**state, "step": step, "files": files})
        (temporary / "state.json").write_text(json.dumps(content))
    for old in folder.iterdir():
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return target


def latest_checkpoint(stage_dir: Path) -> Path | None:
    """Return the checkpoint with the highest step, or None.

    Raises:
        CheckpointError: What should hold checkpoints is no folder.
    """
    folder = stage_dir / "checkpoints"
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; delete it to start the stage anew.")
    found = [path for path in folder.glob("*") if path.name.isdigit()]
    return max(found, key=lambda path: int(path.name), default=None)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """Load a checkpoint into a model and its optimiser.

    Returns:
        The progress and the best weights so far.

    Raises:
        CheckpointError: If it is damaged or of another shape.
    """
    try:
        state = _read_state(path)
        weights = load_file(path / "model.safetensors")
        best_file = path / "best.safetensors"
        best = load_file(best_file) if best_file.exists() else None
        optimizer_state = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} is damaged ({reason}); delete this folder to start the stage anew."
        ) from error
    load_weights(model, weights, path)
    try:
        optimizer.load_state_dict(optimizer_state)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the optimiser state in {path} does not fit this model ({error}); delete this folder "
            "to start the stage anew."
        ) from error
    return state, best


def _read_state(path: Path) -> dict[str, Any]:
    """The progress, all files of the checkpoint being as they were written."""
    state = json.loads((path / "state.json").read_text())
    if not isinstance(state, dict) or not is_signed(state):
        raise ValueError("state.json is not as it was written")
    if changed := changed_file(path, state.pop("files", {})):
        raise ValueError(f"{changed} is missing or not as it was written")
    if state.get("step") != int(path.name):
        raise ValueError(f"state.json has step {state.get('step')!r}")
    if state.get("best_step") is not None and not (path / "best.safetensors").is_file():
        raise ValueError("best.safetensors is missing")
    return state


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: Path | str) -> None:
    """Load weights that must fit exactly.

    Raises:
        CheckpointError: Naming the first parameter that does not fit.
    """
    own = model.state_dict()
    for name in [*own, *weights]:
        mine = tuple(own[name].shape) if name in own else "absent"
        theirs = tuple(weights[name].shape) if name in weights else "absent"
        if mine != theirs:
            raise CheckpointError(
                f"{source} does not fit this model: {name} is {theirs} there and {mine} here; "
                "use the configuration it was trained with, or another run_dir."
            )
    model.load_state_dict(weights)
