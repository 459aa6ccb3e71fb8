"""Informed targets: exact Bayes actions, experts, Monte-Carlo estimates; how stages take them."""

from functools import partial

import numpy as np
import pytest
import torch
from fixtures import CHOICE, ArrayTable, make_student, make_teacher, make_triple

from ad.batches import SamplingConfig, TripleSource
from ad.losses import LossConfig
from ad.objectives import LABELS_NAME, ActionObjective
from ad.on_policy import Rollouts, RolloutsConfig
from nets.regions import REGION_FIELDS
from nets.spaces import field_spec
from pipelines.config import RunConfig
from pipelines.labels import labels_of
from tasks.bandits import KeyedBanditFamily
from tasks.bayes import BayesActions
from tasks.darkroom import DarkRoomFamily
from tasks.family import FamilyError
from tasks.key_to_door import KeyToDoorFamily
from tasks.posterior import TabularPosterior
from tasks.random_mdp import RandomMDPFamily
from tasks.references import is_optimal, optimal_action_values
from tasks.search import PosteriorSamplingPolicy
from tasks.vector import final_observations
from teacher.labels import (
    LEAST,
    BayesLabeller,
    DrawnLabeller,
    ExpertLabeller,
    label_streams,
    label_table,
)
from teacher.model import RawContextObjective
from teacher.monte_carlo import MonteCarloActions, MonteCarloConfig, MonteCarloLabeller
from training.config import ConfigError, load_config
from training.optim import OptimConfig

ROOM = DarkRoomFamily(size=3, horizon=6)
BANDIT = KeyedBanditFamily(n_contexts=4, n_actions=3, n_tasks=40)


def fields_of(family):
    return (
        field_spec(family.observation_space, "observation"),
        field_spec(family.action_space, "action"),
    )


def lived(family, policy, tasks, n_steps, seed=0):
    """Raw fields (S, T, ...) of a policy's streams."""
    env = family.make_vector_env(tasks)
    observations, _ = env.reset(seed=seed)
    policy.reset(len(tasks), seed)
    steps = []
    for _ in range(n_steps):
        actions = policy.act(observations)
        following, rewards, terminated, truncated, infos = env.step(actions)
        true_next = final_observations(following, infos)
        policy.observe(rewards, terminated, truncated, true_next)
        steps.append((observations, actions, rewards, true_next, terminated, truncated))
        observations = following
    names = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
    columns = zip(*steps, strict=True)
    return {name: np.stack(column, 1) for name, column in zip(names, columns, strict=True)}


def sampled(family, n_streams, n_steps, noise=0.0):
    """Streams of posterior sampling over all tasks."""
    rng = np.random.default_rng(1)
    tasks = [family.tasks()[i] for i in rng.integers(len(family.tasks()), size=n_streams)]
    policy = PosteriorSamplingPolicy(family, family.tasks(), noise=noise)
    return tasks, lived(family, policy, tasks, n_steps)


def bayes(family, fields, noise=0.0):
    labeller = BayesLabeller(family, family.tasks(), len(fields["rewards"]), noise)
    return np.exp(label_streams(labeller, fields))


class Tabular(DarkRoomFamily):
    """A room without a posterior of its own."""

    posterior = None

    def states(self, observations):
        return np.asarray(observations) @ [3, 1]


@pytest.mark.parametrize(
    "family",
    [ROOM, BANDIT, Tabular(size=3, horizon=6), KeyToDoorFamily(n_goals=2, size=3, horizon=9)],
)
def test_bayes_actions_are_those_of_posterior_sampling(family):
    """Calibrated: of all steps told the same probability of an action, that share takes it."""
    _, fields = sampled(family, 6000, 3 * family.episode_len)
    told = bayes(family, fields)  # (S, T, A)
    taken = np.eye(told.shape[-1])[fields["actions"]]
    np.testing.assert_allclose(told.sum(-1), 1.0, atol=1e-4)
    assert told[taken > 0].min() > 10 * LEAST  # nothing happens that was ruled out
    for low, high in [(0.01, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.999)]:
        chosen = (told > low) & (told <= high)
        if (n := chosen.sum()) > 200:
            gap = abs(taken[chosen].mean() - told[chosen].mean())
            assert gap < 5 * np.sqrt(0.25 / n), (low, high, n)
    # The room's draws leave traces within an episode, which the tasks still possible do not show.
    assert -np.log(told[taken > 0]).mean() < 1.02 * _entropy(told) + 1e-3


def _entropy(probabilities):
    return -(probabilities * np.log(probabilities)).sum(-1).mean()


def test_bayes_actions_keep_to_a_draw_within_an_episode():
    """Two goals are possible, left and right: who has gone left goes on to the left."""
    family = DarkRoomFamily(size=5, horizon=6)
    left, right = family.tasks()[2], family.tasks()[22]  # (0, 2) and (4, 2), start (2, 2)
    belief = BayesActions(family, [left, right], 1)
    start = np.array([[2, 2]])
    np.testing.assert_allclose(belief.probabilities(start), [[0.5, 0.5, 0, 0, 0]])
    step = np.array([[1, 2]])
    belief.update(start, np.array([1]), np.zeros(1), step, np.zeros(1, bool))
    np.testing.assert_allclose(belief.probabilities(step), [[0, 1, 0, 0, 0]])
    belief.update(step, np.array([1]), np.zeros(1), np.array([[0, 2]]), np.ones(1, bool))
    np.testing.assert_allclose(belief.probabilities(start), [[1, 0, 0, 0, 0]])  # nothing was there
    belief.update(start, np.array([1]), np.zeros(1), step, np.zeros(1, bool))  # against all sense
    np.testing.assert_allclose(belief.probabilities(step), [[1, 0, 0, 0, 0]])


def test_noise_is_left_out_of_what_is_told_and_reckoned_with_in_what_is_seen():
    family = DarkRoomFamily(size=5, horizon=6)
    belief = BayesActions(family, [family.tasks()[2], family.tasks()[22]], 1, noise=0.5)
    start, step = np.array([[2, 2]]), np.array([[1, 2]])
    belief.probabilities(start)
    belief.update(start, np.array([1]), np.zeros(1), step, np.zeros(1, bool))
    wanted = 0.5 * np.array([0.1, 0.6]) / 0.35  # right by chance, left by chance or on purpose
    np.testing.assert_allclose(belief.probabilities(step)[0, :2], wanted)


def test_a_stream_in_which_nothing_is_possible_acts_at_random():
    family = DarkRoomFamily(size=3, horizon=6)
    belief = BayesActions(family, [family.tasks()[0]], 1)
    corner = np.array([[0, 0]])
    belief.probabilities(corner)
    belief.update(corner, np.array([4]), np.zeros(1), corner, np.zeros(1, bool))
    np.testing.assert_allclose(belief.probabilities(corner), [[0.2] * 5])


def test_levers_are_told_evenly_until_one_pays():
    (task,) = BANDIT.tasks()[:1]
    keys = task.params["keys"]
    belief = BayesActions(BANDIT, BANDIT.tasks(), 1)
    context, wrong = np.array([0]), (keys[0] + 1) % 3
    np.testing.assert_allclose(belief.probabilities(context), [[1 / 3] * 3])
    belief.update(context, np.array([wrong]), np.zeros(1), context, np.zeros(1, bool))
    left = np.where(np.arange(3) == wrong, 0, 0.5)
    np.testing.assert_allclose(belief.probabilities(context), [left])
    belief.update(context, np.array(keys[:1]), np.ones(1), context, np.zeros(1, bool))
    np.testing.assert_allclose(belief.probabilities(context), [np.eye(3)[keys[0]]])


def test_experts_show_which_actions_are_equally_good():
    tasks = [ROOM.tasks()[8]]  # goal (2, 2)
    labeller = ExpertLabeller(ROOM, tasks, CHOICE, 0)
    both = labeller.probabilities(np.array([[0, 0]]))[0]
    assert both.sum() == pytest.approx(1)
    assert min(both[0], both[2]) > 0
    np.testing.assert_allclose(labeller.probabilities(np.array([[2, 2]])), [np.eye(5)[4]])
    with pytest.raises(FamilyError, match="its action is a vector"):
        ExpertLabeller(ROOM, tasks, field_spec(_box(), "action"), 0)


def _box():
    from gymnasium.spaces import Box

    return Box(-1, 1, (2,))


@pytest.mark.parametrize("lengths", [[4, 4, 4], [4, 2, 3]])
def test_a_table_is_labelled_as_its_streams_are(monkeypatch, lengths):
    """Regions may be short; streams are labelled from their start on, however many at once."""
    monkeypatch.setattr("teacher.labels.MOST_STREAMS", 2)
    tasks, fields = sampled(ROOM, 5, sum(lengths))
    rows = {name: [] for name in (*fields, "mask")}
    ends = np.cumsum(lengths)
    for stream in range(5):
        for end, n in zip(ends, lengths, strict=True):
            for name, field in fields.items():
                region = np.zeros((4, *field.shape[2:]), field.dtype)
                region[:n] = field[stream, end - n : end]
                rows[name].append(region)
            rows["mask"].append(np.arange(4) < n)
    columns = {name: np.stack(rows[name]) for name in REGION_FIELDS}
    stream, region = (axis.ravel().astype(np.int32) for axis in np.indices((5, 3)))
    index = np.array([task.index for task in tasks], dtype=np.int32)[stream]
    table = ArrayTable(columns, index, stream, region)
    found = label_table(
        table, ROOM.tasks(), lambda t: BayesLabeller(ROOM, ROOM.tasks(), len(t), 0.0)
    )
    wanted = np.log(bayes(ROOM, fields))
    for row in range(15):
        s, k = divmod(row, 3)
        n = lengths[k]
        np.testing.assert_allclose(found[row, :n], wanted[s, ends[k] - n : ends[k]], rtol=1e-4)
        assert not found[row, n:].any()


@pytest.mark.parametrize("family", [DarkRoomFamily(size=5, horizon=8), BANDIT])
def test_estimated_actions_are_the_exact_ones_where_the_simulator_is_certain(family):
    tasks = family.tasks()[:7]
    estimated = MonteCarloActions(family, tasks, *fields_of(family), MonteCarloConfig(3000))
    if isinstance(family, DarkRoomFamily):
        exact = np.stack([is_optimal(optimal_action_values(family.tabular(t))) for t in tasks])
        np.testing.assert_array_equal(estimated.optimal[:, :, :-1], exact)
        return
    for place, task in enumerate(tasks):
        assert (estimated.values[place, :-1].argmax(-1) == task.params["keys"]).all()


def test_estimated_actions_come_near_the_optimum_where_the_simulator_is_random():
    family = RandomMDPFamily(n_tasks=4)
    tasks = family.tasks()
    exact = np.stack([optimal_action_values(family.tabular(t)) for t in tasks])  # (K, H, S, A)

    def lost(n_episodes):
        estimated = MonteCarloActions(
            family, tasks, *fields_of(family), MonteCarloConfig(n_episodes)
        )
        best = estimated.optimal[:, :, :-1]
        chosen = (exact * best).sum(-1) / best.sum(-1)
        return float((exact.max(-1) - chosen).mean()) / float(exact.max(-1).mean())

    assert lost(4000) < 0.02
    assert lost(5) > 2 * lost(4000)


def test_estimates_are_told_by_task_and_by_the_time_that_is_left():
    family = DarkRoomFamily(size=5, horizon=6)
    tasks = [family.tasks()[0], family.tasks()[24]]
    estimated = MonteCarloActions(family, tasks, *fields_of(family), MonteCarloConfig(500))
    labeller = MonteCarloLabeller(estimated, [tasks[1], tasks[0], tasks[1]])
    observations = np.array([[4, 3], [0, 1], [2, 2]])
    found = labeller.probabilities(observations)
    np.testing.assert_allclose(found[:2], [np.eye(5)[2], np.eye(5)[3]])
    np.testing.assert_allclose(found[2], [0.5, 0, 0.5, 0, 0])
    for ended in (np.zeros(3, bool), np.zeros(3, bool), np.array([False, False, True])):
        told = labeller.probabilities(np.full((3, 2), 2))
        labeller.update(*[np.zeros(3)] * 4, ended, np.zeros(3, bool))
    np.testing.assert_allclose(told[0], [0.5, 0, 0.5, 0, 0])  # four steps away, four are left
    found = labeller.probabilities(np.full((3, 2), 2))
    np.testing.assert_allclose(found[0], [0.2] * 5)  # too far away to matter
    np.testing.assert_allclose(found[2], [0.5, 0, 0.5, 0, 0])  # another episode has begun
    with pytest.raises(FamilyError, match="are counted out"):
        MonteCarloActions(family, tasks, field_spec(_box(), "observation"), CHOICE)


def test_posteriors_of_tables_weigh_tasks_as_their_likelihoods():
    family = RandomMDPFamily(n_tasks=3)
    posterior = TabularPosterior(family, family.tasks(), 2)
    posterior.log_likelihoods[:] = [[0.0, np.log(0.5), -np.inf], [-np.inf] * 3]
    np.testing.assert_allclose(posterior.weights(), [[1, 0.5, 0], [0, 0, 0]])


@pytest.mark.parametrize("target", ["bayes", "optimal", "monte_carlo"])
def test_a_student_comes_near_to_labels_and_needs_no_teacher(target):
    batch = make_triple(8)
    batch.extra[LABELS_NAME] = torch.log_softmax(3 * torch.randn(8, 6, 5), -1)
    objective = ActionObjective(make_student(), LossConfig(alpha=0, beta=1, target=target))
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss, metrics = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(metrics[f"{target}_kl"]))
        torch.testing.assert_close(metrics[f"{target}_kl"], loss.detach())
    assert losses[-1] < 0.3 * losses[0]


def test_a_raw_context_model_learns_labels_instead_of_recorded_actions():
    teacher, batch = make_teacher(), make_triple(4)
    objective = RawContextObjective(teacher, weights={"token_type_nll": 0.0})
    batch.extra[LABELS_NAME] = teacher(batch).parameters.detach()
    loss, metrics = objective(batch)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert metrics["action_nll"] > 0.1


def test_a_student_learns_on_its_own_rollouts_what_posterior_sampling_does():
    """From random weights, and no histories: it searches a lever, and remembers it."""
    family = KeyedBanditFamily(n_contexts=1, n_actions=2, n_tasks=2)
    fields = fields_of(family)
    student = make_student(observation=fields[0], action=fields[1], n_latents=1)
    objective = ActionObjective(student, LossConfig(alpha=0, beta=1, target="bayes"))
    rollouts, optim = (
        RolloutsConfig(n_tasks=2, n_streams=8, n_regions=2),
        OptimConfig(batch_size=32),
    )
    told = partial(labels_of, lambda tasks: BayesLabeller(family, family.tasks(), len(tasks), 0.0))
    made = Rollouts(objective, student, family, family.tasks(), rollouts, optim, told, seed=0)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for step in range(80):
        batch = made(step)
        loss, _ = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    lived = made.lived(1000)
    told = labels_of(lambda tasks: BayesLabeller(family, family.tasks(), len(tasks), 0.0), lived)
    told = told[LABELS_NAME].exp()  # (S, K, L, A)
    torch.testing.assert_close(told[:, 0, 0], torch.full((16, 2), 0.5))
    torch.testing.assert_close(told[:, 1].amax(-1), torch.ones(16, 6))
    assert lived.regions.rewards[:, 1].mean() > 0.9
    assert lived.regions.rewards[:, 0, 0].mean() < 0.9


def test_labels_are_drawn_with_their_regions():
    from fixtures import make_table

    table = make_table()
    labels = np.arange(len(table.region), dtype=np.float32)[:, None, None].repeat(6, 1)
    source = TripleSource(table, SamplingConfig(), batch_size=5, extra={"labels": labels})
    rows, _ = source.draw(3)
    batch = source(3)
    np.testing.assert_array_equal(batch.extra["labels"][:, 0, 0], rows)
    assert batch.extra["labels"].shape == (5, 6, 1)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["distill.loss.target=bayes"], "beta is 0"),
        (
            ["distill.loss.beta=1", "distill.loss.target=optimal", "distill.loss.queries=all"],
            "set queries to visited",
        ),
        (["train_teacher.target=optimal", "train_teacher.label_smoothing=0.1"], "set it to 0"),
        (["on_policy.loss.alpha=1"], "on_policy.loss.alpha: expected"),
        (["on_policy.loss.beta=0"], "on_policy.loss.beta: expected"),
        (["on_policy.optim.batch_size=50"], "give a divisor of 192"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(tmp_path, overrides, told):
    (tmp_path / "a.yaml").write_text("on_policy: {enabled: true}")
    load_config(RunConfig, tmp_path / "a.yaml", [])
    with pytest.raises(ConfigError) as refused:
        load_config(RunConfig, tmp_path / "a.yaml", overrides)
    assert told in str(refused.value)


def test_families_whose_posterior_tells_no_distribution_are_refused_in_a_sentence():
    with pytest.raises(FamilyError, match="does not tell how likely each action is"):
        BayesActions(MDP, MDP.tasks(), 1)


# --- posteriors that only draw --------------------------------------------------------------------

MDP = RandomMDPFamily(n_states=4, n_actions=3, horizon=8, n_tasks=30)


def drawn(family, fields, copies=1):
    """Shares of actions by a posterior that is only drawn from, over several labellers."""
    _, action = fields_of(family)
    n = len(fields["rewards"])
    labellers = [DrawnLabeller(family, family.tasks(), n, action, seed) for seed in range(copies)]
    return np.mean([np.exp(label_streams(labeller, fields)) for labeller in labellers], axis=0)


def test_draws_agree_with_what_is_told_exactly():
    """Where both are known: arms of a bandit leave no trace of a draw."""
    _, fields = sampled(BANDIT, 40, 3 * BANDIT.episode_len, noise=0.5)
    gap = np.abs(drawn(BANDIT, fields, copies=60) - bayes(BANDIT, fields)).mean()
    assert gap < 0.02


def test_draws_are_calibrated_where_nothing_else_is_known():
    """Of all steps told about the same share of an action, about that share takes it."""
    _, fields = sampled(MDP, 300, 3 * MDP.episode_len)
    told = drawn(MDP, fields, copies=30)
    taken = np.eye(told.shape[-1])[fields["actions"]]
    for low, high in [(-0.01, 0.02), (0.3, 0.7), (0.98, 1.01)]:
        chosen = (told > low) & (told < high)
        assert abs(taken[chosen].mean() - told[chosen].mean()) < 0.05, low
    first, last = told[:, : MDP.episode_len], told[:, -MDP.episode_len :]
    assert last.max(-1).mean() > first.max(-1).mean() + 0.1  # it grows certain


def test_draws_follow_what_the_stream_did_and_not_what_they_would_have_done():
    """A stream of random play: what it has seen rules out the same tasks for every draw."""
    tasks = [MDP.tasks()[i % 30] for i in range(60)]
    _, action = fields_of(MDP)
    policy = PosteriorSamplingPolicy(MDP, MDP.tasks(), noise=1.0)
    fields = lived(MDP, policy, tasks, 12 * MDP.episode_len)
    told = drawn(MDP, fields)[:, -MDP.episode_len :]
    expert = ExpertLabeller(MDP, tasks, action, 0)
    best = np.exp(label_streams(expert, fields))[:, -MDP.episode_len :]
    assert (told * (best > 1e-3)).sum(-1).mean() > 0.9
