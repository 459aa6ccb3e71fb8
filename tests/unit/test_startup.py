"""What a process imports before it works: nothing heavy for `--help`, else what it uses."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
from histories_data import collect_small

from base.imports import many_imports
from histories.triples import build_triples

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "pipelines").glob("*.py")
    if 'if __name__ == "__main__":' in path.read_text()
)
FOR_HELP = """
import contextlib, io, json, runpy, sys
told = {}
for name in sys.argv[1].split(","):
    sys.argv = ["", "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        runpy.run_module(f"pipelines.{name}", run_name="__main__")
    told[name] = "usage: python -m pipelines." + name in out.getvalue(), "torch" in sys.modules
print(json.dumps(told))
"""
FOR_WORK = """
import importlib, json, sys
from pathlib import Path
for name in sys.argv[1].split(","):
    importlib.import_module(f"pipelines.{name}")
from pipelines.config import RunConfig
RunConfig()
from compression.compressor import KINDS, compressor_class
for kind in KINDS:
    compressor_class(kind)
from histories.table import RegionTable
RegionTable.load(Path(sys.argv[2]))
print(json.dumps(sorted(sys.modules)))
"""
DRAWS = {"compare", "probe", "demo", "ship"}
"""Those that need more than training and acting do."""
HEAVY = {
    "datasets",
    "matplotlib",
    "pandas",
    "sklearn",
    "stable_baselines3",
    "tensorboard",
    "vector_quantize_pytorch",
}
"""`transformers`, which models are saved by, brings torch's compiler, sympy and scipy."""


def found_by(code: str, names: list[str], *more: Path):
    command = [sys.executable, "-c", code, ",".join(names), *map(str, more)]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)


def test_help_of_no_stage_imports_torch():
    assert {"run", "distill", "evaluate", "ablate", "demo"} < set(SCRIPTS)
    assert found_by(FOR_HELP, SCRIPTS) == {name: [True, False] for name in SCRIPTS}


def test_stages_import_no_library_they_do_not_use(tmp_path):
    build_triples(collect_small(tmp_path).path, tmp_path)
    names = [name for name in SCRIPTS if name not in DRAWS]
    imported = set(found_by(FOR_WORK, names, tmp_path / "train"))
    assert {"torch", "pyarrow"} <= imported
    assert not imported & HEAVY


def test_many_imports_are_made_without_the_garbage_collector():
    before = gc.get_freeze_count()
    try:
        with pytest.raises(ImportError), many_imports():  # noqa: PT012
            within = gc.isenabled()
            raise ImportError
        assert (within, gc.isenabled()) == (False, True)
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
