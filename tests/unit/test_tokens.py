"""Tokenisations of regions: which token holds what, padding, and what compressors make of them."""

import pytest
import torch
from fixtures import CELLS, CHOICE, REGION_LEN, WIDTH, make_regions, make_student, make_triple

from compression.compressor import KINDS
from nets.regions import Regions, padded
from nets.tokens import TOKENISATIONS

B = 3
LENGTHS = [REGION_LEN, 4, 1]


def read(name, regions):
    torch.manual_seed(0)
    return TOKENISATIONS[name](CELLS, CHOICE, WIDTH).read(regions)


def changed(name, regions, field, step):
    """Which tokens of the first region another value at a step changes."""
    other = Regions(**vars(regions))
    values = getattr(regions, field).clone()
    values[0, step] = values[0, step] + 1 if values.dtype != torch.bool else ~values[0, step]
    values[0, step] %= 3 if field.endswith("observations") else 5
    setattr(other, field, values)
    before, after = read(name, regions)[0], read(name, other)[0]
    assert torch.equal(before[1:], after[1:])
    return (before[0] != after[0]).any(-1).nonzero()[:, 0].tolist()


@pytest.fixture
def regions():
    torch.manual_seed(1)
    regions = make_regions(B, REGION_LEN)
    regions.terminated[:] = regions.truncated[:] = False
    return regions


@pytest.mark.parametrize(
    ("name", "field", "tokens"),
    [
        ("transition", "observations", [2]),
        ("transition", "next_observations", [2]),
        ("transition", "actions", [2]),
        ("step", "observations", [2]),
        ("step", "actions", [3]),
        ("step", "rewards", [3]),
        ("step", "next_observations", []),
        ("interleaved", "observations", [6]),
        ("interleaved", "actions", [7]),
        ("interleaved", "rewards", [8]),
        ("interleaved", "next_observations", []),
    ],
)
def test_a_field_stands_in_its_tokens(name, field, tokens, regions):
    assert changed(name, regions, field, 2) == tokens


@pytest.mark.parametrize("length", [REGION_LEN, 4])
def test_the_last_step_token_holds_what_the_region_led_to(length, regions):
    regions.mask[0, length:] = False
    _, mask = read("step", regions)
    assert mask[0].sum() == length + 1
    for field in ("actions", "rewards", "next_observations"):
        assert length in changed("step", regions, field, length - 1)


@pytest.mark.parametrize("name", TOKENISATIONS)
def test_tokens_of_a_shorter_region_are_those_of_one_that_is_padded(name, regions):
    short = regions.map(lambda field: field[:, :4])
    tokens, mask = read(name, short)
    longer, longer_mask = read(name, padded(short, REGION_LEN))
    assert torch.equal(longer_mask.sum(1), mask.sum(1))
    assert torch.equal(tokens[mask], longer[longer_mask])
    assert tokens.shape[1] == TOKENISATIONS[name].n_tokens(4)
    assert longer.shape[1] == TOKENISATIONS[name].n_tokens(REGION_LEN)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TOKENISATIONS)
def test_every_compressor_reads_every_tokenisation(name, kind):
    kwargs = {"n_layers": 1} if kind != "hybrid" else {"n_layers": 1, "n_latents": 3}
    student = make_student(kind, tokenisation=name, **kwargs)
    if kind == "pca":
        student.fit_statistics(make_regions(40, REGION_LEN))
    student.eval()
    regions = make_regions(B, REGION_LEN, lengths=LENGTHS)
    latents = student.compress(regions).values
    other = make_regions(B, REGION_LEN, lengths=LENGTHS)
    mixed = {
        key: torch.where(regions.mask.view(B, -1, *[1] * (v.ndim - 2)), v, getattr(other, key))
        for key, v in vars(regions).items()
    }
    torch.testing.assert_close(student.compress(Regions(**mixed)).values, latents)


@pytest.mark.parametrize("name", TOKENISATIONS)
def test_a_tokenisation_is_trained_with_the_student(name):
    student = make_student(tokenisation=name)
    output = student(make_triple(4))
    output.parameters.square().sum().backward()
    grads = {n for n, p in student.transition_encoder.named_parameters() if p.grad is not None}
    assert any(n.startswith("action") for n in grads)
    assert any(n.startswith("scalars") for n in grads)
