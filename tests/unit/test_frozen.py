"""Recall: the recorded contexts that every method is given, and what is measured under them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures import make_student, make_table

from ad.evaluate import evaluate_policy, normalized
from ad.recall import FrozenPolicy, RecallError, ToldBits, recorded_regions
from nets.spaces import field_spec
from tasks.bandits import KeyedBanditFamily
from tasks.family import Task

TASKS = [Task(1, "b", {}), Task(0, "a", {})]


def drawn(**changed):
    settings = {"n_regions": 2, "n_streams": 3, "seed": 0, **changed}
    return recorded_regions(make_table(), TASKS, **settings)


def addresses(regions):
    """(task, stream, region) of every row, which the table's rewards say."""
    whole = regions.rewards[:, 0].round().long().numpy()
    return np.stack([whole // 100, whole // 10 % 10, whole % 10], 1)


def test_contexts_are_the_first_regions_of_the_tasks_own_histories():
    regions = drawn()
    assert len(regions) == 2
    first, second = addresses(regions[0]), addresses(regions[1])
    assert first[:, 0].tolist() == [1, 1, 1, 0, 0, 0]
    assert (first[:, 2] == 0).all()
    assert (second - first == [0, 0, 1]).all()
    for streams in (first[:3, 1], first[3:, 1]):
        assert sorted(streams) == [0, 1, 2]


def test_contexts_follow_the_seed_and_are_drawn_without_repeating_first():
    one = [addresses(drawn(n_streams=2, seed=seed)[0])[:, 1].tolist() for seed in range(6)]
    assert one[0] == addresses(drawn(n_streams=2)[0])[:, 1].tolist()
    assert len(set(map(tuple, one))) > 1
    assert all(len({*streams[:2]}) == len({*streams[2:]}) == 2 for streams in one)
    many = addresses(drawn(n_streams=7)[0])[:7, 1]
    assert np.bincount(many).min() == 2
    assert drawn(n_regions=0) == []


def test_longer_contexts_than_were_recorded_are_refused():
    assert len(drawn(n_regions=5)) == 5
    with pytest.raises(RecallError, match="6 regions, but no recorded history of task b"):
        drawn(n_regions=6)


def test_recall_accuracy_of_keys_is_their_return_without_chance():
    family = KeyedBanditFamily(n_contexts=6, n_actions=4, n_tasks=5)
    fields = {
        "observation": field_spec(family.observation_space, "observation"),
        "action": field_spec(family.action_space, "action"),
    }
    student = make_student(region_len=4, **fields).eval()  # shorter than an episode
    tasks = family.tasks()[:3]
    every = {"n_seeds": 4, "n_episodes": 1, "final_episodes": 1, "seed": 0}
    result = evaluate_policy(lambda _: FrozenPolicy(student, []), family, tasks, **every)
    expected = (result.action_accuracy_optimal - 1 / 4) / (1 - 1 / 4)
    assert normalized(result.returns, family, tasks).mean() == pytest.approx(expected, abs=1e-6)


KEYS = KeyedBanditFamily(n_contexts=6, n_actions=4, n_tasks=5)


def told(offer):
    """Bits of an episode where `offer(right, contexts)` are the logits (n, A) of every action."""
    tasks = [task for task in KEYS.tasks() for _ in range(3)]
    policy = SimpleNamespace(reset=lambda n, seed: None, observe=lambda *transition: None)

    def act(observations):
        right = KEYS.optimal_actions(tasks, observations)
        policy.offered = torch.as_tensor(offer(np.eye(4)[right], observations))
        return policy.offered.argmax(-1).numpy()

    policy.act = act
    counter = ToldBits(policy, KEYS, tasks)
    evaluate_policy(
        lambda _: counter, KEYS, KEYS.tasks(), n_seeds=3, n_episodes=1, final_episodes=1, seed=0
    )
    return counter.bits


def test_who_knows_some_contexts_tells_two_bits_of_each():
    def known(n):
        return lambda right, contexts: 9 * right * (contexts < n)[:, None]

    assert [told(known(n)) for n in (0, 2, 6)] == pytest.approx([0, 4, 12], abs=1e-6)


def test_what_noise_hides_of_a_model_temperature_brings_back():
    # A tenth of random actions: log 0.925 instead of 0 in every context, were it read as it stands.
    noisy = told(lambda right, contexts: np.log(0.9 * right + 0.025))
    assert noisy == pytest.approx(12, abs=1e-6)


def test_who_is_certain_and_wrong_tells_nothing():
    assert told(lambda right, contexts: 9 * np.roll(right, 1, axis=-1)) == pytest.approx(0, abs=0.3)


def test_two_levers_left_of_four_are_one_bit():
    pairs = told(lambda right, contexts: 9 * (right + np.roll(right, 1, axis=-1)))
    assert pairs == pytest.approx(6, abs=1e-6)
