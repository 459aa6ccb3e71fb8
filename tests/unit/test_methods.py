"""Records of methods and stages: that they fit together, and what they make of a configuration."""

import dataclasses
from pathlib import Path

import pytest

from compression.memory import MemoryConfig
from pipelines.config import RunConfig
from pipelines.methods import METHODS, TRAINED, UNTRAINED, controls_of, untrained_of
from pipelines.stages import STAGES, own_config
from tasks.darkroom import DarkRoomFamily
from tasks.family import FamilyError
from training.config import load_config

ROOT = Path(__file__).parents[2]
SEE_THEIR_REGION = {"long_context", "idt", "previous_region", "whole_history", "sliding_window"}


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
    changed = dataclasses.replace(config.compressor, kind="pca", kwargs={"whiten": False})
    assert own.compressor == changed
    assert dataclasses.replace(own, compressor=config.compressor) == config


class Unknown(DarkRoomFamily):
    """A family that knows no expert."""

    def optimal_actions(self, tasks, observations, rng=None):
        raise FamilyError("nobody knows")

    def optimal_actions_by_index(self, indices, observations, rng=None):
        raise FamilyError("nobody knows")


def test_a_reference_needs_a_family_that_offers_it():
    searches = ("posterior_sampling", "coverage")
    assert untrained_of(DarkRoomFamily(size=3, horizon=5)) == (*searches, "random", "optimal")
    assert untrained_of(Unknown(size=3, horizon=5)) == (*searches, "random")


def test_the_window_slides_over_as_many_steps_as_the_student_attends_to_tokens():
    config = RunConfig(method="sliding_window", memory=MemoryConfig("accumulate", 2))
    teacher = own_config(config).teacher
    assert teacher.kwargs == {"window": 2 * config.compressor.n_latents + config.region_len}
    assert dataclasses.replace(teacher, target=config.teacher.target, kwargs={}) == config.teacher
    recurring = RunConfig(method="sliding_window", memory=MemoryConfig("recurrent", 5))
    window = config.compressor.n_latents + config.region_len
    assert own_config(recurring).teacher.kwargs == {"window": window}
    alone = dataclasses.replace(
        config,
        decoder=dataclasses.replace(config.decoder, sees="step"),
        teacher=dataclasses.replace(config.teacher, sees="step"),
    )
    teacher = own_config(alone).teacher
    assert teacher.kwargs == {"window": 2 * config.compressor.n_latents + 1}
    assert teacher.sees == "region"


def test_a_raw_context_is_not_asked_what_a_student_learns_from():
    asked = load_config(
        RunConfig,
        ROOT / "configs/small_bandit.yaml",
        ["distill.loss.queries=all", "distill.loss.beta=1.0"],
    )
    for method in TRAINED:
        own = own_config(dataclasses.replace(asked, method=method))
        assert ("region" in own.teacher.sees) == (method in SEE_THEIR_REGION), method
    with pytest.raises(ValueError, match=r"queries is all, but teacher\.sees=region"):
        dataclasses.replace(asked, teacher=asked.long_context)
