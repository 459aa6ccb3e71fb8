"""The command line all stages share: `python -m pipelines.<stage> --config PATH key=value ...`.

A stage is a function of the resolved configuration; what it does is said in its module's docstring,
which is also its `--help`.
"""

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tasks.errors import UserError

if TYPE_CHECKING:
    from pipelines.config import RunConfig

USER_ERROR = 2
INTERRUPTED = 130


def run_main(stage: Callable[["RunConfig"], object], argv: Sequence[str] | None = None) -> None:
    """Parse the command line, load the configuration, run `stage` on it.

    Args:
        stage: what to run; its module's docstring becomes the help text.
        argv: the arguments; `sys.argv[1:]` unless given.

    Raises:
        SystemExit: 2 after a user's mistake, told on stderr in one paragraph; 130 after Ctrl-C.
            Any other exception is a defect and keeps its traceback.
    """
    arguments = _parser(stage).parse_intermixed_args(argv)
    from pipelines.config import RunConfig  # late, so that --help needs no torch
    from training.config import load_config

    try:
        stage(load_config(RunConfig, arguments.config, arguments.overrides))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(USER_ERROR) from None
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)  # noqa: T201
        raise SystemExit(INTERRUPTED) from None


def _parser(stage: Callable[..., object]) -> argparse.ArgumentParser:
    module = sys.modules[stage.__module__]
    spec = getattr(module, "__spec__", None)  # `python -m` sets __name__ to __main__, not this
    name = spec.name if spec else stage.__module__
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=inspect.cleandoc(module.__doc__ or stage.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="PATH", help="a YAML file of configs/")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings that win over the file, e.g. compressor.n_latents=4 run_dir=runs/try",
    )
    return parser
