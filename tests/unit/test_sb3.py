"""Algorithms of stable-baselines3 by name: one callback records them all, whatever they act in."""

import importlib.util

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from test_sources import ROOM, job_of

from histories.regions import MarkerRule, markers_for
from histories.schema import FIELDS, check_history
from histories.sources import SourceError
from tasks.gymnasium_family import GymnasiumFamily
from teacher.sources import make_sources

LIMIT, EDGE = 7, 3.0


class Line(gymnasium.Env):
    """A place on a line, from 0: over the edge it terminates, after seven steps it is truncated."""

    def __init__(self, actions):
        self.action_space = {
            "discrete": Discrete(3, start=-1),
            "continuous": Box(-2.0, 1.0, (1,)),
            "axes": MultiDiscrete([2, 2], start=[0, -1]),
        }[actions]
        self.observation_space = Box(-9.0, 9.0, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = np.float32(0), 0
        return self.shown(), {}

    def shown(self):
        return np.array([self.place, self.time], dtype=np.float32)

    def step(self, action):
        assert self.action_space.contains(action)
        self.place, self.time = np.float32(self.place + np.sum(action)), self.time + 1
        over = abs(self.place) > EDGE
        return self.shown(), float(self.place), bool(over), self.time >= LIMIT, {}


gymnasium.register("CadLine-v0", Line, max_episode_steps=None)
FAMILIES = {
    name: GymnasiumFamily("CadLine-v0", episode_len=LIMIT, actions=name)
    for name in ("discrete", "continuous", "axes")
}
SHORT = {"learning_starts": 20, "batch_size": 16}
CASES = [
    ("PPO", "discrete", {"batch_size": 16, "n_epochs": 1}),
    ("PPO", "continuous", {"batch_size": 16, "n_epochs": 1, "learning_rate": 0.1}),
    ("PPO", "axes", {"batch_size": 16, "n_epochs": 1}),
    ("A2C", "discrete", {}),
    ("A2C", "continuous", {"n_steps": 5}),
    ("DQN", "discrete", {**SHORT, "train_freq": 5}),
    ("SAC", "continuous", {**SHORT, "train_freq": [5, "step"]}),
    ("TD3", "continuous", {**SHORT, "action_noise": 0.5}),
    ("DDPG", "continuous", SHORT),
    ("TRPO", "discrete", {"batch_size": 16}),
    ("TQC", "continuous", SHORT),
    ("QRDQN", "discrete", SHORT),
    ("RecurrentPPO", "axes", {"batch_size": 16, "n_epochs": 1}),
    ("TRPO", "axes", {"batch_size": 16}),
]
CONTRIB = ("TRPO", "TQC", "QRDQN", "RecurrentPPO")


def learn(name, family, kwargs, rule="fixed", **job):
    style = f"sb3:{name}"
    source = make_sources([style], {}, {style: kwargs})[style]
    return source(job_of(family, (0,), rule=MarkerRule(rule, 12), **job))[0]


@pytest.mark.parametrize(("name", "actions", "kwargs"), CASES)
def test_every_recorded_transition_is_one_of_the_environment(name, actions, kwargs):
    if name in CONTRIB and importlib.util.find_spec("sb3_contrib") is None:
        pytest.skip("sb3-contrib is not installed")
    family = FAMILIES[actions]
    history = learn(name, family, kwargs)
    check_history(history, family.observation_space, family.action_space, LIMIT)
    assert history.rewards.shape == (4, 36)
    place, time = history.observations[..., 0], history.observations[..., 1]
    moved = history.actions if actions == "discrete" else history.actions.sum(-1)
    following = history.next_observations  # the terminal one, not the reset one
    assert following[..., 0] == pytest.approx(place + moved, abs=1e-5)
    assert (following[..., 1] == time + 1).all()
    assert (history.rewards == following[..., 0]).all()
    over = abs(following[..., 0]) > EDGE
    assert (history.terminated == over).all()
    assert (history.truncated == (following[..., 1] >= LIMIT) & ~over).all()
    ended = history.terminated | history.truncated
    begun = np.where(ended[..., None], 0, following)[:, :-1]
    assert (history.observations[:, 1:] == begun).all()
    assert history.terminated.any() or actions == "axes"
    assert history.truncated.any() or actions == "continuous"
    assert (history.compress_markers == markers_for("fixed", ended, 12)).all()
    assert len(np.unique(history.actions)) > 1


@pytest.mark.parametrize("name", ["DQN", "A2C"])
def test_equal_seeds_equal_histories(name):
    first, again, other = (learn(name, ROOM, {}, seed=seed) for seed in (0, 0, 1))
    for field in FIELDS:
        assert (getattr(first, field) == getattr(again, field)).all()
    assert (first.actions != other.actions).any()
    assert first.settings == {"algorithm": name}


@pytest.mark.slow
def test_an_off_policy_algorithm_learns_a_trivial_task():
    kwargs = {
        **{"learning_starts": 100, "train_freq": 1, "learning_rate": 3e-3, "gamma": 0.5},
        **{"target_update_interval": 50, "exploration_fraction": 0.3},
    }
    history = learn("DQN", ROOM, kwargs, n_streams=8, n_regions=25)
    paid = history.rewards.reshape(8, 5, 60).sum((0, 2))
    assert paid[-1] > 4 * paid[0]


def test_images_are_recorded_as_the_environment_shows_them():
    space = Box(0, 255, (40, 40, 3), np.uint8)

    class Pixels(Line):
        def __init__(self):
            super().__init__("discrete")
            self.observation_space = space

        def shown(self):
            image = np.zeros(space.shape, np.uint8)
            image[int(self.place) + 4, self.time, 2] = 255
            return image

    gymnasium.register("CadPixels-v0", Pixels)
    family = GymnasiumFamily("CadPixels-v0", episode_len=LIMIT)
    kwargs = {"policy": "CnnPolicy", "batch_size": 16, "n_epochs": 1}
    history = learn("PPO", family, kwargs, n_regions=2)
    check_history(history, space, family.action_space)
    assert (history.next_observations.reshape(4, 24, -1).argmax(-1) % 3 == 2).all()


@pytest.mark.parametrize(
    ("name", "actions", "kwargs", "rule", "message"),
    [
        ("DQN", "continuous", {}, "fixed", r"DQN cannot be made .* with actions Box"),
        ("SAC", "discrete", {}, "fixed", r"SAC cannot be made .* with actions Discrete"),
        ("DQN", "discrete", {}, "rollout", "set collect.marker_rule to fixed"),
        ("SAC", "continuous", {}, "episode", "set collect.marker_rule to fixed"),
        ("PPO", "discrete", {"n_steps": 5}, "rollout", "n_steps is 5, .* region_len is 12"),
        ("PPO", "discrete", {"n_step": 5}, "rollout", "no argument 'n_step'; it takes policy"),
        ("PPO", "discrete", {"seed": 5}, "rollout", "seed is set by the collection"),
        ("DQN", "discrete", {"learning_rate": "x"}, "fixed", "learning rate schedule must be"),
        ("PPPO", "discrete", {}, "fixed", "no algorithm; known: A2C"),
        ("MaskablePPO", "discrete", {}, "fixed", "no algorithm; known: A2C"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(name, actions, kwargs, rule, message):
    with pytest.raises(SourceError, match=message):
        learn(name, FAMILIES[actions], kwargs, rule)
