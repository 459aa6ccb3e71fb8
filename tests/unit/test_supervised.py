"""Functions to be learned in context: outputs by hand, rules by brute force, what is shown."""

import itertools

import numpy as np
import pytest
from reports_data import write_method
from test_sources import job_of

from ad.policy import OptimalPolicy, RandomPolicy
from ad.rollout import rollout
from histories.schema import check_history
from nets.regions import Regions, Steps
from reports.pairs_figure import draw_pairs
from reports.results import load_results
from reports.scores import stack_methods
from tasks.bandits import KeyedBanditFamily
from tasks.family import FamilyError, TaskFamily, load_family
from tasks.pair_search import RULES, PairsPolicy
from tasks.posterior import has_posterior, posterior_of
from tasks.search import PosteriorSamplingPolicy
from tasks.supervised import LIMIT, SupervisedFamily
from teacher.noise_expert import NoiseConfig, noise_expert
from teacher.pair_sources import predictor

SETTINGS = {
    "linear": {"function": "linear", "dimension": 4},
    "noisy": {"function": "linear", "dimension": 4, "noise": 0.5},
    "sparse": {"function": "sparse", "dimension": 8, "size": 2},
    "relu": {"function": "relu", "dimension": 3, "size": 16},
    "tree": {"function": "tree", "dimension": 5, "size": 3},
    "classes": {"function": "tree", "dimension": 5, "size": 3, "n_classes": 3},
}
FAMILIES = {name: SupervisedFamily(**kwargs, n_tasks=60) for name, kwargs in SETTINGS.items()}
CASES = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def value_by_hand(family, task, x):
    """One output, term by term."""
    numbers = {name: every[task.index] for name, every in family._numbers.items()}
    if "weights" in numbers:
        return sum(w * v for w, v in zip(numbers["weights"], x, strict=True))
    if "first" in numbers:
        hidden = [max(0.0, float(row @ x)) for row in numbers["first"]]
        return sum(h * w for h, w in zip(hidden, numbers["second"], strict=True))
    lowest, width = 0, len(numbers["leaves"])
    node = 0
    while width > 1:  # the leaves below a node are neighbours; each question halves them
        width //= 2
        right = x[numbers["coordinates"][node]] > 0
        lowest += width * right
        node = 2 * node + (2 if right else 1)
    return numbers["leaves"][lowest]


@CASES
def test_what_is_shown_and_paid(family):
    assert isinstance(family, TaskFamily)
    d = family.dimension
    tasks = list(family.tasks()[:6])
    env = family.make_vector_env(tasks)
    shown, _ = env.reset(seed=3)
    told = np.zeros((6, family.n_told))
    errors = []
    for _ in range(20):
        assert (shown[:, d:] == told.astype(np.float32)).all()
        actions = np.stack([family.action_space.sample() for _ in tasks])
        following, rewards, terminated, truncated, infos = env.step(actions)
        assert terminated.all()
        assert not truncated.any()
        final = infos["final_obs"]
        assert (final[:, :d] == shown[:, :d]).all()
        told = final[:, d:]
        for index, task in enumerate(tasks):
            value = value_by_hand(family, task, shown[index, :d].astype(float))
            if family.n_classes:
                assert told[index].argmax() == (value > np.array([-0.430727, 0.430727])).sum()
                assert rewards[index] == (actions[index] == told[index].argmax())
            else:
                errors.append(told[index, 0] - value)
                expected = -((actions[index, 0] - told[index, 0]) ** 2)
                assert rewards[index] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        shown = following
    if not family.n_classes:
        assert np.std(errors) == pytest.approx(family.noise, abs=0.08 if family.noise else 1e-5)
    assert (family.make_vector_env(tasks).reset(seed=3)[0][:, d:] == 0).all()


@CASES
def test_references_agree_with_play(family):
    streams = [task for task in family.tasks()[:6] for _ in range(1500)]
    for policy, reference in (
        (RandomPolicy(family), family.random_return),
        (OptimalPolicy(family, streams), family.optimal_return),
    ):
        returns = rollout(policy, family, streams, n_episodes=1, seed=0).returns[:, 0]
        error = returns - [reference(task) for task in streams]
        spread = returns.std() / 1500**0.5
        assert abs(error.reshape(6, 1500).mean(1)).max() < 5 * spread + 0.05


def test_outputs_vary_as_they_should_and_fewer_tasks_are_the_first():
    for name, kwargs in SETTINGS.items():
        family = SupervisedFamily(**kwargs, n_tasks=3000)
        x = np.random.default_rng(1).standard_normal((3000, family.dimension))
        answers = family.answers(np.arange(3000), x)
        if family.n_classes:
            shares = np.bincount(answers) / 3000
            assert shares == pytest.approx(np.full(3, 1 / 3), abs=0.04), name
        else:
            assert answers.std() == pytest.approx(1, abs=0.08), name
        few = SupervisedFamily(**kwargs, n_tasks=9)
        assert [t.params for t in few.tasks()] == [t.params for t in family.tasks()[:9]]
        assert (few.answers(np.arange(9), x[:9]) == answers[:9]).all()
        other = SupervisedFamily(**kwargs, n_tasks=9, seed=1)
        assert (other.answers(np.arange(9), x[:9]) != answers[:9]).any()


def pairs_of(policy, n_pairs, seed=0):
    """Tell a policy pairs of three streams; the pairs, and inputs to ask it about."""
    family, rng = policy.family, np.random.default_rng(seed)
    no, d = np.zeros(3, dtype=bool), family.dimension
    policy.reset(3, seed)
    inputs, told = [], []
    for _ in range(n_pairs):
        x = rng.standard_normal((3, d))
        policy.act(np.concatenate([x, np.zeros((3, family.n_told))], axis=1))
        y = family.told(family.answers(np.arange(3), x))
        policy.observe(np.zeros(3), no, no, np.concatenate([x, y], axis=1))
        inputs.append(x)
        told.append(y)
    asked = rng.standard_normal((3, d))
    shown = np.concatenate([asked, np.zeros((3, family.n_told))], axis=1)
    return np.stack(inputs, 1), np.stack(told, 1), asked, policy.act(shown)


@pytest.mark.parametrize(("rule", "n_pairs"), list(itertools.product(RULES, (2, 4, 9))))
def test_rules_by_brute_force(rule, n_pairs):
    family = FAMILIES["linear"]
    inputs, told, asked, predicted = pairs_of(PairsPolicy(family, rule), n_pairs)
    for x, y, at, found in zip(inputs, told[..., 0], asked, predicted[:, 0], strict=True):
        if rule == "least_squares":
            expected = at @ np.linalg.lstsq(x, y, rcond=None)[0]
        elif rule == "ridge":  # the mean of the posterior, by its kernel
            kernel = x @ x.T / 4 + 0.1**2 * np.eye(n_pairs)
            expected = (x @ at / 4) @ np.linalg.solve(kernel, y)
        elif rule == "nearest":
            order = sorted(range(n_pairs), key=lambda i: ((x[i] - at) ** 2).sum())
            expected = np.mean([y[i] for i in order[:3]])
        else:
            expected = np.mean([y[i] * (x[i] @ at) for i in range(n_pairs)])
        assert found == pytest.approx(np.clip(expected, -LIMIT, LIMIT), abs=1e-4)


def test_least_squares_knows_a_linear_function_after_d_pairs_and_a_class_is_the_largest_score():
    streams = list(FAMILIES["linear"].tasks())
    policy = PairsPolicy(FAMILIES["linear"], "least_squares")
    returns = rollout(policy, FAMILIES["linear"], streams, n_episodes=8, seed=0).returns
    assert returns[:, 5:].min() > -1e-2
    assert returns[:, 1].mean() < -0.3
    classes = FAMILIES["classes"]
    _, told, _, predicted = pairs_of(PairsPolicy(classes, "nearest", n_neighbours=400), 9)
    counts = told.sum(1)  # all pairs vote
    assert (counts[np.arange(3), predicted] == counts.max(1)).all()


def test_the_posterior_knows_what_ridge_regression_knows():
    family = FAMILIES["noisy"]
    tasks = list(family.tasks())
    searcher = PosteriorSamplingPolicy(family, tasks)
    ridge = PairsPolicy(family, "ridge")
    pairs_of(ridge, 6)
    searcher.family = family
    _, _, asked, _ = pairs_of(searcher, 6)
    mean = np.einsum("nd,nd->n", searcher.posterior.mean, asked)
    shown = np.concatenate([asked, np.zeros((3, 1))], axis=1)
    assert mean == pytest.approx(ridge.act(shown)[:, 0], abs=1e-5)
    for name, other in FAMILIES.items():
        assert has_posterior(other) == (name in ("linear", "noisy"))
    with pytest.raises(FamilyError, match="has no posterior"):
        posterior_of(FAMILIES["tree"], tasks, 1)


def test_a_step_token_holds_the_pair_before_it():
    """Who sees its own region sees input and true output of every earlier pair in one step."""
    family = FAMILIES["linear"]
    (history,) = noise_expert(job_of(family, (4,), 8, 1, 2), NoiseConfig())
    import torch

    fields = {
        name: torch.as_tensor(getattr(history, name))
        for name in Regions.__annotations__
        if name != "mask"
    }
    steps = Steps.of(Regions(**fields, mask=torch.ones(2, 8, dtype=torch.bool)))
    d = family.dimension
    for time in range(1, 8):
        x = steps.previous_observations[:, time, :d]
        y = steps.observations[:, time, d:]
        assert torch.equal(torch.cat([x, y], -1), fields["next_observations"][:, time - 1])


def test_sources_learn_or_err_less_and_less():
    family = FAMILIES["linear"]
    job = job_of(family, range(40), 10, 3, 4)
    for history in predictor(job, rule="ridge"):
        check_history(history, family.observation_space, family.action_space, 10)
    errors = np.stack([-history.rewards for history in predictor(job, rule="ridge")])
    assert errors[..., 0].mean() > 0.5
    assert errors[..., 8:].mean() < 0.05
    played = noise_expert(job, NoiseConfig(std=0.5))
    true = np.stack([h.next_observations[..., -1] for h in played])
    off = np.stack([h.actions[..., 0] for h in played]) - true  # (tasks, S, T)
    assert abs(off[..., :10].mean()) < 0.05  # right on average from the beginning
    assert off[..., :3].std() == pytest.approx(0.5, abs=0.08)
    assert off[..., 20:].std() < off[..., :10].std() / 2
    with pytest.raises(ValueError, match="max_repeat is 4"):
        NoiseConfig(std=0.5, max_repeat=4)
    with pytest.raises(FamilyError, match="no real numbers"):
        noise_expert(job_of(KeyedBanditFamily(n_tasks=3), (0,)), NoiseConfig(std=0.5))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"function": "cubic"}, "function must be one of linear, sparse, relu, tree"),
        ({"dimension": 0}, "dimension must be at least 1"),
        ({"function": "sparse", "dimension": 2}, "size must be at most dimension, 2"),
        ({"function": "tree", "size": 30}, "at most 12"),
        ({"n_classes": 1}, "n_classes must be 0, or 2"),
        ({"noise": -0.1}, "noise must be at least 0"),
        ({"noise": 0.1, "n_classes": 2}, "noise is on numbers"),
    ],
)
def test_impossible_functions(kwargs, message):
    with pytest.raises(FamilyError, match=message):
        load_family("tasks.supervised:SupervisedFamily", kwargs)


def test_predictors_need_pairs():
    with pytest.raises(FamilyError, match=r"needs the family tasks\.supervised"):
        PairsPolicy(KeyedBanditFamily(n_tasks=3))
    with pytest.raises(FamilyError, match="rule must be one of"):
        PairsPolicy(FAMILIES["linear"], "magic")


@pytest.mark.parametrize("n_classes", [0, 3])
def test_the_figure_of_errors(tmp_path, n_classes):
    params = {"env": "Supervised", "n_classes": n_classes}
    entries = [
        {
            "index": i,
            "name": f"linear_{i}",
            "params": params,
            "random_return": -5,
            "optimal_return": 0,
        }
        for i in range(2)
    ]
    returns = np.tile(-1.0 / (1 + np.arange(6)), (2, 3, 1)).astype(np.float32)
    if n_classes:
        returns = 1 + returns
    for method, shift in (("student", 0.0), ("random", 0.0)):
        write_method(
            tmp_path, method, 0, tasks=entries, family="supervised", returns=returns + shift
        )
    methods = stack_methods(load_results([tmp_path]))
    assert {path.suffix for path in draw_pairs(methods, tmp_path)} == {".pdf", ".png"}
    rows = [line.split(",") for line in (tmp_path / "pairs.csv").read_text().splitlines()[1:]]
    assert {row[0] for row in rows} == {"student"}
    assert [float(row[3]) for row in rows] == pytest.approx(1 / (1 + np.arange(6)))
    for method in methods:
        method.results[0].metrics["family"] = "darkroom"
    assert draw_pairs(methods, tmp_path) == []
