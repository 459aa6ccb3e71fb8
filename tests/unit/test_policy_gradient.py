"""Rollouts as batches, and the policy gradient on them: parity, resuming, learning, refusals."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from fixtures import TORQUES, make_student
from torch.distributions import Categorical

from ad.decoder import DecoderConfig
from ad.losses import ObjectiveError
from ad.model import ModelConfig
from ad.on_policy import OnPolicyError, Rollouts, RolloutsConfig
from ad.policy_gradient import (
    PolicyGradientLossConfig,
    PolicyGradientObjective,
    mean_of_others,
    returns_to_go,
    signals,
)
from ad.student import CADStudent
from ad.student_config import StudentConfig, StudentParts
from base.hashes import to_plain
from compression.compressor import CompressorConfig
from compression.memory import MemoryConfig
from nets.actions import ActionDistribution
from nets.spaces import FieldSpec, field_spec
from pipelines.config import RunConfig
from tasks.bandits import KeyedBanditFamily
from tasks.darkroom import DarkRoomFamily
from training.config import ConfigError, load_config
from training.loop import fit
from training.optim import OptimConfig

ROOM = DarkRoomFamily(size=3, horizon=4)
ROLLOUTS = RolloutsConfig(n_tasks=2, n_streams=3, n_regions=3, temperature=0.7)
OPTIM = OptimConfig(updates=5, batch_size=9, log_every=1, checkpoint_every=2, learning_rate=1e-3)


def rollouts(objective, student, config=ROLLOUTS, optim=OPTIM, **more):
    told = partial(signals, config=objective.config)
    given = {"seed": 3, **more}
    return Rollouts(objective, student, ROOM, ROOM.tasks(), config, optim, told, **given)


def objective_of(student, temperature=ROLLOUTS.temperature, **loss):
    config = PolicyGradientLossConfig(**{"kl": 0.0, **loss})
    return PolicyGradientObjective(student, config, temperature=temperature)


@pytest.mark.parametrize(
    "spec", [FieldSpec("classes", (), (5,)), FieldSpec("classes", (2,), (3, 4))]
)
def test_cooled_parameters_and_entropy_are_those_of_the_distribution(spec):
    actions = ActionDistribution(spec)
    parameters = torch.randn(2, 3, actions.n_parameters)
    axes = [Categorical(logits=logits / 0.5) for logits in parameters.split(spec.n_classes, dim=-1)]
    cooled = actions.cooled(parameters, 0.5)
    entropy = sum(axis.entropy() for axis in axes)
    torch.testing.assert_close(actions.entropy(cooled), entropy)
    drawn = actions.sample(parameters)
    nll = -sum(axis.log_prob(drawn.view(2, 3, -1)[..., i]) for i, axis in enumerate(axes))
    torch.testing.assert_close(actions.nll(cooled, drawn), nll)


def test_cooled_gaussians_are_as_wide_as_what_is_drawn():
    actions, temperature = ActionDistribution(TORQUES), 0.5
    parameters = torch.tensor([0.3, -1.0, 0.2, -0.4]).expand(200_000, 1, 4)
    torch.manual_seed(0)
    drawn = actions.sample(parameters, temperature)
    cooled = actions.cooled(parameters, temperature)
    torch.testing.assert_close(drawn.std(0)[0], cooled[0, 0, 2:].exp(), rtol=0.02, atol=0)
    mean = actions.nll(cooled, drawn).mean()
    torch.testing.assert_close(mean, actions.entropy(cooled)[0, 0], rtol=0.01, atol=0)


def test_returns_and_their_baseline_are_those_of_a_slow_sum():
    rng = np.random.default_rng(0)
    rewards = rng.random((5, 7)).astype(np.float32)
    slow = [[sum(0.9 ** (j - t) * r[j] for j in range(t, 7)) for t in range(7)] for r in rewards]
    found = returns_to_go(torch.from_numpy(rewards), 0.9)
    np.testing.assert_allclose(found, slow, rtol=1e-5)
    tasks = [4, 1, 4, 1, 4]
    others = [
        np.mean([slow[j] for j in range(5) if tasks[j] == tasks[i] and j != i], axis=0)
        for i in range(5)
    ]
    np.testing.assert_allclose(mean_of_others(found, torch.tensor(tasks)), others, rtol=1e-5)


@pytest.mark.parametrize(
    "memory",
    [
        MemoryConfig(),
        MemoryConfig("accumulate", 2),
        MemoryConfig("recurrent", 2, {"update": "gru"}),
    ],
)
@pytest.mark.parametrize("sees", ["region", "step"])
def test_actions_are_as_likely_offline_as_when_they_were_drawn(memory, sees):
    student = make_student(memory=memory, dropout=0.3, sees=sees)
    objective = objective_of(student)
    batch = rollouts(objective, student)(0)
    assert batch.has_context.any()
    assert not batch.has_context.all()
    with torch.no_grad():
        cooled = student.actions.cooled(student(batch).parameters, ROLLOUTS.temperature)
    log_probs = -student.actions.nll(cooled, batch.query.actions)
    torch.testing.assert_close(log_probs, batch.extra["log_probs"], rtol=0, atol=1e-4)
    other = student.actions.nll(student(batch).parameters, batch.query.actions)
    assert (other + batch.extra["log_probs"]).abs().max() > 1e-3  # the temperature counts


def test_updates_and_processes_share_the_streams_of_a_rollout():
    student = make_student()
    objective = objective_of(student)
    optim = replace(OPTIM, batch_size=18, accumulation_steps=2)
    whole = rollouts(objective, student, optim=replace(OPTIM, batch_size=18))(0)
    rows = set()
    for rank in range(3):
        source = rollouts(objective, student, optim=optim, rank=rank, world_size=3)
        for micro in range(2):
            part = source(0, micro)
            assert part.query.mask.shape[0] == 3  # a stream's regions together
            rows |= {tuple(row) for row in part.extra["log_probs"].tolist()}
    assert rows == {tuple(row) for row in whole.extra["log_probs"].tolist()}
    optim = replace(OPTIM, checkpoint_every=4)
    twice = rollouts(objective, student, replace(ROLLOUTS, n_epochs=2), optim)
    assert twice.n_updates == 4
    epochs = [
        [twice(step).extra["log_probs"].sum(1) for step in steps] for steps in ((0, 1), (2, 3))
    ]
    for epoch in epochs:
        found = torch.cat(epoch).sort().values
        torch.testing.assert_close(found, whole.extra["log_probs"].sum(1).sort().values)
    assert not torch.equal(epochs[0][0], epochs[1][0])  # in another order
    with pytest.raises(OnPolicyError, match=r"n_tasks is 40, but there are 9 training tasks"):
        rollouts(objective, student, replace(ROLLOUTS, n_tasks=40))
    with pytest.raises(OnPolicyError, match=r"6 streams .* 4 processes"):
        rollouts(objective, student, optim=replace(OPTIM, batch_size=18), world_size=4)


@pytest.mark.parametrize("baseline", ["streams", "value"])
def test_the_first_gradient_is_that_of_reinforce(baseline):
    student = make_student()
    objective = objective_of(student, baseline=baseline, entropy=0.0)
    batch = rollouts(objective, student)(0)
    loss, metrics = objective(batch)
    loss.backward()
    found = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    student.zero_grad()
    returns = batch.extra["returns"]
    if baseline == "streams":
        advantages = returns - batch.extra["baseline"]
    else:
        target = (returns - returns.mean()) / returns.std(correction=0)
        output = student(batch)
        advantages = (target - objective.value(output.hidden)[..., 0]).detach()
    advantages = advantages / advantages.square().mean().sqrt()
    cooled = student.actions.cooled(student(batch).parameters, ROLLOUTS.temperature)
    (advantages * student.actions.nll(cooled, batch.query.actions)).mean().backward()
    wanted = [p.grad for p in student.parameters() if p.grad is not None]
    assert metrics["clipped"] == 0
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-5)


def test_the_start_holds_the_student_as_strongly_as_it_is_weighted():
    def moved(weight):
        student, start = make_student(), make_student().requires_grad_(False)
        with torch.no_grad():
            student.decoder.action_head.bias[0] += 1.0
        config = PolicyGradientLossConfig(kl=weight, entropy=0.0)
        objective = PolicyGradientObjective(student, config, reference=start.eval())
        batch = rollouts(objective, student, replace(ROLLOUTS, temperature=1.0))(0)
        loss, metrics = objective(batch)
        actions = student.actions
        kl = actions.kl(student(batch).parameters, start(batch).parameters).mean()
        torch.testing.assert_close(metrics["start_kl"], kl.detach())
        assert kl > 0.01
        return loss.detach()

    torch.testing.assert_close(moved(2.0) - moved(1.0), moved(3.0) - moved(2.0))
    assert moved(2.0) > moved(1.0)
    with pytest.raises(ValueError, match="needs a reference"):
        PolicyGradientObjective(make_student(), PolicyGradientLossConfig(kl=1.0))


class KilledError(Exception):
    """What stands for the end of a process."""


@pytest.mark.parametrize("kill_at", [1, 3, 4])
def test_a_resumed_stage_ends_as_an_uninterrupted_one(tmp_path, kill_at):
    def run(folder, killed=None):
        student = make_student(dropout=0.2)
        objective = objective_of(student, baseline="value")
        made = rollouts(objective, student)
        assert made.n_updates == 2

        def batches(step, micro):
            if step == killed:
                raise KilledError
            return made(step, micro)

        fit(
            objective,
            batches,
            OPTIM,
            tmp_path / folder,
            Accelerator(cpu=True),
            seed=1,
            targets_per_update=1,
        )
        return objective.state_dict()

    whole = run("whole")
    with pytest.raises(KilledError):
        run("killed", kill_at)
    resumed = run("killed")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    start = objective_of(make_student(), baseline="value").state_dict()
    assert not all(torch.equal(value, start[name]) for name, value in whole.items())


@pytest.mark.parametrize("baseline", ["streams", "value"])
def test_it_learns_to_search_and_to_remember_a_lever(baseline):
    """From random weights: one of two levers pays, which the first pull tells."""
    family = KeyedBanditFamily(n_contexts=1, n_actions=2, n_tasks=2)
    fields = (field_spec(family.observation_space, "o"), field_spec(family.action_space, "a"))
    torch.manual_seed(0)
    parts = StudentParts(
        ModelConfig(16, 2),
        CompressorConfig(n_latents=1, n_layers=1),
        MemoryConfig(),
        decoder=DecoderConfig(n_layers=1),
    )
    student = CADStudent(StudentConfig(*(f.to_json() for f in fields), 6, to_plain(parts)))
    objective = objective_of(student, 1.0, baseline=baseline, discount=0.9)
    config = RolloutsConfig(n_tasks=2, n_streams=16, n_regions=2)
    optim = OptimConfig(updates=40, batch_size=64, learning_rate=1e-2, weight_decay=0.0)
    told = partial(signals, config=objective.config)
    made = Rollouts(objective, student, family, family.tasks(), config, optim, told, seed=0)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    rewards = []
    for step in range(40):
        loss, metrics = objective(made(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards.append(float(metrics["reward"]))
    assert np.mean(rewards[:3]) < 0.6
    lived = made.lived(1000).regions.rewards  # (S, K, L)
    assert lived[:, 0, 1:].mean() > 0.9  # after the first pull of the first region
    assert lived[:, 1].mean() > 0.9  # from the first pull of the second on: latents tell


def test_actions_that_are_no_classes_are_refused():
    with pytest.raises(ObjectiveError, match="this family's are a vector"):
        objective_of(make_student(action=TORQUES))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["policy_gradient.optim.batch_size=40"], "give a divisor of 192"),
        (["policy_gradient.optim.accumulation_steps=16"], "multiple of 64"),
        (["policy_gradient.optim.checkpoint_every=6"], "give a multiple of 4"),
        (["policy_gradient.rollouts.n_streams=1", "policy_gradient.optim.batch_size=24"], "value"),
        (["memory.kind=recurrent", "memory.n_regions=2"], "give at most 3"),
        (["compressor.bottleneck=gaussian"], "sends noise that is drawn anew"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(tmp_path, overrides, told):
    (tmp_path / "a.yaml").write_text("policy_gradient: {enabled: true}")
    with pytest.raises(ConfigError) as refused:
        load_config(RunConfig, tmp_path / "a.yaml", overrides)
    assert told in str(refused.value)
    load_config(RunConfig, tmp_path / "a.yaml", [])
