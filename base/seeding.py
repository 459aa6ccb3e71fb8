"""Seeds: one per run, and from it one per purpose, so that no two random streams are the same."""

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """A seed for one named purpose, e.g. `derive(config.seed, "collect", task.index)`.

    Equal arguments give equal seeds on every machine and in every process; different ones give
    unrelated seeds, which `seed + i` does not.

    Returns:
        An integer in [0, 2**31), which numpy, torch, gymnasium and stable-baselines3 all accept.
    """
    text = repr((seed, *names))  # repr keeps 1 and "1", ("a", "b") and ("ab",) apart
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
