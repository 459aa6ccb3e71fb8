"""Nested latents, and latents cut down at test: fewer of them, or coarser numbers."""

import pytest
import torch
from fixtures import REGION_LEN, WIDTH, make_regions, make_student, make_triple

from ad.losses import LossConfig
from ad.objectives import ActionObjective
from compression.at_test import AtTest, rounded
from compression.bottleneck import build_bottleneck
from compression.compressor import CompressorConfig, CompressorError
from compression.latents import Latents
from compression.memory import MemoryConfig
from compression.nested import prefix, random_prefixes

B, M, D, T = 6, 4, WIDTH, REGION_LEN


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_random_prefixes_show_all_in_half_the_rows():
    latents = random_prefixes(Latents(torch.randn(8000, M, D)))
    lengths = latents.mask.sum(1)
    assert torch.equal(latents.mask, torch.arange(M) < lengths[:, None])
    shares = torch.bincount(lengths, minlength=M + 1) / len(lengths)
    expected = torch.tensor([0.0, 1 / 6, 1 / 6, 1 / 6, 0.5])
    torch.testing.assert_close(shares, expected, atol=0.02, rtol=0)
    one = random_prefixes(Latents(torch.randn(B, 1, D)))
    assert one.mask.all()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_nested_latents_are_hidden_in_training_only(nested, frozen):
    student = make_student(n_latents=M, nested=nested)
    ActionObjective(student, LossConfig(), freeze_compressor=frozen).train()
    regions = make_regions(32, T)
    mask = student.compress(regions).mask
    assert (mask is None) == (not nested)
    assert not nested or 0 < (~mask).sum() < mask.numel()
    assert student.eval().compress(regions).mask is None


@pytest.mark.parametrize(
    "memory", [MemoryConfig(), MemoryConfig("accumulate", 2), MemoryConfig("recurrent", 2)]
)
def test_the_decoder_does_not_read_hidden_latents(memory):
    student, batch = (
        make_student(n_latents=M, memory=memory).eval(),
        make_triple(B, memory.n_regions),
    )
    batch.has_context[:] = True
    batch.context.mask[:] = True
    compressor = student.compressor.forward

    def spoilt(tokens, mask):
        latents = compressor(tokens, mask)
        latents.values[:, 2:] += 5.0
        return latents

    with torch.no_grad():
        whole = student(batch).parameters
        student.bottleneck = AtTest(student.bottleneck, n_shown=2)
        first = student(batch).parameters
        student.compressor.forward = spoilt
        assert torch.equal(student(batch).parameters, first)
    assert not torch.equal(whole, first)


def test_nested_training_learns_from_the_first_latent():
    """Patches leave the last action to the last latent, unless the first may stand alone."""

    def learned(nested):
        student = make_student("patches", nested=nested, n_latents=2, region_len=4)
        objective = ActionObjective(student, LossConfig())
        optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
        for _ in range(200):
            loss, _ = objective(recall_batch(64))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        student.eval().bottleneck = AtTest(student.bottleneck, n_shown=1)
        batch = recall_batch(256)
        with torch.no_grad():
            found = student(batch).parameters[:, 0].argmax(-1)
        return (found == batch.query.actions[:, 0]).float().mean().item()

    assert learned(True) > 0.9
    assert learned(False) < 0.7


def recall_batch(size):
    """The action of all steps is the last action of the previous region."""
    batch = make_triple(size, region_len=4)
    batch.has_context[:] = True
    batch.context.mask[:] = True
    batch.query.actions[:] = batch.context.actions[:, -1, -1:]
    return batch


@pytest.mark.parametrize("n_shown", [0, M + 1])
def test_prefixes_that_are_not_there_are_refused(n_shown):
    with pytest.raises(CompressorError, match=rf"first {n_shown} latents .* 1 \.\.\. {M}"):
        prefix(Latents(torch.randn(B, M, D)), n_shown)


@pytest.mark.parametrize(
    ("number", "bits", "error"), [("bf16", 16 * M * D, 2**-8), ("int8", M * (8 * D + 16), None)]
)
def test_rounded_latents_are_near_and_cost_their_bits(number, bits, error):
    values = 3 * torch.randn(B, M, D)
    values[0, 0] = 0.0
    latents = rounded(Latents(values), number)
    assert latents.bits_per_region == bits
    assert latents.values.dtype == torch.float32
    off = (latents.values - values).abs()
    largest = values.abs().amax(-1, keepdim=True)
    bound = values.abs() * error if error else largest * (0.5 / 127 + 2**-8)
    assert (off <= bound + 1e-9).all()
    assert off.max() > 0
    if number == "int8":
        assert all(len(latent.unique()) <= 255 for latent in latents.values.flatten(0, 1))
    half = rounded(prefix(Latents(values), 1), number)
    assert float(half.bits_per_region) == bits / M


def test_latents_are_cut_down_when_acting_only():
    student = make_student(n_latents=M)
    student.bottleneck = AtTest(student.bottleneck, n_shown=2, number="int8")
    regions = make_regions(B, T)
    with pytest.raises(CompressorError, match="at test only"):
        student.train().compress(regions)
    assert float(student.eval().compress(regions).bits_per_region) == 2 * (8 * D + 16)
    coded = AtTest(build_bottleneck(CompressorConfig(bottleneck="fsq"), D), number="bf16")
    with pytest.raises(CompressorError, match=r"take compressor\.bottleneck=continuous"):
        coded(Latents(torch.randn(B, M, D)))


@pytest.mark.parametrize("memory", [MemoryConfig(), MemoryConfig("accumulate", 2)])
def test_a_student_cut_down_shows_and_counts_fewer(memory):
    student = make_student(n_latents=M, nested=True, memory=memory).eval()
    whole = student.context_tokens
    student.cut_down(n_shown=1, number="bf16")
    latents = student.compress(make_regions(B, T))
    assert latents.mask.sum() == B
    assert float(latents.bits_per_region) == 16 * D
    assert student.n_latents == 1
    assert whole - student.context_tokens == (M - 1) * memory.n_regions
