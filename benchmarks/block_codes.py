"""What codes of sixteen letters can reach: `python -m benchmarks.block_codes out.csv`.

The letters are the contexts of the 32-bit keyed bandit, four levers each. Beside one another: whole
contexts kept and the others guessed, the best code found of all at once, and Shannon's bound.
"""

import sys
from pathlib import Path

from reports.files import write_csv
from tasks.block_codes import block_code_accuracy
from tasks.bounds import keyed_bandit_accuracy

N, A = 16, 4


def main() -> None:
    """Write a row for every number of bits."""
    rows = []
    for bits in (1, 2, 4, 8, 16, 32):
        kept = min(bits / 2, N) / N
        whole = kept + (1 - kept) / A
        rows.append(
            (bits, whole, block_code_accuracy(N, A, bits), keyed_bandit_accuracy(bits, N, A))
        )
        print("{:3d} bits: whole contexts {:.3f}, together {:.3f}, bound {:.3f}".format(*rows[-1]))
    write_csv(Path(sys.argv[1]), ("bits", "whole_contexts", "block_code", "bound"), rows)


if __name__ == "__main__":
    main()
