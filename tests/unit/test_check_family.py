"""The longer look at a family: what is wrong is found, all of it; what is well is not suspected."""

import re
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from base.findings import Finding, as_line
from pipelines.check_family import main
from pipelines.cli import run_main
from pipelines.config import RunConfig
from pipelines.opening import open_run, open_tasks
from tasks.family import Task
from tasks.family_check import Findings
from tasks.family_findings import look_at, look_at_params
from tasks.gymnasium_family import GymnasiumFamily
from tests.faults.configs import TINY
from tests.faults.members import FAMILIES
from training.config import load_config

HOSTILE = "tests.faults.members:Hostile"


class LeverEnv(gymnasium.Env):
    """One of three levers pays; the observation is the lever pulled last, 3 at first."""

    observation_space, action_space = Discrete(4), Discrete(3)

    def __init__(self, lever: int, horizon: int = 4, careless: bool = False):
        self.lever, self.horizon, self.careless = lever, horizon, careless

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.elapsed = 0
        return 3, {}

    def step(self, action: Any) -> Any:
        self.elapsed += 1
        paid = float(action == self.lever)
        if self.careless:
            paid += np.random.random()
        return int(action), paid, False, self.elapsed >= self.horizon, {}


class FinalsAreResets(SyncVectorEnv):
    """final_obs is the reset observation."""

    def step(self, actions: Any) -> Any:
        observations, *rest, infos = super().step(actions)
        if "final_obs" in infos:
            infos["final_obs"] = np.array([int(o) for o in observations], dtype=object)
        return observations, *rest, infos


class Levers:
    """A family of levers; the arguments make it wrong in one way each."""

    name = "levers"
    observation_space, action_space = LeverEnv.observation_space, LeverEnv.action_space

    def __init__(
        self,
        levers: tuple[int, ...] = (0, 1, 2) * 8,
        *,
        random: float = 4 / 3,
        best: float | None = 4.0,
        acts: Any = None,
        env: Any = MappingProxyType({}),
        vector: type[SyncVectorEnv] = SyncVectorEnv,
        params: Any = MappingProxyType({}),
    ):
        self.episode_len, self.random, self.best, self.acts = 4, random, best, acts
        self.env, self.vector = env, vector
        self._tasks = [
            Task(i, f"lever={lever}", {"lever": lever, "copy": i, **params})
            for i, lever in enumerate(levers)
        ]

    def tasks(self) -> Any:
        return self._tasks

    def make_env(self, task: Task, render_mode: str | None = None) -> Any:
        return LeverEnv(task.params["lever"], **self.env)

    def make_vector_env(self, tasks: Any) -> Any:
        makers = [lambda task=task: self.make_env(task) for task in tasks]
        return self.vector(makers, autoreset_mode=AutoresetMode.SAME_STEP)

    def random_return(self, task: Task) -> float:
        return self.random

    def optimal_return(self, task: Task) -> float | None:
        return self.best

    def optimal_actions(self, tasks: Any, observations: Any, rng: Any = None) -> Any:
        return np.array(
            [task.params["lever"] if self.acts is None else self.acts for task in tasks]
        )


def found(family: Any) -> Findings:
    findings = Findings()
    look_at(family, findings)
    return findings


def statuses(findings: Findings) -> dict[str, str]:
    return {finding.subject: finding.status for finding in findings.found}


def not_ok(findings: Findings) -> dict[str, str]:
    return {subject: status for subject, status in statuses(findings).items() if status != "ok"}


def test_a_family_that_is_well_raises_no_doubt():
    findings = found(Levers())
    assert not_ok(findings) == {}
    texts = {finding.subject: finding.text for finding in findings.found}
    assert "4 ± 0" in texts["expert"]
    assert texts["episode bound"] == "longest of 64: 4 of 4"


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"random": 2.5}, {"random": "failure"}),
        ({"best": 4.5}, {"expert": "failure"}),
        ({"best": 3.5}, {"expert": "failure"}),
        ({"acts": 0}, {"expert": "failure"}),
        ({"best": 1.0}, {"optimal": "failure", "expert": "failure"}),
        ({"best": None}, {"optimal": "warning"}),
        ({"env": {"careless": True}}, {"determinism": "failure", "expert": "failure"}),
        ({"env": {"horizon": 5}}, {"episode bound": "failure"}),
        ({"levers": (1,) * 24}, {"differences": "warning"}),
        ({"vector": FinalsAreResets}, {"terminal obs": "warning"}),
    ],
    ids=str,
)
def test_what_is_wrong_is_found(wrong: dict[str, Any], expected: dict[str, str]):
    family = Levers(**wrong)
    result = not_ok(found(family))
    if "env" in wrong and "careless" in wrong["env"]:
        result.pop("random", None)  # rewards are larger too
    assert result == expected


def test_equal_parameters_are_told():
    findings = Findings()
    look_at_params(Levers((0, 1), params={"lever": 1, "copy": 1}).tasks(), findings)
    assert statuses(findings) == {"parameters": "failure"}
    assert "tasks 0 and 1" in findings.found[0].text


def written(folder: Path, **overrides: str) -> list[str]:
    file = folder / "tiny.yaml"
    file.write_text(TINY.format(run_dir=folder / "run"))
    return ["--config", str(file), *(f"{key}={value}" for key, value in overrides.items())]


@pytest.mark.parametrize("how", FAMILIES)
def test_whatever_a_run_refuses_fails_here(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    target = [f'family.target="{HOSTILE}"', f"family.kwargs={{how: {how!r}}}"]
    call = written(tmp_path)
    try:
        open_tasks(load_config(RunConfig, call[1], target))
        refused = False
    except Exception:
        refused = True
    with pytest.raises(SystemExit) as ended:
        run_main(main, [*call, *target])
    assert ended.value.code == 2
    out = capsys.readouterr().out
    assert re.search("^failure", out, re.MULTILINE) or not refused
    assert max(map(len, out.splitlines())) <= 80


def test_two_failures_are_both_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    kwargs = '{env_id: "CartPole-v1", grid: {sutton_barto_reward: [false, false, true]}}'
    target = 'family.target="tasks.gymnasium_family:GymnasiumFamily"'
    with pytest.raises(SystemExit) as ended:
        run_main(main, [*written(tmp_path), target, f"family.kwargs={kwargs}"])
    assert ended.value.code == 2
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("failure parameters") for line in lines) == 1
    assert sum(line.startswith("failure split") for line in lines) == 1


def test_nothing_failed_exits_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_main(main, written(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("failure")]
    assert any(line.startswith("warning train tasks") for line in lines)
    assert any(re.match(r"ok +speed +[\d.]+[kM]? env steps/s", line) for line in lines)


def test_long_findings_go_on_below_their_text():
    lines = as_line(Finding("failure", "optimal", "word " * 30)).splitlines()
    assert len(lines) > 1
    assert all(len(line) <= 80 for line in lines)
    assert all(line.startswith(" " * 23 + "word") for line in lines[1:])


@pytest.mark.parametrize("n_held_out", [2, 20])
def test_a_run_warns_of_few_training_tasks(
    n_held_out: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    size = ["family.kwargs={size: 6, horizon: 5}", f"split.n_test={n_held_out}"]
    open_run(load_config(RunConfig, written(tmp_path)[1], size), "collect")
    warned = "warning: 14 training tasks, fewer than 16" in capsys.readouterr().out
    assert warned == (n_held_out == 20)


def test_rewards_that_random_play_never_meets_are_told():
    draw = {"unwrapped.force": {"uniform": [-0.002, 0.002]}}
    flat = GymnasiumFamily("MountainCar-v0", draw=draw, n_tasks=8, episode_len=50)
    assert "all 64 episodes of random actions earned -50" in not_ok_text(found(flat), "learnable")
    cart = GymnasiumFamily("CartPole-v1", grid={"unwrapped.force_mag": [5.0, 9.0]}, episode_len=50)
    assert "learnable" not in statuses(found(cart))


def not_ok_text(findings: Findings, subject: str) -> str:
    return next(each.text for each in findings.found if each.subject == subject)
