"""Heads of reconstruction: raw fields from latents, losses against slow references."""

import numpy as np
import pytest
import torch
from fixtures import (
    CELLS,
    CHOICE,
    HEADS,
    NUMBERS,
    PIXELS,
    REGION_LEN,
    WIDTH,
    make_regions,
    make_student,
)
from torch import nn

from compression.compressor import CompressorError
from compression.latents import Latents
from compression.nested import prefix
from compression.reconstruction import HEADS as HEAD_KINDS
from compression.reconstruction import ReconstructionConfig, build_reconstruction

B, T, D, M = 4, REGION_LEN, WIDTH, 2
SIZES = {"d_model": D, "n_heads": HEADS, "region_len": T}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def head(observation=CELLS, action=CHOICE, kind="attention", n_latents=M):
    config = ReconstructionConfig(kind)
    return build_reconstruction(observation, action, config, n_latents=n_latents, **SIZES)


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("observation", [CELLS, NUMBERS, PIXELS], ids=lambda spec: spec.kind)
def test_reconstruction_predicts_each_raw_field(observation, kind):
    reconstruction = head(observation, kind=kind)
    regions = make_regions(B, T, observation=observation)
    z = torch.randn(B, M, D, requires_grad=True)
    latents = Latents(z)
    widths = {name: out.shape for name, out in reconstruction(latents).items()}
    n = {"classes": 6, "vector": 3, "image": 192}[observation.kind]
    expected = {"observations": n, "actions": 5, "rewards": 1, "next_observations": n}
    expected |= {"terminated": 2, "truncated": 2}
    assert widths == {name: (B, T, width) for name, width in expected.items()}
    loss, metrics = reconstruction.loss(latents, regions)
    assert set(metrics) == {f"rec_{name}" for name in expected}
    loss.backward()
    assert z.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_reconstruction_overfits_one_batch(kind):
    reconstruction, regions = head(kind=kind), make_regions(B, T)
    z = nn.Parameter(torch.randn(B, M, D))
    optimizer = torch.optim.Adam([z, *reconstruction.parameters()], lr=1e-2)
    first = None
    for _ in range(250):
        loss, metrics = reconstruction.loss(Latents(z), regions)
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02 * first
    for name in ("observations", "actions", "next_observations", "terminated", "truncated"):
        assert metrics[f"rec_{name}"] == 1.0
    assert metrics["rec_rewards"] < 0.01


@pytest.mark.parametrize("n_latents", [2, 4])
@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_reconstruction_does_not_read_hidden_latents(kind, n_latents):
    reconstruction = head(kind=kind, n_latents=n_latents)
    latents = prefix(Latents(torch.randn(B, n_latents, D)), 1)
    found = reconstruction(latents)["actions"]
    latents.values[:, 1:] += 5.0
    assert torch.equal(reconstruction(latents)["actions"], found)
    latents.values[:, 0] += 5.0
    assert (reconstruction(latents)["actions"] != found).any(-1).all()


def test_unknown_heads_are_refused():
    with pytest.raises(CompressorError, match=r"reconstruction\.kind 'patches' is neither one of"):
        head(kind="patches")


def test_reconstruction_ignores_what_the_mask_forbids():
    reconstruction, latents = head(), Latents(torch.randn(B, M, D))
    regions = make_regions(B, T, lengths=[T, 4, 2, 1])
    garbage = make_regions(B, T)
    mixed = type(regions)(
        **{
            name: torch.where(
                regions.mask.view(B, T, *[1] * (field.ndim - 2)), field, getattr(garbage, name)
            )
            for name, field in vars(regions).items()
            if name != "mask"
        },
        mask=regions.mask,
    )
    assert not torch.equal(mixed.actions, regions.actions)
    loss, metrics = reconstruction.loss(latents, regions)
    other, others = reconstruction.loss(latents, mixed)
    assert torch.equal(loss, other)
    assert metrics == others
    nothing = regions.map(torch.clone)
    nothing.mask[:] = False
    assert reconstruction.loss(latents, nothing)[0] == 0.0


def test_reconstruction_loss_is_the_mean_over_positions_of_each_fields_loss():
    reconstruction, latents = head(), Latents(torch.randn(B, M, D))
    regions = make_regions(B, T, lengths=[T, 4, 2, 1])
    outputs, expected = reconstruction(latents), 0.0
    for b, t in regions.mask.nonzero().tolist():
        for name, output in outputs.items():
            value, out = getattr(regions, name)[b, t], output[b, t]
            if name == "rewards":
                expected += (out - value).square().item()
            elif value.ndim:
                parts = zip(out.split(3), value, strict=True)
                expected += np.mean([-p.log_softmax(0)[v].item() for p, v in parts])
            else:
                expected += -out.log_softmax(0)[int(value)].item()
    expected /= int(regions.mask.sum()) * len(outputs)
    assert reconstruction.loss(latents, regions)[0].item() == pytest.approx(expected, rel=1e-5)


def test_the_target_of_reconstruction_is_not_trainable():
    """A trainable target could be made constant; raw fields cannot, and get no gradient."""
    student, regions = make_student(), make_regions(B, T)
    latents = Latents(student.compress(regions).values.detach())
    student.reconstruct(latents, regions)[0].backward()
    learning = {name for name, p in student.named_parameters() if p.grad is not None}
    assert learning == {f"reconstruction.{n}" for n, _ in student.reconstruction.named_parameters()}
