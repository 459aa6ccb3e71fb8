"""Student and teacher: saved = loaded, causal, the student learns; the objectives' switches."""

import json

import pytest
import torch
from fixtures import (
    CELLS,
    CHOICE,
    NUMBERS,
    PIXELS,
    REGION_LEN,
    SWITCHES,
    TORQUES,
    WIDTH,
    make_regions,
    make_sliding_window,
    make_student,
    make_teacher,
    make_triple,
)
from safetensors.torch import load_file
from torch import nn

from ad.losses import LossConfig, masked_mean
from ad.model import ModelConfig, Output, Triple
from ad.objectives import ActionObjective, PretrainObjective
from ad.student import CADStudent
from base.hashes import to_plain
from compression.compressor import KINDS
from compression.latents import Latents
from compression.memory import MemoryConfig
from nets.positions import sinusoids, spread
from nets.regions import REGION_FIELDS, Regions
from teacher.model import RawContextObjective, TeacherModel
from training.metrics import training_bytes

B, T = 6, REGION_LEN


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def fitted_student(kind, **settings):
    student = make_student(kind, **settings).eval()
    student.fit_statistics(make_regions(64, T))
    return student


def logits_of(model, batch):
    with torch.inference_mode():
        return model(batch).parameters


MODELS = {
    "student": make_student(),
    "memory of two regions": make_student(memory=MemoryConfig("accumulate", 2)),
    "memory that recurs": make_student(memory=MemoryConfig("recurrent", 2)),
    "teacher": make_teacher(),
    "window": make_sliding_window(T + 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_student_is_the_loaded_one_bit_for_bit(kind, tmp_path):
    student, batch = fitted_student(kind), make_triple(B)
    student.config.provenance = {"method": kind, "split_identity": "abc"}
    student.save_pretrained(tmp_path)
    loaded = CADStudent.from_pretrained(tmp_path).eval()
    weights = loaded.state_dict()
    assert weights.keys() == student.state_dict().keys()
    for name, value in student.state_dict().items():
        assert torch.equal(weights[name], value), name
    assert torch.equal(logits_of(loaded, batch), logits_of(student, batch))
    assert loaded.config.provenance == student.config.provenance
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["parts"] == to_plain(student.config.student_parts)
    assert stored["region_len"] == T
    names = load_file(tmp_path / "model.safetensors")
    if kind == "pca":
        assert names["compressor.components"].abs().sum() > 0
        assert names["compressor.mean"].abs().sum() > 0


def test_a_saved_teacher_is_the_loaded_one_bit_for_bit(tmp_path):
    teacher, batch = make_teacher(2).eval(), make_triple(B, 2)
    teacher.save_pretrained(tmp_path)
    loaded = TeacherModel.from_pretrained(tmp_path).eval()
    assert torch.equal(logits_of(loaded, batch), logits_of(teacher, batch))
    assert loaded.n_context_regions == 2


@pytest.mark.parametrize("observation", [CELLS, NUMBERS, PIXELS], ids=lambda spec: spec.kind)
@pytest.mark.parametrize("action", [CHOICE, SWITCHES, TORQUES], ids=["one", "several", "numbers"])
def test_every_pair_of_spaces_trains(observation, action):
    student = make_student(observation=observation, action=action)
    batch = make_triple(B, observation=observation, action=action)
    loss, metrics = ActionObjective(student, LossConfig(gamma=0.1))(batch)
    loss.backward()
    assert loss.isfinite()
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_later_steps_change_nothing_earlier(model):
    batch, t = make_triple(B, 2), 3
    changed = Triple(batch.context, batch.has_context, batch.query.map(torch.clone))
    query = changed.query
    query.observations[:, t:] = (query.observations[:, t:] + 1) % 3
    query.rewards[:, t:] += 1.0
    query.actions[:, t:] = (query.actions[:, t:] + 1) % 5
    query.next_observations[:, t - 1 :] = 0
    query.terminated[:, t:] = True
    before, after = logits_of(model.eval(), batch), logits_of(model, changed)
    assert torch.equal(before[:, :t], after[:, :t])
    assert (before[:, t:] != after[:, t:]).any(-1).all()


@pytest.mark.parametrize("kind", [*KINDS, "teacher"])
def test_a_step_seen_alone_knows_nothing_of_its_region(kind):
    asked = {"sees": "step", "model": {"previous_observation": True, "init": "matched"}}
    model = make_teacher(**asked) if kind == "teacher" else fitted_student(kind, **asked)
    batch, t = make_triple(B), T - 1
    other = make_regions(B, T)
    for name in REGION_FIELDS:
        getattr(other, name)[:, t] = getattr(batch.query, name)[:, t]
    other.actions[:, t] = (other.actions[:, t] + 1) % 5
    other.rewards[:, t] += 1.0
    earlier = Triple(batch.context, batch.has_context, other)
    before, after = logits_of(model.eval(), batch), logits_of(model, earlier)
    assert torch.equal(before[:, t], after[:, t])
    assert (before[:, :t] != after[:, :t]).any(-1).any()
    place = Triple(batch.context, batch.has_context, batch.query.map(lambda f: f.roll(2, 1)))
    torch.testing.assert_close(logits_of(model, place), before.roll(2, 1), atol=1e-5, rtol=1e-5)


def test_a_step_seen_alone_is_trained_with_its_region():
    student, teacher = make_student(sees="step"), make_teacher(2, sees="step")
    loss, _ = ActionObjective(student, LossConfig(beta=0.5), teacher)(make_triple(B, 2))
    loss.backward()
    named = [*student.decoder.named_parameters(), *student.step_encoder.named_parameters()]
    assert all(p.grad is not None for _, p in named)
    loss, metrics = RawContextObjective(teacher)(make_triple(B, 2))
    loss.backward()
    assert metrics["token_type_nll"] > 0
    assert teacher.positions.grad.abs().sum(-1).all()
    assert len(teacher.token_type_targets()) == teacher.sequence_len == teacher.context_tokens


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_context_that_is_not_there_is_not_read(model):
    batch = make_triple(B, 2)
    other = Triple(make_triple(B, 2).context, batch.has_context, batch.query)
    assert not batch.context.mask[~batch.has_context].any()
    before, after = logits_of(model.eval(), batch), logits_of(model, other)
    has = batch.has_previous
    assert torch.equal(before[~has], after[~has])
    assert (before[has] != after[has]).any(-1).any(-1).all()


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_padding_of_a_short_context_is_not_read(model):
    batch, garbage = make_triple(B, 2), make_triple(B, 2).context
    batch.context.mask[:] = torch.arange(T) < 4
    batch.has_context[:] = True
    padded = garbage.map(torch.clone)
    for name, field in vars(batch.context).items():
        getattr(padded, name)[:, :, :4] = field[:, :, :4]
    padded.mask = batch.context.mask
    assert not torch.equal(padded.rewards, batch.context.rewards)
    before = logits_of(model.eval(), batch)
    assert torch.equal(before, logits_of(model, Triple(padded, batch.has_context, batch.query)))


def test_a_frozen_compressor_gets_no_gradient():
    student = make_student()
    objective = ActionObjective(student, LossConfig(gamma=1.0), freeze_compressor=True)
    objective.train()
    objective(make_triple(B))[0].backward()
    assert not student.compressor.training
    assert student.decoder.training
    frozen = {id(p) for p in student.compressor_parameters()}
    assert len(frozen) == len(student.compressor_parameters()) > 10
    for name, parameter in student.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in frozen), name


def test_a_trained_compressor_gets_a_gradient_through_the_decoder():
    student = make_student()
    ActionObjective(student, LossConfig())(make_triple(B))[0].backward()
    assert all(p.grad.abs().sum() > 0 for p in student.compressor_parameters())
    assert student.memory.no_context.grad.abs().sum() > 0
    assert all(p.grad is None for p in student.reconstruction.parameters())


def recall_batch(size):
    """The action of all steps is the first action of the previous region: nowhere else to read."""
    batch = make_triple(size, region_len=4)
    batch.has_context[:] = True
    batch.context.mask[:] = True
    batch.query.actions[:] = batch.context.actions[:, -1, :1]
    return batch


def accuracy_at_the_first_step(kind):
    student = make_student(kind, region_len=4)
    objective = ActionObjective(student, LossConfig())
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for _ in range(80):
        loss, _ = objective(recall_batch(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch = recall_batch(256)
    found = logits_of(student.eval(), batch)[:, 0].argmax(-1)
    return (found == batch.query.actions[:, 0]).float().mean().item()


def test_learns_what_only_the_latents_can_carry():
    assert accuracy_at_the_first_step("query_pooling") > 0.9


def test_without_context_it_cannot_be_learned():
    assert accuracy_at_the_first_step("none") < 0.4


def losses(batch, teacher=None, **weights):
    """Loss and metrics of one and the same student."""
    objective = ActionObjective(make_student(), LossConfig(**weights), teacher)
    loss, metrics = objective(batch)
    return loss.item(), {name: value.item() for name, value in metrics.items()}


def test_each_weight_switches_its_own_loss():
    batch, teacher = make_triple(B), make_teacher().eval()
    nll, metrics = losses(batch)
    assert set(metrics) == {"action_nll", "loss"}
    assert metrics["action_nll"] == pytest.approx(nll)
    parameters = logits_of(make_student(), batch)
    recorded = parameters.log_softmax(-1).gather(-1, batch.query.actions[..., None])
    assert nll == pytest.approx(-recorded.mean().item(), rel=1e-5)

    assert losses(batch, alpha=2.5)[0] == pytest.approx(2.5 * nll)
    assert losses(batch, teacher, alpha=0.0, beta=1e-9)[0] == pytest.approx(0.0, abs=1e-6)

    divergence, metrics = losses(batch, teacher, alpha=0.0, beta=1.0)
    kl = metrics["teacher_kl"]
    assert divergence == pytest.approx(kl)
    assert kl > 1e-3
    assert losses(batch, teacher, alpha=1.0, beta=3.0)[0] == pytest.approx(nll + 3 * kl)

    both, metrics = losses(batch, gamma=0.5)
    assert both == pytest.approx(nll + 0.5 * metrics["rec_loss"])
    assert "rec_observations" in metrics


def test_auxiliary_losses_are_weighted_by_name_and_logged():
    student, batch = make_student(bottleneck="gaussian"), make_triple(B)
    found = {}
    for weights in ({}, {"lambda_cap": 0.5}, {"lambda_cap": 9.0, "weights": {"capacity": 2.0}}):
        torch.manual_seed(1)  # the channel's noise
        loss, metrics = ActionObjective(student, LossConfig(**weights))(batch)
        found[str(weights)] = loss.item() - metrics["action_nll"].item(), metrics["capacity"].item()
    (none, capacity), (half, _), (twice, _) = found.values()
    assert none == pytest.approx(0.0, abs=1e-6)
    assert capacity > 0.1
    assert half == pytest.approx(0.5 * capacity, rel=1e-4)
    assert twice == pytest.approx(2 * capacity, rel=1e-4)


def test_the_capacity_term_moves_what_the_channel_carries():
    """Behind a normalisation no weight could: the power has to fall, and the bits with it."""
    student, batch = make_student(bottleneck="gaussian"), make_triple(32)
    objective = PretrainObjective(student, lambda_cap=10.0)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    bits = []
    for _ in range(60):
        loss, _ = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bits.append(float(student.compress(batch.query).bits))
    assert bits[-1] < 0.3 * bits[0]


def test_softening_is_paid_back_by_tau_squared():
    batch, teacher = make_triple(B), make_teacher().eval()
    total, metrics = losses(batch, teacher, alpha=0.0, beta=1.0, tau=2.0)
    student = make_student()
    soft_p, soft_q = (
        (logits / 2).log_softmax(-1)
        for logits in (logits_of(teacher, batch), logits_of(student, batch))
    )
    kl = (soft_p.exp() * (soft_p - soft_q)).sum(-1).mean().item()
    assert metrics["teacher_kl"] == pytest.approx(kl, rel=1e-4)
    assert total == pytest.approx(4 * kl, rel=1e-4)


class Echo(nn.Module):
    """A teacher that thinks what a student thinks."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, batch):
        assert not torch.is_grad_enabled()
        return Output(self.student(batch).parameters)


def test_agreeing_with_the_teacher_costs_nothing():
    batch = make_triple(B)
    assert losses(batch, Echo(make_student()), alpha=0.0, beta=1.0, tau=3.0)[0] < 1e-6


def test_the_teacher_is_neither_trained_nor_saved_nor_switched_to_training():
    teacher = make_teacher().eval()
    objective = ActionObjective(make_student(), LossConfig(beta=1.0), teacher)
    objective.train()
    objective(make_triple(B))[0].backward()
    assert not teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    assert all(name.startswith("student.") for name in objective.state_dict())


def test_beta_without_a_teacher_is_refused():
    with pytest.raises(ValueError, match=r"beta is 0\.5, which needs a teacher"):
        ActionObjective(make_student(), LossConfig(beta=0.5))


def test_reconstruction_beside_actions_leaves_out_missing_contexts():
    batch = make_triple(B)
    _, before = losses(batch, gamma=1.0)
    batch.context.actions[~batch.has_previous] = 0
    assert not batch.context.mask[:, -1][~batch.has_previous].any()
    assert losses(batch, gamma=1.0)[1]["rec_loss"] == before["rec_loss"]
    batch.context.actions[batch.has_previous] = 0
    assert losses(batch, gamma=1.0)[1]["rec_loss"] != before["rec_loss"]


def test_masked_steps_do_not_count_in_any_loss():
    batch, teacher = make_triple(B), make_teacher().eval()
    batch.query.mask[:, 4:] = False
    weights = {"beta": 0.5}
    before = losses(batch, teacher, **weights)[0]
    batch.query.actions[:, 4:] = 0
    assert losses(batch, teacher, **weights)[0] == before
    assert masked_mean(torch.tensor([[1.0, 5.0]]), torch.tensor([[True, False]])) == 1.0


def test_pretraining_reconstructs_the_current_region():
    student, batch = make_student(), make_triple(B)
    loss, metrics = PretrainObjective(student)(batch)
    expected, _ = student.reconstruct(student.compress(batch.query), batch.query)
    torch.testing.assert_close(metrics["rec_loss"], expected.detach())
    torch.testing.assert_close(loss, expected)


def test_the_teachers_loss_is_actions_plus_a_tenth_of_token_types():
    teacher, batch = make_teacher(), make_triple(B)
    loss, metrics = RawContextObjective(teacher, weights={"token_type_nll": 0.1})(batch)
    expected = metrics["action_nll"] + 0.1 * metrics["token_type_nll"]
    torch.testing.assert_close(loss.detach(), expected)
    types = teacher.token_type_targets().tolist()
    assert types == [1, *[0] * T, 2, 1, *[0] * T]
    assert teacher.sequence_len == teacher.context_len + T == len(types)


def test_training_bytes_grow_with_the_batch_only_by_activations():
    objective = ActionObjective(make_student(), LossConfig())
    weights = 4 * sum(p.numel() for p in objective.parameters())
    small, large = (training_bytes(objective, make_triple(size)) for size in (4, 8))
    assert 4 * weights < small < large
    activations = (small - 4 * weights, large - 4 * weights)
    assert 1.8 < activations[1] / activations[0] < 2.05


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (ModelConfig, {"d_model": 10, "n_heads": 4}, "multiple of n_heads"),
        (ModelConfig, {"d_model": 9, "n_heads": 3}, "even d_model"),
    ],
)
def test_impossible_settings_are_refused(config, values, message):
    with pytest.raises(ValueError, match=message):
        config(**values)


def test_parts_of_one_name_begin_alike_whatever_else_a_model_has():
    def first_weights(model, *names):
        return {n: p for n, p in model.named_parameters() if n.startswith(names)}

    default, other = make_student(), make_student("mean_pooling", n_layers=3)
    for name, value in first_weights(default, "decoder", "step_encoder", "transition").items():
        assert torch.equal(other.get_parameter(name), value), name
    teacher = make_teacher()
    for name, value in first_weights(default, "step_encoder", "transition").items():
        assert torch.equal(teacher.get_parameter(name), value), name
    reseeded = make_student(seed=1)
    assert not torch.equal(reseeded.decoder.positions, default.decoder.positions)
    assert not torch.equal(default.decoder.positions[0], default.reconstruction.position_queries[0])


def test_real_fields_are_scaled_by_training_regions_for_every_reader():
    fields = {"observation": NUMBERS, "action": TORQUES}
    regions = make_regions(64, T, **fields)
    student = make_student("pca", **fields).eval()
    student.fit_statistics(regions)
    far = regions.map(torch.clone)
    far.observations, far.next_observations = (
        1000 * f + 7 for f in (regions.observations, regions.next_observations)
    )
    far.rewards = 50 * regions.rewards - 3
    again = make_student("pca", **fields).eval()
    again.fit_statistics(far)
    for name in REGION_FIELDS:  # units do not matter, to any reader
        a, b = (getattr(s.scaling.regions(r), name) for s, r in ((student, regions), (again, far)))
        torch.testing.assert_close(a.float(), b.float(), atol=1e-3, rtol=1e-3)
    z, other = student.compress(regions), again.compress(far)
    torch.testing.assert_close(other.values, z.values, atol=0.05, rtol=0.05)
    loss, other_loss = student.reconstruct(z, regions)[0], again.reconstruct(other, far)[0]
    torch.testing.assert_close(other_loss, loss, atol=0.05, rtol=0.05)
    scaled = student.scaling.regions(regions)
    assert scaled.rewards.mean().abs() < 1e-5
    assert scaled.rewards.std() == pytest.approx(1.0, abs=0.01)


def test_guessing_from_the_marginals_costs_one_whatever_the_field():
    student, regions = make_student(), make_regions(512, T)
    regions.terminated[:] = False  # never varies: nothing to reconstruct, no weight
    student.fit_statistics(regions)
    weights = student.scaling.weights()
    assert weights["terminated"] == 0.0
    assert weights["actions"].item() == pytest.approx(1 / torch.tensor(5.0).log().item(), rel=0.01)
    head = student.reconstruction
    with torch.no_grad():
        for name, layer in head.heads.items():
            layer.weight.zero_()
            layer.bias.zero_()
            if name == "truncated":
                share = regions.truncated.float().mean()
                layer.bias.copy_(torch.stack([1 - share, share]).log())
    loss, _ = student.reconstruct(student.compress(regions), regions)
    assert loss.item() == pytest.approx(1.0, abs=0.01)


def test_parameters_that_act_are_counted_without_heads_that_only_losses_read():
    student, teacher = make_student(), make_teacher()
    head = sum(p.numel() for p in student.reconstruction.parameters())
    assert student.n_acting_parameters == sum(p.numel() for p in student.parameters()) - head
    raw = make_student("pca")
    unread = sum(p.numel() for p in raw.transition_encoder.parameters())
    head = sum(p.numel() for p in raw.reconstruction.parameters())
    assert raw.n_acting_parameters == sum(p.numel() for p in raw.parameters()) - head - unread
    types = sum(p.numel() for p in teacher.token_type_head.parameters())
    assert teacher.n_acting_parameters == sum(p.numel() for p in teacher.parameters()) - types


@pytest.mark.parametrize("memory", ["accumulate", "recurrent"])
@pytest.mark.parametrize("kind", ["learned", "fixed", "none"])
def test_latents_without_positions_are_a_set(kind, memory):
    student = make_student(
        n_latents=4, latent_positions=kind, memory=MemoryConfig(memory, 2), seed=3
    ).eval()
    query = make_regions(3, REGION_LEN)
    values = torch.randn(3, 4, WIDTH)
    there = torch.ones(3, dtype=torch.bool)

    def decoded(order):
        state = student.memory.start(3)
        state = student.memory.update(state, Latents(values[:, order]), there)
        return student.decode(query, student.memory.read(state))

    with torch.no_grad():
        apart = (decoded([0, 1, 2, 3]) - decoded([2, 0, 3, 1])).abs().max()
    assert (apart < 1e-5) == (kind == "none")


def test_rotary_positions_tell_how_far_back_a_latent_lies(tmp_path):
    student = make_student(
        n_latents=2, latent_positions="rotary", memory=MemoryConfig("accumulate", 2), seed=3
    ).eval()
    newest = torch.tensor([0.25, 0.75]) * REGION_LEN - REGION_LEN
    torch.testing.assert_close(student.memory.places(), torch.cat([newest - REGION_LEN, newest]))
    student.memory.region_index.data.zero_()  # nothing but places tells the regions apart
    query = make_regions(3, REGION_LEN)
    values, there = torch.randn(2, 3, 2, WIDTH), torch.ones(3, dtype=torch.bool)

    def decoded(model, order):
        state = model.memory.start(3)
        for k in order:
            state = model.memory.update(state, Latents(values[k]), there)
        return model.decode(query, model.memory.read(state))

    with torch.no_grad():
        forwards, backwards = decoded(student, [0, 1]), decoded(student, [1, 0])
        assert (forwards - backwards).abs().max() > 1e-4
        student.save_pretrained(tmp_path)
        loaded = CADStudent.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(decoded(loaded, [0, 1]), forwards)
        student.decoder.places = None
        torch.testing.assert_close(decoded(student, [0, 1]), decoded(student, [1, 0]))


@pytest.mark.parametrize(("kind", "learned"), [("learned", True), ("fixed", False)])
def test_fixed_positions_of_latents_are_no_parameters(kind, learned):
    student = make_student(latent_positions=kind)
    names = set(dict(student.named_parameters()))
    assert ("memory.positions" in names) == learned
    positions = 0.1 * sinusoids(spread(2, REGION_LEN), WIDTH)
    torch.testing.assert_close(student.memory.positions.data, positions)
    with torch.no_grad():
        queries = student.compressor._queries(1)[0]
    assert (queries - positions).abs().max() < 0.1
    bare = make_student(latent_positions="none").compressor._queries(1)[0]
    assert bare.abs().max() < 0.1
    student.memory.place(torch.ones(2, WIDTH))
    assert bool((student.memory.positions == 1).all()) == learned


@pytest.mark.parametrize("sees", ["region", "step"])
def test_behind_a_prefix_steps_see_what_they_should(sees):
    student = make_student(reads="prefix", sees=sees, n_latents=3).eval()
    query = make_regions(2, REGION_LEN)
    latents = Latents(torch.randn(2, 3, WIDTH), torch.tensor([[True, True, False]] * 2))
    with torch.no_grad():
        found = student.decode(query, latents)
        later = Regions(**vars(query))
        later.observations = query.observations.clone()
        later.observations[:, 3] = (later.observations[:, 3] + 1) % 3
        after = student.decode(later, latents)
        hidden = Latents(latents.values.clone(), latents.mask)
        hidden.values[:, 2] = torch.randn(2, WIDTH)
        unread = student.decode(query, hidden)
        hidden.values[:, 1] = torch.randn(2, WIDTH)
        read = student.decode(query, hidden)
    torch.testing.assert_close(after[:, :3], found[:, :3])
    assert (after[:, 3] != found[:, 3]).any()
    assert (sees == "step") == torch.allclose(after[:, 4:], found[:, 4:], atol=1e-6)
    torch.testing.assert_close(unread, found)
    assert (read - found).abs().max() > 1e-4
