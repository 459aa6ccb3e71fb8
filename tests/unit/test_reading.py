"""A fresh head reads what latents hold, whatever became of the head they were trained with."""

import pytest
import torch
from fixtures import make_student, make_table

from ad.batches import SamplingConfig, TripleSource
from probes.reading import fresh_reconstruction


def source():
    return TripleSource(make_table(n_streams=8), SamplingConfig(), batch_size=32)


def scores(student, updates=300, **kwargs):
    return fresh_reconstruction(student, source(), source(), updates=updates, **kwargs)


@pytest.fixture(scope="module")
def student():
    student = make_student("truncation", n_latents=6, width=32).eval()
    batch = source()(0)
    student.fit_statistics(batch.query)
    return student


def test_latents_that_hold_the_region_are_read_and_empty_ones_are_not(student):
    empty = make_student("none", n_latents=6, width=32).eval()
    empty.fit_statistics(source()(0).query)
    full, nothing = scores(student), scores(empty)
    assert full["rec_loss"] < 0.3
    assert nothing["rec_loss"] > 0.9
    assert full["reconstruction_accuracy"] > nothing["reconstruction_accuracy"] + 0.5


def test_the_students_own_stale_head_changes_nothing_and_is_not_touched(student):
    before = scores(student, updates=10)
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    for parameter in student.reconstruction.parameters():
        torch.nn.init.normal_(parameter)
    assert scores(student, updates=10) == before
    assert scores(student, updates=10, seed=1) != before
    unchanged = {k for k, v in student.state_dict().items() if torch.equal(v, weights[k])}
    assert {k for k in weights if not k.startswith("reconstruction.")} <= unchanged
    assert all(p.grad is None for p in student.parameters())
