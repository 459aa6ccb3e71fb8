import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pipelines

ROOT = Path(__file__).resolve().parents[2]


def test_python_3_14_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    with pytest.raises(SystemExit, match=r"^error: Python 3\.14\.0 .*'compression'.*\.$"):
        importlib.reload(pipelines)


def test_python_3_13_is_welcome(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "version_info", (3, 13, 9, "final", 0))
    importlib.reload(pipelines)


def test_compression_holds_a_docstring_only():
    source = (ROOT / "compression/__init__.py").read_text()
    code = compile(source, "compression", "exec")
    assert set(code.co_names) == {"__doc__"}


def test_importing_pipelines_imports_nothing_heavy():
    """The guard must speak before anything that imports gzip."""
    script = "import pipelines, sys; print('gzip' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]
