"""Bounds on return as families offer them: against published numbers, every policy, and a code."""

import itertools

import numpy as np
import pytest

from tasks.bandits import BernoulliBanditFamily, KeyedBanditFamily
from tasks.bounds import (
    codebook_distortion,
    optimal_policies,
    policy_returns,
    rate_distortion,
    return_losses,
)
from tasks.darkroom import DarkRoomFamily
from tasks.random_mdp import RandomMDPFamily
from tasks.references import TabularMDP, optimal_return, random_return
from tasks.return_bounds import return_bound, shared_dynamics_bound

BITS = np.array([0.0, 0.3, 0.9, 1.4, 1.9])


def normalized_losses(mdps, policies=None):
    spans = np.array([optimal_return(mdp) - random_return(mdp) for mdp in mdps])
    return return_losses(mdps, policies) / spans[:, None]


def test_keyed_bandit_is_bounded_by_published_accuracies():
    shares = np.array([0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1, 2])
    for family in (KeyedBanditFamily(16, 4, n_tasks=5), KeyedBanditFamily(64, 4, n_tasks=5)):
        bound = family.return_bound(shares * 2 * family.episode_len)
        known = np.array([0.25, 0.526, 0.646, 0.811, 0.926, 1, 1])
        assert bound.accuracies == pytest.approx(known, abs=6e-4)
        assert bound.returns == pytest.approx((known - 0.25) / 0.75, abs=1e-3)
        assert bound.told == pytest.approx(np.minimum(shares, 1) * 2 * family.episode_len)
        assert bound.own_episode
    assert not KeyedBanditFamily(4, 4, n_tasks=5, order="sampled").return_bound(shares).own_episode


def test_no_code_of_levers_beats_the_bound_though_it_sees_each_context_pay():
    # One parity bit of two levers: no news of the first, all of the second once the first is seen.
    bound = KeyedBanditFamily(2, 2, n_tasks=4).return_bound(np.array([1.0]))
    keys = np.array(list(itertools.product(range(2), repeat=2)))  # (4, 2)
    parity = keys.sum(1) % 2
    second = (parity - keys[:, 0]) % 2  # what the first pull showed, and the parity
    accuracy = (0.5 + (second == keys[:, 1]).mean()) / 2
    assert accuracy == 0.75
    assert accuracy <= bound.accuracies[0] == pytest.approx(1 - 0.110028, abs=1e-5)


def test_a_dark_room_is_bounded_for_every_path():
    family = DarkRoomFamily(size=2, horizon=3, start=(0, 0))
    mdps = [family.tabular(task) for task in family.tasks()]
    paths = np.array(list(itertools.product(range(5), repeat=3)))  # (125, H) actions, state or not
    policies = np.repeat(np.eye(5)[paths][:, :, None], 4, axis=2)  # (125, H, S, A)
    every = np.concatenate([policies, optimal_policies(mdps)])
    exact = 1 - rate_distortion(normalized_losses(mdps, every)).distortion(np.maximum(BITS, 1e-9))
    bound = family.return_bound(BITS).returns
    assert (bound >= exact - 1e-3).all()  # of no path more
    assert bound == pytest.approx(exact, abs=0.12)
    assert (np.diff(bound) > 0).all()


def test_hedging_paths_beat_optimal_ones_and_stay_below_the_bound():
    # Two goals in a row: on the way to the far one the near one is passed, and pays.
    following = np.array([[1], [2], [2]])
    mdps = [
        TabularMDP.deterministic(following, np.array([[float(goal == s)] for s in (1, 2, 2)]), 0, 2)
        for goal in (1, 2)
    ]
    mixed = np.tile([[0.0, 1.0]], (3, 1))
    two = [
        TabularMDP.deterministic(
            np.c_[np.arange(3), following[:, 0]], np.c_[np.zeros(3), mdp.rewards], 0, 2
        )
        for mdp in mdps
    ]
    hedge = np.broadcast_to(mixed, (1, 2, 3, 2))
    assert policy_returns(two[0], hedge)[0] == policy_returns(two[1], hedge)[0] == 1
    assert shared_dynamics_bound(np.array([0.0]), two).returns == pytest.approx([1])


def test_random_mdps_are_bounded_for_whoever_takes_one_action_in_each_state():
    family = RandomMDPFamily(3, 2, horizon=6, n_tasks=60)
    bound = family.return_bound(np.array([0.0, 1.0, 2.0, 3.0])).returns
    mdps = [family.tabular(task) for task in family.tasks()]
    every = np.array(list(itertools.product(np.eye(2), repeat=3)))  # (8, S, A)
    losses = normalized_losses(mdps, np.repeat(every[:, None], 6, axis=1))
    assert bound[0] == pytest.approx(1 - losses.mean(0).min(), abs=1e-6)  # the best of all for all
    for bits in (1, 2):  # words for single tasks
        assert bound[0] < 1 - codebook_distortion(losses, 2**bits) < bound[bits]
    # Eight policies, three bits: each task has its best.
    assert bound[3] == pytest.approx(1 - losses.min(1).mean(), abs=1e-6)
    assert (np.diff(bound) >= 0).all()


def test_what_is_not_bounded_says_so():
    assert return_bound(RandomMDPFamily(6, 4, n_tasks=3)) is None  # 4,096 policies
    once = DarkRoomFamily(size=2, horizon=3, reward="once")
    assert return_bound(once) is None
    assert return_bound(BernoulliBanditFamily(n_tasks=3)) is None


def test_a_curve_goes_from_no_bits_to_all_of_a_task():
    curve = return_bound(KeyedBanditFamily(8, 4, n_tasks=5))
    assert curve.bits[0] == 0
    assert curve.bits[-1] == pytest.approx(16)
    assert (curve.returns[0], curve.returns[-1]) == pytest.approx((0, 1))
    entry = curve.entry()
    assert entry["bits"] == curve.bits.tolist()
    assert entry["return"] == curve.returns.tolist()
    assert (entry["accuracy"][0], entry["own_episode"]) == (0.25, True)
