"""Prediction across regions: what the head may see, its loss against a slow reference, the mix."""

import pytest
import torch
from fixtures import (
    CELLS,
    CHOICE,
    HEADS,
    NUMBERS,
    REGION_LEN,
    TORQUES,
    WIDTH,
    make_regions,
    make_student,
    make_table,
    make_triple,
)
from torch import nn

from ad.batches import SamplingConfig, TripleSource
from ad.losses import LossConfig
from ad.objectives import ActionObjective, PretrainLossConfig, PretrainObjective
from compression.latents import Latents
from compression.prediction import PredictionHead
from nets.scaling import FieldScaling
from pipelines.pretrain_compressor import validation_scores
from training.optim import annealed

B, T, D, M = 4, REGION_LEN, WIDTH, 2


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def head(observation=CELLS, action=CHOICE):
    sizes = {"d_model": D, "n_heads": HEADS, "region_len": T, "n_latents": M}
    return PredictionHead(observation, action, **sizes)


def latents(mask=None):
    return Latents(torch.randn(B, M, D), mask)


def test_every_step_stands_by_itself():
    predict, z, regions = head(), latents(), make_regions(B, T)
    before = predict(z, regions)
    order = torch.randperm(T)
    shuffled = predict(z, regions.map(lambda field: field[:, order]))
    for name, found in before.items():
        torch.testing.assert_close(shuffled[name], found[:, order])
    regions.observations[:, 0] = (regions.observations[:, 0] + 1) % 3
    after = predict(z, regions)
    for name, found in before.items():
        assert not torch.allclose(after[name][:, 0], found[:, 0])
        torch.testing.assert_close(after[name][:, 1:], found[:, 1:])


def test_the_action_is_told_to_the_reward_alone():
    predict, z, regions = head(), latents(), make_regions(B, T)
    before = predict(z, regions)
    regions.actions = (regions.actions + 1) % 5
    after = predict(z, regions)
    assert torch.equal(after["actions"], before["actions"])
    assert not torch.allclose(after["rewards"], before["rewards"])
    for name in ("rewards", "next_observations", "terminated", "truncated"):
        field = getattr(regions, name)
        field.copy_(field.flip(0))
    again = predict(z, regions)
    assert all(torch.equal(again[name], after[name]) for name in after)


def test_hidden_latents_are_not_read():
    predict, regions = head(), make_regions(B, T)
    z = latents(torch.tensor([True, False]).expand(B, M))
    before = predict(z, regions)["actions"]
    z.values[:, 1] += 1
    assert torch.equal(predict(z, regions)["actions"], before)
    z.values[:, 0] += torch.randn(D)
    assert not torch.allclose(predict(z, regions)["actions"], before)


def test_the_loss_of_guessing_from_the_marginals_is_1():
    regions = make_regions(400, T)
    scaling, predict = FieldScaling(CELLS, CHOICE), head()
    scaling.fit(regions)
    scaled = scaling.regions(regions)
    for parameter in predict.heads.parameters():
        nn.init.zeros_(parameter)
    shares = torch.bincount(regions.actions.flatten(), minlength=5) / regions.actions.numel()
    predict.heads["actions"].bias.data = shares.log()
    z = Latents(torch.randn(400, M, D))
    loss, scores = predict.loss(z, scaled, scaling.weights())
    assert loss.item() == pytest.approx(1.0, rel=1e-4)
    assert scores["pred_actions"] == pytest.approx(shares.max().item(), abs=1e-6)
    assert scores["pred_rewards"] == pytest.approx(1.0, rel=1e-4)


def test_masked_steps_do_not_count():
    predict, z = head(NUMBERS, TORQUES), latents()
    regions = make_regions(B, T, observation=NUMBERS, action=TORQUES, lengths=[6, 4, 4, 6])
    weights = {name: torch.tensor(2.0) for name in FieldScaling.FIELDS}
    loss, _ = predict.loss(z, regions, weights)
    outputs, total = predict(z, regions), 0.0
    for b in range(B):
        for t in range(T if b in (0, 3) else 4):
            total += (outputs["actions"][b, t] - regions.actions[b, t]).square().mean().item()
            total += (outputs["rewards"][b, t, 0] - regions.rewards[b, t]).square().item()
    assert loss.item() == pytest.approx(2 * total / 20 / 2, rel=1e-5)


def test_what_only_the_previous_region_tells_is_learned():
    student, batch = make_student(n_latents=2), make_triple(B)
    batch.context.mask[:] = True
    batch.context.actions[:] = torch.arange(B)[:, None, None]
    batch.query.actions[:] = torch.arange(B)[:, None]
    student.scaling.fit(batch.query)
    objective = PretrainObjective(student, PretrainLossConfig(0.0, prediction=1.0))
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        objective(batch)[0].backward()
        optimizer.step()
    assert objective(batch)[1]["pred_actions"] == 1.0
    batch.context = batch.context.map(lambda field: field.roll(1, 0))
    assert objective(batch)[1]["pred_actions"] == 0.0


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_a_mix_is_annealed_linearly(progress):
    batch = make_triple(B)
    batch.context.mask[:] = True
    config = PretrainLossConfig(2.0, 0.0, reconstruction_final=0.0, prediction_final=4.0)
    objective = PretrainObjective(make_student(), config)
    objective.progress = progress
    loss, metrics = objective(batch)
    expected = 2 * (1 - progress) * metrics["rec_loss"] + 4 * progress * metrics["pred_loss"]
    torch.testing.assert_close(loss.detach(), expected)
    reconstruction, _ = objective.student.reconstruct(
        objective.student.compress(batch.previous), batch.previous
    )
    torch.testing.assert_close(metrics["rec_loss"], reconstruction.detach())
    scores = validation_scores(objective, batch)  # one measure, however far the stage is
    assert scores["score"] == pytest.approx(-4 * metrics["pred_loss"].item(), rel=1e-5)


def test_gamma_is_annealed_linearly():
    batch = make_triple(B)
    objective = ActionObjective(make_student(), LossConfig(gamma=1.0, gamma_final=0.0))
    for progress in (0.0, 0.5, 1.0):
        objective.progress = progress
        loss, metrics = objective(batch)
        expected = metrics["action_nll"] + (1 - progress) * metrics["rec_loss"]
        torch.testing.assert_close(loss.detach(), expected)
    assert annealed(0.3, None, 0.9) == 0.3


def test_the_head_is_trained_but_no_part_of_the_student():
    config = PretrainLossConfig(prediction=1.0)
    plain, objective = make_student(), PretrainObjective(make_student(), config)
    assert objective.student.state_dict().keys() == plain.state_dict().keys()
    assert any(name.startswith("prediction.") for name, _ in objective.named_parameters())
    for name, weights in plain.state_dict().items():
        assert torch.equal(objective.student.state_dict()[name], weights)


def test_matched_weights_reach_the_head():
    """Queries and keys are one projection, and observations are encoded as in transitions."""
    for init in ("independent", "matched"):
        student = make_student(model={"init": init})
        predict, matched = student.new_prediction_head(), init == "matched"
        block = predict.layers.blocks[0].cross
        assert torch.equal(block.q.weight, block.kv.weight[:D]) == matched
        for name in ("observation", "action"):
            weights = getattr(student.transition_encoder, name).table.weight
            assert torch.equal(getattr(predict, name).table.weight, weights) == matched


@pytest.mark.parametrize(
    "weights",
    [{"reconstruction": 0.0}, {"reconstruction_final": 0.0}],
)
def test_pretraining_on_nothing_is_refused(weights):
    with pytest.raises(ValueError, match=r"both have weight 0 at the (first|last) update"):
        PretrainLossConfig(**weights)


def test_pairs_have_a_region_before_the_current_one():
    source = TripleSource(
        make_table(), SamplingConfig(history_stride=3), batch_size=64, first_region=1
    )
    assert source(0).has_previous.all()
    assert set(source.table.region[source.rows]) == {1, 2, 3, 4}
    with pytest.raises(ValueError, match=r"1 region\(s\) in use, but 2 are needed"):
        TripleSource(make_table(), SamplingConfig(max_region=1), batch_size=4, first_region=1)
