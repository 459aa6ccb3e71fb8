"""How well codes of finitely many letters do: what Lloyd's algorithm finds, what none exceeds.

Shannon's bound is met by codes of endlessly many letters. A bandit of sixteen contexts has sixteen.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import binom

from tasks.bounds import keyed_bandit_accuracy

MOST_WORDS = 256
"""Of a codebook; where more bits are to be had, the letters are coded in runs side by side."""


def block_code_accuracy(
    n_letters: int,
    n_values: int,
    bits: int,
    *,
    seed: int = 0,
    n_samples: int = 16_384,
    n_rounds: int = 25,
) -> float:
    """Share of letters that a code of `bits` bits tells, for letters drawn evenly, independently.

    A codebook is improved by turns (Lloyd 1982; Linde, Buzo & Gray 1980): each message goes to the
    word that shares most letters with it, each word becomes its messages' commonest letters. It is
    judged on other messages than it was made from. Beyond `MOST_WORDS` the letters are coded in
    equal runs, each with as many of the bits: such a code is a lower bound of what can be reached,
    as Lloyd's is anyway.

    Args:
        n_letters: N, of a message.
        n_values: A, of a letter.
        bits: Of a message, so that 2^bits words, or those of each run, are to be had.
        seed: Of the messages and the first words.
        n_samples: Messages to fit on, and as many to judge on.
        n_rounds: Of improvement.

    Returns:
        Between 1/A and 1.

    Raises:
        ValueError: The letters cannot be shared out evenly over the runs that are needed.
    """
    n_runs = math.ceil(bits / math.log2(MOST_WORDS))
    if n_letters % n_runs or bits % n_runs:
        raise ValueError(f"{bits} bits for {n_letters} letters make no {n_runs} equal runs")
    length, n_words = n_letters // n_runs, 2 ** (bits // n_runs)
    if n_words >= n_values**length:
        return 1.0
    rng = np.random.default_rng(seed)
    one_hot = np.eye(n_values, dtype=np.float32)

    def messages(n: int) -> np.ndarray:
        return one_hot[rng.integers(n_values, size=(n, length))].reshape(n, -1)

    fitted, judged = messages(n_samples), messages(n_samples)
    words = messages(n_words)
    for _ in range(n_rounds):
        shared = fitted @ words.T + 1e-3 * rng.random((n_samples, n_words), dtype=np.float32)
        nearest = shared.argmax(-1)
        counts = 1e-3 * rng.random(words.shape, dtype=np.float32)  # ties fall at random
        np.add.at(counts, nearest, fitted)
        commonest = counts.reshape(n_words, length, n_values).argmax(-1)
        words = one_hot[commonest].reshape(n_words, -1)
    return float((judged @ words.T).max(-1).mean()) / length


def block_code_bound(n_letters: int, n_values: int, bits: float) -> float:
    """Share of letters that no code of `bits` bits exceeds, of letters drawn evenly.

    A message shares k letters or more with a given word with probability P(B >= k), B binomial, so
    with the nearest of 2^bits words with no more than that times their number (union bound);
    summed over k. Perfect codes reach it. Shannon's bound, where that is lower.

    Args:
        n_letters: N, of a message.
        n_values: A, of a letter.
        bits: Of a message.

    Returns:
        Between 1/A and 1.
    """
    reached = binom.sf(np.arange(n_letters), n_letters, 1 / n_values)  # (N,): of 1 ... N letters
    with np.errstate(over="ignore"):
        nearest = np.minimum(np.exp2(float(bits)) * reached, 1.0).mean()
    return min(float(nearest), keyed_bandit_accuracy(bits, n_letters, n_values))
