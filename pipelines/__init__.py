"""One script per stage: parse, build, fit, save. No modelling and no arithmetic.

Importing it checks the Python version, before anything imports the package `compression`: from 3.14
on the standard library has one of that name, which gzip, bz2 and lzma import from. Where it is
imported for `python -m`, Ctrl-C ends the process without a traceback until `pipelines.cli` answers.
"""

import signal
import sys


def check_python() -> None:
    """Stop with one sentence where our `compression` would shadow the standard library's."""
    if sys.version_info >= (3, 14):
        got = ".".join(str(part) for part in sys.version_info[:3])
        raise SystemExit(
            f"error: Python {got} has a standard package called 'compression', which this "
            "project's own folder would shadow; use Python 3.11, 3.12 or 3.13."
        )


check_python()
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job's SIG_IGN stays
