"""The command line all stages share: `python -m pipelines.<stage> --config PATH key=value ...`.

A stage is a function of the resolved configuration; what it does is said in its module's docstring,
which is also its `--help`. A stage's script calls `run_stage` above its imports, so that neither
`--help` nor a mistyped command waits for torch.
"""

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

from base.errors import UserError, as_user_error
from base.imports import many_imports

RUN_CONFIG, SWEEP_CONFIG = "pipelines.config:RunConfig", "pipelines.sweep:SweepConfig"
EXPERIMENTS_CONFIG = "pipelines.experiments:ExperimentsConfig"
USER_ERROR = 2
INTERRUPTED = 130


def run_or_sweep(file: str) -> str:
    """Return which configuration a file holds: only a sweep has a grid."""
    from training.config import read_yaml

    return SWEEP_CONFIG if "grid" in read_yaml(file) else RUN_CONFIG


def sweep_or_list(file: str) -> str:
    """Return which configuration a file of `pipelines.ablate` holds: a sweep, or a list of them."""
    from training.config import read_yaml

    return EXPERIMENTS_CONFIG if "experiments" in read_yaml(file) else SWEEP_CONFIG


def run_stage(
    name: str,
    *,
    config_class: str | Callable[[str], str] = RUN_CONFIG,
    flags: Mapping[str, str] = MappingProxyType({}),
) -> NoReturn:
    """Run the stage whose script is being run, imported under its own name once it is needed.

    Args:
        name: Of the module of `pipelines`, whose `main` is the stage.
        config_class: See `run_main`.
        flags: Likewise.

    Raises:
        SystemExit: Always; 0 when the stage is done, otherwise as `run_main`.
    """
    doc = sys.modules["__main__"].__doc__
    with mistakes_told():  # all of it: a signal may come before and after `run_main`'s own
        stage_parser(f"pipelines.{name}", doc, flags).parse_intermixed_args()
        with many_imports(), missing_libraries_told():
            stage = importlib.import_module(f"pipelines.{name}").main
        run_main(stage, config_class=config_class, flags=flags)
        raise SystemExit(0)


def run_main(
    stage: Callable[..., object],
    argv: Sequence[str] | None = None,
    *,
    config_class: str | Callable[[str], str] = RUN_CONFIG,
    flags: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Parse the command line, load the configuration, run `stage` on it.

    Args:
        stage: what to run; its module's docstring becomes the help text.
        argv: the arguments; `sys.argv[1:]` unless given.
        config_class: `module:Class` of the configuration, or a function of the file that tells; a
            stage of another one than `RunConfig` is also given the file, as `file`.
        flags: switches `--name` besides and their help; the stage is given them by keyword.

    Raises:
        SystemExit: 2 after a user's mistake, told on stderr in one paragraph; 130 after Ctrl-C or
            SIGTERM. Any other exception is a defect and keeps its traceback.
    """
    doc = sys.modules[stage.__module__].__doc__ or stage.__doc__
    arguments = stage_parser(stage.__module__, doc, flags).parse_intermixed_args(argv)
    extra = {flag: getattr(arguments, flag) for flag in flags}
    with mistakes_told():
        from training.config import load_config  # late, so that --help is quick
        from training.locks import lock_scope

        target = config_class if isinstance(config_class, str) else config_class(arguments.config)
        if target != RUN_CONFIG:
            extra["file"] = arguments.config
        module, _, name = target.partition(":")
        kind = getattr(importlib.import_module(module), name)
        with lock_scope():
            stage(load_config(kind, arguments.config, arguments.overrides), **extra)


@contextlib.contextmanager
def missing_libraries_told() -> Iterator[None]:
    """Say in a sentence that this Python lacks what the stage imports, as any but ours does."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if not library or importlib.util.find_spec(library):
            raise  # a module of ours, or of a library's: a defect
        raise UserError(
            f"{sys.executable} has no module {library}; run `source .venv/bin/activate` first, "
            "after `make setup` made that environment, or install the project into this Python: "
            "python -m pip install --constraint constraints.txt --editable ."
        ) from error


@contextlib.contextmanager
def mistakes_told() -> Iterator[None]:
    """Turn a user's mistake into one paragraph and exit status 2; Ctrl-C and SIGTERM into 130.

    Whatever is raised after a signal came of it: libraries that are interrupted while they are
    imported or mend something raise errors of their own instead.
    """
    _signals.clear()
    if threading.current_thread() is threading.main_thread():  # others may set no handler
        signal.signal(signal.SIGTERM, _interrupt)
        if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _interrupt_again
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if _signals or isinstance(error, KeyboardInterrupt):
            told = "interrupted; run the same command again to go on"
            print(told, file=sys.stderr)  # noqa: T201
            raise SystemExit(INTERRUPTED) from None
        if (mistake := as_user_error(error)) is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)  # noqa: T201
        raise SystemExit(USER_ERROR) from None


_signals: list[int] = []
"""That have come."""


def _interrupt(number: int, _: object) -> NoReturn:
    _signals.append(number)
    raise KeyboardInterrupt


def _interrupt_again(lost: "sys.UnraisableHookArgs") -> None:
    """Interrupt a moment later where Python had to ignore it, in a destructor or callback."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    else:
        sys.__unraisablehook__(lost)


def stage_parser(
    name: str, doc: str | None, flags: Mapping[str, str] = MappingProxyType({})
) -> argparse.ArgumentParser:
    """Return the parser of a stage: its module's name and docstring, switches besides."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=inspect.cleandoc(doc or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="PATH", help="a YAML file of configs/")
    for flag, told in flags.items():
        parser.add_argument(f"--{flag.replace('_', '-')}", action="store_true", help=told)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings that win over the file, e.g. compressor.n_latents=4 run_dir=runs/try",
    )
    return parser
