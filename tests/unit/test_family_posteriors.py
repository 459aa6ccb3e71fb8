"""Posteriors of the families with a dial, against playing again in, or weighing, every task."""

import numpy as np
import pytest

from tasks.key_to_door import KeyToDoorFamily
from tasks.permuted_room import PERMUTATIONS, PermutedRoomFamily
from tasks.posterior import posterior_of
from tasks.random_mdp import RandomMDPFamily
from tasks.references import action_values, is_optimal
from tasks.vector import final_observations


def transitions_of(family, tasks, actions, seed=0):
    """Transitions of `actions` `(T, n)`, one task per stream, fields `(T, n, ...)`."""
    env = family.make_vector_env(tasks)
    shown, _ = env.reset(seed=seed)
    rows = []
    for taken in actions:
        following, rewards, terminated, truncated, infos = env.step(taken)
        true_next = final_observations(following, infos)
        rows.append((shown, taken, rewards, true_next, terminated | truncated))
        shown = following
    return [np.stack(field) for field in zip(*rows, strict=True)]


def goals_drawn(tasks):
    return np.array([[x * 3 + y for x, y in task.params["goals"]] for task in tasks])


def room_drawn(tasks):
    known = PERMUTATIONS[:, :4].tolist()
    return np.array(
        [
            [np.dot(task.params["goal"], [task.params["size"], 1])]
            + [known.index(moves) for moves in task.params["moves"]]
            for task in tasks
        ]
    )


@pytest.mark.parametrize(
    ("family", "drawn_of"),
    [
        (KeyToDoorFamily(2, size=3, horizon=6), goals_drawn),
        (KeyToDoorFamily(3, size=3, horizon=9), goals_drawn),
        (PermutedRoomFamily(2, size=2, horizon=4, n_tasks=2304), room_drawn),
        (PermutedRoomFamily(1, size=2, horizon=4, reward="once", n_tasks=96), room_drawn),
    ],
    ids=["two_goals", "three_goals", "two_blocks", "one_block"],
)
def test_what_is_possible_is_what_playing_again_allows(family, drawn_of):
    every, n_streams, n_steps = family.tasks(), 12, 14
    rng = np.random.default_rng(0)
    actions = rng.integers(5, size=(n_steps, n_streams))
    own = [every[index] for index in rng.integers(len(every), size=n_streams)]
    seen = transitions_of(family, own, actions)
    agree = np.ones((len(every), n_streams), dtype=bool)
    posterior, drawn = posterior_of(family, every, n_streams), drawn_of(every)
    again = transitions_of(
        family, [task for task in every for _ in range(n_streams)], np.tile(actions, len(every))
    )
    for time in range(n_steps):
        posterior.update(*(field[time] for field in seen))
        for played, saw in ((again[2], seen[2]), (again[3], seen[3])):
            played = played[time].reshape(len(every), n_streams, -1)
            agree &= (played == saw[time].reshape(n_streams, -1)).all(-1)
        possible = [posterior.possible(np.tile(row, (n_streams, 1))) for row in drawn]
        assert (np.array(possible) == agree).all()
    assert agree.sum() < 0.5 * agree.size
    for _ in range(20):
        assert posterior.possible(posterior.sample(rng, np.ones(n_streams, bool))).all()


@pytest.mark.parametrize(
    ("family", "drawn_of"),
    [
        (KeyToDoorFamily(2, size=3, horizon=12), goals_drawn),
        (PermutedRoomFamily(1, size=3, horizon=12), room_drawn),
    ],
    ids=["goals", "room"],
)
@pytest.mark.parametrize("redrawn", [False, True])
def test_draws_are_even_over_what_is_possible(family, drawn_of, redrawn):
    """Also where parts of an earlier draw are kept because nothing spoke against them."""
    n, rng = 20_000, np.random.default_rng(1)
    own = family.tasks()[5]
    actions = np.tile(np.array([0, 2, 0, 4])[:, None], n)
    seen = transitions_of(family, [own] * n, actions)
    posterior, everywhere = posterior_of(family, family.tasks(), n), np.ones(n, bool)
    drawn = posterior.sample(rng, everywhere)
    for time in range(len(actions)):
        posterior.update(*(field[time] for field in seen))
        if redrawn:
            wrong = ~posterior.possible(drawn)
            drawn[wrong] = posterior.sample(rng, wrong)
    if not redrawn:
        drawn = posterior.sample(rng, everywhere)
    rows = drawn_of(family.tasks())
    possible = [bool(posterior.possible(np.tile(row, (n, 1)))[0]) for row in rows]
    shares = [(drawn == row).all(-1).mean() for row in rows]
    assert 1 < sum(possible) < len(rows)
    expected = np.array(possible) / sum(possible)
    assert np.abs(shares - expected).max() < 5 * (expected.max() / n) ** 0.5


@pytest.mark.parametrize(
    "family",
    [
        RandomMDPFamily(3, 2, horizon=3, least_gain=-1, n_tasks=2187),
        RandomMDPFamily(3, 1, branching=2, horizon=3, resolution=3, least_gain=-1, n_tasks=648),
        RandomMDPFamily(2, 2, branching=2, horizon=3, resolution=4, least_gain=-1, n_tasks=162),
    ],
    ids=["certain", "branching", "proportions"],
)
def test_random_mdps_are_drawn_as_weighing_all_of_them_says(family):
    n, n_states, n_actions = 30_000, family.observation_space.n, family.action_space.n
    every, rng = family.tasks(), np.random.default_rng(2)
    mdps = [family.tabular(task) for task in every]
    transitions = np.stack([mdp.transitions for mdp in mdps])  # (K, S, A, S)
    rewards = np.stack([mdp.rewards for mdp in mdps])
    pays = np.array([np.isin(range(n_states), task.params["rewarded"]) for task in every])
    weights = np.ones(len(every))
    posterior = posterior_of(family, every, n)
    seen = transitions_of(family, [every[77]], rng.integers(n_actions, size=(5, 1)))
    for time in range(5):
        row = [field[time] for field in seen]
        posterior.update(*(np.repeat(field, n, axis=0) for field in row))
        state, action, reward, following = (field[0] for field in row[:4])
        weights *= transitions[:, state, action, following]
        weights *= pays[:, following] == (reward > 0)
    weights /= weights.sum()
    drawn = posterior.sample(rng, np.ones(n, bool))
    assert posterior.possible(drawn).all()
    open_questions = 0
    optimal = is_optimal(action_values(transitions, rewards, family.episode_len))
    for name, values in {"follows": transitions > 0, "pays": pays, "optimal": optimal}.items():
        exact = np.tensordot(weights, values, 1)
        assert np.abs(drawn[name].mean(0) - exact).max() < 0.015, name
        open_questions += int(((exact > 0.05) & (exact < 0.95)).sum())
    assert open_questions > 3
    # The draws are joint: a state that may follow is not drawn apart from what is optimal then.
    joint = np.einsum("k,ka,kb->ab", weights, pays, optimal[:, 0, 0])
    counted = np.einsum("ka,kb->ab", drawn["pays"] * 1.0, drawn["optimal"][:, 0, 0]) / n
    assert np.abs(joint - counted).max() < 0.015


def test_a_random_mdp_that_contradicts_the_draw_is_ruled_out():
    family = RandomMDPFamily(4, 2, horizon=5, n_tasks=5)
    posterior, rng = posterior_of(family, [], 500), np.random.default_rng(0)
    drawn = posterior.sample(rng, np.ones(500, bool))
    where = np.zeros(500, dtype=np.int64)
    posterior.update(where, where, where * 0.0, where + 3, where > 0)
    agrees = drawn["follows"][:, 0, 0, 3] & ~drawn["pays"][:, 3]
    assert (posterior.possible(drawn) == agrees).all()
    assert agrees.mean() == pytest.approx(3 / 16, abs=0.07)
