"""What a process imports before it works: nothing heavy for `--help`, else what it uses."""

import json
import subprocess
import sys
from pathlib import Path

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
for name in sys.argv[1].split(","):
    importlib.import_module(f"pipelines.{name}")
from pipelines.config import RunConfig
RunConfig()
print(json.dumps(sorted(sys.modules)))
"""
DRAWS = {"compare", "probe", "demo", "ship"}
"""Those that need more than training and acting do."""
HEAVY = {
    "datasets",
    "matplotlib",
    "stable_baselines3",
    "tensorboard",
    "vector_quantize_pytorch",
}
"""`transformers`, which models are saved by, brings scikit-learn, pandas and torch's compiler."""


def found_by(code: str, names: list[str]):
    command = [sys.executable, "-c", code, ",".join(names)]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)


def test_help_of_no_stage_imports_torch():
    assert {"run", "distill", "evaluate", "ablate", "demo"} < set(SCRIPTS)
    assert found_by(FOR_HELP, SCRIPTS) == {name: [True, False] for name in SCRIPTS}


def test_stages_import_no_library_they_do_not_use():
    imported = set(found_by(FOR_WORK, [name for name in SCRIPTS if name not in DRAWS]))
    assert "torch" in imported
    assert not imported & HEAVY
