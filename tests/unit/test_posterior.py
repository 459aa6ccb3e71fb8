"""Posteriors against brute force, and the searchers that use them."""

import numpy as np
import pytest

from ad.rollout import rollout
from tasks.darkroom import DarkRoomEnv, DarkRoomFamily, tabular_room
from tasks.family import FamilyError
from tasks.gymnasium_family import GymnasiumFamily
from tasks.posterior import EnumeratedPosterior, TabularPosterior, posterior_of
from tasks.room_search import RoomPosterior
from tasks.search import PosteriorSamplingPolicy, search_policies
from tasks.vector import final_observations


class Likely(DarkRoomFamily):
    """Tells likelihoods, of goals that are seen with probability 0.9 only."""

    posterior = None

    def transition_log_likelihood(self, tasks, observations, actions, rewards, next_observations):
        at_goal = (next_observations[:, None] == [task.params["goal"] for task in tasks]).all(-1)
        with np.errstate(divide="ignore"):
            return np.log(np.where(rewards[:, None] > 0, 0.9 * at_goal, 1 - 0.9 * at_goal))


class Tabular(DarkRoomFamily):
    """Tells its dynamics."""

    posterior = None

    def tabular(self, task):
        return tabular_room(task.params)

    def states(self, observations):
        return np.asarray(observations) @ [self._room["size"], 1]


def played(family, task, n, n_steps, seed=0):
    """Transitions of random play, step by step."""
    env = family.make_vector_env([task] * n)
    rng = np.random.default_rng(seed)
    observations, _ = env.reset()
    for _ in range(n_steps):
        actions = rng.integers(5, size=n)
        following, rewards, terminated, truncated, infos = env.step(actions)
        true_next = final_observations(following, infos)
        yield observations, actions, rewards, true_next, terminated | truncated
        observations = following


def agreeing_goals(family, actions, rewards):
    """Which goals would have paid the same, by playing the actions again in each."""
    agree = []
    for task in family.tasks():
        env, paid = DarkRoomEnv(**{k: v for k, v in task.params.items() if k != "env"}), []
        for time, action in enumerate(actions):
            if time % family.episode_len == 0:
                env.reset()
            paid.append(env.step(action)[1])
        agree.append(paid == rewards)
    return agree


@pytest.mark.parametrize(
    ("make", "reward"),
    [
        (posterior_of, "every_step"),
        (posterior_of, "once"),
        (lambda _, tasks, n: TabularPosterior(Tabular(3, 4), tasks, n), "every_step"),
    ],
)
def test_what_is_possible_is_what_playing_again_allows(make, reward):
    family, n = DarkRoomFamily(size=3, horizon=4, reward=reward), 20
    for task in (family.tasks()[4], family.tasks()[8]):
        posterior = make(family, family.tasks(), n)
        transitions = []
        for transition in played(family, task, n, 11):
            posterior.update(*transition)
            transitions.append(transition)
            possible = [posterior.possible(np.full(n, goal)) for goal in range(9)]
            for stream in range(n):
                actions = [step[1][stream] for step in transitions]
                rewards = [step[2][stream] for step in transitions]
                expected = agreeing_goals(family, actions, rewards)
                assert [goal[stream] for goal in possible] == expected


def test_draws_follow_the_likelihood():
    family = Likely(size=2, horizon=3, start=(0, 0))
    posterior = posterior_of(family, family.tasks(), 40_000)
    assert type(posterior) is EnumeratedPosterior
    seen = np.zeros((40_000, 2), dtype=int)  # the start cell, twice, without pay
    for _ in range(2):
        posterior.update(seen, seen[:, 0] + 4, np.zeros(40_000), seen, seen[:, 0] > 0)
    drawn = posterior.sample(np.random.default_rng(0), np.ones(40_000, bool))
    shares = np.bincount(drawn, minlength=4) / 40_000
    assert shares == pytest.approx(np.array([0.01, 1, 1, 1]) / 3.01, abs=0.01)
    rooms = RoomPosterior(np.array([[0, 1], [1, 1], [1, 0]]), 2, 30_000)
    some = np.arange(30_000) % 2 == 0
    drawn = rooms.sample(np.random.default_rng(0), some)
    assert np.bincount(drawn, minlength=4) / 15_000 == pytest.approx(
        [0, 1 / 3, 1 / 3, 1 / 3], abs=0.02
    )


def test_the_tabular_posterior_acts_optimally():
    family = Tabular(size=4, horizon=6, start=(0, 1))
    for task in family.tasks():
        policy = PosteriorSamplingPolicy(family, [task])
        returns = rollout(policy, family, [task] * 3, n_episodes=2, seed=0).returns
        assert (returns == family.optimal_return(task)).all()


@pytest.mark.parametrize("reward", ["every_step", "once"])
def test_a_searcher_finds_keeps_and_draws_from_its_prior_only(reward):
    family = DarkRoomFamily(size=4, horizon=6, reward=reward)
    tasks = family.tasks()
    prior = [tasks[3], tasks[7], tasks[12]]
    policy = PosteriorSamplingPolicy(family, prior)
    drawn = []
    streams = [task for task in prior for _ in range(50)]
    returns = rollout(
        policy,
        family,
        streams,
        n_episodes=4,
        seed=0,
        on_step=lambda *_: drawn.append(policy.drawn.copy()),
    ).returns
    assert set(np.unique(drawn)) == {3, 7, 12}
    assert returns[:, 3].tolist() == [family.optimal_return(task) for task in streams]
    assert returns[:, 0].mean() < 0.8 * returns[:, 3].mean()


def test_a_ruled_out_prior_leaves_random_play_and_a_goal_seen_by_chance_is_kept():
    family = DarkRoomFamily(size=3, horizon=6)
    policy = PosteriorSamplingPolicy(family, [family.tasks()[4]])  # the centre, where it starts
    actions = []
    returns = rollout(
        policy,
        family,
        [family.tasks()[0]] * 200,
        n_episodes=30,
        seed=0,
        on_step=lambda _, taken: actions.append(taken.copy()),
    ).returns
    assert (actions[0] == 4).all()
    assert np.bincount(actions[1], minlength=5).min() > 20
    assert returns[:, -1].mean() > 0.95 * family.optimal_return(family.tasks()[0])


def test_a_drawn_task_that_is_empty_may_be_walked_past():
    family = DarkRoomFamily(size=9, horizon=20)
    prior = [family.tasks()[4 * 9 + y] for y in (2, 6)]
    policy = PosteriorSamplingPolicy(family, prior, overshoot=2)
    taken = []
    rollout(
        policy,
        family,
        [family.tasks()[0]] * 400,
        n_episodes=1,
        seed=0,
        on_step=lambda _, actions: taken.append(actions.copy()),
    )
    upwards = taken[0] == 2  # to y = 6, two steps; one step further in any case, two in half
    assert upwards.mean() == pytest.approx(0.5, abs=0.1)
    steps = np.array(taken)[:5, upwards]
    assert (steps[:3] == 2).all()
    assert (steps[3] == 2).mean() == pytest.approx(0.5, abs=0.1)
    assert (steps[4] == 3).all()  # back to y = 2


def test_noise_is_the_share_asked_for():
    family = DarkRoomFamily(size=9, horizon=20)
    task = family.tasks()[4 * 9 + 4]
    for repeat in (1, 4):
        policy = PosteriorSamplingPolicy(family, [task], noise=0.5, max_repeat=repeat)
        taken = []
        rollout(
            policy,
            family,
            [task] * 500,
            n_episodes=10,
            seed=0,
            on_step=lambda observations, actions, taken=taken: taken.append(
                (actions == 4)[(observations == 4).all(-1)].mean()
            ),
        )
        # At the goal every random action but one in five is seen.
        assert np.mean(taken[:1]) == pytest.approx(
            1 - 0.8 * 0.5 / (1 if repeat == 1 else 1.75), abs=0.06
        )


def test_families_without_a_posterior_say_so():
    with pytest.raises(FamilyError, match="has no posterior"):
        posterior_of(GymnasiumFamily("CartPole-v1"), [], 1)
    assert search_policies(GymnasiumFamily("CartPole-v1"), []) == {}


def test_search_references_of_the_room():
    family = DarkRoomFamily()
    streams = [task for task in family.tasks() for _ in range(10)]
    optimal = np.array([family.optimal_return(task) for task in streams])
    curves = {}
    for name, make in search_policies(family, family.tasks()).items():
        returns = rollout(make(), family, streams, n_episodes=10, seed=0).returns
        curves[name] = returns.mean(0) / optimal.mean()
    assert curves["coverage"][:6] == pytest.approx([0.15, 0.42, 0.66, 0.83, 0.94, 1.0], abs=0.04)
    published = [0.12, 0.31, 0.45, 0.60, 0.71, 0.79, 0.84, 0.90, 0.95, 0.98]
    assert (curves["posterior_sampling"] > np.array(published) - 0.02).all()
    assert (curves["posterior_sampling"] < np.array(published) + 0.06).all()
