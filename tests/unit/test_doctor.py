"""The look at histories: healthy ones are not suspected, and each planted fault is found."""

from dataclasses import replace

import numpy as np
import pytest
from histories_data import small_family

from base.findings import Finding, any_failed, as_line, counted
from histories.doctor import examine
from histories.regions import markers_for
from histories.replay import replay
from histories.schema import History
from histories.store import assemble, write_part
from pipelines.cli import run_main
from pipelines.doctor import main
from tasks.bandits import KeyedBanditFamily
from tasks.family import Task
from tasks.splits import Split, identity_of, make_split

STREAMS, STEPS, REGION = 3, 60, 10


def healthy(family, seed=0):
    """Whoever knows the task better and better: a history per task."""
    rng, made = np.random.default_rng(seed), {}
    for task in family.tasks():
        knows = rng.random((STREAMS, STEPS)) < np.linspace(0, 1, STEPS)
        actions = rng.integers(int(family.action_space.n), size=(STREAMS, STEPS))
        env = family.make_vector_env([task] * STREAMS)
        seen, _ = env.reset(seed=0)
        for step in range(STEPS):
            best = family.optimal_actions([task] * STREAMS, seen, rng)
            actions[:, step] = np.where(knows[:, step], best, actions[:, step])
            seen = env.step(actions[:, step])[0]
        played = replay(family, task, actions)
        history = History.empty(
            *(family.observation_space, family.action_space, STREAMS, STEPS),
            style="learner",
            source_seed=0,
        )
        history.actions[:] = actions
        for name, values in vars(played).items():
            getattr(history, name)[:] = values
        ended = played.terminated | played.truncated
        history.compress_markers[:] = markers_for("fixed", ended, REGION)
        made[task.index] = [history]
    return made


def write(folder, histories, family, split, tasks=None):
    parts = {}
    for index, own in histories.items():
        for number, history in enumerate(own):
            path = folder / f"parts/{index}-{number}.h5"
            write_part(path, {index: history}, "")
            parts.setdefault(index, []).append(path)
    assemble(
        folder / "histories.h5",
        parts,
        tasks or family.tasks(),
        family_name=family.name,
        observation_space=family.observation_space,
        action_space=family.action_space,
        split=split,
        settings={"marker_rule": "fixed", "region_len": REGION},
        references={i: (0.2, 3.0) for i in histories},
    )
    return folder / "histories.h5"


@pytest.fixture(scope="module")
def family():
    return small_family()


@pytest.fixture(scope="module")
def split(family):
    return make_split(family.tasks(), seed=0, n_validation=2, n_test=2)


@pytest.fixture(scope="module")
def recorded(family):
    return healthy(family)


@pytest.fixture
def histories(recorded):
    """Copies that a test may spoil."""
    return {
        index: [
            replace(h, **{n: v.copy() for n, v in vars(h).items() if isinstance(v, np.ndarray)})
            for h in own
        ]
        for index, own in recorded.items()
    }


def found(path, family, split, region_len=REGION):
    return list(examine(path, family, split, region_len, "fixed"))


def of(findings, subject):
    return [finding for finding in findings if finding.subject == subject]


def bad(findings):
    """Subjects with the status of whatever is not well, but for the few tasks."""
    told = [f for f in findings if f.status != "ok" and f.subject != "train tasks"]
    return [(finding.subject, finding.status) for finding in told]


def test_healthy_histories_are_not_suspected(tmp_path, histories, family, split):
    findings = found(write(tmp_path, histories, family, split), family, split)
    assert bad(findings) == []
    assert [f.status for f in of(findings, "train tasks")] == ["warning"]
    assert "5 training tasks, fewer than 16" in of(findings, "train tasks")[0].text
    (curves,) = of(findings, "curves")
    assert curves.text.startswith("learner: 9 of 9 improve, in ")
    assert max(len(line) for f in findings for line in as_line(f).splitlines()) <= 80


def every(histories):
    return [history for own in histories.values() for history in own]


def nan(histories, family):
    histories[4][0].rewards[1, 7] = np.nan


def no_such_cell(histories, family):
    histories[4][0].observations[0, 3] = 7


def endless(histories, family):
    histories[2][0].truncated[:] = False


def reset_at_ends(histories, family):
    for h in every(histories):
        ended = h.truncated[:, :-1]
        h.next_observations[:, :-1][ended] = h.observations[:, 1:][ended]


def one_action(histories, family):
    for history in every(histories):
        history.actions[:] = 2


def one_action_of_some(histories, family):
    histories[3][0].actions[0] = 2


def never_paid(histories, family):
    histories[3][0].rewards[:] = 0


def wild_markers(histories, family):
    histories[5][0].compress_markers[2, 15] = 1


def longer_regions(histories, family):
    for h in every(histories):
        h.compress_markers[:] = markers_for("fixed", h.truncated, 2 * REGION)


def one_region(histories, family):
    for index, (h,) in histories.items():
        fields = {n: v[:, :REGION] for n, v in vars(h).items() if isinstance(v, np.ndarray)}
        histories[index] = [replace(h, **fields)]


def collapse(histories, family):
    for h in every(histories):
        h.rewards[:, -2 * REGION :] = 0


def missing(histories, family):
    del histories[6]


@pytest.mark.parametrize(
    ("fault", "expected", "text"),
    [
        (nan, [("values", "failure")], "1 of 9 tasks: task 4: history rewards must be finite"),
        (no_such_cell, [("values", "failure")], "holds 7, which is none of"),
        (endless, [("values", "failure")], "has an episode of 60 steps or more"),
        (reset_at_ends, [("terminal obs", "failure")], "are those of the reset; the environment"),
        (one_action, [("actions", "failure")], "the same all along in 27 of 27 streams"),
        (one_action_of_some, [("actions", "warning")], "in 1 of 27 streams"),
        (never_paid, [("rewards", "warning"), ("flat", "warning")], "in 1 of 9 tasks every"),
        (wild_markers, [("markers", "failure")], "task 5, stream 2: compress markers must"),
        (longer_regions, [("markers", "failure")], "of 20 steps, expected region_len=10"),
        (
            one_region,
            [("markers", "failure"), ("curves", "warning"), ("improvement", "failure")],
            "no stream has two regions",
        ),
        (missing, [("tasks", "failure")], "1 of the split missing: goal=(2,0)"),
    ],
)
def test_a_planted_fault_is_found(tmp_path, histories, family, split, fault, expected, text):
    fault(histories, family)
    findings = found(write(tmp_path, histories, family, split), family, split)
    assert set(expected) <= set(bad(findings))
    assert {subject for subject, _ in bad(findings)} <= {
        *(subject for subject, _ in expected),
        *("flat", "collapsed", "curves", "rewards"),
    }
    assert any(text in finding.text for finding in findings), findings


def test_collapsed_and_fixed_policies(tmp_path, histories, family, split):
    collapse(histories, family)
    findings = found(write(tmp_path / "a", histories, family, split), family, split)
    assert of(findings, "collapsed")[0].status == "warning"
    assert ("improvement", "failure") in bad(findings)
    for h in every(histories):
        h.rewards[:] = 0.5
        h.rewards[:, ::7] = 0.4
    findings = found(write(tmp_path / "b", histories, family, split), family, split)
    (curves,) = of(findings, "curves")
    assert (curves.status, curves.text) == ("warning", "learner: 0 of 9 improve")
    assert "nothing to learn but a fixed policy" in of(findings, "improvement")[0].text


def test_the_same_transitions_in_two_parts(tmp_path, histories, family, split):
    first, second = split.train[0], split.test[0]
    histories[second] = histories[first]
    findings = found(write(tmp_path / "a", histories, family, split), family, split)
    (copies,) = of(findings, "equal histories")
    assert copies.status == "failure"
    assert {f"{first} (train)", f"{second} (test)"} == set(
        copies.text.removeprefix("tasks ").removesuffix(" hold the same transitions").split(", ")
    )
    histories[second] = histories[split.test[1]]
    findings = found(write(tmp_path / "b", histories, family, split), family, split)
    assert of(findings, "equal histories")[0].status == "warning"


class Twins:
    """Dark Rooms of which two are one."""

    def __init__(self):
        self.rooms = small_family()
        self._tasks = list(self.rooms.tasks())
        self._tasks[8] = Task(8, "again", self._tasks[0].params)

    def tasks(self):
        return self._tasks

    def __getattr__(self, name):
        return getattr(self.rooms, name)


def test_equal_tasks_in_two_parts(tmp_path, histories, split):
    family = Twins()
    for parts, status in (
        (((0, 1, 2, 3, 4, 5), (6, 7), (8,)), "failure"),
        (((0, 1, 2, 3, 4, 8), (6, 7), (5,)), "warning"),
    ):
        own = Split(*parts, identity_of(family.tasks(), *parts), "made")
        path = write(tmp_path / status, histories, family, own, family.tasks())
        (equal,) = of(found(path, family, own), "equal tasks")
        assert equal.status == status
        assert equal.text.startswith("tasks 0 (train), 8 (")


def test_another_family_or_no_file(tmp_path, histories, family, split):
    path = write(tmp_path, histories, family, split)
    other = KeyedBanditFamily(n_tasks=4, n_contexts=2, n_actions=2)
    (finding,) = found(path, other, split)
    assert finding.status == "failure"
    assert "of the configuration" in finding.text
    path.write_bytes(path.read_bytes()[:1000])
    (finding,) = found(path, family, split)
    assert (finding.status, finding.subject) == ("failure", "file")


def test_another_region_length_cuts_anew(tmp_path, histories, family, split):
    findings = found(write(tmp_path, histories, family, split), family, split, region_len=20)
    (markers,) = of(findings, "markers")
    assert markers.status == "warning"
    assert "cut anew every region_len=20" in markers.text


def test_last_observations_that_are_the_reset_ones_by_nature(tmp_path):
    class StartsWhereItEnds:
        """Rooms whose every episode ends in its start: a horizon of one step that stays."""

        def __init__(self):
            self.rooms = type(small_family())(size=3, horizon=1)

        def __getattr__(self, name):
            return getattr(self.rooms, name)

    family = StartsWhereItEnds()
    split = make_split(family.tasks(), seed=0, n_validation=2, n_test=2)
    histories = healthy(family)
    for task in family.tasks():
        (h,) = histories[task.index]
        h.actions[:] = 4
        for name, values in vars(replay(family, task, h.actions)).items():
            getattr(h, name)[:] = values
    findings = found(write(tmp_path, histories, family, split), family, split)
    assert of(findings, "terminal obs")[0].status == "ok"


CONFIG = """
region_len: 10
run_dir: {run_dir}
family: {{target: "tasks.darkroom:DarkRoomFamily", kwargs: {{size: 3, horizon: 5}}}}
split: {{seed: 0, n_validation: 2, n_test: 2}}
collect: {{marker_rule: fixed}}
"""


def test_the_command_exits_by_what_it_found(tmp_path, histories, family, split, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(run_dir=tmp_path / "run"))
    path = write(tmp_path, histories, family, split)
    run_main(main, ["--config", str(config), f"histories={path}"])
    told = capsys.readouterr().out.splitlines()
    assert told[0] == str(path)
    assert told[-1].endswith("findings: 1 warning")
    assert max(map(len, told[1:])) <= 80
    reset_at_ends(histories, family)
    path = write(tmp_path / "run/collect", histories, family, split)
    with pytest.raises(SystemExit) as ended:
        run_main(main, ["--config", str(config)])
    assert ended.value.code == 2
    assert "failure terminal obs" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        run_main(main, ["--config", str(config), f"histories={tmp_path / 'none.h5'}"])
    assert ended.value.code == 2
    assert "is no file" in capsys.readouterr().err


def test_findings_are_counted():
    text = "word " * 30
    findings = [Finding("ok", "a", "well"), Finding("warning", "b", text)]
    assert as_line(findings[0]) == "ok      a              well"
    assert all(len(line) <= 80 for line in as_line(findings[1]).splitlines())
    assert counted(findings) == "2 findings: 1 warning"
    assert not any_failed(findings)
    assert counted(findings[:1]) == "1 findings: all ok"
    assert any_failed([*findings, Finding("failure", "c", "x")])
