"""What the jobs of the tests do; a module, so that every kind of worker can import it."""

import os
import signal
import sys
import time
from pathlib import Path

from base.errors import UserError


def write(path: str, text: str = "") -> int:
    Path(path).write_text(text)
    return os.getpid()


def wait_for(path: str) -> bool:
    """Whether the file appears within half a minute."""
    for _ in range(3000):
        if Path(path).exists():
            return True
        time.sleep(0.01)
    return False


def is_gone(pid: int) -> bool:
    """Whether the process ends within half a minute."""
    for _ in range(3000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def begin_and_wait_for(begun: str, path: str) -> bool:
    """Say that it has begun, by which process; then as `wait_for`, for ten minutes at most."""
    write(f"{begun}.new", str(os.getpid()))
    os.replace(f"{begun}.new", begun)
    return any(wait_for(path) for _ in range(20))


def speak() -> int:
    sys.stdout.write("said in Python\n")
    os.system("echo said by a child")
    sys.stderr.write("said to stderr\n")
    import torch  # here, so that the other workers start quickly

    return torch.get_num_threads()


def refuse() -> None:
    raise UserError("the moon is full; wait.")


def refuse_bytes() -> None:
    raise UserError("b\udcff is no name.")


def crash() -> None:
    raise RuntimeError("a defect")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def environment(name: str) -> str | None:
    return os.environ.get(name)


def linger(folder: str) -> None:
    """Say which process this is, work for long, and say if the end was orderly."""
    write(f"{folder}/starting", str(os.getpid()))
    os.replace(f"{folder}/starting", f"{folder}/started")
    try:
        for _ in range(6000):
            time.sleep(0.01)  # Ray interrupts between Python's steps, not within one
    finally:
        write(f"{folder}/cleaned")
