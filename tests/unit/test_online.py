"""A region compressed while it is being filled: causal, bounded, and read by what follows."""

import pytest
import torch
from fixtures import CHOICE, REGION_LEN, make_regions, make_student, make_triple

from ad.controls import LatentControl
from ad.parts import with_parts
from ad.policy import ContextPolicy
from compression.memory import MemoryConfig
from nets.regions import Regions, Steps
from pipelines.config import RunConfig
from training.config import ConfigError, load_config

PART = 3  # of regions of 6: one part, read by steps 3, 4 and 5
B = 4


def online(sees="step", **settings):
    return make_student(online=PART, sees=sees, **settings).eval()


def with_action(batch, step):
    """The same batch with another action at a step of its current regions."""
    query = Regions(**vars(batch.query))
    query.actions = query.actions.clone()
    query.actions[:, step] = (query.actions[:, step] + 1) % CHOICE.n_classes[0]
    return type(batch)(batch.context, batch.has_context, query)


def changed_steps(student, batch, other):
    with torch.no_grad():
        before, after = student(batch).parameters, student(other).parameters
    return (before != after).any(-1).any(0).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("sees", "step", "seen_by"),
    [
        ("step", 1, [3, 4, 5]),  # by the latents of the part alone
        ("step", 4, []),  # no part follows in this region
        ("region", 1, [2, 3, 4, 5]),
        ("region", 2, [3, 4, 5]),
        ("region", 4, [5]),
        ("region", 5, []),
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_what_happens_is_seen_later_and_never_before(sees, step, seen_by, causal):
    torch.manual_seed(0)
    batch = make_triple(B)
    student = online(sees, causal=causal)
    assert changed_steps(student, batch, with_action(batch, step)) == seen_by


def test_steps_that_a_part_has_taken_in_are_read_through_its_latents_alone():
    torch.manual_seed(0)
    batch = make_triple(B)
    student = online("region")
    student.memory.placed = torch.zeros_like  # nothing of a part gets through
    assert changed_steps(student, batch, with_action(batch, 0)) == [1, 2]


def test_parts_are_the_shorter_regions_they_stand_for():
    query, context = make_regions(2, 7), make_regions(3, 6)
    every, present = with_parts(context, torch.tensor([True, False, True]), query, 3)
    assert present.tolist() == [True, False, True, True, True, True, True]
    assert every.mask.sum(1).tolist() == [6, 6, 6, 3, 6, 3, 6]
    assert torch.equal(every.actions[4, :6], query.actions[0, :6])
    assert torch.equal(every.rewards[5, :3], query.rewards[1, :3])
    assert not every.rewards[5, 3:].any()
    student = online(region_len=7)
    part = query.map(lambda field: field[:, :3])
    found = student.compress(every).values[[3, 5]]
    torch.testing.assert_close(found, student.compress(part).values)


@pytest.mark.parametrize("memory", ["one_shot", "accumulate", "recurrent"])
@pytest.mark.parametrize("bottleneck", ["continuous", "gaussian", "vq", "fsq"])
def test_parts_pass_bottlenecks_and_memories(memory, bottleneck):
    settings = {"memory": MemoryConfig(memory, 1 if memory == "one_shot" else 2)}
    student = make_student(
        online=2, sees="step", bottleneck=bottleneck, nested=True, n_latents=3, **settings
    )
    output = student(make_triple(B, 2))
    assert output.parameters.shape[:2] == (B, REGION_LEN)
    output.parameters.square().sum().backward()
    assert student.unfinished.grad.abs().sum() > 0


def test_the_context_is_bounded_by_latents_and_a_chunk():
    student = online("region", n_latents=2, memory=MemoryConfig("accumulate", 2))
    assert student.context_tokens == 2 * 2 + 2 + PART
    state = student.start(B)
    empty = state.n_bytes
    region = make_regions(B, PART)
    after = student.part(region, state)
    assert after.n_bytes == empty
    assert after.decoder.caches[0].keys.shape[2] == PART
    assert after.decoder.memory[0][0].shape[2] == 6
    assert not after.decoder.memory_mask[:, :2].all()
    assert after.decoder.memory_mask[:, 4:].all()


@pytest.mark.parametrize("kind", ["zeroed", "no_context", "shuffled"])
def test_controls_interfere_with_parts_too(kind):
    student = online()
    control = LatentControl(student, kind, [0, 1])
    steps = Steps.of(make_regions(2, 1))
    seen = []
    for seed in range(2):
        torch.manual_seed(seed)
        state = control.part(make_regions(2, PART), control.start(2))
        seen.append(student.step(steps, state))
    assert torch.equal(*seen) == (kind != "shuffled")


def test_a_policy_tells_its_model_of_parts_and_no_other():
    student, told = online(), []
    part = student.part
    student.part = lambda region, state: (told.append(region), part(region, state))[1]
    policy = ContextPolicy(student)
    policy.reset(2, 0)
    nothing = torch.zeros(2).numpy()
    for _ in range(2 * REGION_LEN):
        observed = torch.zeros(2, 2, dtype=torch.long).numpy()
        policy.act(observed)
        policy.observe(nothing, nothing.astype(bool), nothing.astype(bool), observed)
    assert [region.mask.shape[1] for region in told] == [PART, PART]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["compressor.online=80"], "is full by then"),
        (["compressor.online=8", "decoder.reads=prefix"], "decoder.reads=prefix"),
        (
            [
                "compressor.online=8",
                "distill.loss={beta: 1, queries: all}",
                "decoder.sees=step",
                "teacher.sees=step",
            ],
            "distill.loss.queries=all",
        ),
    ],
)
def test_parts_that_make_no_sense_are_refused(tmp_path, overrides, told):
    file = tmp_path / "run.yaml"
    file.write_text("region_len: 80\n")
    with pytest.raises(ConfigError, match=told):
        load_config(RunConfig, file, overrides)
