"""What it takes to play a task, not to name it: `python -m benchmarks.policy_codes out.csv`.

Of the best of 2^bits policies for each task, chosen on 400 tasks of a family and judged on 300
others: its normalised return, beside the bound where the family knows one. Words are all policies
of one action a state for random MDPs, for permuted rooms the optimal ones of 1,000 further tasks.
"""

import sys
from pathlib import Path

import numpy as np

from reports.files import write_csv
from tasks.bounds import codebook, optimal_policies, return_losses
from tasks.permuted_room import PermutedRoomFamily
from tasks.random_mdp import RandomMDPFamily
from tasks.references import TabularMDP, optimal_return, random_return
from tasks.return_bounds import every_policy

CHOOSE, JUDGE, WORDS = 400, 300, 1000
MOST_BITS = 8


def code_returns(mdps: list[TabularMDP], words: np.ndarray) -> list[float]:
    """Return what the best of 1, 2, 4 ... of these words earns in the tasks they are judged on."""
    spans = np.array([optimal_return(mdp) - random_return(mdp) for mdp in mdps])
    lost = return_losses(mdps, words) / spans[:, None]
    chosen = codebook(lost[:CHOOSE], 2**MOST_BITS)
    judged = lost[CHOOSE:]
    return [float(1 - judged[:, chosen[: 2**b]].min(1).mean()) for b in range(MOST_BITS + 1)]


def main() -> None:
    """Write a row for every number of bits."""
    n_tasks = CHOOSE + JUDGE
    chains = RandomMDPFamily(n_tasks=n_tasks)
    mdps = [chains.tabular(task) for task in chains.tasks()]
    rooms = PermutedRoomFamily(n_blocks=4, size=5, horizon=12, n_tasks=n_tasks + WORDS)
    grids = [rooms.tabular(task) for task in rooms.tasks()]
    bound = chains.return_bound(np.arange(MOST_BITS + 1.0))
    rows = zip(
        range(MOST_BITS + 1),
        code_returns(mdps, every_policy(mdps[0])),
        [None] * (MOST_BITS + 1) if bound is None else bound.returns.tolist(),
        code_returns(grids[:n_tasks], optimal_policies(grids[n_tasks:])),
        strict=True,
    )
    write_csv(Path(sys.argv[1]), ("bits", "random_mdp", "random_mdp_bound", "permuted_room"), rows)


if __name__ == "__main__":
    main()
