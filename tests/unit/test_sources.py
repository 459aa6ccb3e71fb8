"""Sources of histories: they record truly, repeat themselves by seed, learn, and search."""

import dataclasses

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import RolloutBuffer

from histories.regions import MarkerRule, markers_for
from histories.schema import FIELDS, check_history
from histories.sources import SourceError, SourceJob
from tasks.darkroom import MOVES, DarkRoomFamily
from tasks.family import FamilyError, expert_of
from tasks.gymnasium_family import GymnasiumFamily
from teacher.noise_expert import NoiseConfig, noise_expert
from teacher.posterior_sampling import PosteriorConfig, posterior_sampling
from teacher.ppo import ppo
from teacher.ppo_batched import _advantages, _Learner, ppo_batched
from teacher.ppo_config import SourceConfig
from teacher.sources import SOURCES, make_sources

SECTIONS = {
    "source": SourceConfig(batch_size=48, n_epochs=1, net_arch=(16,)),
    "noise": NoiseConfig(),
    "posterior": PosteriorConfig(),
}
ROOM = DarkRoomFamily(size=4, horizon=5)


def job_of(family, indices, region_len=12, n_regions=3, n_streams=4, seed=0, **kwargs):
    tasks = tuple(family.tasks()[index] for index in indices)
    rule = kwargs.pop("rule", MarkerRule("rollout", region_len))
    train = tuple(kwargs.pop("train", range(len(family.tasks()))))
    return SourceJob(family, tasks, train, "some style", seed, n_streams, n_regions, rule)


def make(style, indices=(5,), **kwargs):
    return make_sources([style], SECTIONS, {})[style](job_of(ROOM, indices, **kwargs))


ROOM_STYLES = [
    style
    for style in SOURCES
    if "ucb" not in style and style not in ("noise_controller", "predictor")
]


@pytest.mark.parametrize("style", ROOM_STYLES)
def test_every_recorded_transition_is_one_of_the_environment(style):
    for index, history in zip((5, 14), make(style, (5, 14)), strict=True):
        check_history(history, ROOM.observation_space, ROOM.action_space)
        shown = (history.style, history.n_streams, history.n_transitions)
        assert shown == ("some style", 4, 36)
        positions = history.observations.astype(int)
        moved = np.clip(positions + MOVES[history.actions], 0, 3)
        assert (history.next_observations == moved).all()
        goal = ROOM.tasks()[index].params["goal"]
        assert (history.rewards == (moved == goal).all(-1)).all()
        times = np.arange(36)
        assert (history.truncated == ((times + 1) % 5 == 0)).all()
        assert not history.terminated.any()
        assert (history.observations[:, times % 5 == 0] == 2).all()
        inside = times[:-1][(times[:-1] + 1) % 5 != 0]
        followed = history.observations[:, inside + 1] == history.next_observations[:, inside]
        assert followed.all()
        assert (history.compress_markers == markers_for("rollout", history.truncated, 12)).all()


@pytest.mark.parametrize("style", ROOM_STYLES)
def test_equal_seeds_equal_histories(style):
    (first,), (again,), (other,) = make(style), make(style), make(style, seed=1)
    for name in FIELDS:
        assert (getattr(first, name) == getattr(again, name)).all()
    assert (first.actions != other.actions).any()
    assert (first.actions != make(style, (6,))[0].actions).any()


@pytest.mark.parametrize("style", ROOM_STYLES)
def test_episode_markers(style):
    rule = MarkerRule("episode", region_len=12, episodes_per_region=2)
    (history,) = make(style, rule=rule)
    expected = markers_for("episode", history.truncated, episodes_per_region=2)
    assert (history.compress_markers == expected).all()
    assert expected[0, :11].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1]


@pytest.mark.parametrize("learn", [ppo, ppo_batched])
def test_ppo_learns_trivial_tasks(learn):
    family = DarkRoomFamily(size=3, horizon=8)
    config = SourceConfig(learning_rate=3e-3, batch_size=160)
    for index, history in zip(
        (0, 5), learn(job_of(family, (0, 5), 40, 12, 16), config), strict=True
    ):
        returns = history.rewards.reshape(16, 12, 40).sum(-1).mean(0) / 5
        assert returns[0] < 3.0
        assert returns[-1] > 0.9 * family.optimal_return(family.tasks()[index])


def test_batched_advantages_are_those_of_the_reference():
    config, rng = SourceConfig(), np.random.default_rng(0)
    n_steps, n_streams = 7, 3
    buffer = RolloutBuffer(
        n_steps,
        ROOM.observation_space,
        ROOM.action_space,
        gae_lambda=config.gae_lambda,
        gamma=config.gamma,
        n_envs=n_streams,
    )
    paid, values = rng.random((2, n_steps, n_streams)).astype(np.float32)
    ended = rng.random((n_steps, n_streams)) < 0.3
    last = torch.rand(n_streams)
    buffer.rewards[:], buffer.values[:] = paid, values
    buffer.episode_starts[1:] = ended[:-1]
    buffer.compute_returns_and_advantage(last, ended[-1])
    fields = [torch.tensor(each.T)[None] for each in (paid, values, ended)]  # (K, S, T)
    found = _advantages(*fields, last[None], config)[0].T.numpy()
    assert found == pytest.approx(buffer.advantages, abs=1e-5)


def test_batched_tasks_share_nothing():
    learners = []
    for second in (1.0, 1e3):  # the second task's rewards, and with them its gradients
        learner = _Learner(job_of(ROOM, (5, 6), 12), SECTIONS["source"])
        learner.reset(8, seed=0)
        rng = np.random.default_rng(0)
        for _ in range(12):
            learner.act(rng.integers(4, size=(8, 2)))
            rewards = rng.random(8) * np.repeat([1.0, second], 4)
            following = rng.integers(4, size=(8, 2))
            learner.observe(rewards, np.zeros(8, bool), rng.random(8) < 0.2, following)
        learners.append(learner.weights)
    pairs = list(zip(*learners, strict=True))
    assert all((one[0] == other[0]).all() for one, other in pairs)
    assert all((one[1] != other[1]).any() for one, other in pairs)
    assert not learner.steps  # it has learned


def test_batched_ppo_is_for_discrete_actions():
    family = GymnasiumFamily("Pendulum-v1", episode_len=15)
    with pytest.raises(SourceError, match="needs Discrete actions"):
        ppo_batched(job_of(family, (0,)))


class Steered(DarkRoomFamily):
    """One who acts well in it is known, whose actions need not be optimal."""

    def controller(self, tasks):
        return expert_of(self, tasks)

    def optimal_actions_by_index(self, indices, observations, rng=None):
        return super().optimal_actions_by_index(indices, observations)


def test_a_controller_makes_histories_as_an_expert_does():
    steered = Steered(size=4, horizon=5)
    job = job_of(steered, (5, 14), n_regions=6)
    made = make_sources(["noise_controller"], SECTIONS, {})["noise_controller"](job)
    for history, expected in zip(made, noise_expert(job), strict=True):
        for name in FIELDS:
            assert (getattr(history, name) == getattr(expected, name)).all()
    with pytest.raises(FamilyError, match=r"no controller\(tasks\)"):
        make_sources(["noise_controller"], SECTIONS, {})["noise_controller"](job_of(ROOM, (5,)))


def test_noise_expert_goes_from_random_to_optimal():
    family = DarkRoomFamily(size=5, horizon=10)
    task = family.tasks()[24]
    for history in noise_expert(job_of(family, (24, 24), 10, 20, 200)):
        curve = history.rewards.reshape(200, 20, 10).sum(-1).mean(0)
        assert curve[0] == pytest.approx(family.random_return(task), abs=0.3)
        assert curve[-1] == pytest.approx(family.optimal_return(task), abs=0.3)
        assert np.corrcoef(np.arange(20), curve)[0, 1] > 0.9


def test_posterior_sampling_finds_every_goal_of_its_prior():
    family = DarkRoomFamily(size=5, horizon=10)
    train = [index for index in range(25) if index % 3]
    job = job_of(family, range(25), 20, 8, 8, train=train)
    ends = {"train": [], "all": []}
    for tasks, found in ends.items():
        for index, history in enumerate(posterior_sampling(job, PosteriorConfig(tasks=tasks))):
            last = history.rewards[:, -10:].sum(-1)
            found.append((last == family.optimal_return(family.tasks()[index])).all())
    assert all(ends["train"][index] for index in train)
    assert all(ends["all"])
    assert not all(ends["train"])


def test_a_history_of_posterior_sampling_depends_on_the_training_tasks():
    job = job_of(ROOM, (5,), train=(1, 2, 5))
    (some,) = posterior_sampling(job)
    (other,) = posterior_sampling(dataclasses.replace(job, train=(5,)))
    assert (some.actions != other.actions).any()
    assert (other.rewards.reshape(4, 36)[:, 1:5] == 1).all()  # the only goal it knows: (1, 1)


@pytest.mark.parametrize("learn", [ppo, ppo_batched])
def test_ppo_on_a_library_environment_tells_ends_apart(learn):
    family = GymnasiumFamily("CartPole-v1", episode_len=15)
    (history,) = learn(job_of(family, (0,), 40, 2), SECTIONS["source"])
    check_history(history, family.observation_space, family.action_space)
    assert history.terminated.any()
    assert history.truncated.any()
    assert not (history.terminated & history.truncated).any()
    tilted = np.abs(history.next_observations[history.terminated][:, 2])
    assert (tilted > 0.2).all()  # the fallen pole, not the reset one


def stay(job, action):
    histories = SOURCES["random"]
    return [histories, action, job]


def test_a_source_of_a_users_own_is_named_by_import_path():
    sources = make_sources(["test_sources:stay"], {}, {"test_sources:stay": {"action": 4}})
    source = sources["test_sources:stay"]
    assert source.uses_split
    assert source("job")[1:] == [4, "job"]


@pytest.mark.parametrize(
    ("style", "kwargs", "message"),
    [
        ("pppo", {}, "known: ppo, ppo_batched, noise_expert"),
        ("nowhere:source", {}, "PYTHONPATH"),
        ("test_sources:absent", {}, "has no .absent"),
        ("ppo", {"random": {}}, "no style of this collection"),
        ("ppo", {"ppo": {"learning_rate": 1}}, "its section 'source'"),
        ("ucb", {"ucb": {"explorations": 1}}, "unexpected keyword argument 'explorations'"),
    ],
)
def test_impossible_sources(style, kwargs, message):
    with pytest.raises(SourceError, match=message):
        make_sources([style], SECTIONS, kwargs)
