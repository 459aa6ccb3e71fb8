"""Objects named by import path, `module:Name`; how much is imported at once."""

import contextlib
import gc
import importlib
from collections.abc import Iterator
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


@contextlib.contextmanager
def many_imports() -> Iterator[None]:
    """Import thousands of modules without the garbage collector, at a process's start.

    It would look through all that has been imported so far again and again, for a quarter of the
    time that torch and transformers take, and find nothing. Nor does it look at that later.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        gc.freeze()
