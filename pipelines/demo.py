"""Watch a trained model learn a task it has never seen, its weights frozen; no training.

Shows each episode's return, a few episodes as the family can show them in a terminal, and writes a
film where its environments draw pictures. `--model` is a model's folder, which needs nothing of the
run that trained it, or a run's directory.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence

from pipelines.cli import mistakes_told


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demonstration.

    Raises:
        SystemExit: 2 after a user's mistake, told in one sentence.
    """
    arguments = parser().parse_args(argv)
    with mistakes_told():
        from pipelines.demonstration import demonstrate  # late, so that --help is quick

        demonstrate(arguments)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m pipelines.demo",
        description=inspect.cleandoc(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    found.add_argument("--model", default="models/darkroom-student", metavar="FOLDER")
    found.add_argument(
        "--method", default="", help="of a run: student unless given; random, optimal, ... act too"
    )
    found.add_argument("--training-seed", type=int, metavar="N", help="of a run: its first")
    found.add_argument(
        "--task",
        type=int,
        metavar="N",
        help="which held-out task, from 1; unless given the one of least possible return",
    )
    found.add_argument("--episodes", type=int, default=40, metavar="N")
    found.add_argument("--seed", type=int, default=0, help="of the sampled actions")
    found.add_argument(
        "--trust-model-code",
        action="store_true",
        help="import the classes of somebody's own that the model's config.json names",
    )
    found.add_argument("--gif", default="runs/demo/demo.gif", metavar="FILE")
    return found


if __name__ == "__main__":
    main()
