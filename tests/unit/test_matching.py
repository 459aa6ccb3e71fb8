"""Matched initial weights: equal contents find each other before anything is learned."""

import pytest
import torch
from fixtures import make_sliding_window, make_student, make_teacher
from torch import nn

from nets.attention import CrossAttention, SelfAttention
from nets.matching import match

D, H, T = 32, 2, 12


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def contents(n=T):
    return nn.functional.layer_norm(torch.randn(1, n, D), (D,))


def test_a_matched_query_finds_its_equal_among_keys():
    attention, memory = CrossAttention(D, H), contents()
    order = torch.randperm(T)
    before = attention.weights(memory[:, order], attention.project(memory)[0])
    match(attention)
    after = attention.weights(memory[:, order], attention.project(memory)[0])
    assert (after.argmax(-1) == order).all()
    assert not (before.argmax(-1) == order).all()


def test_matched_self_attention_mixes_equal_tokens():
    attention = SelfAttention(D, 1)
    match(attention)
    q, k, _ = attention.qkv(contents()).chunk(3, dim=-1)
    assert torch.equal(q, k)
    scores = q @ k.transpose(-1, -2) / D**0.5
    assert (scores.argmax(-1) == torch.arange(T)).all()


def test_values_stay_as_they_were():
    attention = SelfAttention(D, H)
    values, out = attention.qkv.weight[2 * D :].clone(), attention.out.weight.clone()
    match(attention)
    assert torch.equal(attention.qkv.weight[2 * D :], values)
    assert torch.equal(attention.out.weight, out)


@pytest.mark.parametrize("make", [make_student, lambda **more: make_teacher(1, **more)])
@pytest.mark.parametrize("before", [False, True])
def test_both_tokenisations_of_a_matched_model_begin_alike(make, before):
    settings = {"init": "matched", "previous_observation": before}
    model, plain = make(model=settings), make()
    steps, transitions = model.step_encoder, model.transition_encoder
    for name in ("observation", "action"):
        ours, theirs = getattr(steps, name).table.weight, getattr(transitions, name).table.weight
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()  # equal at first, not tied
        pair = (getattr(plain.step_encoder, name), getattr(plain.transition_encoder, name))
        assert not torch.equal(*(part.table.weight for part in pair))
    if before:
        assert torch.equal(steps.before.table.weight, transitions.observation.table.weight)


def test_a_matched_window_and_its_latent_queries_begin_apart():
    window = make_sliding_window(8, model={"init": "matched", "previous_observation": True})
    encoder = window.step_encoder
    assert torch.equal(encoder.before.table.weight, encoder.observation.table.weight)
    student = make_student(model={"init": "matched"}, n_latents=4)
    cosines = nn.functional.normalize(student.compressor.latent_queries, dim=-1)
    assert (cosines @ cosines.T - torch.eye(4)).abs().max() < 0.9


def test_latents_of_codes_are_told_apart_by_what_they_sought():
    def places(bottleneck, init="matched", kind="query_pooling"):
        student = make_student(kind, model={"init": init}, n_latents=4, bottleneck=bottleneck)
        return student.memory.positions, student.compressor.addresses()

    positions, queries = places("fsq")
    assert torch.equal(positions, queries)
    assert positions.data_ptr() != queries.data_ptr()
    for other in (places("continuous"), places("fsq", init="independent")):
        assert not torch.equal(*other)
    assert places("fsq", kind="mean_pooling")[1] is None


def test_matched_parts_depend_on_the_seed_and_their_name_alone():
    first = make_student(model={"init": "matched"})
    same = make_student("mean_pooling", model={"init": "matched"})
    other = make_student(model={"init": "matched"}, seed=1)
    weights = [m.decoder.layers.blocks[0].cross.q.weight for m in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
