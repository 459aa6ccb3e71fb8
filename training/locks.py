"""Locks on what one process at a time may write, that say who holds them since when.

A lock ends with its process, however that ends. File systems that know no locks have none.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock, Timeout

from base.errors import UserError
from base.files import write_json
from training.run_dir import now

LOCKS_NAME = ".locks"
POLL_SECONDS = 0.2

_scope: ContextVar[ExitStack | None] = ContextVar("lock scope", default=None)


class LockedError(UserError):
    """Another process works on the same."""


@contextlib.contextmanager
def lock_scope() -> Iterator[None]:
    """Let go at the end of what `take_lock` takes inside."""
    with ExitStack() as stack:
        token = _scope.set(stack)
        try:
            yield
        finally:
            _scope.reset(token)


def take_lock(root: str | Path, name: str, *, wait: bool = False) -> bool:
    """Take a lock until the innermost `lock_scope` ends; outside of any, take none.

    Args:
        root: Folder that the lock is for, or that holds what it is for.
        name: Of what is written, a path relative to `root`.
        wait: Whether to wait for whoever holds it, saying so, or to refuse.

    Returns:
        Whether it is held now.

    Raises:
        LockedError: It is held by another; the message says by whom since when.
    """
    stack = _scope.get()
    if stack is None:
        return False
    path = Path(root) / LOCKS_NAME / name.replace("/", "-")
    lock, holder, told = FileLock(path, thread_local=False), path.with_suffix(".json"), False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            break
        except Timeout:
            held = f"{Path(root) / name} is being worked on by {_told(holder)}"
            if not wait:
                raise LockedError(f"{held}; wait until it has ended, or end it first.") from None
            if not told:
                print(f"{held}: waiting for it", flush=True)  # noqa: T201
            told = True
            time.sleep(POLL_SECONDS)
        except (NotImplementedError, PermissionError):  # nothing can be written there either
            return False
    stack.callback(lock.release)
    with contextlib.suppress(OSError, UserError):  # whoever holds it holds it, told or not
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": now()})
    return True


def _told(holder: Path) -> str:
    try:
        who = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
