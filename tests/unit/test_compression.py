"""Compressors behind their one interface, baselines against slow references, reconstruction."""

import numpy as np
import pytest
import torch
from fixtures import (
    HEADS,
    REGION_LEN,
    WIDTH,
)
from sklearn.decomposition import PCA

from compression.compressor import (
    KINDS,
    CompressorConfig,
    CompressorError,
    build_compressor,
    compressor_class,
)
from compression.mean_pooling import chunk_means
from compression.windows import from_windows, to_windows

B, T, D, M, FEATURES = 4, REGION_LEN, WIDTH, 2, 7
SIZES = {"d_model": D, "n_heads": HEADS, "region_len": T}
EVERY_KIND = [*KINDS, "fixtures:FirstTokens"]
LEARNED = [kind for kind in KINDS if compressor_class(kind).learns]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(kind, **settings):
    """A compressor in eval mode, PCA fitted on noise."""
    config = CompressorConfig(kind=kind, **{"n_latents": M, "n_layers": 1, **settings})
    if kind != "pca":
        return build_compressor(config, **SIZES).eval()
    compressor = build_compressor(config, n_features=FEATURES, **SIZES).eval()
    compressor.fit(torch.randn(64, T, FEATURES), torch.ones(64, T, dtype=torch.bool))
    return compressor


def tokens_for(kind, steps=T):
    return torch.randn(B, steps, FEATURES if kind == "pca" else D)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_compressor_returns_m_latents(kind):
    tokens, mask = tokens_for(kind), torch.ones(B, T, dtype=torch.bool)
    latents = build(kind)(tokens, mask)
    assert latents.values.shape == (B, M, D)
    assert latents.values.dtype == torch.float32
    assert latents.values.isfinite().all()
    assert latents.bits_per_region == (0 if kind == "none" else 32 * M * D)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_tell_regions_apart_unless_there_is_no_context(kind):
    tokens, mask = tokens_for(kind), torch.ones(B, T, dtype=torch.bool)
    latents = build(kind)(tokens, mask).values.flatten(1)
    distances = torch.cdist(latents, latents)[0, 1:]
    assert (distances == 0).all() if kind == "none" else (distances > 1e-3).all()


@pytest.mark.parametrize(
    "settings",
    [{}, {"causal": True}, {"n_latents": 4, "n_pooling_layers": 2}],
    ids=["bidirectional", "causal", "m does not divide L"],
)
@pytest.mark.parametrize("kind", [*LEARNED, "truncation", "mean_pooling", "pca", "none"])
def test_padding_changes_nothing(kind, settings):
    if kind == "pca" and "n_latents" in settings:
        settings = {}  # more components than FEATURES x T allow
    compressor, short = build(kind, **settings), T - 2
    tokens = tokens_for(kind, short)
    whole = torch.ones(B, short, dtype=torch.bool)
    expected = compressor(tokens, whole).values
    mask = torch.arange(T).expand(B, T) < short
    for scale in (1.0, 100.0):
        padding = scale * torch.randn(B, T - short, tokens.shape[-1])
        found = compressor(torch.cat([tokens, padding], 1), mask).values
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_do_not_mix(kind):
    compressor, tokens = build(kind), tokens_for(kind)
    mask = torch.arange(T) < torch.tensor([T, 3, T, 1])[:, None]
    together = compressor(tokens, mask).values
    alone = [compressor(tokens[i : i + 1], mask[i : i + 1]).values for i in range(B)]
    alone = torch.cat(alone)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", LEARNED)
def test_every_weight_and_every_token_matters(kind):
    compressor, tokens = build(kind), tokens_for(kind).requires_grad_()
    latents = compressor.train()(tokens, torch.ones(B, T, dtype=torch.bool))
    latents.values.square().mul(torch.randn(B, M, D)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in compressor.parameters())
    assert (tokens.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("kind", LEARNED)
def test_equal_seeds_build_equal_compressors(kind):
    tokens, mask = tokens_for(kind), torch.ones(B, T, dtype=torch.bool)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(build(kind)(tokens, mask).values)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["patches", "strided"])
def test_a_causal_latent_knows_nothing_behind_its_window(kind, causal):
    """In the other kinds a latent reads the whole region, whatever the encoder's hidden states."""
    compressor, mask = build(kind, n_latents=3, causal=causal), torch.ones(B, T, dtype=torch.bool)
    tokens = tokens_for(kind)
    later = tokens.clone()
    later[:, 4:] += 1.0  # the third window
    before, after = compressor(tokens, mask).values, compressor(later, mask).values
    assert torch.equal(before[:, :2], after[:, :2]) == causal
    assert (before[:, 2] != after[:, 2]).any(-1).all()


def test_patches_without_layers_keep_windows_apart():
    compressor, mask = build("patches", n_layers=0), torch.ones(B, T, dtype=torch.bool)
    tokens = tokens_for("patches")
    later = tokens.clone()
    later[:, T // M :] += 1.0
    before, after = compressor(tokens, mask).values, compressor(later, mask).values
    assert torch.equal(before[:, 0], after[:, 0])
    assert (before[:, 1] != after[:, 1]).any(-1).all()


@pytest.mark.parametrize(
    ("n_windows", "windows"),
    [
        (1, [[0, 1, 2, 3, 4, 5]]),
        (3, [[0, 1], [2, 3], [4, 5]]),
        (4, [[0], [1, 2], [3], [4, 5]]),
        (5, [[0], [1], [2], [3], [4, 5]]),
        (6, [[0], [1], [2], [3], [4], [5]]),
    ],
)
@pytest.mark.parametrize("length", [6, 4, 1])
def test_windows_hold_every_token_once(n_windows, windows, length):
    x, mask = torch.randn(2, 6, 3), (torch.arange(6) < length).expand(2, -1)
    for steps in (6, length):  # padded or not
        cut, held = to_windows(x[:, :steps], mask[:, :steps], 6, n_windows)
        expected = torch.zeros_like(cut)
        for j, window in enumerate(windows):
            for p, t in enumerate(window):
                expected[:, j, p] = x[:, t] * (t < length)
        assert torch.equal(cut, expected)
        assert torch.equal(held, expected.abs().sum(-1) > 0)
    assert torch.equal(from_windows(cut, 6), x * mask[..., None])


def test_strided_attention_thins_by_equal_factors():
    sizes = {**SIZES, "region_len": 80}
    config = CompressorConfig(kind="strided", n_latents=5, n_pooling_layers=2)
    assert build_compressor(config, **sizes).lengths == [80, 20, 5]


def test_slots_add_up_what_is_written_to_them():
    """A token's weight does not depend on how many others there are, nor on where it stands."""
    compressor = build("key_slots", n_layers=0)
    tokens, mask = tokens_for("key_slots"), torch.ones(B, T, dtype=torch.bool)
    shares = compressor.shares(tokens)
    torch.testing.assert_close(shares.sum(-1), torch.ones(B, HEADS, T))
    torch.testing.assert_close(shares[:, :, :2], compressor.shares(tokens[:, :2]))
    assert not torch.allclose(shares[..., 0], shares[..., 1])
    used = compressor(tokens, mask).metrics["slots_used"]
    assert 1.0 < used <= M
    with torch.no_grad():  # all tokens to the first slot
        compressor.slot_keys.zero_()
        compressor.keys.weight.zero_()
        compressor.keys.bias.fill_(1.0)
        compressor.slot_keys[:, 0] = 1.0
        compressor.log_sharpness.fill_(5.0)
    assert compressor(tokens, mask).metrics["slots_used"] == pytest.approx(1.0, abs=1e-3)


def test_a_hybrid_is_pooled_latents_before_patches():
    hybrid, mask = build("hybrid", n_latents=3), torch.ones(B, T, dtype=torch.bool)
    tokens = tokens_for("hybrid")
    found = hybrid(tokens, mask).values
    assert torch.equal(found[:, :1], hybrid.pooled(tokens, mask).values)
    assert torch.equal(found[:, 1:], hybrid.patches(tokens, mask).values)


@pytest.mark.parametrize("n_pooled", [0, M])
def test_a_hybrid_of_one_part_is_refused(n_pooled):
    with pytest.raises(CompressorError, match=rf"n_pooled is {n_pooled}.* less than .* of {M}"):
        build("hybrid", kwargs={"n_pooled": n_pooled})


@pytest.mark.parametrize("n_latents", [0, T + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_too_many_latents_are_refused(kind, n_latents):
    with pytest.raises(CompressorError, match=rf"n_latents is {n_latents}.* 1 \.\.\. {T} latents"):
        build(kind, n_latents=n_latents)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(CompressorError, match="d_model 16 is no multiple of"):
        build_compressor(CompressorConfig(n_latents=1), **{**SIZES, "n_heads": 3})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("querypooling", "neither one of query_pooling, .* nor an import path"),
        ("no_such_module:Thing", "no_such_module"),
        ("fixtures:Missing", "has no 'Missing'"),
        ("fixtures:NotACompressor", "no subclass of Compressor"),
    ],
)
def test_unknown_kinds_are_refused(kind, message):
    with pytest.raises(CompressorError, match=message):
        compressor_class(kind)


def test_a_users_own_compressor_is_used():
    tokens = tokens_for("")
    compressor = build("fixtures:FirstTokens")
    assert type(compressor).__name__ == "FirstTokens"
    mask = torch.ones(B, T, dtype=torch.bool)
    assert torch.equal(compressor(tokens, mask).values, tokens[:, :M])


@pytest.mark.parametrize(
    ("length", "n_chunks", "chunks"),
    [
        (6, 2, [[0, 1, 2], [3, 4, 5]]),
        (6, 6, [[0], [1], [2], [3], [4], [5]]),
        (5, 2, [[0, 1, 2], [3, 4]]),
        (2, 3, [[0], [1], []]),
        (0, 2, [[], []]),
    ],
)
def test_chunk_means_average_equal_parts_of_the_region(length, n_chunks, chunks):
    x, mask = torch.randn(1, 8, 3), torch.arange(8)[None] < length
    found = chunk_means(x, mask, n_chunks)
    expected = [x[0, steps].mean(0) if steps else torch.zeros(3) for steps in chunks]
    torch.testing.assert_close(found[0], torch.stack(expected))


def test_truncation_keeps_the_last_tokens():
    compressor, tokens = build("truncation"), tokens_for("truncation")
    mask = torch.arange(T) < torch.tensor([T, 4, 2, 1])[:, None]
    kept = torch.stack([tokens[0, [4, 5]], tokens[1, [2, 3]], tokens[2, [0, 1]], tokens[3, [0, 0]]])
    expected = compressor.norm(kept + compressor.positions)
    torch.testing.assert_close(compressor(tokens, mask).values, expected)


@pytest.mark.parametrize("whiten", [True, False])
def test_pca_equals_sklearns_transform(whiten):
    regions = torch.randn(200, T, FEATURES) * torch.linspace(0.5, 3.0, FEATURES)
    mask = torch.ones(200, T, dtype=torch.bool)
    compressor = build("pca", kwargs={"whiten": whiten})
    compressor.fit(regions, mask)
    reference = PCA(M * D, whiten=whiten, svd_solver="randomized", random_state=0)
    expected = reference.fit_transform(regions.flatten(1).numpy())
    if not whiten:
        expected = expected / expected[:, 0].std(ddof=1)
    found = compressor.codes(regions, mask).flatten(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert found[:, 0].std() == pytest.approx(1.0, abs=0.01)
    assert (
        found[:, -1].std() == pytest.approx(1.0, abs=0.01) if whiten else found[:, -1].std() < 0.9
    )
    assert compressor(torch.randn(3, T, FEATURES), mask[:3]).values.shape == (3, M, D)


def test_pca_reads_every_slot_by_a_map_of_its_own():
    compressor, mask = build("pca"), torch.ones(B, T, dtype=torch.bool)
    tokens = tokens_for("pca")
    codes = compressor.codes(tokens, mask)
    expected = [codes[:, m] @ compressor.read[m] + compressor.bias[m] for m in range(M)]
    torch.testing.assert_close(compressor(tokens, mask).values, torch.stack(expected, 1))
    assert not torch.equal(compressor.read[0], compressor.read[1])


def test_pca_leaves_out_what_never_varied_in_training():
    fixed = torch.randn(64, T, 1).expand(64, T, FEATURES)  # rank T, fewer than M * D components
    compressor = build("pca")
    compressor.fit(fixed, torch.ones(64, T, dtype=torch.bool))
    mask = torch.ones(8, T, dtype=torch.bool)
    codes = compressor.codes(torch.randn(8, T, FEATURES), mask).flatten(1)
    assert codes.abs().max() < 20
    assert (codes.abs().amax(0) > 0).sum() == T


def test_pca_has_nothing_to_learn_but_the_reading():
    names = {name for name, _ in build("pca").named_parameters()}
    assert names == {"read", "bias"}


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        ("pca", {"whitten": True}, r"compressor\.kwargs\.whitten: .* knows: whiten"),
        ("pca", {"whiten": 3}, r"kwargs\.whiten: expected bool, got 3"),
        ("truncation", {"whiten": True}, "it knows: none"),
    ],
)
def test_settings_a_kind_does_not_know_are_refused(kind, kwargs, message):
    with pytest.raises(CompressorError, match=message):
        build(kind, kwargs=kwargs)


def test_pca_on_too_few_regions_is_refused():
    regions, mask = torch.randn(31, T, FEATURES), torch.ones(31, T, dtype=torch.bool)
    with pytest.raises(CompressorError, match=r"at least 32 training regions.* got 31"):
        build("pca").fit(regions, mask)


def test_pca_to_more_numbers_than_features_is_refused():
    with pytest.raises(CompressorError, match=r"n_latents 6 x model.d_model 16 .* has 42"):
        build("pca", n_latents=6)
