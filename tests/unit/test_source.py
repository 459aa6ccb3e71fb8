"""Source algorithms: they record truly, repeat themselves by seed, and PPO learns."""

import numpy as np
import pytest

from histories.regions import MarkerRule, markers_for
from histories.schema import FIELDS, check_history
from tasks.darkroom import MOVES, DarkRoomFamily
from tasks.gymnasium_family import GymnasiumFamily
from teacher.source import SourceConfig, learn_history, noise_expert_history, random_history

SIZE = {"n_streams": 4, "n_regions": 3, "region_len": 12, "source_seed": 0}
FAST = SourceConfig(batch_size=48, n_epochs=1, net_arch=(16,))
LEARNERS = {"ppo": learn_history, "noise_expert": noise_expert_history, "random": random_history}


def make(style, seed=0, task_index=5, **kwargs):
    family = DarkRoomFamily(size=4, horizon=5)
    if style == "ppo":
        kwargs["config"] = FAST
    arguments = {**SIZE, "source_seed": seed, **kwargs}
    return (
        family,
        family.tasks()[task_index],
        LEARNERS[style](family, family.tasks()[task_index], **arguments),
    )


@pytest.mark.parametrize("style", LEARNERS)
def test_every_recorded_transition_is_one_of_the_environment(style):
    family, task, history = make(style)
    check_history(history, family.observation_space, family.action_space)
    assert (history.style, history.n_streams, history.n_transitions) == (style, 4, 36)
    positions = history.observations.astype(int)
    moved = np.clip(positions + MOVES[history.actions], 0, 3)
    assert (history.next_observations == moved).all()
    assert (history.rewards == (moved == task.params["goal"]).all(-1)).all()
    times = np.arange(36)
    assert (history.truncated == ((times + 1) % 5 == 0)).all()
    assert not history.terminated.any()
    assert (history.observations[:, times % 5 == 0] == 2).all()
    inside = times[:-1][(times[:-1] + 1) % 5 != 0]
    assert (history.observations[:, inside + 1] == history.next_observations[:, inside]).all()
    assert (history.compress_markers == markers_for("rollout", history.truncated, 12)).all()


@pytest.mark.parametrize("style", LEARNERS)
def test_equal_seeds_equal_histories(style):
    first, again, other = make(style)[2], make(style)[2], make(style, seed=1)[2]
    for name in FIELDS:
        assert (getattr(first, name) == getattr(again, name)).all()
    assert (first.actions != other.actions).any()
    assert (first.actions != make(style, task_index=6)[2].actions).any()


@pytest.mark.parametrize("style", LEARNERS)
def test_episode_markers(style):
    history = make(style, marker_rule=MarkerRule("episode", episodes_per_region=2))[2]
    expected = markers_for("episode", history.truncated, episodes_per_region=2)
    assert (history.compress_markers == expected).all()
    assert expected[0, :11].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1]


def test_ppo_learns_a_trivial_task():
    family = DarkRoomFamily(size=3, horizon=8)
    task = family.tasks()[0]
    size = {"n_streams": 16, "n_regions": 12, "region_len": 40, "source_seed": 0}
    config = SourceConfig(learning_rate=3e-3, batch_size=160)
    history = learn_history(family, task, config=config, **size)
    returns = history.rewards.reshape(16, 12, 40).sum(-1).mean(0) / 5
    assert returns[0] < 2.5
    assert returns[-1] > 0.9 * family.optimal_return(task)


def test_noise_expert_goes_from_random_to_optimal():
    family = DarkRoomFamily(size=5, horizon=10)
    task = family.tasks()[24]
    size = {"n_streams": 200, "n_regions": 20, "region_len": 10, "source_seed": 0}
    returns = noise_expert_history(family, task, **size).rewards.reshape(200, 20, 10).sum(-1)
    curve = returns.mean(0)
    assert curve[0] == pytest.approx(family.random_return(task), abs=0.3)
    assert curve[-1] == pytest.approx(family.optimal_return(task), abs=0.3)
    assert np.corrcoef(np.arange(20), curve)[0, 1] > 0.9


def test_ppo_on_a_library_environment_tells_ends_apart():
    family = GymnasiumFamily("CartPole-v1", episode_len=15)
    size = {"n_streams": 4, "n_regions": 2, "region_len": 40, "source_seed": 0}
    history = learn_history(family, family.tasks()[0], config=FAST, **size)
    check_history(history, family.observation_space, family.action_space)
    assert history.terminated.any()
    assert history.truncated.any()
    assert not (history.terminated & history.truncated).any()
    tilted = np.abs(history.next_observations[history.terminated][:, 2])
    assert (tilted > 0.2).all()  # the fallen pole, not the reset one
