"""Settings all tests share, and fixtures that more than one kind of test uses."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a busy machine are slower than one
os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # the same tests on every machine
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on the network
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job ignores Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run_stage() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs a stage as a user would: `run_stage("distill", config, "seed=1")`.

    It returns the completed process, with `returncode`, `stdout` and `stderr`; it checks nothing.
    """

    def run(stage: str, config: str | Path, *overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"pipelines.{stage}", "--config", str(config), *overrides]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    return run
