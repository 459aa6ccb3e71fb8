"""What all families with a dial have in common, and what each is known for."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from ad.evaluate import has_expert
from ad.policy import OptimalPolicy
from ad.rollout import rollout
from histories.regions import MarkerRule
from histories.schema import check_history
from histories.sources import SourceJob
from pipelines.config import RunConfig
from pipelines.opening import open_tasks
from tasks.bandits import BernoulliBanditFamily, KeyedBanditFamily
from tasks.bounds import policy_returns
from tasks.darkroom import DarkRoomFamily
from tasks.draws import distinct_rows
from tasks.family import FamilyError, TaskFamily, expert_of, information_bits, load_family
from tasks.key_to_door import KeyToDoorFamily
from tasks.permuted_room import PermutedRoomFamily, room_blocks
from tasks.random_mdp import RandomMDPFamily
from tasks.references import action_values, optimal_return, random_return
from tasks.search import PosteriorSamplingPolicy, search_policies
from tasks.splits import FEW_TASKS, make_split
from tasks.vector import final_observations
from teacher.sources import make_sources
from training.config import load_config

ROOT = Path(__file__).parents[2]

FAMILIES = {
    "key": KeyToDoorFamily(1, size=3, horizon=7),
    "key_to_door": KeyToDoorFamily(2, size=3, horizon=7, start=(0, 1), n_tasks=60),
    "four_goals": KeyToDoorFamily(4, size=3, horizon=9, n_tasks=60),
    "permuted": PermutedRoomFamily(2, size=3, horizon=6, n_tasks=60),
    "permuted_once": PermutedRoomFamily(3, size=3, horizon=6, reward="once", n_tasks=60),
    "mdp": RandomMDPFamily(n_states=4, n_actions=3, horizon=6, n_tasks=60),
    "branching_mdp": RandomMDPFamily(4, 2, branching=2, horizon=6, n_rewarded=2, n_tasks=60),
}
CASES = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@CASES
def test_a_family_draws_different_tasks_and_fewer_are_the_first(family):
    assert isinstance(family, TaskFamily)
    tasks = family.tasks()
    assert [task.index for task in tasks] == list(range(len(tasks)))
    assert len({task.key() for task in tasks}) == len({task.name for task in tasks}) == len(tasks)
    split = make_split(tasks, seed=0, n_validation=2, n_test=3)
    assert len(split.train) == len(tasks) - 5


@pytest.mark.parametrize(
    "make",
    [
        lambda n, seed: KeyToDoorFamily(n_tasks=n, seed=seed),
        lambda n, seed: PermutedRoomFamily(n_tasks=n, seed=seed),
        lambda n, seed: RandomMDPFamily(n_tasks=n, seed=seed),
    ],
)
def test_fewer_tasks_of_a_seed_are_the_first_of_more(make):
    few, more = ([task.params for task in make(n, 1).tasks()] for n in (7, 600))
    assert (len(few), len(more)) == (7, 600)
    assert few == more[:7]
    assert few != [task.params for task in make(7, 2).tasks()]


@CASES
def test_one_environment_is_a_vector_of_one_and_episodes_have_their_length(family):
    tasks = [family.tasks()[index] for index in (0, 3, 3, 1)]
    vector, alone = family.make_vector_env(tasks), family.make_env(tasks[0])
    shown, _ = vector.reset(seed=5)
    first = shown.copy()
    again, _ = family.make_vector_env(tasks).reset(seed=5)
    assert (again == first).all()
    assert (alone.reset(seed=5)[0] == first[0]).all()
    rng = np.random.default_rng(0)
    for time in range(1, 2 * family.episode_len + 1):
        actions = rng.integers(family.action_space.n, size=4)
        shown, rewards, terminated, truncated, infos = vector.step(actions)
        assert (truncated == (time % family.episode_len == 0)).all()
        assert not terminated.any()
        assert all(family.observation_space.contains(one) for one in shown)
        if truncated.all():
            assert (shown == first).all()
            assert infos["_final_obs"].all()
        step = alone.step(actions[0])
        assert family.observation_space.contains(step[0])
        if "mdp" not in family.name:  # of one mind: nothing is random in a room
            assert (step[0] == final_observations(shown, infos)[0]).all()
            assert step[1:4] == (rewards[0], False, truncated[0])
        if step[3]:
            alone.reset()


@CASES
def test_references_are_those_of_the_tabular_task(family):
    for task in family.tasks()[:20]:
        mdp = family.tabular(task)
        assert family.random_return(task) == pytest.approx(random_return(mdp))
        assert family.optimal_return(task) == pytest.approx(optimal_return(mdp))


@CASES
def test_random_returns_agree_with_play(family):
    tasks, n = family.tasks()[:4], 1500
    env = family.make_vector_env([task for task in tasks for _ in range(n)])
    env.reset(seed=0)
    rng, total = np.random.default_rng(0), np.zeros(4 * n)
    for _ in range(family.episode_len):
        total += env.step(rng.integers(family.action_space.n, size=4 * n))[1]
    returns = total.reshape(4, n)
    error = 4 * returns.std(1) / n**0.5 + 1e-3
    assert (abs(returns.mean(1) - [family.random_return(task) for task in tasks]) < error).all()


@CASES
@pytest.mark.parametrize("drawn_ties", [False, True])
def test_the_expert_earns_the_optimal_return(family, drawn_ties):
    assert has_expert(family)
    streams = [task for task in family.tasks()[:30] for _ in range(20)]
    policy = OptimalPolicy(family, streams)
    if drawn_ties:
        rng, act = np.random.default_rng(0), policy.act
        policy.act = lambda observations: act(observations, rng)
    returns = rollout(policy, family, streams, n_episodes=3, seed=0).returns
    best = np.array([family.optimal_return(task) for task in streams])
    if family is FAMILIES["branching_mdp"]:
        assert abs(returns.mean() - best.mean()) < 4 * returns.std() / 1800**0.5
    else:
        assert returns == pytest.approx(np.tile(best[:, None], 3))


@CASES
def test_posterior_sampling_comes_to_act_optimally(family):
    streams = [task for task in family.tasks()[:30] for _ in range(4)]
    best = np.array([family.optimal_return(task) for task in streams]).mean()
    for name, make in search_policies(family, family.tasks()).items():
        returns = rollout(make(), family, streams, n_episodes=25, seed=0).returns.mean(0)
        assert returns[0] < 0.85 * best, name
        assert returns[-8:].mean() > (0.9 if family.name == "random_mdp" else 0.99) * best, name


@CASES
@pytest.mark.parametrize("style", ["noise_expert", "posterior_sampling", "random"])
def test_sources_of_these_families(family, style):
    from teacher.noise_expert import NoiseConfig
    from teacher.posterior_sampling import PosteriorConfig

    sections = {"noise": NoiseConfig(), "posterior": PosteriorConfig()}
    tasks = family.tasks()[:5]
    train = tuple(range(len(family.tasks())))
    job = SourceJob(family, tasks, train, style, 0, 20, 20, MarkerRule("rollout", 6))
    histories = make_sources([style], sections, {})[style](job)
    assert len(histories) == 5
    late, n_episodes = [], 120 // family.episode_len
    for history in histories:
        check_history(history, family.observation_space, family.action_space)
        returns = history.rewards[:, : n_episodes * family.episode_len]
        late.append(returns.reshape(20, n_episodes, -1).sum(-1)[:, -2:].mean())
    span = [(family.random_return(task), family.optimal_return(task)) for task in tasks]
    random, best = np.mean(span, axis=0)
    share = (np.mean(late) - random) / (best - random)
    assert abs(share) < 0.2 if style == "random" else share > 0.6


def test_stateless_optimal_actions_are_refused_where_there_are_none():
    for name in ("key_to_door", "mdp"):
        family = FAMILIES[name]
        with pytest.raises(FamilyError, match="expert_of"):
            family.optimal_actions(family.tasks()[:1], np.zeros((1, 2), dtype=np.int64))


def test_bits_of_a_task():
    goal = math.log2(81)
    assert information_bits(DarkRoomFamily()) == pytest.approx(goal)
    for n in (1, 2, 4):
        assert information_bits(KeyToDoorFamily(n, n_tasks=9)) == pytest.approx(n * goal)
        bits = information_bits(PermutedRoomFamily(n, n_tasks=9))
        assert bits == pytest.approx(n * math.log2(24) + goal)
    for n, actions in ((16, 4), (6, 8)):
        bits = information_bits(KeyedBanditFamily(n, actions, n_tasks=9))
        assert bits == pytest.approx(n * math.log2(actions))
    assert information_bits(BernoulliBanditFamily(3)) == pytest.approx(3 * math.log2(1001))
    family = RandomMDPFamily(5, 3, branching=2, resolution=4, least_gain=-1)
    assert information_bits(family) == pytest.approx(15 * math.log2(10 * 3) + math.log2(5))
    # What is refused is estimated from the draws; here it can be counted.
    family = RandomMDPFamily(2, 2, horizon=4, least_gain=0.5, n_tasks=8)
    all_tasks = RandomMDPFamily(2, 2, horizon=4, least_gain=-1, n_tasks=32).tasks()
    gains = [family.optimal_return(task) - family.random_return(task) for task in all_tasks]
    good = sum(gain >= 0.5 for gain in gains)
    assert 8 <= good < 30
    assert information_bits(family) == pytest.approx(math.log2(good), abs=0.3)


def test_distinct_rows_can_be_all_there_are():
    rows = distinct_rows(None, [3, 2, 4], seed=0)
    assert sorted(map(tuple, rows)) == list(itertools.product(range(3), range(2), range(4)))
    assert len(distinct_rows(None, [100, 100], seed=0)) == 1000
    ones = distinct_rows(600, [4] * 30, seed=0)
    assert ones.mean() == pytest.approx(1.5, abs=0.05)


def test_known_returns_of_key_to_door():
    family = KeyToDoorFamily(n_tasks=6561)
    assert np.mean([family.random_return(task) for task in family.tasks()]) == pytest.approx(
        0.268, abs=0.001
    )
    assert {family.optimal_return(task) for task in family.tasks()} == {2.0}


def test_goals_pay_in_their_order_once_an_episode_and_one_a_step():
    family = KeyToDoorFamily(3, size=3, horizon=9)
    wanted = [[1, 2], [1, 2], [0, 2]]
    task = next(
        task
        for seed in range(9)
        for task in KeyToDoorFamily(3, size=3, horizon=9, n_tasks=729, seed=seed).tasks()
        if task.params["goals"] == wanted
    )
    env = family.make_env(task)
    for _ in range(2):
        observation, _ = env.reset()
        assert observation.tolist() == [1, 1]
        # +y: first; stay: second, the same cell; +x, -x: over it again; -x: third; stay, +x, -x
        paid = [env.step(action)[1] for action in (2, 4, 0, 1, 1, 4, 0, 1, 4)]
        assert paid == [1, 1, 0, 0, 1, 0, 0, 0, 0]
    expert = expert_of(family, [task] * 2)
    expert.reset()
    cells, ends = np.array([[1, 2], [1, 2]]), np.array([False, True])
    expert.observe(np.array([1, 1]), ends & False, ends, cells)
    expert.observe(np.array([1, 1]), ends & False, ends & False, cells)
    assert expert.act(cells).tolist() == [1, 4]  # third is due; in the new episode the second


def test_actions_of_a_permuted_room_by_hand():
    family = PermutedRoomFamily(2, size=4, horizon=9, start=(0, 0), n_tasks=50)
    assert family.blocks.T.tolist() == [[0, 0, 1, 1]] * 4
    task = family.tasks()[7]
    env = family.make_env(task)
    position, _ = env.reset()
    deltas = [(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)]
    rng = np.random.default_rng(0)
    for _ in range(9):
        action = rng.integers(5)
        moves = [*task.params["moves"][int(position[0] >= 2)], 4]
        expected = np.clip(position + deltas[moves[action]], 0, 3)
        position, reward, *_ = env.step(action)
        assert position.tolist() == expected.tolist()
        assert reward == (position.tolist() == task.params["goal"])


@pytest.mark.parametrize(("n_blocks", "sizes"), [(1, [81]), (4, [16, 20, 20, 25]), (9, [9] * 9)])
def test_blocks_are_a_grid(n_blocks, sizes):
    blocks = room_blocks(9, n_blocks)
    assert sorted(np.bincount(blocks.reshape(-1))) == sizes
    for block in range(n_blocks):
        x, y = np.nonzero(blocks == block)
        assert (np.ptp(x) + 1) * (np.ptp(y) + 1) == len(x)


def test_by_index_is_by_task():
    family = FAMILIES["permuted"]
    indices, rng = np.arange(60).repeat(9), np.random.default_rng(0)
    cells = rng.integers(3, size=(540, 2))
    by_task = family.optimal_actions([family.tasks()[i] for i in indices], cells)
    assert (family.optimal_actions_by_index(indices, cells) == by_task).all()


@pytest.mark.parametrize("name", ["mdp", "branching_mdp"])
def test_the_timed_expert_is_exactly_optimal(name):
    family = FAMILIES[name]
    for task in family.tasks()[:10]:
        n_states, n_actions = family.observation_space.n, family.action_space.n
        expert = expert_of(family, [task] * n_states)
        ended, states = np.zeros(n_states, dtype=bool), np.arange(n_states)
        policy = []
        for _ in range(family.episode_len):
            policy.append(np.eye(n_actions)[expert.act(states)])
            expert.observe(ended * 0.0, ended, ended, states)
        returned = policy_returns(family.tabular(task), np.array(policy)[None])
        assert returned == pytest.approx([family.optimal_return(task)])
        assert family.optimal_return(task) - family.random_return(task) >= 1


def test_a_chain_of_two_states_by_hand():
    transitions = np.array([[[0.5, 0.5], [1, 0]], [[0, 1], [1, 0]]])
    rewards = np.array([[0.5, 0], [1, 0]])  # arriving in state 1 pays
    many = np.stack([transitions, transitions[:, ::-1]]), np.stack([rewards, rewards[:, ::-1]])
    values = action_values(*many, horizon=2)
    assert values[0, 1].tolist() == rewards.tolist()
    assert values[0, 0].tolist() == [[1.25, 0.5], [2, 0.5]]
    assert values[1, 0].tolist() == [[0.5, 1.25], [0.5, 2]]


@pytest.mark.parametrize(
    ("target", "kwargs", "message"),
    [
        ("key_to_door:KeyToDoorFamily", {"n_goals": 0}, "n_goals must be at least 1"),
        ("key_to_door:KeyToDoorFamily", {"n_goals": 1, "n_tasks": 82}, "only 81"),
        ("key_to_door:KeyToDoorFamily", {"start": [9, 0]}, "within 0..8"),
        ("permuted_room:PermutedRoomFamily", {"n_blocks": 11}, "11 x 1"),
        ("permuted_room:PermutedRoomFamily", {"n_tasks": 0}, "n_tasks must be at least 1"),
        ("random_mdp:RandomMDPFamily", {"branching": 7}, "branching must be at most n_states"),
        ("random_mdp:RandomMDPFamily", {"branching": 3, "resolution": 2}, "at least branching"),
        ("random_mdp:RandomMDPFamily", {"branching": 6, "resolution": 60}, "lower one"),
        ("random_mdp:RandomMDPFamily", {"least_gain": 21, "n_tasks": 1}, "lower least_gain"),
    ],
)
def test_impossible_families(target, kwargs, message):
    with pytest.raises(FamilyError, match=message):
        load_family(f"tasks.{target}", kwargs)


def test_a_searcher_starts_from_its_prior_and_keeps_what_it_sees():
    family = KeyToDoorFamily(2, size=3, horizon=12, n_tasks=81)
    by_goals = {str(task.params["goals"]): task for task in family.tasks()}
    prior = [by_goals["[[0, 0], [2, 2]]"], by_goals["[[0, 1], [2, 0]]"]]
    policy, drawn = PosteriorSamplingPolicy(family, prior), []
    streams = [prior[0], by_goals["[[0, 1], [2, 2]]"]] * 20
    returns = rollout(
        policy, family, streams, n_episodes=3, seed=0,
        on_step=lambda *_: drawn.append(policy.drawn.copy()),
    ).returns  # fmt: skip
    assert returns[:, 2].tolist() == [2] * 40
    assert set(np.unique(np.array(drawn)[..., 0])) == {0, 1}
    assert set(np.unique(np.array(drawn)[..., 1])) == {6, 8}


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs/families").glob("*.yaml")), ids=lambda file: file.stem
)
def test_a_shipped_family_makes_regions_of_whole_episodes(file):
    if file.stem == "reacher":
        pytest.importorskip("mujoco")
    config = load_config(RunConfig, file)
    family, split = open_tasks(config)
    assert config.region_len % family.episode_len == 0
    kinds = {family.name, *(task.group for task in family.tasks())}
    few = "darkroom" in kinds  # a task a cell, alone or beside others
    drawn_only = (
        not few and "posterior_sampling" in config.collect.styles
    )  # nothing is trained per task
    assert len(split.train) > (500 if drawn_only else FEW_TASKS)
