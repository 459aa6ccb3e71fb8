"""Reading a saved model: every weight there and of its shape, no code of a stranger's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from base.errors import UserError
from base.hashes import check_checksums

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
WEIGHTS_NAME = "model.safetensors"


class ModelError(UserError):
    """A saved model that cannot be loaded."""


def load_pretrained(
    load: Any, config_class: Any, path: Any, *args: Any, trust_model_code: bool, **kwargs: Any
) -> Any:
    """Load a model by transformers, or refuse what it would take in silence.

    Args:
        load: `from_pretrained` of transformers, bound to the model's class.
        config_class: Of the model.
        path: Folder, or a name on the hub.
        args: Passed to `load`.
        trust_model_code: Whether its config.json may name classes that are imported.
        kwargs: Passed to `load`.

    Returns:
        What `load` returns.

    Raises:
        UserError: A file is not as its checksums.json says.
        ModelError: A file is missing or damaged, weights and config.json do not fit each other, a
            weight is no number, or config.json names a class of somebody's own.
    """
    if Path(path).is_dir() and not (Path(path) / WEIGHTS_NAME).is_file():
        raise ModelError(f"{path} has no {WEIGHTS_NAME}, and no other file of weights is read.")
    check_checksums(path)
    told = kwargs.pop("output_loading_info", False)
    try:
        config = kwargs.pop("config", None)
        if not isinstance(config, config_class):
            hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
            config = config_class.from_pretrained(path, **hub)
        if not trust_model_code:
            _check_code(path, config)
        options = {**kwargs, "use_safetensors": True, "output_loading_info": True}
        options["ignore_mismatched_sizes"] = True  # they are told of below
        model, info = load(path, *args, config=config, **options)
        _check_weights(path, model, info)
    except ModelError:
        raise
    except UserError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0].rstrip(".")
        raise ModelError(f"the model in {path} cannot be loaded: {reason}.") from error
    return (model, info) if told else model


def _check_code(path: Any, config: Any) -> None:
    for key, target in getattr(config, "foreign_code", {}).items():
        raise ModelError(
            f"{path}: its config.json has {key} = {target!r}, code of whoever saved it; read that "
            "code, and load the model with trust_model_code=True if you trust it."
        )


def _check_weights(path: Any, model: Any, info: dict[str, Any]) -> None:
    for kind, told in (("missing", "lacks"), ("unexpected", "has besides"), ("mismatched", "has")):
        found = info.get(f"{kind}_keys") or ()
        if names := sorted(name if isinstance(name, str) else name[0] for name in found):
            shape = ", of another shape than its config.json says" if kind == "mismatched" else ""
            raise ModelError(
                f"{path}: {WEIGHTS_NAME} {told} {names[0]}{shape} ({len(names)} in all): it is "
                "damaged, or of another model."
            )
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(f"{path}: {name} of {WEIGHTS_NAME} holds what is no finite number.")
