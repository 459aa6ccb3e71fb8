"""What it takes to play random MDPs, not to name them: `python -m benchmarks.policy_codes out.csv`.

The 49-bit MDPs of `configs/families/random_mdp.yaml`. Beside one another: the best of so many
policies for each task, chosen on one half of the tasks and judged on the other, and the bound.
"""

import sys
from pathlib import Path

import numpy as np

from reports.files import write_csv
from tasks.bounds import codebook
from tasks.random_mdp import RandomMDPFamily
from tasks.return_bounds import policy_losses


def main() -> None:
    """Write a row for every number of bits."""
    family = RandomMDPFamily(n_tasks=1000)
    lost = policy_losses([family.tabular(task) for task in family.tasks()])
    bound = family.return_bound(np.arange(7.0))
    if lost is None or bound is None:
        raise RuntimeError("these tasks have 729 policies, and in each one is better than another")
    rows = []
    for bits, most in enumerate(bound.returns):
        words = codebook(lost[::2], 2**bits)
        rows.append((bits, float(1 - lost[1::2, words].min(1).mean()), float(most)))
        print("{} bits: {:.3f} from the best of so many policies, bound {:.3f}".format(*rows[-1]))
    write_csv(Path(sys.argv[1]), ("bits", "policy_code", "bound"), rows)


if __name__ == "__main__":
    main()
