"""Objects named by import path, `module:Name`."""

import importlib
from typing import Any


class ImportPathError(ValueError):
    """An import path leads to nothing; the message says why, for a sentence of the caller's."""


def import_object(path: str) -> Any:
    """What `module:Name` names.

    Raises:
        ImportPathError: The path is not of that form, the module cannot be imported, whatever it
            raises, or it has no such name.
    """
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ImportPathError(f"{path!r} is not of the form module:Name")
    try:
        imported = importlib.import_module(module)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ImportPathError(
            f"module {module!r} cannot be imported ({reason}); is its folder on PYTHONPATH?"
        ) from error
    if not hasattr(imported, name):
        raise ImportPathError(f"module {module!r} has no {name!r}")
    return getattr(imported, name)
