"""The whole corpus: `python -m tests.faults.run --seed 0 --kills 20`; exits 1 if any broke.

It can be had in parts (`--parts configs members`, `--plans run`), and with `--keep FILE` it goes on
where it was stopped: what is written there is not tried again.
"""

import argparse
import importlib
import json
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

PARTS = ("configs", "members", "files", "commands", "rooms")


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
    found.add_argument("--only", default="", help="cases whose name has this")
    found.add_argument("--show", action="store_true", help="every verdict")
    found.add_argument("--keep", type=Path, help="file that verdicts are added to, and taken from")
    return found


class Kept:
    """Verdicts of earlier calls, a line of JSON each; of this seed alone."""

    def __init__(self, file: Path | None, seed: int) -> None:
        self.file, self.seed = file, seed
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        self.known = {row["case"]: row for row in rows if row["seed"] == seed}

    def add(self, case: str, what: str, told: str) -> None:
        row = {"seed": self.seed, "case": case, "what": what, "told": told[:500]}
        self.known[case] = row
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Try all; the number of what broke."""
    arguments = parser().parse_args(argv)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job
        signal.signal(signal.SIGINT, signal.default_int_handler)
    kept = Kept(arguments.keep, arguments.seed)

    import torch

    from tests.faults.corpus import Verdict, judge, summary
    from tests.faults.kills import PLANS, run_kills

    torch.set_num_threads(1)
    every: list[Verdict] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for part in arguments.parts:
            (work / part).mkdir()
            module = importlib.import_module(f"tests.faults.{part}")
            verdicts = []
            for case in module.cases(work / part, arguments.seed):
                if arguments.only not in case.name:
                    continue
                if row := kept.known.get(f"{part}: {case.name}"):
                    verdict = Verdict(case.name, row["what"], row["told"])
                else:
                    verdict = judge(case)
                    kept.add(f"{part}: {case.name}", verdict.what, verdict.told)
                verdicts.append(verdict)
                if arguments.show or not verdict.well:
                    last = (verdict.told.strip().splitlines() or [""])[-1][:300]
                    print(f"{verdict.what} | {case.name} | {last}", flush=True)  # noqa: T201
            print(f"{part}: {summary(verdicts)}", flush=True)  # noqa: T201
            every += verdicts
        print(f"seed {arguments.seed}: {summary(every)}", flush=True)  # noqa: T201
        wrong = sum(not verdict.well for verdict in every)
        if arguments.kills:
            plans = arguments.plans or tuple(PLANS)
            wrong += len(run_kills(work / "kills", arguments.kills, arguments.seed, plans))
    return wrong


if __name__ == "__main__":
    raise SystemExit(main() > 0)
