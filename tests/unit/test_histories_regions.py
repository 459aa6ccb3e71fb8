"""Region and marker arithmetic: by hand, offline against online, and refusals."""

import numpy as np
import pytest

from histories.regions import MarkerRule, RegionCounter, RegionError, markers_for, region_bounds


def test_fixed_markers_by_hand():
    ended = np.zeros(8, dtype=bool)
    assert markers_for("fixed", ended, region_len=3).tolist() == [1, 0, 2, 1, 0, 2, 1, 0]
    assert markers_for("rollout", ended, region_len=3).tolist() == [1, 0, 2, 1, 0, 2, 1, 0]
    assert markers_for("fixed", ended, region_len=1).tolist() == [2] * 8


def test_episode_markers_by_hand():
    ended = np.array([[0, 1, 0, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]], dtype=bool)
    markers = markers_for("episode", ended, episodes_per_region=2)
    assert markers.tolist() == [[1, 0, 0, 2, 1, 0, 0, 2], [1, 2, 1, 2, 1, 0, 0, 0]]


@pytest.mark.parametrize("rule", ["rollout", "fixed", "episode"])
def test_offline_equals_online_and_bounds_cover_everything(rule):
    rng = np.random.default_rng(0)
    ended = rng.random((6, 200)) < 0.2
    markers = markers_for(rule, ended, region_len=7, episodes_per_region=3)
    counter = RegionCounter(6, MarkerRule(rule, 7, 3))
    for time in range(200):
        assert counter.step(ended[:, time]).tolist() == markers[:, time].tolist()
    for stream in range(6):
        starts, lengths = region_bounds(markers[stream])
        assert starts[0] == 0
        assert (starts[1:] == starts[:-1] + lengths[:-1]).all()
        assert lengths.sum() == 200
        if rule == "episode":
            per_region = np.add.reduceat(ended[stream], starts)
            assert (per_region[:-1] == 3).all()
        else:
            assert (lengths[:-1] == 7).all()
        open_region = lengths[-1] if markers[stream, -1] != 2 else 0
        assert counter.steps_in_compression[stream] == open_region


def test_bounds_of_nothing():
    assert [part.tolist() for part in region_bounds(np.zeros(0, np.uint8))] == [[], []]


@pytest.mark.parametrize("markers", [[0, 0, 2], [1, 1, 2], [1, 2, 0, 2], [1, 0, 1, 0]])
def test_bounds_refuse_broken_markers(markers):
    with pytest.raises(RegionError, match="alternate"):
        region_bounds(np.array(markers))


def test_impossible_rules():
    with pytest.raises(RegionError, match="rollout, fixed, episode"):
        MarkerRule("weekly")
    with pytest.raises(RegionError, match="at least 1"):
        MarkerRule("fixed", region_len=0)
