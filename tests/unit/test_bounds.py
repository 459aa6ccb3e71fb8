"""Rate-distortion bounds: closed form against Blahut-Arimoto, and both against known limits."""

import itertools

import numpy as np
import pytest

from tasks.bandits import KeyedBanditFamily
from tasks.bounds import (
    codebook_distortion,
    keyed_bandit_accuracy,
    optimal_policies,
    policy_returns,
    rate_distortion,
    return_losses,
)
from tasks.darkroom import DarkRoomFamily
from tasks.family import FamilyError
from tasks.key_to_door import KeyToDoorFamily
from tasks.random_mdp import RandomMDPFamily
from tasks.references import TabularMDP, policy_return


def keyed_mdp(keys, n_actions):
    """Contexts one after the other, the paying lever of each known to the task."""
    n = len(keys)
    following = np.tile(np.minimum(np.arange(n) + 1, n - 1)[:, None], n_actions)
    return TabularMDP.deterministic(following, np.eye(n_actions)[list(keys)], 0, n)


def test_published_accuracies_of_the_keyed_bandit():
    shares = [0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1, 2]
    found = [keyed_bandit_accuracy(share * 32, 16, 4) for share in shares]
    assert found == pytest.approx([0.25, 0.526, 0.646, 0.811, 0.926, 1, 1], abs=6e-4)
    assert keyed_bandit_accuracy(0.5, 1, 2) == pytest.approx(1 - 0.110028, abs=1e-5)  # H_b = 0.5
    assert keyed_bandit_accuracy(3.0, 5, 1) == 1


@pytest.mark.parametrize("n_actions", [2, 4, 7])
def test_blahut_arimoto_is_the_closed_form(n_actions):
    curve = rate_distortion(1.0 - np.eye(n_actions))
    bits = np.linspace(0, np.log2(n_actions), 30)
    exact = np.array([keyed_bandit_accuracy(one, 1, n_actions) for one in bits])
    assert 1 - curve.distortion(bits) == pytest.approx(exact, abs=2e-3)
    assert (1 - curve.distortion(bits) >= exact - 1e-6).all()  # a bound from the right side
    reached = [keyed_bandit_accuracy(rate, 1, n_actions) for rate in curve.rates]
    assert 1 - curve.distortions == pytest.approx(np.array(reached), abs=1e-4)


def test_losses_of_a_keyed_bandit_are_wrong_keys_and_its_contexts_add_up():
    every = list(itertools.product(range(3), repeat=2))
    losses = return_losses([keyed_mdp(keys, 3) for keys in every])
    wrong = [[sum(a != b for a, b in zip(x, y, strict=True)) for y in every] for x in every]
    assert losses == pytest.approx(np.array(wrong))
    bits = np.array([0, 0.5, 1.3, 2.4, np.log2(9), 5])
    exact = [keyed_bandit_accuracy(one, 2, 3) for one in bits]
    assert 1 - rate_distortion(losses).distortion(bits) / 2 == pytest.approx(
        np.array(exact), abs=3e-3
    )
    family = KeyedBanditFamily(2, 3, n_tasks=9)
    returns = {tuple(task.params["keys"]): family.optimal_return(task) for task in family.tasks()}
    assert returns == dict.fromkeys(every, 2.0)


def test_the_limits_of_a_dark_room():
    family = DarkRoomFamily(size=5, horizon=10)
    mdps = [family.tabular(task) for task in family.tasks()]
    losses = return_losses(mdps)
    assert np.diag(losses) == pytest.approx(0)
    best = np.mean([family.optimal_return(task) for task in family.tasks()])
    curve = rate_distortion(losses)
    # Without a bit every path is as good: each step ends on one of 25 equally likely cells.
    assert best - curve.distortion(0) == pytest.approx(10 / 25)
    assert curve.distortion(np.log2(25)) == pytest.approx(0, abs=1e-3)
    bits = np.linspace(0, np.log2(25), 40)
    bound = curve.distortion(bits)
    assert (np.diff(bound) < 0).all()
    assert (np.diff(bound, 2) > -1e-6).all()
    # Whoever names the goal in some tasks and says nothing in the others can have the chord.
    assert (bound <= (1 - bits / np.log2(25)) * bound[0] + 1e-3).all()
    built = {n: codebook_distortion(losses, n) for n in (1, 2, 8, 25)}
    assert all(curve.distortion(np.log2(n)) <= loss + 1e-9 for n, loss in built.items())
    assert (built[1], built[25]) == pytest.approx((bound[0], 0))
    best = min(
        np.minimum(losses[:, a], losses[:, b]).mean()
        for a, b in itertools.combinations(range(25), 2)
    )
    assert best - 1e-9 <= built[2] <= best + (built[1] - best) / np.e + 1e-9
    assert codebook_distortion(losses, 1, np.eye(25)[3]) == 0


def test_an_uneven_source_and_a_word_of_its_own():
    # A letter that is nearly certain needs few bits; the word "do not know" costs 0.3 at once.
    losses = np.array([[0, 1, 0.3], [1, 0, 0.3]])
    curve = rate_distortion(losses, np.array([0.9, 0.1]))
    assert curve.distortion(0) == pytest.approx(0.1)
    assert curve.distortion(0.469) == pytest.approx(0, abs=2e-3)  # H_b(0.1)
    even = rate_distortion(losses)
    assert even.distortion(0) == pytest.approx(0.3)
    assert even.distortion(0.3) < rate_distortion(losses[:, :2]).distortion(0.3)


def test_far_from_convergence_it_is_still_a_bound():
    losses = np.random.default_rng(0).random((12, 12))
    bits = np.linspace(0, 3.5, 20)
    rough, fine = (rate_distortion(losses, most_updates=n).distortion(bits) for n in (2, 3000))
    assert (rough <= fine + 1e-6).all()
    assert (rough < fine - 1e-3).any()


def test_returns_of_policies_agree_with_one_at_a_time():
    family = RandomMDPFamily(4, 3, branching=2, horizon=5, n_tasks=6)
    mdps = [family.tabular(task) for task in family.tasks()]
    rng = np.random.default_rng(0)
    stationary = rng.dirichlet(np.ones(3), size=(7, 4))  # (J, S, A)
    timed = np.repeat(stationary[:, None], 5, axis=1)
    for mdp in mdps:
        one_by_one = [policy_return(mdp, policy) for policy in stationary]
        assert policy_returns(mdp, timed) == pytest.approx(np.array(one_by_one))
    losses = return_losses(mdps, np.concatenate([optimal_policies(mdps), timed]))
    assert losses.shape == (6, 13)
    best = [family.optimal_return(task) for task in family.tasks()]
    assert losses[2, 2] == pytest.approx(0)
    assert losses[2, 6] == pytest.approx(best[2] - policy_return(mdps[2], stationary[0]))


def test_who_takes_one_room_for_another_by_hand():
    family = KeyToDoorFamily(2, size=2, horizon=2, start=(0, 0))
    tasks = {str(task.params["goals"]): task for task in family.tasks()}
    right, wrong_door = tasks["[[1, 0], [1, 1]]"], tasks["[[1, 0], [0, 0]]"]
    wrong_key = tasks["[[0, 1], [1, 1]]"]
    losses = return_losses([family.tabular(task) for task in (right, wrong_door, wrong_key)])
    assert losses[0].tolist() == [0, 1, 2]
    with pytest.raises(FamilyError, match="at least one task"):
        return_losses([])
