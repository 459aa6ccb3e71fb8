"""Bottlenecks behind every compressor: bits, codes, nested latents, rounding at test."""

import importlib
import itertools
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from fixtures import REGION_LEN, WIDTH, make_regions, make_student, make_triple
from vector_quantize_pytorch import FSQ

from ad.losses import LossConfig
from ad.objectives import ActionObjective, PretrainObjective
from ad.student import CADStudent
from compression.bottleneck import BOTTLENECKS, bottleneck_class, build_bottleneck
from compression.codes import FittedProjection, code_use
from compression.compressor import KINDS, CompressorConfig, CompressorError
from compression.latents import Latents
from compression.nested import prefix
from compression.transform import MOST_BITS, allotted

B, M, D, T = 6, 4, WIDTH, REGION_LEN
NOISY = ["gaussian", "vib"]
SMALL = {
    "vq": {"codebook_size": 8, "width": 4},
    "fsq": {"levels": [3, 3]},
    "vib": {"width": 4},
    "transform": {"bits": 40},
}
EXTENDING = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(kind, **kwargs):
    config = CompressorConfig(n_latents=M, bottleneck=kind, bottleneck_kwargs=kwargs)
    bottleneck = build_bottleneck(config, D)
    if kind == "transform":  # it says nothing until it is fitted
        bottleneck.fit(Latents(torch.randn(256, M, D)))
    return bottleneck


def small(kind, compressor="query_pooling", **settings):
    kwargs = {"bottleneck": kind, "bottleneck_kwargs": SMALL.get(kind, {}), "n_latents": M}
    return make_student(compressor, **(kwargs | settings))


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_a_bottleneck_keeps_shape_and_lets_gradients_through(kind):
    bottleneck = build(kind, **SMALL.get(kind, {}))
    values = torch.randn(32, M, D, requires_grad=True)
    before = Latents(values, metrics={"slots_used": torch.ones(())})
    latents = bottleneck(before)
    assert latents.values.shape == values.shape
    assert latents.metrics["slots_used"] == 1
    assert float(latents.bits_per_region) > 0
    assert all(loss.ndim == 0 for loss in latents.losses.values())
    (latents.values.square().mean() + sum(latents.losses.values())).backward()
    assert (values.grad.abs().sum(-1) > 0).float().mean() > 0.9
    for name, parameter in bottleneck.named_parameters():
        assert parameter.grad is not None, name
    assert not any(metric.requires_grad for metric in latents.metrics.values())


@pytest.mark.parametrize("kind", [kind for kind in BOTTLENECKS if kind not in NOISY])
def test_rows_of_a_batch_do_not_mix(kind):
    bottleneck, values = build(kind, **SMALL.get(kind, {})), torch.randn(B, M, D)
    bottleneck(Latents(values))  # a codebook begins with its first batch
    bottleneck.eval()
    alone = [bottleneck(Latents(values[i : i + 1])).values for i in range(B)]
    torch.testing.assert_close(bottleneck(Latents(values)).values, torch.cat(alone))


@pytest.mark.parametrize("kind", BOTTLENECKS)
@pytest.mark.parametrize("compressor", KINDS)
def test_every_bottleneck_trains_behind_every_compressor(compressor, kind):
    student = small(kind, compressor) if compressor != "pca" else small(kind, "pca", width=8)
    student.fit_statistics(make_regions(64, T))
    loss, metrics = ActionObjective(student, LossConfig(lambda_cap=0.01))(make_triple(B))
    loss.backward()
    assert loss.isfinite()
    expected = {"gaussian": "capacity", "vib": "capacity", "vq": "commitment"}
    assert kind not in expected or expected[kind] in metrics
    assert ("codebook_perplexity" in metrics) == (kind in ("fsq", "vq"))


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_a_saved_student_is_the_loaded_one_bit_for_bit(kind, tmp_path):
    student, batch = small(kind), make_triple(B)
    objective = ActionObjective(student, LossConfig())
    objective(batch)[0].backward()  # begins the codebook
    student.eval().save_pretrained(tmp_path)
    loaded = CADStudent.from_pretrained(tmp_path)
    for model in (student, loaded):
        model.eval()
    weights = loaded.state_dict()
    assert weights.keys() == student.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in student.state_dict().items())
    for mode in (False, True):  # acting, and training on
        found = []
        for model in (student, loaded):
            torch.manual_seed(1)
            found.append(model.train(mode)(batch))
        assert torch.equal(found[0].parameters, found[1].parameters)
        assert found[0].losses == found[1].losses
        assert found[0].metrics == found[1].metrics


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_equal_seeds_train_equally(kind):
    runs = []
    for _ in range(2):
        student = small(kind, nested=not bottleneck_class(kind).joint)
        objective = ActionObjective(student, LossConfig())
        optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
        torch.manual_seed(5)
        for _ in range(3):
            loss, _ = objective(make_triple(B))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        runs.append(loss)
    assert torch.equal(*runs)


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_no_bottleneck_adds_bits(kind):
    student = small(kind, "none")
    assert float(student.compress(make_regions(B, T)).bits_per_region) == 0


@pytest.mark.parametrize("mask", [None, torch.tensor([True, True, False, False])])
def test_bits_are_counted_over_shown_latents(mask):
    mask = mask if mask is None else mask.expand(B, -1)
    shown = M if mask is None else 2
    latents = Latents(torch.randn(B, M, D), mask)
    bits = {
        kind: float(build(kind, **kwargs)(latents).bits_per_region)
        for kind, kwargs in {
            "continuous": {},
            "fsq": {"levels": [8, 5, 5, 5], "n_groups": 2},
            "vq": {"codebook_size": 16, "n_heads": 3},
        }.items()
    }
    assert bits["continuous"] == 32 * shown * D
    assert bits["fsq"] == pytest.approx(shown * 2 * math.log2(1000))
    assert bits["vq"] == pytest.approx(shown * 3 * 4)


@pytest.mark.parametrize("kind", [k for k in BOTTLENECKS if not bottleneck_class(k).joint])
def test_hidden_latents_count_for_nothing(kind):
    """Neither in losses, nor in bits, nor in the codebook, nor in what is measured of it."""
    found = []
    for scale in (1.0, 100.0):
        torch.manual_seed(3)
        bottleneck = build(kind, **SMALL.get(kind, {}))
        values = torch.randn(16, M, D)
        values[:, 2:] *= scale
        torch.manual_seed(4)
        latents = bottleneck(prefix(Latents(values), 2))
        codebook = [b for _, b in sorted(bottleneck.named_buffers())]
        found.append((latents, codebook))
    (first, buffers), (second, others) = found
    assert torch.equal(first.values[:, :2], second.values[:, :2])
    assert first.losses == second.losses
    assert first.metrics == second.metrics
    assert float(first.bits_per_region) == float(second.bits_per_region)
    assert all(torch.equal(a, b) for a, b in zip(buffers, others, strict=True))


def test_a_gaussian_channel_carries_shannons_bits():
    channel = build("gaussian", noise=0.5)
    with torch.no_grad():
        channel.scale.weight.copy_(2.0 * torch.eye(D))
        channel.scale.bias.zero_()
    z = torch.randn(4000, M, D)
    with torch.no_grad():
        out = channel(Latents(z))
    assert (out.values - 2 * z).std() == pytest.approx(0.5, rel=0.02)
    assert out.losses["capacity"].item() == pytest.approx(4 / 0.25, rel=0.05)
    assert float(out.bits) == pytest.approx(M * D * 0.5 * math.log2(1 + 16), rel=0.01)


def test_vib_counts_nats_and_sends_samples():
    vib = build("vib", width=2)
    with torch.no_grad():
        vib.code.down.weight.zero_()
        vib.code.down.bias[:] = torch.tensor([1.0, -2.0, 0.0, 3.0])  # means, then spreads
    std = torch.nn.functional.softplus(torch.tensor([0.0, 3.0])) + 1e-4
    means = torch.tensor([1.0, -2.0])
    normal = torch.distributions.Normal
    nats = M * torch.distributions.kl_divergence(normal(means, std), normal(0.0, 1.0)).sum()
    for mode in (True, False):
        latents = vib.train(mode)(Latents(torch.randn(B, M, D)))
        assert latents.losses["capacity"].item() == pytest.approx(nats.item(), rel=1e-5)
        assert float(latents.bits) == pytest.approx(nats.item() / math.log(2), rel=1e-5)
        assert not torch.equal(latents.values[0], latents.values[1])  # equal means, other samples


def test_the_capacity_term_buys_bits_back():
    student, batch = small("vib"), make_triple(32)
    objective = PretrainObjective(student, lambda_cap=0.1)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    bits = []
    for _ in range(40):
        loss, _ = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bits.append(float(student.compress(batch.query).bits))
    assert bits[-1] < 0.5 * bits[0]


@pytest.mark.parametrize(("levels", "n_groups"), [([2], 3), ([8, 5, 5, 5], 1), ([4, 3], 2)])
def test_fsq_sends_as_many_values_as_its_bits_say(levels, n_groups):
    fsq = build("fsq", levels=levels, n_groups=n_groups)
    sent = []
    fsq.code.up.register_forward_pre_hook(lambda _, args: sent.append(args[0]))
    with torch.no_grad():
        fsq.code.down.weight.mul_(6)  # reach the outer levels
    latents = fsq(Latents(torch.randn(4000, M, D)))
    codes = sent[0].flatten(0, 1).unflatten(-1, (n_groups, len(levels)))
    for i, n in enumerate(levels):
        expected = torch.linspace(-1, 1, n)
        torch.testing.assert_close(codes[..., i].unique(), expected, atol=1e-6, rtol=0)
    n_codes = math.prod(levels)
    assert float(latents.bits) == pytest.approx(M * n_groups * math.log2(n_codes))
    distinct = len(codes.flatten(0, 1).round(decimals=3).unique(dim=0))
    assert float(latents.metrics["codebook_use"]) == pytest.approx(distinct / n_codes)
    assert distinct > 0.8 * n_codes


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_codes_are_chosen_in_full_precision(kind):
    bottleneck = build(kind)
    latents = Latents(torch.randn(B, M, D))
    bottleneck(latents)
    expected = bottleneck.eval()(latents)
    with torch.autocast("cpu", torch.bfloat16):
        found = bottleneck(latents)
    assert found.metrics == expected.metrics
    torch.testing.assert_close(found.values.float(), expected.values, atol=0.05, rtol=0.05)


def test_a_codebook_begins_as_k_means_and_revives_dead_codes():
    vq = build("vq", codebook_size=12, width=D, decay=0.9)
    with torch.no_grad():
        vq.code.down.weight.copy_(torch.eye(D))
        vq.code.down.bias.zero_()
    centres = 3.0 * torch.randn(4, D)

    def batch():
        return Latents(centres[torch.randint(4, (64, M))] + 0.01 * torch.randn(64, M, D))

    assert vq(batch()).losses["commitment"] < 0.01
    codebook = vq.quantize.codebook
    with torch.no_grad():
        codebook[0] = 100.0  # far from everything: never chosen
        vq.quantize._codebook.embed_avg[0, 0] = 100.0 * vq.quantize._codebook.cluster_size[0, 0]
    assert vq(batch()).metrics["codebook_use"] < 1.0
    for _ in range(100):
        vq(batch())
    assert codebook[0].abs().max() < 50
    assert torch.cdist(codebook, centres).min(1).values.max() < 0.5
    before = codebook.clone()
    vq.eval()(batch())
    assert torch.equal(before, codebook)


def test_a_joint_code_is_one_word_about_many_latents():
    vq = build("vq", codebook_size=4, width=2, n_blocks=2)
    values = torch.randn(64, M, D)
    vq(Latents(values))
    shown = torch.ones(64, M, dtype=torch.bool)
    shown[0] = False
    found = vq.eval()(Latents(values, shown))
    assert found.bits == 2 * 2  # two words of one of four
    words = [found.values[1:, :2].flatten(1), found.values[1:, 2:].flatten(1)]
    assert all(len(word.unique(dim=0)) <= 4 for word in words)
    assert len(torch.cat(words, dim=1).unique(dim=0)) > 4  # each with a codebook of its own
    values[0] += 100.0  # not there: neither coded nor counted
    after = vq(Latents(values, shown))
    assert torch.equal(found.values[1:], after.values[1:])
    assert found.losses == after.losses


def latents_of_few_contents(n):
    """Of each latent, eight contents along three axes of its own, about a centre of its own."""
    axes, centres = torch.linalg.qr(torch.randn(M, D, 3))[0], torch.randn(M, D)
    signs = torch.randint(2, (n, M, 3)) * 2.0 - 1
    size = torch.tensor([3.0, 2.0, 1.0])  # principal components can be told apart
    return Latents(centres + torch.einsum("nmc,mdc->nmd", signs * size, axes))


def test_a_codebook_is_fitted_to_what_latents_hold():
    kwargs = {"codebook_size": 8, "width": 7, "fitted": True}
    bottleneck, latents = build("vq", **kwargs), latents_of_few_contents(512)
    bottleneck.fit(latents)
    found = bottleneck.eval()(latents)
    assert found.bits == M * 3
    assert all(len(found.values[:, j].unique(dim=0)) <= 8 for j in range(M))
    again = build("vq", **kwargs)
    again.load_state_dict(bottleneck.state_dict())
    assert torch.equal(again.eval()(latents).values, found.values)
    assert torch.equal(again.decoded(found.codes), found.values)


def test_a_fitted_codebook_of_words_gives_back_what_it_was_fitted_to():
    vq = build("vq", codebook_size=8, width=7, n_blocks=1, fitted=True)
    centres = torch.randn(8, M, D)
    latents = Latents(centres[torch.randint(8, (512,))] + 0.001 * torch.randn(512, M, D))
    vq.fit(latents)
    after = vq.eval()(latents)
    assert after.bits == 3
    assert len(after.values.flatten(1).unique(dim=0)) == 8
    torch.testing.assert_close(after.values, latents.values, atol=0.05, rtol=0.05)


def test_transform_codes_send_as_many_values_as_their_bits_say():
    latents = latents_of_few_contents(8000)
    for bits in (3, 12, 60):
        bottleneck = build("transform", bits=bits)
        bottleneck.fit(latents)
        found = bottleneck.eval()(latents)
        assert found.bits == bits
        assert bottleneck.levels.log2().sum() == bits
        assert len(found.values.flatten(1).unique(dim=0)) <= 2**bits
        lost = (found.values - latents.values).square().sum((1, 2)).mean()
        again = build("transform", bits=bits)
        again.load_state_dict(bottleneck.state_dict())
        assert torch.equal(again.eval()(latents).values, found.values)
    assert lost < 0.05 * M * (9 + 4 + 1)  # five bits a component


def test_bits_go_where_they_take_most_off_the_distortion():
    assert allotted([16.0, 4.0, 1.0, 0.0], 6) == [3, 2, 1, 0]
    assert allotted([1.0, 1.0], 1) in ([1, 0], [0, 1])
    assert allotted([100.0, 1e-9], MOST_BITS + 2) == [MOST_BITS, 2]
    # By brute force: no other split of as many bits leaves less.
    variances, bits = [7.0, 2.5, 0.9, 0.2], 7
    left = {
        split: sum(v / 4**b for v, b in zip(variances, split, strict=True))
        for split in itertools.product(range(bits + 1), repeat=4)
        if sum(split) == bits
    }
    assert left[tuple(allotted(variances, bits))] == pytest.approx(min(left.values()))


def test_a_transform_code_loses_less_the_more_bits_it_has():
    values = torch.randn(4000, M, D) * torch.linspace(0.1, 2, D)
    lost = []
    for bits in (8, 32, 128, 512):
        bottleneck = build("transform", bits=bits)
        bottleneck.fit(Latents(values))
        lost.append((bottleneck(Latents(values)).values - values).square().mean().item())
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 0.1 * values.square().mean()
    values[..., 0] = 7.0  # a number that never changes
    bottleneck.fit(Latents(values))
    torch.testing.assert_close(
        bottleneck(Latents(values)).values[..., 0], values[..., 0], atol=1e-2, rtol=1e-2
    )


def test_a_transform_code_of_nothing_but_one_region_is_that_region():
    one = torch.randn(1, M, D).expand(64, M, D)
    bottleneck = build("transform", bits=8)
    bottleneck.fit(Latents(one))
    torch.testing.assert_close(bottleneck(Latents(one)).values, one, atol=1e-4, rtol=1e-4)


def test_a_fitted_projection_is_principal_components_and_least_squares():
    values = torch.randn(4000, 2, D) * torch.linspace(1, 3, D) + torch.arange(2.0)[:, None]
    exact, few = FittedProjection(2, D, D), FittedProjection(2, D, 2)
    for projection in (exact, few):
        projection.fit_down(values)
        projection.fit_up(projection.down(values), values)
    torch.testing.assert_close(exact.up(exact.down(values)), values, atol=1e-3, rtol=1e-3)
    lost = (few.up(few.down(values)) - values).detach().square().mean((0, 1)).sum()
    others = values.var(0).mT.sort(0).values[:-2].mean(1).sum()  # the variances left out
    assert lost == pytest.approx(others.item(), rel=0.05)


def test_a_student_fits_its_bottleneck_on_its_own_latents():
    kwargs = {"codebook_size": 2, "width": 2, "n_blocks": 1, "fitted": True}
    student, regions = small("vq", bottleneck_kwargs=kwargs), make_triple(32).query
    student.fit_bottleneck(regions)
    latents = student.compress(regions)
    assert latents.bits_per_region == 1
    assert len(latents.values.flatten(1).unique(dim=0)) == 2


def test_a_codebook_is_not_fitted_on_fewer_words_than_it_has():
    vq = build("vq", codebook_size=8, n_blocks=2, fitted=True)
    with pytest.raises(CompressorError, match="codebook_size is 8, but training has 7 words"):
        vq.fit(Latents(torch.randn(7, M, D)))


@pytest.mark.parametrize(("kind", "kwargs"), [("vq", {"n_blocks": 1}), ("transform", {})])
def test_what_codes_many_latents_together_cannot_hide_some(kind, kwargs):
    with pytest.raises(CompressorError, match=r"codes several together; set compressor\.nested"):
        small(kind, nested=True, bottleneck_kwargs=kwargs)


def test_code_use_by_hand():
    found = code_use(torch.tensor([[0, 0], [1, 1]]), 4)
    assert found["codebook_perplexity"] == pytest.approx(2.0)
    assert found["codebook_use"] == 0.5
    assert code_use(torch.tensor([2]), 4)["codebook_perplexity"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        ("gaussian", {"noise": 0.0}, r"noise is 0\.0, expected more than 0"),
        ("fsq", {"levels": []}, r"levels is \[\], expected whole numbers of at least 2"),
        ("fsq", {"levels": [8, 1]}, r"levels is \[8, 1\]"),
        ("fsq", {"levels": [8] * 6}, "262144 codes, expected 2 ... 65536"),
        ("fsq", {"n_groups": 0}, "n_groups is 0, expected at least 1"),
        ("vq", {"codebook_size": 1}, "1 codes, expected 2"),
        ("vq", {"decay": 1.0}, "decay is 1.0"),
        ("vq", {"n_blocks": 3}, "n_blocks is 3 with n_heads 1, expected a divisor of the 4"),
        ("vq", {"n_blocks": 2, "n_heads": 2}, "n_blocks is 2 with n_heads 2"),
        ("vq", {"n_blocks": -1}, "n_blocks is -1"),
        ("vq", {"n_codes": 3}, "this bottleneck has no such setting; it knows: codebook_size"),
        ("vib", {"width": 0}, "width is 0, expected at least 1"),
        ("transform", {"bits": 0}, f"bits is 0, expected 1 ... {16 * M * D}"),
        ("transform", {"bits": 16 * M * D + 1}, "at most 16 for each number of 4 latents"),
        ("vqq", {}, "compressor.bottleneck 'vqq' is neither one of continuous, .* transform nor"),
    ],
)
def test_impossible_bottlenecks_are_refused(kind, kwargs, message):
    with pytest.raises(CompressorError, match=message):
        build(kind, **kwargs)


def test_the_library_still_leaves_buffers_out_of_its_state():
    """When this fails, `compression.codes.store_every_buffer` can go."""
    assert not FSQ([3, 3]).state_dict()


@pytest.fixture
def quantised(tmp_path, monkeypatch):
    """The compressor of docs/extending.md, saved as its first line says."""
    text = EXTENDING.read_text(encoding="utf-8")
    block = re.search(r"```python\n(# (\w+)\.py\n.*?)```", text, re.DOTALL)
    (tmp_path / f"{block.group(2)}.py").write_text(block.group(1))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield f"{block.group(2)}:QuantisedMeans"
    sys.modules.pop(block.group(2), None)


def test_a_users_own_quantising_compressor_runs_through_the_objective(quantised):
    student = make_student(quantised, n_latents=M, kwargs={"n_codes": 8})
    batch, found = make_triple(32), {}
    for weight in (0.0, 2.0):
        weights = {"commitment": weight, "codebook": 0.0}
        loss, metrics = ActionObjective(student, LossConfig(weights=weights))(batch)
        found[weight] = loss.item() - metrics["action_nll"].item()
    assert found[0.0] == pytest.approx(0.0, abs=1e-6)
    assert found[2.0] == pytest.approx(2 * metrics["commitment"].item(), rel=1e-3)
    assert 1 <= metrics["codebook_perplexity"] <= 8
    assert 0 < metrics["codebook_use"] <= 1
    latents = student.compress(batch.query)
    assert latents.bits_per_region == M * 3
    ActionObjective(student, LossConfig())(batch)[0].backward()
    for name, parameter in student.compressor.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ["gaussian", "vib", "vq"])
def test_a_region_that_is_not_there_counts_for_nothing(kind):
    student, batch = small(kind), make_triple(B)
    student.bottleneck.eval()  # a codebook that moves would tell nothing

    def losses():
        torch.manual_seed(1)
        return {name: loss.item() for name, loss in student(batch).losses.items()}

    before = losses()
    assert before
    batch.context.rewards[~batch.has_context] = 100.0
    assert losses() == before
    batch.context.rewards[batch.has_context] = 100.0
    assert losses() != before
