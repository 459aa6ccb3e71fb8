"""The whole corpus: `python -m tests.faults.run --seed 0 --kills 20`; exits 1 if any broke.

Commands are forks of this process; a share of the cases goes through the real command too, and must
come to the same verdict. It can be had in parts (`--parts configs members`, `--plans run`), and
with `--keep FILE` it goes on where it was stopped: what is written there is not tried again; nor
with another seed, unless the seed makes another case of it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.corpus import Case, Verdict

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

PARTS = ("configs", "members", "files", "commands", "rooms")
OF_COMMANDS = ("files", "commands", "rooms")
START = 60.0
"""Seconds that a real command may take longer than a fork."""


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--seed", type=int, default=0, help="another one makes other cases")
    found.add_argument(
        "--kills", type=int, default=20, help="signals at random moments; 0 for none"
    )
    found.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS, help="of the corpus")
    found.add_argument("--plans", nargs="*", default=None, help="what is killed; all unless given")
    found.add_argument(
        "--real", type=float, default=0.025, help="share that goes through real commands too"
    )
    found.add_argument("--only", default="", help="cases whose name has this")
    found.add_argument("--show", action="store_true", help="every verdict")
    found.add_argument("--keep", type=Path, help="file that verdicts are added to, and taken from")
    return found


class Kept:
    """Verdicts of earlier calls, a line each; of this seed, or of cases that draw nothing."""

    def __init__(self, file: Path | None, seed: int) -> None:
        self.file, self.seed = file, seed
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        known = [row for row in rows if row["seed"] == seed or not row["drawn"]]
        self.known = {row["case"]: row for row in known}

    def judged(self, part: str, case: Case) -> Verdict:
        """The verdict on a case, now or earlier."""
        from tests.faults.corpus import Verdict, judge

        key = f"{part}: {case.name}"
        if row := self.known.get(key):
            return Verdict(case.name, row["what"], row["told"])
        began = time.monotonic()
        verdict = judge(case)
        seconds = round(time.monotonic() - began, 2)
        told = verdict.told[-500:]
        row = {"seed": self.seed, "drawn": case.drawn, "case": key, "what": verdict.what}
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps(row | {"told": told, "seconds": seconds}) + "\n")
        return verdict


def try_part(part: str, work: Path, kept: Kept, arguments: argparse.Namespace) -> list[Verdict]:
    """Judge the cases of a part, some of them also as users do; tell what broke, and how many."""
    from tests.faults.corpus import summary

    verdicts, again, seed = [], [], arguments.seed
    for case in importlib.import_module(f"tests.faults.{part}").cases(work, seed):
        if arguments.only not in case.name:
            continue
        of_case = [kept.judged(part, case)]
        drawn = random.Random(f"{seed} {case.name}").random() < arguments.real
        if part in OF_COMMANDS and drawn:
            again.append(as_users_do(part, case, of_case[0], kept))
            of_case += again[-1:]
        verdicts += of_case[:1]
        for verdict in of_case:
            if arguments.show or not verdict.well:
                last = (verdict.told.strip().splitlines() or [""])[-1][:300]
                print(f"{verdict.what} | {verdict.case} | {last}", flush=True)  # noqa: T201
    print(f"{part}: {summary(verdicts)}", flush=True)  # noqa: T201
    if again:
        print(f"{part}, through the real command: {summary(again)}", flush=True)  # noqa: T201
    return verdicts + [verdict for verdict in again if not verdict.well]


def as_users_do(part: str, case: Case, forked: Verdict, kept: Kept) -> Verdict:
    """The verdict on a case through the real command, that must be the fork's."""
    from tests.faults import launch
    from tests.faults.corpus import Verdict

    name = f"{case.name} (real command)"
    with launch.as_users_do():
        found = kept.judged(part, replace(case, name=name, seconds=case.seconds + START))
    if found.what == forked.what:
        return found
    return Verdict(name, "differs", f"{found.what}, a fork's is {forked.what}: {found.told}")


def main(argv: Sequence[str] | None = None) -> int:
    """Try all; the number of what broke."""
    arguments, began = parser().parse_args(argv), os.times()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job
        signal.signal(signal.SIGINT, signal.default_int_handler)
    kept = Kept(arguments.keep, arguments.seed)

    import torch

    from tests.faults.corpus import memory, summary
    from tests.faults.kills import PLANS, run_kills

    torch.set_num_threads(1)
    every: list[Verdict] = []
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        work = Path(folder)
        for part in arguments.parts:
            (work / part).mkdir()
            every += try_part(part, work / part, kept, arguments)
        print(f"seed {arguments.seed}: {summary(every)}", flush=True)  # noqa: T201
        wrong = sum(not verdict.well for verdict in every)
        if arguments.kills:
            plans = arguments.plans or tuple(PLANS)
            wrong += len(run_kills(work / "kills", arguments.kills, arguments.seed, plans))
    used = os.times()
    minutes = used.elapsed - began.elapsed, sum(used[:4])
    told = "in {:.1f} minutes, with {:.1f} of processor time".format(*(n / 60 for n in minutes))
    print(told, flush=True)  # noqa: T201
    return wrong


if __name__ == "__main__":
    raise SystemExit(main() > 0)
