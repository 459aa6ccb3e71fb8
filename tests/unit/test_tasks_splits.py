"""Splits: drawn from a seed, named, and disjoint by task parameters."""

import dataclasses

import numpy as np
import pytest

from tasks.darkroom import DarkRoomFamily
from tasks.family import Task
from tasks.splits import Split, SplitError, check_disjoint, identity_of, make_split


def test_equal_seeds_equal_splits():
    tasks = DarkRoomFamily().tasks()
    split = make_split(tasks, seed=3, n_validation=8, n_test=10)
    again = make_split(tasks, seed=3, n_validation=8, n_test=10)
    other = make_split(tasks, seed=4, n_validation=8, n_test=10)
    assert split == again
    assert split.identity != other.identity
    assert (len(split.train), len(split.validation), len(split.test)) == (63, 8, 10)
    assert sorted(split.train + split.validation + split.test) == list(range(81))


def test_named_split_has_the_published_test_goals():
    family = DarkRoomFamily()
    tasks = family.tasks()
    split = make_split(tasks, seed=0, n_validation=8, named="darkroom_73_8")
    goals = {tuple(tasks[index].params["goal"]) for index in split.test}
    assert goals == {(4, 2), (5, 6), (6, 8), (7, 2), (3, 6), (0, 5), (5, 8), (5, 4)}
    assert np.mean([family.random_return(tasks[i]) for i in split.test]) == pytest.approx(
        0.325, abs=5e-4
    )
    assert np.mean([family.optimal_return(tasks[i]) for i in split.test]) == 17.25
    assert len(split.validation) == 8
    assert len(split.train) == 65
    assert split.name == "darkroom_73_8"
    reseeded = make_split(tasks, seed=1, n_validation=8, named="darkroom_73_8")
    assert reseeded.test == split.test
    assert reseeded.validation != split.validation


def test_overlap_by_parameters_is_refused():
    params = {"goal": [0, 0]}
    tasks = [Task(0, "a", params), Task(1, "b", {"goal": [0, 1]}), Task(2, "c", dict(params))]
    split = Split((0,), (1,), (2,), "", "handmade")
    with pytest.raises(SplitError, match="both in train and in test"):
        check_disjoint(tasks, split)
    with pytest.raises(SplitError, match="both in"):
        make_split([tasks[0], tasks[2], tasks[0]], seed=0, n_validation=1, n_test=1)


@pytest.mark.parametrize(
    ("size", "kwargs", "message"),
    [
        (3, {"n_validation": 4, "n_test": 5}, "nothing to train on"),
        (3, {"n_validation": 4}, "n_test is missing"),
        (3, {"n_validation": 1, "named": "darkroom_73_8"}, "81 tasks"),
        (9, {"n_validation": 1, "named": "other"}, "known: darkroom_73_8"),
        (9, {"n_validation": 1, "n_test": 9, "named": "darkroom_73_8"}, "8 test tasks"),
    ],
)
def test_impossible_splits(size, kwargs, message):
    with pytest.raises(SplitError, match=message):
        make_split(DarkRoomFamily(size).tasks(), seed=0, **kwargs)


def test_json_round_trip_and_parts():
    split = make_split(DarkRoomFamily(3).tasks(), seed=0, n_validation=2, n_test=2)
    assert Split.from_json(split.to_json()) == split
    assert split.part_of(split.test[0]) == "test"
    with pytest.raises(SplitError, match="no part"):
        split.part_of(99)
    with pytest.raises(SplitError, match="not a stored split"):
        Split.from_json("{}")


def test_identity_follows_parameters_not_indices():
    tasks = list(DarkRoomFamily(3).tasks())
    swapped = [dataclasses.replace(tasks[1], index=0), dataclasses.replace(tasks[0], index=1)]
    assert identity_of(tasks, [0], [1], [2]) == identity_of([*swapped, *tasks[2:]], [1], [0], [2])
    other = DarkRoomFamily(3, horizon=10).tasks()
    assert identity_of(tasks, [0], [1], [2]) != identity_of(other, [0], [1], [2])
