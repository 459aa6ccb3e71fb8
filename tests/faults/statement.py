"""Does the statement that it is given: `python -m tests.faults.statement "print(1)"`."""

import sys

if __name__ == "__main__":
    exec(sys.argv[1])
