"""Models that see a step alone are asked about every observation once, and learn the same."""

from typing import Any

import pytest
import torch
from fixtures import CELLS, CHOICE, NUMBERS, make_apart, make_student, make_teacher, make_triple

from ad.losses import LossConfig
from ad.objectives import LABELS_NAME, ActionObjective
from ad.queries import Questions, all_observations, answers, places_among_all
from nets.spaces import FieldSpec
from teacher.model import RawContextObjective

B, REGION_LEN, N_CELLS = 4, 24, 9
KL: dict[str, Any] = {"alpha": 0.5, "beta": 1.0}


def student_objective(region_len: int = REGION_LEN, **weights: Any):
    student = make_student(sees="step", region_len=region_len)
    teacher = make_teacher(sees="step", region_len=region_len).eval()
    return ActionObjective(student, LossConfig(**weights), teacher)


OBJECTIVES = {
    "recorded actions": lambda: student_objective(),
    "the teacher": lambda: student_objective(**KL),
    "itself": lambda: student_objective(**KL, target="self"),
    "labels": lambda: student_objective(**KL, target="optimal"),
    "what follows": lambda: student_objective(returns=1.0, ahead=1.0, n_ahead=2),
    "attention": lambda: student_objective(attention=1.0),
    "a prefix": lambda: ActionObjective(
        make_student(sees="step", region_len=REGION_LEN, reads="prefix"), LossConfig()
    ),
    "raw context": lambda: RawContextObjective(make_teacher(sees="step", region_len=REGION_LEN)),
    "regions apart": lambda: RawContextObjective(make_apart(sees="step", region_len=REGION_LEN)),
}


def batch_of(region_len=REGION_LEN):
    torch.manual_seed(1)
    batch = make_triple(B, region_len=region_len)
    batch.query.mask[0, region_len // 2 :] = False  # a short region
    batch.extra[LABELS_NAME] = torch.randn(B, region_len, 5)
    return batch


def learned(objective, batch):
    """Metrics and gradients of a batch."""
    loss, metrics = objective(batch)
    loss.backward()
    return metrics, {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_asking_once_teaches_what_asking_at_every_step_does(name, monkeypatch):
    batch, objective = batch_of(), OBJECTIVES[name]()
    asked, places = objective.questions.ask(batch)
    assert asked.query.mask.shape == (B, N_CELLS)
    assert places is not None
    metrics, gradients = learned(objective, batch)
    plain = OBJECTIVES[name]()
    monkeypatch.setattr(plain.questions, "observations", None)
    assert plain.questions.ask(batch) == (batch, None)
    expected, slow = learned(plain, batch)
    torch.testing.assert_close(metrics, expected)
    assert gradients.keys() == slow.keys()
    for key, gradient in gradients.items():  # to rounding of sums as large as their largest
        close_to = 1e-7 + 1e-4 * float(slow[key].abs().max())
        torch.testing.assert_close(gradient, slow[key], rtol=0, atol=close_to, msg=key)
    assert any(gradient.any() for gradient in gradients.values())


def test_every_step_is_answered_what_its_observation_is():
    spec = FieldSpec("classes", (2,), (3, 2), start=(5, -1))
    every = all_observations(spec)  # (6, 2)
    shown = every[torch.tensor([[4, 0, 5], [2, 2, 1]])]
    places = places_among_all(spec, shown)
    assert places.tolist() == [[4, 0, 5], [2, 2, 1]]
    told = answers(torch.arange(2 * 6.0).view(2, 6, 1), places)
    assert told[..., 0].tolist() == [[4, 0, 5], [8, 8, 7]]


def test_few_steps_are_asked_one_by_one():
    batch = batch_of(N_CELLS)
    assert student_objective(N_CELLS, **KL).questions.ask(batch) == (batch, None)
    asked, _ = student_objective(N_CELLS, **KL, queries="all").questions.ask(batch)
    torch.testing.assert_close(asked.query.observations[1], all_observations(CELLS))


@pytest.mark.parametrize(
    ("spec", "student", "teacher"),
    [
        (CELLS, {"sees": "region"}, {"sees": "step"}),
        (CELLS, {"sees": "step"}, {"sees": "region"}),
        (CELLS, {"sees": "step", "online": 8}, {"sees": "step"}),
        (NUMBERS, {"sees": "step"}, {"sees": "step"}),
        (FieldSpec("classes", (2,), (40, 40)), {"sees": "step"}, {"sees": "step"}),
    ],
)
def test_who_sees_more_or_cannot_be_counted_is_asked_at_every_step(spec, student, teacher):
    size = {"region_len": REGION_LEN}
    models = make_student(**size, **student), make_teacher(**size, **teacher)
    batch = batch_of()
    assert Questions(spec, models).ask(batch) == (batch, None)
    assert Questions(CHOICE, models[:0]).observations is not None
