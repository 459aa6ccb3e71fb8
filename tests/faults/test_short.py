"""A sample of the corpus of hostile input, and that its rules tell good from bad; the whole of it:
`make faults`."""

from pathlib import Path

import pytest

from base.errors import UserError
from tests.faults import configs, files, members, rooms
from tests.faults.corpus import LONGEST, Case, judge, judge_all, sample
from tests.faults.kills import before_python
from tests.faults.launch import ROOT

SEED = 0


def well(cases: list[Case]) -> None:
    broken = [v for v in judge_all(cases) if not v.well]
    assert not broken, "\n".join(f"{v.what}: {v.case}: {v.told}" for v in broken)


def test_there_are_enough_cases(tmp_path: Path):
    assert len(configs.cases(tmp_path, SEED)) > 7000
    assert len(members.cases(tmp_path, SEED)) > 100


def test_configurations(tmp_path: Path):
    well(sample(configs.cases(tmp_path, SEED), 120, SEED))


def test_families_and_compressors(tmp_path: Path):
    well(sample(members.cases(tmp_path, SEED), 20, SEED))


@pytest.mark.slow
def test_files(tmp_path: Path):
    cases = files.cases(tmp_path, SEED)
    assert len(cases) > 500
    well(sample(cases, 8, SEED))


@pytest.mark.slow
def test_full_and_closed_folders(tmp_path: Path):
    well(sample(rooms.cases(tmp_path, SEED), 4, SEED))


def sleep() -> None:
    while True:
        pass


def tell(text: str):
    def refuse() -> None:
        raise UserError(text)

    return refuse


def defect() -> None:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("run", "verdict"),
    [
        (lambda: None, "right"),
        (lambda: "silent: another", "silent"),
        (tell("a.yaml: key is wrong."), "refused"),
        (tell("something is wrong."), "vague"),
        (tell("a.yaml is wrong" + ", and so on" * LONGEST), "long"),
        (defect, "traceback"),
        (sleep, "hang"),
    ],
)
@pytest.mark.parametrize("apart", [True, False])
def test_the_rules(run, verdict: str, apart: bool):
    assert judge(Case("a case", run, ("a.yaml",), seconds=0.5, apart=apart)).what == verdict


@pytest.mark.parametrize(
    ("status", "frame", "last", "expected"),
    [
        (1, "/usr/lib/python3.11/enum.py", "KeyboardInterrupt", True),
        (1, f"{ROOT}/.venv/lib/python3.11/site-packages/_finder.py", "KeyboardInterrupt", True),
        (1, f"{ROOT}/pipelines/cli.py", "KeyboardInterrupt", False),
        (1, "/usr/lib/python3.11/enum.py", "ValueError: x", False),
        (2, "/usr/lib/python3.11/enum.py", "KeyboardInterrupt", False),
    ],
)
def test_a_traceback_of_pythons_start_is_told_from_ours(
    status: int, frame: str, last: str, expected: bool
):
    told = f'Traceback (most recent call last):\n  File "{frame}", line 3, in <module>\n{last}\n'
    assert before_python(status, told.encode()) is expected
