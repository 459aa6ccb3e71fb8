"""Stage for the command line's own tests: this docstring is its help text."""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

from base.errors import UserError
from pipelines import cli
from pipelines.cli import mistakes_told, run_main


@dataclass(frozen=True)
class TinyConfig:
    seed: int = 0
    name: str = "a"


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A YAML file for a configuration smaller than the real one, which takes seconds to import."""
    module = ModuleType("pipelines.config")
    module.RunConfig = TinyConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipelines.config", module)
    (tmp_path / "a.yaml").write_text("seed: 3\n")
    return str(tmp_path / "a.yaml")


def test_stage_gets_the_resolved_configuration(config_file: str):
    seen: list[object] = []

    def stage(config: object) -> None:
        seen.append(config)

    run_main(stage, ["--config", config_file, "name=b"])
    run_main(stage, ["seed=4", "--config", config_file, "name=c"])
    assert seen == [TinyConfig(3, "b"), TinyConfig(4, "c")]


def fail(error: BaseException):
    def stage(_: object) -> None:
        raise error

    return stage


def test_users_mistake_is_one_paragraph_and_exit_2(
    config_file: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        run_main(fail(UserError("the door is shut; open it.")), ["--config", config_file])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: the door is shut; open it.\n"


def test_mistaken_configuration_is_a_users_mistake(
    config_file: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        run_main(fail(AssertionError("never run")), ["--config", config_file, "sed=1"])
    assert ended.value.code == 2
    assert "sed: unknown key (did you mean 'seed'?)" in capsys.readouterr().err


def test_defect_keeps_its_traceback(config_file: str):
    with pytest.raises(ValueError, match="ours"):
        run_main(fail(ValueError("ours")), ["--config", config_file])


def test_ctrl_c_exits_130(config_file: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        run_main(fail(KeyboardInterrupt()), ["--config", config_file])
    assert ended.value.code == 130
    assert "again" in capsys.readouterr().err


def test_help_is_the_stages_docstring(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        run_main(fail(AssertionError("never run")), ["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "this docstring is its help text" in told
    assert "key=value" in told


def test_config_is_required(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        run_main(fail(AssertionError("never run")), [])
    assert ended.value.code == 2
    assert "--config" in capsys.readouterr().err


@pytest.fixture
def _handlers(monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("made_of_it", [UserError("no YAML"), RecursionError("too deep")])
def test_what_a_library_makes_of_an_interruption_is_one(number, made_of_it, capsys):
    def library() -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise made_of_it from None

    with pytest.raises(SystemExit) as ended, mistakes_told():
        library()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to go on\n"


@pytest.mark.usefixtures("_handlers")
def test_a_signal_before_the_stage_is_an_interruption(monkeypatch, capsys):
    stage = ModuleType("pipelines.a_stage")
    stage.main = lambda config: None
    monkeypatch.setitem(sys.modules, stage.__name__, stage)
    monkeypatch.setattr(sys, "argv", ["a_stage", "--config", "a.yaml"])
    monkeypatch.setattr(cli, "run_main", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        cli.run_stage("a_stage")
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.usefixtures("_handlers")
def test_a_signal_while_the_command_line_is_read_is_an_interruption(monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli, "stage_parser", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.run_stage("a_stage")
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.usefixtures("_handlers")
def test_a_python_without_the_libraries_is_told_in_a_sentence(monkeypatch, capsys):
    def without(name: str) -> NoReturn:
        raise ModuleNotFoundError(f"No module named {name!r}", name="a_library.of_many")

    monkeypatch.setattr(sys, "argv", ["a_stage", "--config", "a.yaml"])
    monkeypatch.setattr(cli.importlib, "import_module", without)
    with pytest.raises(SystemExit) as ended:
        cli.run_stage("a_stage")
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {sys.executable} has no module a_library; run `source")


@pytest.mark.parametrize("name", ["-m", "a script"])
def test_ctrl_c_during_the_first_imports_of_a_command_tells_no_traceback(name):
    """What `python -m pipelines.x` finds in `sys.argv[0]` while it imports the package."""
    code = (
        f"import signal, sys; sys.argv[0] = {name!r}; import pipelines; "
        "signal.raise_signal(signal.SIGINT)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGINT
    assert ("Traceback" in ended.stderr) == (name != "-m")


@pytest.mark.usefixtures("_handlers")
def test_an_interruption_that_python_ignores_comes_again():
    class Interrupted:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def work() -> None:
        Interrupted()
        time.sleep(10)

    with pytest.raises(SystemExit) as ended, mistakes_told():
        work()
    assert ended.value.code == 130
