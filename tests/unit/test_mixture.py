"""A mixture of families: every task is what it is in its own family, whoever asks."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from reports_data import task_entries, write_method

from ad.evaluate import has_expert
from ad.policy import OptimalPolicy
from ad.rollout import rollout
from histories.regions import MarkerRule
from histories.schema import FIELDS, check_history
from histories.sources import SourceError, SourceJob, make_histories
from pipelines.methods import METHODS
from reports.comparison import write_comparison
from reports.groups import EVERY
from tasks.family import FamilyError, Task, information_bits, load_family
from tasks.family_check import check_family
from tasks.mixture import MixtureFamily, members_of
from tasks.splits import SPLIT_PARTS, make_split
from teacher.sources import make_sources

ROOM = {"target": "tasks.darkroom:DarkRoomFamily", "kwargs": {"size": 3, "horizon": 4}}
KEY = {
    "target": "tasks.key_to_door:KeyToDoorFamily",
    "kwargs": {"size": 3, "horizon": 7, "n_tasks": 20},
}
MIXTURE = MixtureFamily([ROOM, KEY])
MEMBERS = [load_family(entry["target"], entry["kwargs"]) for entry in (ROOM, KEY)]
MIXED = [MIXTURE.tasks()[i] for i in (12, 0, 8, 28, 0, 9)]
OWN = [(1, 3), (0, 0), (0, 8), (1, 19), (0, 0), (1, 0)]


def test_tasks_are_those_of_the_families():
    check_family(MIXTURE)
    tasks = MIXTURE.tasks()
    assert [task.index for task in tasks] == list(range(29))
    assert [task.params for task in tasks] == [t.params for own in MEMBERS for t in own.tasks()]
    assert [task.group for task in tasks] == ["darkroom"] * 9 + ["key_to_door"] * 20
    for task, (k, index) in zip(MIXED, OWN, strict=True):
        own = MEMBERS[k].tasks()[index]
        assert MIXTURE.random_return(task) == MEMBERS[k].random_return(own)
        assert MIXTURE.optimal_return(task) == MEMBERS[k].optimal_return(own)
    assert [m.own([0, 8, 9, 28]) for m in members_of(MIXTURE, MIXED)] == [(0, 8), (0, 19)]


def test_streams_are_those_of_environments_alone():
    alone = [MEMBERS[k].make_env(MEMBERS[k].tasks()[i]) for k, i in OWN]
    vector, rng = MIXTURE.make_vector_env(MIXED), np.random.default_rng(0)
    shown, _ = vector.reset(seed=0)
    assert (shown == np.stack([env.reset(seed=0)[0] for env in alone])).all()
    ends = np.zeros(6, int)
    for _ in range(30):
        actions = rng.integers(5, size=6)
        shown, rewards, terminated, truncated, infos = vector.step(actions)
        for i, env in enumerate(alone):
            observation, reward, *ended, _ = env.step(actions[i])
            assert (rewards[i], terminated[i], truncated[i]) == (reward, *ended)
            if any(ended):
                assert infos["_final_obs"][i]
                assert (infos["final_obs"][i] == observation).all()
                observation, _ = env.reset()
                ends[i] += 1
            assert (shown[i] == observation).all()
    assert ends.tolist() == [4, 7, 7, 4, 7, 4]


def test_every_seed_of_a_list_goes_to_its_stream():
    entries = [
        {"target": "tasks.gymnasium_family:GymnasiumFamily", "name": name, "kwargs": kwargs}
        for name, kwargs in (
            ("light", {"env_id": "CartPole-v1", "grid": {"unwrapped.force_mag": [5.0, 6.0]}}),
            ("heavy", {"env_id": "CartPole-v1", "grid": {"unwrapped.force_mag": [9.0]}}),
        )
    ]
    family = MixtureFamily(entries)
    tasks = [family.tasks()[i] for i in (2, 0, 1)]
    shown, _ = family.make_vector_env(tasks).reset(seed=[7, 8, 9])
    alone = [family.make_env(t).reset(seed=s)[0] for t, s in zip(tasks, (7, 8, 9), strict=True)]
    assert (shown == np.stack(alone)).all()
    one, _ = family.make_vector_env(tasks).reset(seed=3)
    assert len(np.unique(one[:, 0])) == 3  # no two members begin alike


def test_the_experts_of_all_families_act_optimally_together():
    assert has_expert(MIXTURE)
    returns = rollout(OptimalPolicy(MIXTURE, MIXED), MIXTURE, MIXED, n_episodes=3, seed=0).returns
    best = [MIXTURE.optimal_return(task) for task in MIXED]
    assert returns == pytest.approx(np.tile(np.array(best)[:, None], 3))
    rooms = [MIXED[1], MIXED[2]]
    observations = np.array([[0, 1], [1, 1]])
    expected = MEMBERS[0].optimal_actions([MEMBERS[0].tasks()[i] for i in (0, 8)], observations)
    assert (MIXTURE.optimal_actions(rooms, observations) == expected).all()
    with pytest.raises(FamilyError, match="key_to_door"):
        MIXTURE.optimal_actions(MIXED, np.ones((6, 2), int))


def test_a_family_that_knows_no_optimum_leaves_the_mixture_without_an_expert():
    cart = {"target": "tasks.gymnasium_family:GymnasiumFamily"}
    grids = [{"unwrapped.force_mag": [5.0]}, {"unwrapped.force_mag": [9.0]}]
    families = [
        {**cart, "name": str(i), "kwargs": {"env_id": "CartPole-v1", "grid": grid}}
        for i, grid in enumerate(grids)
    ]
    assert not has_expert(MixtureFamily(families))


def test_searches_find_what_there_is_to_find_in_every_family():
    method = METHODS["posterior_sampling"]
    assert method.supported(MIXTURE)
    assert method.act is not None
    policy = method.act(MIXTURE, MIXED)
    returns = rollout(policy, MIXTURE, MIXED, n_episodes=40, seed=0).returns
    best = np.array([MIXTURE.optimal_return(task) for task in MIXED])
    assert returns[:, -5:] == pytest.approx(np.tile(best[:, None], 5))
    assert METHODS["coverage"].supported(MIXTURE)
    permuted = {"target": "tasks.permuted_room:PermutedRoomFamily", "kwargs": {"size": 3}}
    assert not METHODS["coverage"].supported(MixtureFamily([ROOM, permuted]))


def job_of(family, tasks, train):
    rule = MarkerRule("fixed", 12)
    return SourceJob(family, tuple(tasks), tuple(train), "any", 0, 2, 3, rule)


def test_histories_are_made_family_by_family():
    source = make_sources(["random"], {}, {})["random"]
    histories = make_histories(source, job_of(MIXTURE, MIXED[:4], range(29)))
    for k, places in ((0, [1, 2]), (1, [0, 3])):
        own = [MEMBERS[k].tasks()[OWN[place][1]] for place in places]
        job = replace(job_of(MEMBERS[k], own, ()), member=9 * k)
        for place, expected in zip(places, source(job), strict=True):
            check_history(histories[place], MIXTURE.observation_space, MIXTURE.action_space)
            for name in FIELDS:
                found = getattr(histories[place], name)
                assert (found == getattr(expected, name)).all()
    assert (histories[0].actions != histories[2].actions).any()


def told_train(job):
    return [job.train] * len(job.tasks)


def too_few(job):
    return []


def test_a_source_is_told_of_its_own_family_alone():
    source = make_sources([f"{__name__}:told_train"], {}, {})[f"{__name__}:told_train"]
    found = make_histories(source, job_of(MIXTURE, MIXED[:3], (0, 3, 9, 28)))
    assert found == [(0, 19), (0, 3), (0, 3)]
    source = make_sources([f"{__name__}:too_few"], {}, {})[f"{__name__}:too_few"]
    with pytest.raises(SourceError, match="a list of 1 histories, one per task, got 0"):
        make_histories(source, job_of(MIXTURE, MIXED[:2], ()))


def test_bits_name_the_family_and_then_the_task():
    bits = [information_bits(family) for family in MEMBERS]
    shares = np.array([9, 20]) / 29
    assert information_bits(MIXTURE) == pytest.approx(shares @ bits - shares @ np.log2(shares))
    equal = MixtureFamily([ROOM, {**ROOM, "name": "again"}])
    assert information_bits(equal) == pytest.approx(np.log2(9) + 1)


def test_splits_share_every_group_out():
    tasks = [Task(i, str(i), {"i": i}, "few" if i < 20 else "many") for i in range(80)]
    split = make_split(tasks, seed=1, n_validation=12, n_test=12)
    counts = [sum(i < 20 for i in getattr(split, part)) for part in SPLIT_PARTS]
    assert [len(getattr(split, part)) for part in SPLIT_PARTS] == [56, 12, 12]
    assert counts == [14, 3, 3]
    plain = [replace(task, group="") for task in tasks]
    drawn = sorted(np.random.default_rng(1).permutation(80)[:12].tolist())
    assert list(make_split(plain, seed=1, n_validation=10, n_test=12).test) == drawn


SMALLER = {**ROOM, "kwargs": {"size": 4}}


@pytest.mark.parametrize(
    ("families", "message"),
    [
        ([ROOM], "at least two families"),
        (ROOM, "at least two families"),
        ([ROOM, ROOM], "two families of the mixture are called 'darkroom'"),
        ([ROOM, {"kwargs": {}}], "must be {target: 'module:Class'"),
        ([ROOM, {**ROOM, "weight": 2}], "must be {target: 'module:Class'"),
        ([ROOM, {**SMALLER, "name": "b"}], "observation_space of 'darkroom' is .*that of 'b'"),
        ([ROOM, {**KEY, "kwargs": {"n_goals": 0}}], "n_goals"),
    ],
)
def test_what_cannot_be_mixed_is_told_in_one_sentence(families, message):
    with pytest.raises(FamilyError, match=message):
        load_family("tasks.mixture:MixtureFamily", {"families": families})


def test_a_report_has_a_table_for_every_group_and_one_for_all(tmp_path):
    entries = [
        {**entry, "group": "easy" if i < 3 else "hard", "random_return": 0.0, "optimal_return": 1.0}
        for i, entry in enumerate(task_entries(8))
    ]
    levels = {"student": (0.9, 0.4), "none": (0.1, 0.0)}
    for method, (easy, hard) in levels.items():
        returns = np.zeros((8, 2, 12), np.float32)
        returns[:3], returns[3:] = easy, hard
        write_method(tmp_path / "run", method, 0, tasks=entries, returns=returns)
    write_comparison([tmp_path / "run"], tmp_path / "out")
    with (tmp_path / "out/groups.csv").open() as file:
        rows = {(row["method"], row["group"]): float(row["mean"]) for row in csv.DictReader(file)}
    assert rows == pytest.approx(
        {
            ("student", EVERY): (3 * 0.9 + 5 * 0.4) / 8,
            ("none", EVERY): 0.3 / 8,
            ("student", "easy"): 0.9,
            ("none", "easy"): 0.1,
            ("student", "hard"): 0.4,
            ("none", "hard"): 0.0,
        },
        abs=1e-6,
    )
    page = (tmp_path / "out/table.md").read_text()
    assert page.index("## Results\n") < page.index("## Results: easy") < page.index("Results: hard")
    assert "| student | 0.900 |" in page[page.index("## Results: easy") :]
    for entry in entries:
        del entry["group"]
    for method in levels:
        write_method(tmp_path / "other", method, 0, tasks=entries)
    write_comparison([tmp_path / "other"], tmp_path / "out")
    assert not (tmp_path / "out/groups.csv").exists()
    assert "Results: " not in (tmp_path / "out/table.md").read_text()
