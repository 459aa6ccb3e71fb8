"""Attention against a slow reference, caches, causality, padding, field encoders, distributions."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures import (
    CELLS,
    CHOICE,
    NUMBERS,
    PIXELS,
    SWITCHES,
    TORQUES,
    make_regions,
    make_values,
    select,
)
from gymnasium import spaces
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from nets.actions import ActionDistribution
from nets.attention import CrossAttention, SelfAttention
from nets.embeddings import FieldEncoder, RawFeatures, StepEncoder, TransitionEncoder
from nets.positions import rotate, sinusoids, spread
from nets.regions import Steps
from nets.scaling import FieldScaling
from nets.spaces import FieldSpec, SpaceError, field_spec
from nets.transformer import Block, Transformer

B, T, M, D, H = 3, 7, 4, 16, 2
FIELDS = [CELLS, CHOICE, SWITCHES, NUMBERS, TORQUES, PIXELS]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def attend(q, k, v, allowed):
    """Scaled dot-product attention spelled out; q, k, v (B, T, H, K), allowed (B, T, S)."""
    scores = torch.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~allowed[:, None], float("-inf"))
    return torch.einsum("bhts,bshk->bthk", scores.softmax(-1), v).flatten(2)


def heads(x):
    return x.view(*x.shape[:2], H, D // H)


@pytest.mark.parametrize("case", ["full", "causal", "masked"])
def test_self_attention_equals_the_spelled_out_one(case):
    layer, x = SelfAttention(D, H), torch.randn(B, T, D)
    mask = torch.arange(T) < torch.tensor([T, 2, 5])[:, None]
    allowed = {
        "full": torch.ones(B, T, T, dtype=torch.bool),
        "causal": torch.ones(T, T, dtype=torch.bool).tril().expand(B, T, T),
        "masked": mask[:, None].expand(B, T, T),
    }[case]
    q, k, v = (heads(part) for part in layer.qkv(x).chunk(3, dim=-1))
    expected = layer.out(attend(q, k, v, allowed))
    found = layer(x, is_causal=case == "causal", mask=mask if case == "masked" else None)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_cross_attention_equals_the_spelled_out_one(masked):
    layer, x, memory = CrossAttention(D, H), torch.randn(B, T, D), torch.randn(B, M, D)
    mask = torch.arange(M) < torch.tensor([M, 1, 2])[:, None]
    allowed = mask[:, None].expand(B, T, M) if masked else torch.ones(B, T, M, dtype=torch.bool)
    k, v = (heads(part) for part in layer.kv(memory).chunk(2, dim=-1))
    expected = layer.out(attend(heads(layer.q(x)), k, v, allowed))
    found = layer(x, layer.project(memory), mask if masked else None)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("prefix", [1, 3])
def test_stepping_through_a_cache_equals_the_full_causal_pass(prefix):
    layers = Transformer(D, H, 2, cross_attention=True)
    x, memory = torch.randn(B, T, D), layers.project_memory(torch.randn(B, M, D))
    full = layers(x, is_causal=True, memory=memory)
    caches = layers.new_caches(B, T)
    for _ in range(2):  # the second time over what the first one left in the buffers
        for cache in caches:
            cache.rewind()
        parts = [layers(x[:, :prefix], is_causal=True, memory=memory, caches=caches)]
        for t in range(prefix, T):
            parts.append(layers(x[:, t : t + 1], is_causal=True, memory=memory, caches=caches))
        torch.testing.assert_close(torch.cat(parts, 1), full, atol=1e-5, rtol=1e-5)


def test_a_cache_in_use_refuses_several_causal_steps():
    layer = SelfAttention(D, H)
    cache = layer.new_cache(B, T)
    layer(torch.randn(B, 2, D), is_causal=True, cache=cache)
    with pytest.raises(ValueError, match="one new step, not 2"):
        layer(torch.randn(B, 2, D), is_causal=True, cache=cache)


def test_a_cache_counts_its_bytes():
    cache = SelfAttention(D, H).new_cache(B, T)
    assert cache.n_bytes == 2 * B * T * D * 4


@pytest.mark.parametrize("t", [1, T - 1])
def test_causal_steps_do_not_see_later_ones(t):
    layers, x = Transformer(D, H, 2), torch.randn(B, T, D)
    changed = x.clone()
    changed[:, t:] += 1.0
    before, after = layers(x, is_causal=True), layers(changed, is_causal=True)
    assert torch.equal(before[:, :t], after[:, :t])
    assert (before[:, t:] != after[:, t:]).any(-1).all()
    assert not torch.equal(layers(x)[:, :t], layers(changed)[:, :t])  # bidirectional ones do


def test_padding_changes_nothing_in_a_masked_encoder():
    layers, x = Transformer(D, H, 2), torch.randn(1, T, D)
    padded = torch.cat([x, torch.randn(1, 5, D)], 1)
    other = torch.cat([x, 100 * torch.randn(1, 5, D)], 1)
    mask = torch.arange(T + 5)[None] < T
    found = layers(padded, mask=mask)[:, :T]
    torch.testing.assert_close(found, layers(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(found, layers(other, mask=mask)[:, :T])
    assert not torch.allclose(layers(padded)[:, :T], layers(x), atol=1e-3)  # unmasked, it does


def test_a_cross_attending_block_asks_for_its_memory():
    with pytest.raises(TypeError, match="projected memory"):
        Block(D, H, cross_attention=True)(torch.randn(B, T, D))


def test_sinusoids_tell_positions_apart_and_spread_covers_a_region():
    assert spread(4, 80).tolist() == [10, 30, 50, 70]
    table = sinusoids(torch.arange(100), D)
    assert table.shape == (100, D)
    assert torch.cdist(table, table).add(torch.eye(100)).min() > 0.1


@pytest.mark.parametrize("spec", FIELDS, ids=lambda spec: f"{spec.kind}{spec.shape}")
def test_every_kind_of_field_is_encoded(spec):
    encoder, values = FieldEncoder(spec, D), make_values(spec, B, T)
    tokens = encoder(values)
    assert tokens.shape == (B, T, D)
    assert tokens.dtype == torch.float32
    single = encoder(values[1:2, 2:3])
    torch.testing.assert_close(single, tokens[1:2, 2:3], atol=1e-5, rtol=1e-5)
    flat = tokens.flatten(0, 1)
    raw = values.reshape(B * T, -1)
    distinct = len(raw.unique(dim=0))
    assert len(flat.detach().round(decimals=4).unique(dim=0)) == distinct


def test_classes_have_one_embedding_per_axis():
    encoder = FieldEncoder(CELLS, D)
    table = encoder.table.weight
    assert len(table) == 6  # 3 + 3, not 3 x 3
    token = encoder(torch.tensor([[[1, 2]]], dtype=torch.int8))[0, 0]
    torch.testing.assert_close(token, table[1] + table[3 + 2])


def test_bounded_vectors_are_scaled_to_plus_minus_one_until_statistics_are_fitted():
    scaling, regions = FieldScaling(NUMBERS, CHOICE), make_regions(1, 2, observation=NUMBERS)
    for bound, value in ((NUMBERS.low, -1.0), (NUMBERS.high, 1.0)):
        regions.observations[:] = torch.tensor(bound)
        assert (scaling.regions(regions).observations == value).all()


def test_a_transition_token_depends_on_each_field():
    encoder, regions = TransitionEncoder(CELLS, CHOICE, D), make_regions(1, 2)
    token = encoder(regions)
    assert token.shape == (1, 2, D)
    for name in vars(regions):
        changed = regions.map(torch.clone)
        field = getattr(changed, name)
        field[0, 0] = ~field[0, 0] if field.dtype == torch.bool else (field[0, 0] + 1) % 3
        found = encoder(changed)
        assert torch.equal(found[0, 0], token[0, 0]) == (name == "mask"), name
        assert torch.equal(found[0, 1], token[0, 1])


def test_step_tokens_see_the_past_only():
    encoder, regions = StepEncoder(CELLS, CHOICE, D), make_regions(1, 5)
    tokens = encoder(Steps.of(regions))
    later = regions.map(torch.clone)
    later.actions[:, 2] = (later.actions[:, 2] + 1) % 5
    later.rewards[:, 2] += 1
    later.truncated[:, 2] = ~later.truncated[:, 2] & ~later.terminated[:, 2]
    later.next_observations[:] = 0
    changed = encoder(Steps.of(later))
    same = [torch.equal(changed[0, t], tokens[0, t]) for t in range(5)]
    assert same == [True, True, True, False, True]


@pytest.mark.parametrize("before", [False, True])
def test_the_first_step_of_a_region_knows_nothing_of_the_one_before(before):
    encoder = StepEncoder(CELLS, CHOICE, D, previous_observation=before)
    regions = make_regions(1, 5)
    tokens = encoder(Steps.of(regions))
    for t in range(5):
        seen = select(regions, slice(None), slice(max(t - 1, 0), max(t - 1, 0) + 1))
        step = Steps(
            regions.observations[:, t : t + 1],
            seen.observations,
            seen.actions,
            seen.rewards if t else torch.zeros(1, 1),
            seen.ended if t else torch.ones(1, 1, dtype=torch.bool),
            torch.tensor([t == 0]),
        )
        torch.testing.assert_close(encoder(step), tokens[:, t : t + 1])
    alone = encoder(Steps.of(select(regions, slice(None), slice(1))))
    torch.testing.assert_close(alone, tokens[:, :1])


def test_raw_features_are_one_hot_classes_and_plain_numbers():
    regions = make_regions(1, 1)
    regions.observations[:] = torch.tensor([2, 0])
    regions.next_observations[:] = torch.tensor([1, 1])
    regions.actions[:], regions.rewards[:] = 4, 0.5
    regions.terminated[:], regions.truncated[:] = False, True
    features = RawFeatures(CELLS, CHOICE)
    expected = [0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0.5, 0, 1]
    assert features.width == len(expected)
    assert features(regions)[0, 0].tolist() == expected
    for spec in FIELDS:
        found = RawFeatures(spec, CHOICE)
        shape = found(make_regions(2, 3, observation=spec)).shape
        assert shape == (2, 3, found.width)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Discrete(4), FieldSpec("classes", (), (4,))),
        (spaces.MultiDiscrete([3, 5]), FieldSpec("classes", (2,), (3, 5))),
        (spaces.MultiBinary(3), FieldSpec("classes", (3,), (2, 2, 2))),
        (spaces.Box(-1, 2, (2,)), FieldSpec("vector", (2,), (), (-1.0, -1.0), (2.0, 2.0))),
        (spaces.Box(-np.inf, 2, (2,)), FieldSpec("vector", (2,))),
        (spaces.Box(0, 255, (4, 4, 3), np.uint8), FieldSpec("image", (4, 4, 3))),
    ],
    ids=str,
)
def test_spaces_become_fields_that_survive_json(space, expected):
    spec = field_spec(space, "observation")
    assert spec == expected
    assert FieldSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"a": spaces.Discrete(2)}),
        spaces.MultiDiscrete([[2, 2], [2, 2]]),
        spaces.Box(0, 1, (2, 2)),
        spaces.Text(3),
    ],
    ids=lambda space: type(space).__name__,
)
def test_other_spaces_are_refused_with_a_remedy(space):
    with pytest.raises(SpaceError, match=r"(?s)encoder for action .*FlattenObservation"):
        field_spec(space, "action")


def test_image_actions_are_refused():
    with pytest.raises(SpaceError, match=r"shape \(8, 8, 3\) cannot be predicted"):
        ActionDistribution(PIXELS)


def test_classes_agree_with_torchs_categorical():
    actions = ActionDistribution(SWITCHES)
    ours, target = torch.randn(2, B, T, actions.n_parameters)
    taken = make_values(SWITCHES, B, T)
    axes = [Categorical(logits=part) for part in ours.split(2, -1)]
    wanted = [Categorical(logits=part) for part in target.split(2, -1)]
    nll = -sum(axis.log_prob(taken[..., i]) for i, axis in enumerate(axes))
    torch.testing.assert_close(actions.nll(ours, taken), nll)
    kl = sum(kl_divergence(p, q) for p, q in zip(wanted, axes, strict=True))
    torch.testing.assert_close(actions.kl(target, ours), kl)
    best = torch.stack([axis.probs.argmax(-1) for axis in axes], -1)
    assert torch.equal(actions.mode(ours), best)


def test_label_smoothing_and_softening():
    actions = ActionDistribution(CHOICE)
    ours, target = torch.randn(2, B, T, 5)
    taken = make_values(CHOICE, B, T)
    log_p = ours.log_softmax(-1)
    smooth = 0.9 * F.one_hot(taken, 5) + 0.1 / 5
    torch.testing.assert_close(actions.nll(ours, taken, 0.1), -(smooth * log_p).sum(-1))
    p, q = Categorical(logits=target / 2.0), Categorical(logits=ours / 2.0)
    torch.testing.assert_close(actions.kl(target, ours, 2.0), kl_divergence(p, q))
    assert actions.kl(ours, ours).abs().max() < 1e-6


def test_numbers_agree_with_torchs_normal():
    actions = ActionDistribution(TORQUES)
    ours, target = torch.rand(2, B, T, 4) * 2 - 1
    taken = make_values(TORQUES, B, T)

    def normal(parameters):
        mean, log_std = parameters.chunk(2, -1)
        return Independent(Normal(mean, log_std.exp()), 1)

    torch.testing.assert_close(actions.nll(ours, taken), -normal(ours).log_prob(taken))
    expected = kl_divergence(normal(target), normal(ours))
    torch.testing.assert_close(actions.kl(target, ours), expected)
    assert torch.equal(actions.mode(ours), ours[..., :2])
    wild = torch.tensor([[[0.0, 0.0, -50.0, 50.0]]])
    assert actions.nll(wild, torch.ones(1, 1, 2)).isfinite().all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_classes_come_as_often_as_they_should(temperature):
    actions, n = ActionDistribution(CHOICE), 40_000
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5])
    drawn = actions.sample(logits.expand(n, 5), temperature, torch.Generator().manual_seed(1))
    assert drawn.shape == (n,)
    shares = drawn.bincount(minlength=5) / n
    torch.testing.assert_close(shares, (logits / temperature).softmax(-1), atol=0.01, rtol=0)


def test_sampled_axes_are_independent():
    actions, n = ActionDistribution(SWITCHES), 40_000
    drawn = actions.sample(torch.zeros(n, 4), 1.0, torch.Generator().manual_seed(1))
    assert drawn.shape == (n, 2)
    shares = (drawn[:, 0] * 2 + drawn[:, 1]).bincount(minlength=4) / n
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.01, rtol=0)


def test_sampled_numbers_have_the_right_mean_and_spread():
    actions, n = ActionDistribution(TORQUES), 40_000
    parameters = torch.tensor([1.0, -2.0, 0.0, -1.0]).expand(n, 4)
    drawn = actions.sample(parameters, 0.5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.mean(0), torch.tensor([1.0, -2.0]), atol=0.02, rtol=0)
    expected = 0.5 * torch.tensor([0.0, -1.0]).exp()
    torch.testing.assert_close(drawn.std(0), expected, atol=0.02, rtol=0)


def test_equal_generators_draw_equal_actions():
    actions, logits = ActionDistribution(CHOICE), torch.randn(100, 5)
    first, second, other = (
        actions.sample(logits, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_rotated_products_depend_on_distances_alone():
    queries, keys = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 4, 8)
    asked, places = torch.arange(5), torch.tensor([-7.5, -4.0, -2.5, 0.0])

    def scores(shift):
        return rotate(queries, asked + shift) @ rotate(keys, places + shift).transpose(-1, -2)

    torch.testing.assert_close(scores(0.0), scores(11.0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rotate(queries, torch.zeros(5)), queries)
    torch.testing.assert_close(rotate(queries, asked).norm(dim=-1), queries.norm(dim=-1))
    assert (scores(0.0) - queries @ keys.transpose(-1, -2)).abs().max() > 0.1
