"""What codes of sixteen letters can reach: `python -m benchmarks.block_codes out.csv`.

The letters are the contexts of the 32-bit keyed bandit, four levers each. Beside one another: whole
contexts kept and the others guessed, the best code found of all at once, and Shannon's bound.
"""

import sys
from pathlib import Path

from reports.files import write_csv
from tasks.block_codes import block_code_accuracy, block_code_bound
from tasks.bounds import keyed_bandit_accuracy

N, A = 16, 4


def main() -> None:
    """Write a row for every number of bits."""
    rows = []
    for bits in (1, 2, 4, 8, 16, 32):
        kept = min(bits / 2, N) / N
        whole = kept + (1 - kept) / A
        found, none = block_code_accuracy(N, A, bits), block_code_bound(N, A, bits)
        rows.append((bits, whole, found, none, keyed_bandit_accuracy(bits, N, A)))
        told = "{:3d} bits: whole contexts {:.3f}, together {:.3f}, no code {:.3f}, bound {:.3f}"
        print(told.format(*rows[-1]))
    columns = ("bits", "whole_contexts", "block_code", "no_code", "bound")
    write_csv(Path(sys.argv[1]), columns, rows)


if __name__ == "__main__":
    main()
