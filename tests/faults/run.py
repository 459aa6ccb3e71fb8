"""The whole corpus: `python -m tests.faults.run --seed 0 --kills 20`; exits 1 if any broke."""

import argparse
import os
import tempfile
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="another one makes other cases")
    parser.add_argument(
        "--kills", type=int, default=20, help="signals at random moments; 0 for none"
    )
    parser.add_argument("--only", default="", help="cases whose name has this")
    parser.add_argument("--show", action="store_true", help="every verdict")
    arguments = parser.parse_args()

    import torch

    from tests.faults import configs, files, members
    from tests.faults.corpus import Verdict, judge_all, summary
    from tests.faults.kills import run_kills

    def tell(verdict: Verdict) -> None:
        if arguments.show or not verdict.well:
            last = (verdict.told.strip().splitlines() or [""])[-1][:300]
            print(f"{verdict.what} | {verdict.case} | {last}", flush=True)  # noqa: T201

    torch.set_num_threads(1)
    every, wrong = [], 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for module in (configs, members, files):
            (work / module.__name__).mkdir()
            cases = module.cases(work / module.__name__, arguments.seed)
            verdicts = judge_all([c for c in cases if arguments.only in c.name], tell)
            print(f"{module.__name__}: {summary(verdicts)}", flush=True)  # noqa: T201
            every += verdicts
        print(f"seed {arguments.seed}: {summary(every)}", flush=True)  # noqa: T201
        wrong = sum(not verdict.well for verdict in every)
        if arguments.kills:
            wrong += len(run_kills(work / "kills", arguments.kills, arguments.seed))
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
