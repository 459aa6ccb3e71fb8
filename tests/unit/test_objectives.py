"""Variants of objectives: the divergence's direction, where it is taken, attention matching."""

from pathlib import Path

import pytest
import torch
from fixtures import CELLS, CHOICE, NUMBERS, REGION_LEN, make_student, make_teacher, make_triple

from ad.attention_matching import CrossInputs, attention_loss, cross_attentions
from ad.full_context import full_context
from ad.losses import LossConfig, ObjectiveError, divergence
from ad.model import Triple
from ad.objectives import ActionObjective
from ad.queries import all_observations
from compression.memory import MemoryConfig
from nets.actions import ActionDistribution
from nets.regions import padded
from nets.spaces import FieldSpec
from pipelines.config import RunConfig
from training.config import ConfigError, load_config

B = 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def loss_of(batch, student=None, teacher=None, **weights):
    """Loss and metrics as numbers."""
    objective = ActionObjective(student or make_student(), LossConfig(**weights), teacher)
    loss, metrics = objective(batch)
    return loss.item(), {name: value.item() for name, value in metrics.items()}


def slow_kl(p, q):
    """KL(p || q), mean over rows and steps, one by one."""
    p, q = p.softmax(-1).flatten(0, 1), q.softmax(-1).flatten(0, 1)
    rows = [
        sum(a * (a / b).log() for a, b in zip(*row, strict=True)) for row in zip(p, q, strict=True)
    ]
    return float(sum(rows) / len(rows))


@pytest.mark.parametrize("q", [0.3, 1.0])
def test_the_generalised_cross_entropy_is_that_of_its_formula(q):
    batch, student = make_triple(B), make_student()
    parameters, query = student(batch).parameters.detach(), batch.query
    p = parameters.softmax(-1).gather(-1, query.actions[..., None])[..., 0][query.mask]
    loss, metrics = loss_of(batch, student, nll_power=q)
    assert loss == pytest.approx(float(((1 - p**q) / q).mean()), rel=1e-4)
    assert metrics["action_nll"] == pytest.approx(float(-p.log().mean()), rel=1e-4)
    plain = loss_of(batch, student)[0]
    assert plain == pytest.approx(metrics["action_nll"])
    assert loss_of(batch, student, nll_power=1e-4)[0] == pytest.approx(plain, rel=1e-3)


def test_only_probabilities_have_a_generalised_cross_entropy():
    box = FieldSpec("vector", (1,), low=(-1.0,), high=(1.0,))
    with pytest.raises(ObjectiveError, match="actions that are classes, but this family's are a"):
        ActionObjective(make_student(action=box), LossConfig(nll_power=0.5))
    for wrong in ({"alpha": 0.0, "beta": 1.0}, {"label_smoothing": 0.1}):
        with pytest.raises(ValueError, match="recorded actions alone"):
            LossConfig(nll_power=0.5, **wrong)


def test_the_direction_of_the_divergence():
    batch, teacher, student = make_triple(B), make_teacher().eval(), make_student()
    student.decoder.action_head.weight.data *= 5  # far apart: the directions differ
    with torch.no_grad():
        p, q = teacher(batch).parameters, student(batch).parameters
    forward, reverse = slow_kl(p, q), slow_kl(q, p)
    assert abs(forward - reverse) > 0.05
    for kl, expected in (
        ("forward", forward),
        ("reverse", reverse),
        ("both", (forward + reverse) / 2),
    ):
        loss, metrics = loss_of(batch, student, teacher, alpha=0.0, beta=1.0, kl=kl)
        assert loss == pytest.approx(expected, rel=1e-3)
        assert metrics["teacher_kl"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("kl", "modes"), [("forward", 2), ("reverse", 1)])
def test_forward_covers_what_reverse_chooses_from(kl, modes):
    """Two equal modes in the teacher, a narrow bell as student that begins beside one of them."""
    actions = ActionDistribution(FieldSpec("classes", (), (41,)))
    grid = torch.linspace(-4, 4, 41)
    target = torch.logaddexp(-((grid - 2) ** 2) * 4, -((grid + 2) ** 2) * 4)
    mean, log_std = torch.tensor(1.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    optimizer = torch.optim.Adam([mean, log_std], lr=0.05)
    for _ in range(300):
        ours = -((grid - mean) ** 2) / (2 * log_std.exp() ** 2)
        loss = divergence(
            actions, target[None, None], ours[None, None], LossConfig(beta=1.0, kl=kl)
        )
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    ours = (-((grid - mean) ** 2) / (2 * log_std.exp() ** 2)).softmax(-1)
    assert (ours[grid > 0].sum() > 0.2).int() + (ours[grid < 0].sum() > 0.2).int() == modes


def seeing_steps():
    """A student and a teacher that see steps alone."""
    return make_student(sees="step"), make_teacher(sees="step").eval()


def test_all_observations_are_asked_once_each():
    every = all_observations(CELLS)
    assert every.shape == (9, 2)
    assert len(every.unique(dim=0)) == 9
    assert all_observations(CHOICE).tolist() == [0, 1, 2, 3, 4]
    for spec in (NUMBERS, FieldSpec("classes", (2,), (64, 64))):
        with pytest.raises(ObjectiveError, match=r"set loss\.queries to visited"):
            all_observations(spec)


def test_the_divergence_over_all_observations_is_that_of_asking_one_by_one():
    batch = make_triple(B)
    student, teacher = seeing_steps()
    visited, _ = loss_of(batch, student, teacher, alpha=0.0, beta=1.0)
    _, metrics = loss_of(batch, student, teacher, alpha=1.0, beta=1.0, queries="all")
    plain = loss_of(batch, student)[0]
    assert metrics["action_nll"] == pytest.approx(plain, rel=1e-5)
    found = []
    for cell in all_observations(CELLS):
        batch.query.observations = cell.expand(B, REGION_LEN, 2).clone()
        found.append(loss_of(batch, student, teacher, alpha=0.0, beta=1.0)[0])
    assert metrics["teacher_kl"] == pytest.approx(sum(found) / 9, rel=1e-4)
    assert metrics["teacher_kl"] != pytest.approx(visited, rel=1e-3)


def test_where_nothing_was_visited_only_all_queries_teach():
    """The current regions stay in one cell; the divergence elsewhere falls by `all` alone."""
    left = {}
    for queries in ("visited", "all"):
        torch.manual_seed(0)
        batch = make_triple(16)
        batch.query.observations[:] = 0
        student, teacher = seeing_steps()
        teacher.action_head.weight.data *= 5
        weights = {"alpha": 0.0, "beta": 1.0, "queries": queries}
        objective = ActionObjective(student, LossConfig(**weights), teacher)
        optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
        for _ in range(150):
            optimizer.zero_grad()
            objective(batch)[0].backward()
            optimizer.step()
        left[queries] = loss_of(batch, student, teacher, **{**weights, "queries": "all"})[0]
    assert left["all"] < 0.2 * left["visited"]


def test_models_that_see_a_region_cannot_be_asked_about_all():
    with pytest.raises(ValueError, match="see a step alone"):
        ActionObjective(make_student(), LossConfig(beta=1.0, queries="all"), make_teacher())


def matched(student, batch):
    """Attention reconstruction of the nearest regions."""
    with CrossInputs(student.decoder) as seen:
        output = student(batch)
    region = batch.previous
    region.mask = region.mask & batch.has_previous[:, None]
    return attention_loss(student, output.latents, region, seen.inputs), output, region, seen


def test_attention_matching_against_a_slow_reference():
    student, batch = make_student().eval(), make_triple(B)
    loss, output, region, seen = matched(student, batch)
    total, rows = 0.0, batch.has_previous.nonzero()[:, 0].tolist()
    raw = student.transition_encoder(student.scaling.regions(region))
    values = output.latents.values
    for cross, x in zip(cross_attentions(student.decoder), seen.inputs, strict=True):
        ours = torch.stack([cross(x[[b]], cross.project(values[[b]]))[0] for b in rows])
        theirs = torch.stack([cross(x[[b]], cross.project(raw[[b]]))[0] for b in rows])
        total += (ours - theirs).square().mean() / theirs.var((0, 1), unbiased=False).mean()
    torch.testing.assert_close(loss, total / 2)


def test_latents_that_are_the_raw_tokens_cost_nothing():
    student, batch = make_student().eval(), make_triple(B)
    _, output, region, seen = matched(student, batch)
    output.latents.values = student.transition_encoder(student.scaling.regions(region))
    output.latents.mask = region.mask | ~batch.has_previous[:, None]
    assert attention_loss(student, output.latents, region, seen.inputs) < 1e-9


def test_attention_matching_trains_the_compressor_alone():
    student, batch = make_student(), make_triple(B)
    matched(student, batch)[0].backward()
    touched = {
        n.split(".")[0]
        for n, p in student.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    assert touched == {"compressor", "transition_encoder"}


def test_attention_matching_falls_and_is_weighted():
    student, batch = make_student(n_latents=4), make_triple(16)
    before, metrics = loss_of(batch, student, attention=0.5)
    assert before == pytest.approx(metrics["action_nll"] + 0.5 * metrics["attention_loss"])
    optimizer = torch.optim.Adam(student.compressor_parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        matched(student, batch)[0].backward()
        optimizer.step()
    assert (
        loss_of(batch, student, attention=0.5)[1]["attention_loss"]
        < 0.5 * metrics["attention_loss"]
    )


def test_without_any_context_attention_matching_is_zero():
    batch = make_triple(B)
    batch.has_context[:] = False
    batch.context.mask[:] = False
    assert loss_of(batch, attention=1.0)[1]["attention_loss"] == 0


def test_a_student_is_its_own_teacher_of_the_full_context():
    student, batch = make_student().eval(), make_triple(B)
    student.decoder.action_head.weight.data *= 5
    told = full_context(student, batch)
    kl = student.actions.kl(told, student(batch).parameters, 1.0).mean()
    nll = student.actions.nll(told, batch.query.actions, 0.0).mean()
    loss, metrics = loss_of(batch, student, alpha=0.0, beta=0.5, target="self")
    assert metrics["self_kl"] == pytest.approx(kl.item(), rel=1e-4)
    assert metrics["full_context_nll"] == pytest.approx(nll.item(), rel=1e-4)
    assert loss == pytest.approx((nll + 0.5 * kl).item(), rel=1e-4)


def test_the_full_context_is_all_raw_regions_and_no_latent():
    student = make_student(memory=MemoryConfig("accumulate", 2)).eval()
    batch = make_triple(B, n_context=2)
    batch.has_context[:] = torch.tensor([[True, True], [False, True], [False, False], [True, True]])
    batch.context.mask[:] = batch.has_context[..., None]
    before = full_context(student, batch)
    batch.context.rewards[:, 0, 2] += 1.0  # of the older region, which two rows have
    moved = (full_context(student, batch) - before).abs().flatten(1).amax(1) > 1e-6
    assert moved.tolist() == [True, False, False, True]
    for parameter in student.compressor.parameters():
        parameter.data += 1.0
    before = full_context(student, batch)
    batch.context.rewards[2] += 1.0
    torch.testing.assert_close(full_context(student, batch), before)
    student.memory.get_parameter("no_context").data += 1.0  # read where nothing else is
    moved = (full_context(student, batch) - before).abs().flatten(1).amax(1) > 1e-6
    assert moved.tolist() == [False, False, True, False]


def test_the_target_of_ones_own_gets_no_gradient_of_the_divergence():
    student, batch = make_student().eval(), make_triple(B)
    loss = ActionObjective(student, LossConfig(alpha=0.0, beta=1.0, target="self")).eval()
    weights = student.decoder.action_head.weight
    (whole,) = torch.autograd.grad(loss(batch)[0], weights)
    told = full_context(student, batch)
    kl = student.actions.kl(told.detach(), student(batch).parameters, 1.0).mean()
    nll = student.actions.nll(told, batch.query.actions, 0.0).mean()
    (expected,) = torch.autograd.grad(kl + nll, weights)
    torch.testing.assert_close(whole, expected)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["on_policy.loss={beta: 1, target: self}"], "own actions"),
        (["distill.loss={beta: 1, target: self}", "compressor.online=8"], "online to 0"),
        (
            ["distill.loss={beta: 1, target: self}", "compressor.latent_positions=rotary"],
            "places of latents",
        ),
        (["distill.loss.kl=reverse"], "beta is 0: there is no divergence"),
        (["distill.loss.queries=all"], "beta is 0: there is no divergence"),
        (["distill.loss={beta: 1, queries: all}"], "decoder.sees=region"),
        (["distill.loss={beta: 1, queries: all}", "decoder.sees=step"], "teacher.sees=region"),
        (["distill.loss.attention=1"], "freeze_compressor"),
        (["finetune.loss.attention=1", "decoder.reads=prefix"], "decoder.reads=prefix"),
        (["finetune.loss.attention=1", "memory.kind=accumulate"], "memory.kind=accumulate"),
        (["distill.loss.kl=sideways"], "distill.loss.kl"),
    ],
)
def test_wrong_combinations_are_refused(tmp_path: Path, overrides: list[str], told: str):
    (tmp_path / "a.yaml").write_text("seed: 0\n")
    with pytest.raises(ConfigError, match=told):
        load_config(RunConfig, tmp_path / "a.yaml", overrides)


def test_padding_regions_to_the_longest_changes_no_loss():
    batch = make_triple(B)
    longer = 9
    context = padded(batch.context.map(lambda field: field.flatten(0, 1)), longer)
    context = context.map(lambda field: field.unflatten(0, (B, 1)))
    wide = Triple(context, batch.has_context, padded(batch.query, longer))
    student = make_student(longest_region=longer).eval()
    teacher = make_teacher(longest_region=longer).eval()
    loss = LossConfig(beta=1.0, gamma=0.1)
    found = [ActionObjective(student, loss, teacher).eval()(each)[1] for each in (batch, wide)]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=1e-4)
    assert found[0]["teacher_kl"] > 0
    assert found[0]["rec_loss"] > 0
