"""Offline = online: what a policy computed step by step, its model computes from recorded regions.

Regions are longer than episodes and no multiple of them, so that episodes begin inside regions and
are cut by their borders.
"""

import numpy as np
import pytest
import torch
from fixtures import CELLS, CHOICE, make_student, make_teacher

from ad.objectives import Triple
from ad.policy import StudentPolicy, TeacherPolicy
from ad.rollout import rollout
from nets.embeddings import Regions
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

    def regions(self, stored=STORED):
        """The recorded regions, (n, L, ...) each, in the dtypes that histories are stored in."""
        fields = {
            name: torch.from_numpy(np.stack([step[name] for step in self.steps], 1))
            for name in self.steps[0]
        }
        fields = {name: field.to(stored.get(name, field.dtype)) for name, field in fields.items()}
        fields["mask"] = torch.ones_like(fields["truncated"])
        parts = [slice(k * REGION_LEN, (k + 1) * REGION_LEN) for k in range(N_REGIONS)]
        return [Regions(**{k: field[:, part] for k, field in fields.items()}) for part in parts]

    def region_logits(self, k):
        return torch.stack(self.logits[k * REGION_LEN : (k + 1) * REGION_LEN], 1)


def record(policy, family=FAMILY, tasks=TASKS):
    """Act for at least N_REGIONS regions."""
    recorder = Recorder(policy)
    n_episodes = -(-N_REGIONS * REGION_LEN // HORIZON)
    rollout(recorder, family, tasks, n_episodes=n_episodes, seed=3)
    return recorder


@pytest.fixture(scope="module", params=["query_pooling", "mean_pooling", "truncation", "causal"])
def student(request):
    kind, causal = request.param, request.param == "causal"
    kind = "query_pooling" if causal else kind
    return make_student(kind, region_len=REGION_LEN, n_latents=3, causal=causal).eval()


def test_the_recorded_regions_are_what_the_environment_did(student):
    regions = record(StudentPolicy(student)).regions()
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


def test_a_student_acts_as_it_was_trained(student):
    recorder = record(StudentPolicy(student))
    regions = recorder.regions()
    for k, query in enumerate(regions):
        context = regions[k - 1] if k else regions[2]  # not read where there is none
        has_context = torch.full((len(TASKS),), k > 0)
        with torch.inference_mode():
            offline, _ = student(context, has_context, query)
        torch.testing.assert_close(recorder.region_logits(k), offline, atol=1e-5, rtol=1e-5)
        if k:
            with torch.inference_mode():
                other, _ = student(regions[k - 2], has_context, query)
            assert (other - offline).abs().max() > 1e-3  # another context would have shown


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
    recorder = record(StudentPolicy(student), family, [family.tasks()[0]] * 3)
    regions = recorder.regions(stored={})
    assert any(region.ended.any() for region in regions)
    if env_id == "CartPole-v1":
        assert any(region.terminated.any() for region in regions)
    else:
        actions = torch.cat([region.actions for region in regions], 1)
        assert actions.shape[2:] == (1,)
        assert actions.abs().max() == 1.0  # as the histories' actions, clipped to the space
    for k in range(1, N_REGIONS):
        with torch.inference_mode():
            offline, _ = student(regions[k - 1], torch.ones(3, dtype=torch.bool), regions[k])
        torch.testing.assert_close(recorder.region_logits(k), offline, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_context_regions", [1, 3])
def test_a_teacher_acts_as_it_was_trained(n_context_regions):
    teacher = make_teacher(n_context_regions, region_len=REGION_LEN).eval()
    recorder = record(TeacherPolicy(teacher))
    regions = recorder.regions()
    for k, query in enumerate(regions):
        back = range(n_context_regions, 0, -1)
        rows = [regions[k - b] if k >= b else regions[3] for b in back]
        stacked = {name: torch.stack([vars(r)[name] for r in rows], 1) for name in vars(query)}
        has_context = torch.tensor([k >= b for b in back]).expand(len(TASKS), -1)
        with torch.inference_mode():
            offline = teacher(Triple(Regions(**stacked), has_context, query))
        torch.testing.assert_close(recorder.region_logits(k), offline, atol=1e-5, rtol=1e-5)
        if k >= n_context_regions:
            stacked = {name: field.flip(2) for name, field in stacked.items()}
            with torch.inference_mode():
                other = teacher(Triple(Regions(**stacked), has_context, query))
            assert (other - offline).abs().max() > 1e-3  # another context would have shown


def test_a_policy_can_be_used_again():
    student = make_student(region_len=REGION_LEN).eval()
    policy = StudentPolicy(student)
    first = record(policy)
    logits, steps = first.logits, first.steps
    del policy.parameters
    again = record(policy)
    assert all(torch.equal(a, b) for a, b in zip(logits, again.logits, strict=True))
    for a, b in zip(steps, again.steps, strict=True):
        assert all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize("kind", ["student", "teacher", "long_context"])
def test_resuming_after_regions_is_having_lived_through_them(kind):
    if kind == "student":
        policy = StudentPolicy(make_student(region_len=REGION_LEN).eval())
    else:
        n_context_regions = 1 if kind == "teacher" else 2
        policy = TeacherPolicy(make_teacher(n_context_regions, region_len=REGION_LEN).eval())
    recorder = record(policy)
    regions = recorder.regions(stored={})
    del policy.parameters
    for k in range(1, N_REGIONS):
        policy.reset(len(TASKS), 0)
        policy.resume(regions[:k])
        resumed = policy.parameters(regions[k].observations[:, 0].numpy())
        torch.testing.assert_close(resumed, recorder.logits[k * REGION_LEN], atol=1e-5, rtol=0)


def test_zeroed_latents_are_zero():
    student = make_student(region_len=REGION_LEN).eval()
    recorder = record(StudentPolicy(student, control="zeroed"))
    for k, query in enumerate(recorder.regions()):
        latents = torch.zeros(len(TASKS), 2, 16) if k else student.empty_latents(len(TASKS))
        with torch.inference_mode():
            offline = student.decode(query, latents)
        torch.testing.assert_close(recorder.region_logits(k), offline, atol=1e-5, rtol=1e-5)


def test_shuffled_latents_come_from_another_task():
    student = make_student(region_len=REGION_LEN).eval()
    tasks = np.array([task.index for task in TASKS])
    policy = StudentPolicy(student, control="shuffled", tasks_of_streams=tasks)
    recorder = record(policy)
    regions = recorder.regions()
    for k in range(1, N_REGIONS):
        with torch.inference_mode():
            latents = student.compress(regions[k - 1])
        for stream in range(len(TASKS)):
            rows = [stream] * len(TASKS)  # this stream's region, under every stream's latents
            query = regions[k].map(lambda field, rows=rows: field[rows])
            with torch.inference_mode():
                offline = student.decode(query, latents)
            found = recorder.region_logits(k)[stream]
            near = [i for i in range(len(TASKS)) if torch.allclose(found, offline[i], atol=1e-5)]
            assert near
            assert all(tasks[i] != tasks[stream] for i in near)


def test_temperature_zero_takes_the_likeliest_action():
    student = make_student(region_len=REGION_LEN).eval()
    recorder = record(StudentPolicy(student, temperature=0))
    for logits, step in zip(recorder.logits, recorder.steps, strict=True):
        assert (logits.argmax(-1).numpy() == step["actions"]).all()


def test_sampled_actions_follow_the_seed():
    student = make_student(region_len=REGION_LEN).eval()
    taken = []
    for seed in (1, 1, 2):
        recorder = Recorder(StudentPolicy(student))
        rollout(recorder, FAMILY, TASKS, n_episodes=4, seed=seed)
        taken.append(np.stack([step["actions"] for step in recorder.steps]))
    assert (taken[0] == taken[1]).all()
    assert (taken[0] != taken[2]).any()


def test_the_context_never_exceeds_what_is_reported():
    student = make_student(region_len=REGION_LEN, n_latents=3).eval()
    policy = StudentPolicy(student)
    record(policy)
    assert policy.context_tokens == 3 + REGION_LEN
    keys, values = policy.state.memory[0]
    cache = policy.state.caches[0]
    assert keys.shape[2] == values.shape[2] == 3
    assert cache.keys.shape[2] == REGION_LEN
    numbers = 2 * len(policy.state.caches) * 16 * (3 + REGION_LEN)  # keys and values, D wide
    assert policy.context_bytes == 4 * numbers
    teacher = make_teacher(3, region_len=REGION_LEN).eval()
    policy = TeacherPolicy(teacher)
    record(policy)
    assert policy.context_tokens == 3 * (REGION_LEN + 2) + 1 + REGION_LEN
    assert len(policy.context) == 3


def test_the_room_and_the_models_agree_on_fields():
    assert field_spec(FAMILY.observation_space, "observation") == CELLS
    assert field_spec(FAMILY.action_space, "action") == CHOICE
