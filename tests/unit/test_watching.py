"""Watching an agent act, in whatever way its family can be shown."""

from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from PIL import Image

from ad.policy import RandomPolicy
from pipelines.demo import main as demo
from probes.traces import PICTURES, TEXT, play, render_modes
from reports.film import MOST_WIDTH, grid_pictures, smaller
from reports.terminal import moments, steps
from tasks.darkroom import DarkRoomFamily
from tasks.family import Task

BASE = "base: {base}\nrun_dir: {run_dir}\nsplit: {{n_validation: 1, n_test: 1}}\nfamily: {family}\n"
LAKE = """{target: tasks.gymnasium_family:GymnasiumFamily, kwargs: {env_id: FrozenLake-v1,
  is_slippery: false, episode_len: 6, grid: {desc: [[SF, FG], [SH, FG], [SF, HG]]}}}"""
BANDIT = '{target: "tasks.bandits:KeyedBanditFamily", kwargs: {n_tasks: 4, n_contexts: 2}}'
DOORS = """{target: "tasks.key_to_door:KeyToDoorFamily",
  kwargs: {size: 3, horizon: 6, n_tasks: 8}}"""


class Drawing(gymnasium.Env):
    """Shows itself in the ways it is told to claim, some of which are broken."""

    observation_space, action_space = Discrete(1000), Discrete(2)
    counted = 0

    def __init__(self, render_mode=None, modes=(PICTURES, TEXT), strays=False):
        self.metadata = {"render_modes": list(modes)}
        self.render_mode, self.strays = render_mode, strays

    def _seen(self):
        type(self).counted += self.strays
        return self.counted if self.strays else self.elapsed

    def reset(self, *, seed=None, options=None):
        self.elapsed = 0
        return np.int64(self._seen()), {}

    def step(self, action):
        self.elapsed += 1
        return np.int64(self._seen()), 1.0, False, self.elapsed == 3, {}

    def render(self):
        if self.render_mode == TEXT:
            return f"step {self.elapsed}\n"
        if len(self.metadata["render_modes"]) == 3:
            raise gymnasium.error.DependencyNotInstalled("no pictures here")
        return np.full((4, 4, 3), self.elapsed, dtype=np.uint8)


class DrawingFamily:
    name = "drawing"
    observation_space, action_space = Drawing.observation_space, Drawing.action_space
    episode_len = 3

    def __init__(self, **kwargs):
        self.kwargs = kwargs

    def tasks(self):
        return [Task(0, "only", {})]

    def make_env(self, task, render_mode=None):
        return Drawing(render_mode, **self.kwargs)


def watched(family, shown=(2,)):
    (task,) = family.tasks()
    modes = render_modes(family, task)
    policy = RandomPolicy(family)
    return list(play(policy, family, task, n_episodes=2, seed=0, shown=shown, modes=modes))


def test_pictures_and_texts_are_of_the_same_moments():
    first, second = watched(DrawingFamily())
    assert (first.frames, first.texts) == ([], [])
    assert [int(frame[0, 0, 0]) for frame in second.frames] == [0, 1, 2, 3]
    assert second.texts == [f"step {i}\n" for i in range(4)]
    assert second.actions.shape == (3,)


def test_a_twin_that_goes_another_way_is_not_shown():
    _, episode = watched(DrawingFamily(strays=True))
    assert len(episode.frames) == 4
    assert episode.texts == []


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ((), []),
        (("human",), []),
        ((TEXT,), [TEXT]),
        ((PICTURES, TEXT, "depends on what is not installed"), [TEXT]),
    ],
)
def test_only_modes_that_work_are_used(modes, expected):
    family = DrawingFamily(modes=modes)
    assert render_modes(family, family.tasks()[0]) == expected
    assert len(watched(family)) == 2


def test_pictures_of_a_grid_are_those_the_room_draws():
    family = DarkRoomFamily(size=3, horizon=4)
    task = family.tasks()[5]
    (episode,) = play(RandomPolicy(family), family, task, n_episodes=1, seed=0, shown=[1])
    drawn = grid_pictures(episode.observations, (3, 3), task.params["goal"])
    assert len(drawn) == len(episode.frames) == 5
    for own, theirs in zip(drawn, episode.frames, strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_wide_pictures_are_made_smaller():
    assert smaller(np.zeros((300, 3 * MOST_WIDTH, 3), np.uint8)).shape == (100, MOST_WIDTH, 3)
    assert smaller(np.zeros((30, 40, 3), np.uint8)).shape == (30, 40, 3)


def test_texts_stand_side_by_side_and_show_where_an_agent_is():
    texts = [f"{'a' * i}\x1b[41mS\x1b[0m{'b' * (8 - i)}\n  \x1b[1mend\x1b[0m" for i in range(9)]
    lines = moments(texts, n=3)
    assert lines[0].split() == ["step", "0", "step", "4", "step", "8"]
    assert lines[1].split() == ["@bbbbbbbb", "aaaa@bbbb", "aaaaaaaa@"]
    assert lines[2].split() == ["end"] * 3
    assert len(moments(["x"])) == 2


def test_steps_say_what_was_paid():
    actions, rewards = np.array([2, 0, 1]), np.array([0.0, 1.0, -0.5])
    assert steps(actions, rewards) == ["2 0(+1) 1(-0.5)"]
    assert steps(np.array([[0.123456, -1.0]]), np.zeros(1)) == ["0.123,-1"]
    assert max(map(len, steps(np.ones(200, int), np.ones(200)))) <= 80


@pytest.mark.parametrize(
    ("family", "expected", "filmed"),
    [
        (LAKE, "@F", find_spec("pygame") is not None),
        (BANDIT, "(+1)", False),
        (DOORS, "o path   @ end", True),
    ],
    ids=["printed", "steps", "grid"],
)
def test_every_family_can_be_watched(tmp_path, capsys, family, expected, filmed):
    base = "configs/base.yaml"
    config = BASE.format(
        base=f"{__file__.rpartition('/tests/')[0]}/{base}", run_dir=tmp_path, family=family
    )
    (tmp_path / "config.yaml").write_text(config)
    film = tmp_path / "film.gif"
    demo(["--model", str(tmp_path), "--method", "random", "--episodes", "5", "--gif", str(film)])
    told = capsys.readouterr().out
    assert expected in told
    assert max(map(len, told.replace(str(film), "").splitlines())) <= 80
    assert film.is_file() == filmed
    if filmed:
        with Image.open(film) as opened:
            assert opened.n_frames > 3
    else:
        assert "no film: environments draw no pictures" in told
