"""Offline = online: what a policy computed step by step, its model computes from recorded regions.

Regions are longer than episodes and no multiple of them, so that episodes begin inside regions and
are cut by their borders.
"""

import numpy as np
import pytest
import torch
from fixtures import CELLS, CHOICE, make_apart, make_sliding_window, make_student, make_teacher

from ad.controls import LatentControl
from ad.model import Triple
from ad.policy import ContextPolicy
from ad.recall import FrozenPolicy
from ad.rollout import rollout
from compression.latents import Latents
from compression.memory import MemoryConfig
from nets.regions import REGION_FIELDS, Regions, padded, stack_regions
from nets.spaces import field_spec
from tasks.darkroom import MOVES, DarkRoomFamily
from tasks.gymnasium_family import GymnasiumFamily

REGION_LEN, HORIZON, N_REGIONS = 7, 5, 4
FAMILY = DarkRoomFamily(size=3, horizon=HORIZON)
TASKS = [FAMILY.tasks()[i] for i in (0, 0, 4, 7, 8)]  # two streams of one task
STORED = {"observations": torch.int8, "actions": torch.int8, "next_observations": torch.int8}


class Recorder:
    """Stands before a policy and keeps what goes in and what its model put out."""

    def __init__(self, policy):
        self.policy, self.steps, self.logits = policy, [], []
        inner = policy.parameters

        def parameters(observations):
            self.logits.append(inner(observations))
            return self.logits[-1]

        policy.parameters = parameters

    def reset(self, n, seed):
        self.policy.reset(n, seed)

    def act(self, observations):
        self.before = observations.copy()
        self.actions = self.policy.act(observations)
        return self.actions

    def observe(self, rewards, terminated, truncated, next_observations):
        self.policy.observe(rewards, terminated, truncated, next_observations)
        self.steps.append(
            {
                "observations": self.before,
                "actions": self.actions,
                "rewards": rewards.astype(np.float32),
                "next_observations": next_observations.copy(),
                "terminated": terminated,
                "truncated": truncated,
            }
        )

    def regions(self, stored=STORED, region_len=REGION_LEN):
        """The recorded regions, (n, L, ...) each, in the dtypes that histories are stored in."""
        fields = {
            name: torch.from_numpy(np.stack([step[name] for step in self.steps], 1))
            for name in self.steps[0]
        }
        fields = {name: field.to(stored.get(name, field.dtype)) for name, field in fields.items()}
        fields["mask"] = torch.ones_like(fields["truncated"])
        parts = [slice(k * region_len, (k + 1) * region_len) for k in range(N_REGIONS)]
        return [Regions(**{k: field[:, part] for k, field in fields.items()}) for part in parts]

    def region_logits(self, k, region_len=REGION_LEN):
        return torch.stack(self.logits[k * region_len : (k + 1) * region_len], 1)


def record(policy, family=FAMILY, tasks=TASKS):
    """Act for at least N_REGIONS regions."""
    recorder = Recorder(policy)
    region_len = getattr(policy, "region_len", REGION_LEN)
    n_episodes = -(-N_REGIONS * region_len // HORIZON)
    rollout(recorder, family, tasks, n_episodes=n_episodes, seed=3)
    return recorder


STUDENTS = {
    "query_pooling": {},
    "mean_pooling": {"kind": "mean_pooling"},
    "truncation": {"kind": "truncation"},
    "causal": {"causal": True},
    "two regions": {"memory": MemoryConfig("accumulate", 2)},
    **{
        update: {"memory": MemoryConfig("recurrent", 3, {"update": update})}
        for update in ("replace", "residual", "gate", "gru")
    },
    "step before": {"model": {"previous_observation": True}},
    "step tokens": {"tokenisation": "step"},
    "interleaved tokens": {"tokenisation": "interleaved"},
    "prefix": {"reads": "prefix"},
    "prefix of two regions": {"reads": "prefix", "memory": MemoryConfig("accumulate", 2)},
    "prefix of a step alone": {
        "reads": "prefix",
        "sees": "step",
        "memory": MemoryConfig("accumulate", 2),
    },
    "retrieval": {"memory": MemoryConfig("retrieval", 3, {"k": 1})},
    "online, retrieval": {
        "online": 3,
        "sees": "step",
        "memory": MemoryConfig("retrieval", 3, {"k": 2}),
    },
    "online": {"online": 3, "memory": MemoryConfig("accumulate", 2)},
    "online, a step alone": {"online": 2, "sees": "step", "causal": True},
    "online, recurrent, step tokens": {
        "online": 5,
        "memory": MemoryConfig("recurrent", 3),
        "tokenisation": "step",
    },
    "fixed positions": {"latent_positions": "fixed"},
    "no positions": {"latent_positions": "none", "memory": MemoryConfig("accumulate", 2)},
    "rotary positions": {"latent_positions": "rotary", "memory": MemoryConfig("accumulate", 2)},
    "rotary positions, a step alone": {"latent_positions": "rotary", "sees": "step"},
    "a step alone": {"sees": "step", "memory": MemoryConfig("accumulate", 2)},
}


@pytest.fixture(scope="module", params=STUDENTS)
def student(request):
    return make_student(region_len=REGION_LEN, n_latents=3, **STUDENTS[request.param]).eval()


def triple_before(regions, k, n_context_regions, other=3):
    """Region k and the regions right before it; `other` stands where there is none."""
    back = range(n_context_regions, 0, -1)
    context = stack_regions([regions[k - b] if k >= b else regions[other] for b in back])
    has_context = torch.tensor([k >= b for b in back]).expand(len(regions[k].mask), -1)
    context.mask = context.mask & has_context[..., None]
    return Triple(context, has_context, regions[k])


def offline(model, batch):
    with torch.inference_mode():
        return model(batch).parameters


def test_the_recorded_regions_are_what_the_environment_did(student):
    regions = record(ContextPolicy(student)).regions()
    joined = {name: torch.cat([vars(r)[name] for r in regions], 1) for name in vars(regions[0])}
    before, moves = joined["observations"].numpy(), MOVES[joined["actions"].numpy()]
    assert (joined["next_observations"].numpy() == np.clip(before + moves, 0, 2)).all()
    ends = joined["truncated"]
    assert (ends == (torch.arange(N_REGIONS * REGION_LEN) % HORIZON == HORIZON - 1)).all()
    # What the policy was shown at an end is not where the next episode began.
    at_ends = joined["next_observations"][:, :-1][ends[:, :-1]]
    after = joined["observations"][:, 1:][ends[:, :-1]]
    assert (after == 1).all()
    assert (at_ends != after).any()
    assert any(region.ended[:, :-1].any() for region in regions)


def check_replay(model, recorder):
    """What was put out while acting is what the model makes of the recorded regions."""
    regions, n_context = recorder.regions(), model.n_context_regions
    for k in range(N_REGIONS):
        batch = triple_before(regions, k, n_context)
        found = offline(model, batch)
        torch.testing.assert_close(recorder.region_logits(k), found, atol=1e-5, rtol=1e-5)
        if k >= n_context:
            context = batch.context.map(lambda field: field.flip(2))
            other = offline(model, Triple(context, batch.has_context, batch.query))
            assert (other - found).abs().max() > 1e-3  # another context would have shown


def test_a_student_acts_as_it_was_trained(student):
    check_replay(student, record(ContextPolicy(student)))


@pytest.mark.parametrize("sees", ["region", "step"])
@pytest.mark.parametrize("n_context_regions", [1, 3])
@pytest.mark.parametrize("make", [make_teacher, make_apart])
def test_a_teacher_acts_as_it_was_trained(n_context_regions, sees, make):
    teacher = make(n_context_regions, region_len=REGION_LEN, sees=sees).eval()
    check_replay(teacher, record(ContextPolicy(teacher)))


@pytest.mark.parametrize("tokenisation", ["step", "interleaved"])
@pytest.mark.parametrize("make", [make_teacher, make_apart])
def test_a_teacher_of_other_tokens_acts_as_it_was_trained(make, tokenisation):
    lengths = {"region_len": REGION_LEN, "longest_region": 9}
    teacher = make(2, tokenisation=tokenisation, **lengths).eval()
    n_tokens = {"step": 10, "interleaved": 27}[tokenisation]
    assert teacher.context_tokens == 2 * (n_tokens + 2) + 1 + 9
    assert len(teacher.token_type_targets()) == teacher.context_tokens
    check_replay(teacher, record(ContextPolicy(teacher)))


@pytest.mark.parametrize("region_len", [5, REGION_LEN, 9])
@pytest.mark.parametrize("kind", ["student", "step alone", "teacher", "apart"])
def test_regions_of_other_lengths_act_as_they_are_padded_in_training(kind, region_len):
    lengths = {"region_len": REGION_LEN, "longest_region": 9}
    memory = MemoryConfig("accumulate", 2)
    model = {
        "student": lambda: make_student(memory=memory, **lengths),
        "step alone": lambda: make_student(memory=memory, sees="step", **lengths),
        "teacher": lambda: make_teacher(2, **lengths),
        "apart": lambda: make_apart(2, **lengths),
    }[kind]().eval()
    recorder = record(ContextPolicy(model, region_len=region_len))
    regions = [padded(r, 9) for r in recorder.regions(region_len=region_len)]
    assert all(region.mask.sum(1).eq(region_len).all() for region in regions)
    for k in range(N_REGIONS):
        found = offline(model, triple_before(regions, k, 2))[:, :region_len]
        logits = recorder.region_logits(k, region_len)
        torch.testing.assert_close(logits, found, atol=1e-5, rtol=1e-5)


def test_regions_longer_than_the_model_are_refused():
    student = make_student(region_len=REGION_LEN, longest_region=9)
    with pytest.raises(ValueError, match="at most 9"):
        ContextPolicy(student, region_len=10)


@pytest.mark.parametrize("window", [3, REGION_LEN, 10, 16])
def test_a_window_slides_over_borders_as_it_was_trained(window):
    model = make_sliding_window(window, region_len=REGION_LEN).eval()
    recorder = record(ContextPolicy(model))
    assert recorder.policy.context_tokens == window
    regions = recorder.regions()
    joined = Regions(
        **{name: torch.cat([vars(r)[name] for r in regions], 1) for name in REGION_FIELDS}
    )
    for t in range(N_REGIONS * REGION_LEN):
        start = max(0, t + 1 - window)
        query = joined.map(lambda field, start=start, t=t: field[:, start : t + 1])
        absent = regions[0].map(lambda field: torch.zeros_like(field)[:, None])
        batch = Triple(absent, torch.zeros(len(TASKS), 1, dtype=torch.bool), query)
        found = offline(model, batch)[:, -1]
        torch.testing.assert_close(recorder.logits[t], found, atol=1e-5, rtol=1e-5)
    k = N_REGIONS - 1  # the last step of a region, as a batch of training tables shows it
    found = offline(model, triple_before(regions, k, model.n_context_regions))[:, -1]
    torch.testing.assert_close(recorder.region_logits(k)[:, -1], found, atol=1e-5, rtol=1e-5)


def test_a_window_in_training_begins_at_any_phase_and_predicts_what_it_holds():
    model = make_sliding_window(10, region_len=REGION_LEN)
    recorder = record(ContextPolicy(model))
    model.train()
    regions = recorder.regions()
    n_predicted = set()
    for seed in range(20):
        torch.manual_seed(seed)
        output = model(triple_before(regions, 2, 1))
        counts = output.mask.sum(1)
        assert (counts == counts[0]).all()
        n_predicted.add(int(counts[0]))
        first = model(triple_before(regions, 0, 1))
        assert first.mask.sum(1).min() >= 3
    assert n_predicted == {3, 4, 5, 6, 7}  # 14 steps, a window of 10: 0 ... 4 are cut off


@pytest.mark.parametrize(
    ("env_id", "options"),
    [("CartPole-v1", {}), ("MountainCarContinuous-v0", {"episode_len": HORIZON})],
)
def test_numbers_and_early_ends_replay_too(env_id, options):
    family = GymnasiumFamily(env_id, **options)
    fields = {
        "observation": field_spec(family.observation_space, "observation"),
        "action": field_spec(family.action_space, "action"),
    }
    student = make_student(region_len=REGION_LEN, **fields).eval()
    recorder = record(ContextPolicy(student), family, [family.tasks()[0]] * 3)
    regions = recorder.regions(stored={})
    assert any(region.ended.any() for region in regions)
    if env_id == "CartPole-v1":
        assert any(region.terminated.any() for region in regions)
    else:
        actions = torch.cat([region.actions for region in regions], 1)
        assert actions.shape[2:] == (1,)
        assert actions.abs().max() == 1.0  # as the histories' actions, clipped to the space
    for k in range(1, N_REGIONS):
        found = offline(student, triple_before(regions, k, 1))
        torch.testing.assert_close(recorder.region_logits(k), found, atol=1e-5, rtol=1e-5)


def test_a_policy_can_be_used_again():
    student = make_student(region_len=REGION_LEN).eval()
    policy = ContextPolicy(student)
    first = record(policy)
    logits, steps = first.logits, first.steps
    del policy.parameters
    again = record(policy)
    assert all(torch.equal(a, b) for a, b in zip(logits, again.logits, strict=True))
    for a, b in zip(steps, again.steps, strict=True):
        assert all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize("kind", ["student", "teacher", "long_context", "apart"])
def test_resuming_after_regions_is_having_lived_through_them(kind):
    if kind == "student":
        policy = ContextPolicy(make_student(region_len=REGION_LEN).eval())
    elif kind == "apart":
        policy = ContextPolicy(make_apart(2, region_len=REGION_LEN).eval())
    else:
        n_context_regions = 1 if kind == "teacher" else 2
        policy = ContextPolicy(make_teacher(n_context_regions, region_len=REGION_LEN).eval())
    recorder = record(policy)
    regions = recorder.regions(stored={})
    del policy.parameters
    for k in range(1, N_REGIONS):
        policy.reset(len(TASKS), 0)
        policy.resume(regions[:k])
        resumed = policy.parameters(regions[k].observations[:, 0].numpy())
        torch.testing.assert_close(resumed, recorder.logits[k * REGION_LEN], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["student", "long_context", "apart"])
def test_a_frozen_context_is_the_recorded_one_for_ever(kind):
    make = make_apart if kind == "apart" else make_teacher
    model = make(2, region_len=REGION_LEN).eval()
    if kind == "student":
        memory = MemoryConfig("accumulate", 2)
        model = make_student(region_len=REGION_LEN, memory=memory).eval()
    lived = record(ContextPolicy(model)).regions(stored={})[:2]
    present = torch.ones(len(TASKS), 2, dtype=torch.bool)
    recorder = record(FrozenPolicy(model, lived))
    for k, query in enumerate(recorder.regions()):
        found = offline(model, Triple(stack_regions(lived), present, query))
        torch.testing.assert_close(recorder.region_logits(k), found, atol=1e-5, rtol=1e-5)
    empty = record(FrozenPolicy(model, []))
    for k, query in enumerate(empty.regions()):
        found = offline(model, Triple(stack_regions(lived), ~present, query))
        torch.testing.assert_close(empty.region_logits(k), found, atol=1e-5, rtol=1e-5)


def test_the_noise_on_a_frozen_context_stays_too():
    student = make_student(region_len=REGION_LEN, bottleneck="gaussian").eval()
    lived = record(ContextPolicy(student)).regions(stored={})[:2]
    start, shown = student.decoder.start, []

    def noted(latents, state=None, at=0):
        shown.append(latents.values)
        return start(latents, state, at)

    student.decoder.start = noted
    record(FrozenPolicy(student, lived))
    frozen = shown[2::3]  # an empty context and two regions, over and over
    assert len(frozen) > N_REGIONS
    assert all(torch.equal(frozen[0], other) for other in frozen)


def read(student, latents):
    """What the decoder attends to after one region with these latents."""
    state = student.memory.start(len(latents))
    there = torch.ones(len(latents), dtype=torch.bool)
    return student.memory.read(student.memory.update(state, Latents(latents), there))


def controlled(student, kind):
    tasks = [task.index for task in TASKS]
    return record(ContextPolicy(LatentControl(student, kind, tasks)))


def test_zeroed_latents_are_zero():
    student = make_student(region_len=REGION_LEN).eval()
    recorder = controlled(student, "zeroed")
    for k, query in enumerate(recorder.regions()):
        with torch.inference_mode():
            empty = student.memory.read(student.memory.start(len(TASKS)))
            latents = read(student, torch.zeros(len(TASKS), 2, 16)) if k else empty
            found = student.decode(query, latents)
        torch.testing.assert_close(recorder.region_logits(k), found, atol=1e-5, rtol=1e-5)


def test_a_control_interferes_with_every_region_of_a_longer_context():
    memory = MemoryConfig("accumulate", 2)
    student = make_student(region_len=REGION_LEN, memory=memory).eval()
    regions = record(ContextPolicy(student)).regions(stored={})
    control = LatentControl(student, "zeroed", [task.index for task in TASKS])
    shown = []
    for given in (regions[:2], regions[2:4]):
        policy = ContextPolicy(control)
        policy.reset(len(TASKS), 0)
        policy.resume(given)
        shown.append(policy.parameters(regions[0].observations[:, 0].numpy()))
    assert torch.equal(*shown)


def test_no_context_latents_are_those_of_the_first_region_for_ever():
    student = make_student(region_len=REGION_LEN).eval()
    recorder = controlled(student, "no_context")
    for k, query in enumerate(recorder.regions()):
        with torch.inference_mode():
            found = student.decode(query, student.memory.read(student.memory.start(len(TASKS))))
        torch.testing.assert_close(recorder.region_logits(k), found, atol=1e-5, rtol=1e-5)


def test_shuffled_latents_come_from_another_task():
    student = make_student(region_len=REGION_LEN).eval()
    tasks = np.array([task.index for task in TASKS])
    recorder = controlled(student, "shuffled")
    regions = recorder.regions()
    for k in range(1, N_REGIONS):
        with torch.inference_mode():
            latents = read(student, student.compress(regions[k - 1]).values)
        for stream in range(len(TASKS)):
            rows = [stream] * len(TASKS)  # this stream's region, under every stream's latents
            query = regions[k].map(lambda field, rows=rows: field[rows])
            with torch.inference_mode():
                decoded = student.decode(query, latents)
            found = recorder.region_logits(k)[stream]
            near = [i for i in range(len(TASKS)) if torch.allclose(found, decoded[i], atol=1e-5)]
            assert near
            assert all(tasks[i] != tasks[stream] for i in near)


def test_a_noisy_channel_acts_alike_with_equal_seeds():
    student = make_student(region_len=REGION_LEN, bottleneck="gaussian").eval()
    taken = [record(ContextPolicy(student)).logits for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*taken, strict=True))


def test_temperature_zero_takes_the_likeliest_action():
    student = make_student(region_len=REGION_LEN).eval()
    recorder = record(ContextPolicy(student, temperature=0))
    for logits, step in zip(recorder.logits, recorder.steps, strict=True):
        assert (logits.argmax(-1).numpy() == step["actions"]).all()


def test_sampled_actions_follow_the_seed():
    student = make_student(region_len=REGION_LEN).eval()
    taken = []
    for seed in (1, 1, 2):
        recorder = Recorder(ContextPolicy(student))
        rollout(recorder, FAMILY, TASKS, n_episodes=4, seed=seed)
        taken.append(np.stack([step["actions"] for step in recorder.steps]))
    assert (taken[0] == taken[1]).all()
    assert (taken[0] != taken[2]).any()


@pytest.mark.parametrize("n_regions", [1, 2])
def test_the_context_never_exceeds_what_is_reported(n_regions):
    memory = MemoryConfig("accumulate", n_regions)
    student = make_student(region_len=REGION_LEN, n_latents=3, memory=memory).eval()
    policy = ContextPolicy(student)
    record(policy)
    tokens = 3 * n_regions
    assert policy.context_tokens == tokens + REGION_LEN
    decoder = policy.state.decoder
    keys, values = decoder.memory[0]
    assert keys.shape[2] == values.shape[2] == tokens
    assert decoder.caches[0].keys.shape[2] == REGION_LEN
    numbers = 2 * len(decoder.caches) * 16 * (tokens + REGION_LEN)  # keys and values, D wide
    assert policy.context_bytes == 4 * numbers
    prefixed = make_student(region_len=REGION_LEN, n_latents=3, memory=memory, reads="prefix")
    policy = ContextPolicy(prefixed.eval())
    record(policy)
    assert policy.context_tokens == tokens + REGION_LEN
    assert policy.context_bytes == 4 * numbers
    assert policy.state.decoder.caches[0].keys.shape[2] == tokens + REGION_LEN
    teacher = make_teacher(3, region_len=REGION_LEN).eval()
    policy = ContextPolicy(teacher)
    record(policy)
    assert policy.context_tokens == 3 * (REGION_LEN + 2) + 1 + REGION_LEN
    assert len(policy.state.regions) == 3


@pytest.mark.parametrize("n_regions", [1, 2])
def test_a_step_seen_alone_keeps_nothing_of_its_region(n_regions):
    memory = MemoryConfig("accumulate", n_regions)
    student = make_student(region_len=REGION_LEN, n_latents=3, memory=memory, sees="step").eval()
    policy = ContextPolicy(student)
    record(policy)
    decoder, tokens = policy.state.decoder, 3 * n_regions
    assert policy.context_tokens == tokens + 1
    assert decoder.caches == []
    assert policy.context_bytes == 4 * 2 * len(decoder.memory) * 16 * tokens
    teacher = make_teacher(n_regions, region_len=REGION_LEN, sees="step").eval()
    policy = ContextPolicy(teacher)
    record(policy)
    tokens = n_regions * (REGION_LEN + 2) + 1 + 1
    assert policy.context_tokens == tokens
    assert policy.context_bytes == 4 * 2 * len(policy.state.caches) * 16 * tokens


def test_the_room_and_the_models_agree_on_fields():
    assert field_spec(FAMILY.observation_space, "observation") == CELLS
    assert field_spec(FAMILY.action_space, "action") == CHOICE
