"""Records of methods and stages: that they fit together, and what they make of a configuration."""

import dataclasses

import fixtures
import numpy as np
import pytest

from ad.policy import StudentPolicy
from pipelines.config import RunConfig
from pipelines.methods import METHODS, TRAINED, UNTRAINED, controls_of, untrained_of
from pipelines.models import acting_parameters
from pipelines.stages import STAGES, own_config
from tasks.darkroom import DarkRoomFamily
from tasks.family import FamilyError


def test_a_chain_is_of_training_stages_in_their_order():
    order = list(STAGES)
    for name in TRAINED:
        stages = METHODS[name].stages
        assert sorted(stages, key=order.index) == list(stages)
        assert all(STAGES[stage].section for stage in stages)


def test_every_method_is_trained_or_a_control_or_rolled_out_alone():
    for name, method in METHODS.items():
        kinds = (name in TRAINED, method.control_of in TRAINED, name in UNTRAINED)
        assert sum(kinds) == 1, name
        assert METHODS[name].record() == {
            "name": name,
            "title": method.title,
            "group": method.group,
            "order": list(METHODS).index(name),
        }
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    assert [control.control for control in controls_of("student")] == [
        "zeroed",
        "shuffled",
        "no_context",
    ]


def test_a_baseline_exchanges_the_compressor_alone():
    config = RunConfig(method="pca")
    own = own_config(config)
    assert own.compressor == dataclasses.replace(config.compressor, kind="pca")
    assert dataclasses.replace(own, compressor=config.compressor) == config


class Unknown(DarkRoomFamily):
    """A family that knows no expert."""

    def optimal_actions(self, tasks, observations, rng=None):
        raise FamilyError("nobody knows")


def test_a_reference_needs_a_family_that_offers_it():
    assert untrained_of(DarkRoomFamily(size=3, horizon=5)) == ("random", "optimal")
    assert untrained_of(Unknown(size=3, horizon=5)) == ("random",)


@pytest.mark.parametrize(
    ("kind", "idle"),
    [
        ("query_pooling", ("reconstruction",)),
        ("pca", ("reconstruction", "transition_encoder")),
    ],
)
def test_parameters_that_act_are_those_acting_needs(kind, idle):
    student = fixtures.make_student(kind)
    own = {name: p.numel() for name, p in student.named_parameters()}
    expected = sum(n for name, n in own.items() if not name.startswith(idle))
    assert acting_parameters(student) == expected < sum(own.values())


def test_no_context_is_what_the_student_knows_at_a_history_s_start():
    student = fixtures.make_student()
    policy = StudentPolicy(student, control="no_context")
    policy.reset(2, seed=0)
    start = policy.latents
    for _ in range(fixtures.REGION_LEN):
        policy.act(np.zeros((2, 2), dtype=np.int64))
        policy.observe(np.ones(2), np.zeros(2, bool), np.zeros(2, bool), np.ones((2, 2), int))
    assert policy.t == 0
    assert policy.latents.equal(start)
    assert policy.latents.equal(student.empty_latents(2))
