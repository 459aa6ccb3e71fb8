"""Codes of few letters, against exhaustive search and Shannon's bound."""

import itertools
import math

import numpy as np
import pytest

from tasks.block_codes import block_code_accuracy, block_code_bound
from tasks.bounds import keyed_bandit_accuracy

QUICK = {"n_samples": 4096, "n_rounds": 10}


def best_of_all(n_letters, n_values, n_words):
    """Share of letters told by the best of all codebooks."""
    messages = np.array(list(itertools.product(range(n_values), repeat=n_letters)))
    shared = (messages[:, None] == messages[None]).sum(-1)
    books = itertools.combinations(range(len(messages)), n_words)
    return max(shared[:, list(book)].max(-1).mean() for book in books) / n_letters


@pytest.mark.parametrize(("n_letters", "n_values", "bits"), [(2, 3, 1), (3, 2, 1), (3, 2, 2)])
def test_lloyd_finds_the_best_codebook_of_few_letters(n_letters, n_values, bits):
    found = max(block_code_accuracy(n_letters, n_values, bits, seed=s, **QUICK) for s in range(4))
    assert found == pytest.approx(best_of_all(n_letters, n_values, 2**bits), abs=0.02)


@pytest.mark.parametrize(("n_letters", "n_values", "bits"), [(2, 3, 1), (3, 2, 1), (3, 2, 2)])
def test_no_codebook_of_few_letters_passes_the_bound(n_letters, n_values, bits):
    best = best_of_all(n_letters, n_values, 2**bits)
    assert best <= block_code_bound(n_letters, n_values, bits) + 1e-12


@pytest.mark.parametrize(("length", "bits"), [(3, 1), (5, 1), (7, 4), (15, 11)])
def test_perfect_codes_reach_the_bound(length, bits):
    """Repetition and Hamming codes: every message lies within t letters of just one word."""
    t = length // 2 if bits == 1 else 1
    shares = [math.comb(length, d) * (length - d) for d in range(t + 1)]
    assert block_code_bound(length, 2, bits) == pytest.approx(
        sum(shares) / (length * sum(math.comb(length, d) for d in range(t + 1)))
    )


def test_the_bound_is_shannons_where_letters_are_many_and_all_or_chance_at_the_ends():
    assert block_code_bound(16, 4, 0) == 0.25
    assert block_code_bound(16, 4, 32) == block_code_bound(16, 4, 5000) == 1.0
    gaps = [
        keyed_bandit_accuracy(n / 2, n, 4) - block_code_bound(n, 4, n / 2) for n in (16, 256, 1000)
    ]
    assert gaps[0] > gaps[1] > gaps[2] >= 0


def test_longer_codes_do_better_and_none_passes_shannons_bound():
    short, long = (block_code_accuracy(n, 4, n // 2, **QUICK) for n in (2, 16))
    assert 0.4 < short < long < keyed_bandit_accuracy(8, 16, 4)


def test_runs_are_coded_side_by_side_and_full_rate_tells_all():
    assert block_code_accuracy(4, 4, 8) == 1.0
    one, two = block_code_accuracy(4, 4, 6, **QUICK), block_code_accuracy(8, 4, 12, **QUICK)
    assert one == pytest.approx(two, abs=0.02)
    with pytest.raises(ValueError, match="12 bits for 9 letters make no 2 equal runs"):
        block_code_accuracy(9, 4, 12)
