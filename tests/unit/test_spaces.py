"""Spaces beyond plain ones: other counts, pixels, parts side by side, bounded actions."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from fixtures import CHOICE, make_regions, make_student, make_triple, select
from gymnasium import spaces
from torch.distributions import Independent, Normal, TransformedDistribution, kl_divergence
from torch.distributions.transforms import AffineTransform, TanhTransform

from ad.policy import RandomPolicy
from ad.queries import all_observations
from ad.rollout import rollout
from histories.schema import space_from_spec, space_spec
from nets.actions import ActionDistribution
from nets.embeddings import FieldEncoder, RawFeatures
from nets.regions import Regions
from nets.scaling import FieldScaling
from nets.spaces import FieldSpec, SpaceError, field_spec
from tasks.bandit_search import UCBPolicy
from tasks.darkroom import DarkRoomFamily
from tasks.family import FamilyError, Task, load_family
from tasks.packed import PackedSpace, pack, unpack
from tasks.sb3_vec_env import SB3VecEnv
from teacher.labels import ExpertLabeller
from teacher.monte_carlo import MonteCarloActions, MonteCarloConfig

SHIFTED = spaces.MultiDiscrete([3, 4], start=[-1, 5])
MIXED = spaces.Dict(
    {
        "place": SHIFTED,
        "inner": spaces.Tuple((spaces.Box(-2, 2, (2,)), spaces.Discrete(3, start=2))),
        "switches": spaces.MultiBinary(2),
        "view": spaces.Box(0, 255, (4, 4, 1), np.uint8),
    }
)
BOUNDED = FieldSpec("vector", (2,), (), (-2.0, 0.0), (1.0, 10.0))


class Mixed(gymnasium.Env):
    observation_space, action_space = MIXED, spaces.Discrete(2, start=1)

    def __init__(self, seed=0):
        self.observation_space.seed(seed)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert action in (1, 2)
        self.time += 1
        return self.observation_space.sample(), float(action), False, self.time >= 3, {}


class MixedFamily:
    name, episode_len = "mixed", 3
    observation_space, action_space = Mixed.observation_space, Mixed.action_space

    def tasks(self):
        return [Task(0, "only", {"env": "mixed"})]

    def make_env(self, task, render_mode=None):
        return Mixed()

    def make_vector_env(self, tasks):
        raise NotImplementedError  # the packed one has its own

    def random_return(self, task):
        return 4.5

    def optimal_return(self, task):
        return 6.0

    def optimal_actions(self, tasks, observations, rng=None):
        assert observations["place"].shape == (len(tasks), 2)
        return observations["inner"][1]


def regions_of(observations: torch.Tensor, actions: torch.Tensor) -> Regions:
    regions = make_regions(*observations.shape[:2])
    regions.observations = regions.next_observations = observations
    regions.actions = actions
    return regions


def test_classes_are_counted_from_anywhere():
    spec = field_spec(SHIFTED, "observation")
    assert (spec.n_classes, spec.start) == ((3, 4), (-1, 5))
    assert FieldSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    plain = field_spec(spaces.MultiDiscrete([3, 4]), "observation")
    assert "start" not in plain.to_json()
    every = all_observations(spec)
    assert every.shape == (12, 2)
    assert all(SHIFTED.contains(row) for row in every.numpy())
    assert torch.equal(every - torch.tensor([-1, 5]), all_observations(plain))
    seen = regions_of(every[None], torch.ones(1, 12, dtype=torch.long))
    shifted = FieldScaling(spec, CHOICE).regions(seen).observations
    assert torch.equal(shifted[0], all_observations(plain))
    nothing = regions_of(torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(1, 2).long())
    inside = FieldScaling(spec, CHOICE).regions(nothing).observations  # an absent region
    assert (inside >= 0).all()
    assert (inside < torch.tensor([3, 4])).all()


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=-1), SHIFTED], ids=str)
def test_actions_are_counted_as_their_space_counts(space):
    spec = field_spec(space, "action")
    actions = ActionDistribution(spec)
    plain = ActionDistribution(FieldSpec("classes", spec.shape, spec.n_classes))
    parameters = torch.randn(2, 50, actions.n_parameters)
    drawn = actions.sample(parameters, 1.0, torch.Generator().manual_seed(0))
    assert all(space.contains(one) for one in drawn.flatten(0, 1).numpy())
    start = torch.tensor(spec.start).reshape(spec.shape)
    assert torch.equal(actions.mode(parameters) - start, plain.mode(parameters))
    torch.testing.assert_close(actions.nll(parameters, drawn), plain.nll(parameters, drawn - start))


def test_a_student_is_indifferent_to_what_classes_are_counted_from():
    plain, shifted = (
        field_spec(spaces.MultiDiscrete([3, 4], start=start), "observation")
        for start in ([0, 0], [-1, 5])
    )
    batch = make_triple(4, observation=plain)
    moved = make_triple(4, observation=plain)
    for name in ("context", "query"):
        regions = getattr(batch, name)
        setattr(moved, name, select(regions, slice(None)))
        for field in ("observations", "next_observations"):
            values = getattr(regions, field) + torch.tensor([-1, 5])
            setattr(getattr(moved, name), field, values)
    moved.has_context = batch.has_context
    one, other = (make_student(observation=spec).eval() for spec in (plain, shifted))
    expected, found = one(batch).parameters, other(moved).parameters
    torch.testing.assert_close(found, expected)


def test_ucb_counts_from_anywhere():
    class Family:
        name = "shifted"
        observation_space = spaces.Discrete(2, start=3)
        action_space = spaces.Discrete(3, start=-1)

    policy = UCBPolicy(Family())
    policy.reset(4, seed=0)
    drawn = []
    for _ in range(60):
        actions = policy.act(np.array([3, 4, 3, 4]))
        drawn.append(actions)
        policy.observe((actions == 1).astype(float), *[np.zeros(4, bool)] * 2, np.full(4, 3))
    assert set(np.unique(drawn)) == {-1, 0, 1}
    assert (np.array(drawn[20:]) == 1).mean() > 0.6


CORNER = np.array([5, -1])


class ShiftedRoom(DarkRoomFamily):
    """A Dark Room whose cells are counted from (5, -1) and whose actions from 3."""

    def __init__(self):
        super().__init__(size=3, horizon=4)
        self.observation_space = spaces.MultiDiscrete([3, 3], start=[5, -1])
        self.action_space = spaces.Discrete(5, start=3)

    def make_vector_env(self, tasks):
        env = super().make_vector_env(tasks)
        plain_reset, plain_step = env.reset, env.step

        def step(actions):
            shown, rewards, terminated, truncated, infos = plain_step(actions - 3)
            if "final_obs" in infos:
                infos["final_obs"] = infos["final_obs"] + CORNER
            return shown + CORNER, rewards, terminated, truncated, infos

        env.reset = lambda **kwargs: (plain_reset(**kwargs)[0] + CORNER, {})
        env.step = step
        return env

    def optimal_actions(self, tasks, observations, rng=None):
        return super().optimal_actions(tasks, observations - CORNER, rng) + 3

    def optimal_actions_by_index(self, indices, observations, rng=None):
        shown = observations - CORNER
        return super().optimal_actions_by_index(indices, shown, rng) + 3


def test_targets_count_actions_as_their_space_counts():
    plain, shifted = DarkRoomFamily(size=3, horizon=4), ShiftedRoom()
    cells = np.stack(np.divmod(np.arange(9), 3), -1)
    places, begun = np.full(9, 2), np.zeros(9, dtype=int)
    found, labelled = [], []
    for family, shown in ((plain, cells), (shifted, cells + CORNER)):
        fields = [
            field_spec(space, "") for space in (family.observation_space, family.action_space)
        ]
        counted = MonteCarloActions(
            family, family.tasks()[:4], *fields, MonteCarloConfig(n_episodes=400)
        )
        found.append(counted.probabilities(places, begun, shown))
        labeller = ExpertLabeller(family, [family.tasks()[2]] * 9, fields[1], seed=0)
        labelled.append(labeller.probabilities(shown))
    assert (found[0] == found[1]).all()
    assert (labelled[0] == labelled[1]).all()
    assert (found[0].sum(-1) == 1).all()


@pytest.mark.parametrize(
    ("space", "make"),
    [
        (spaces.Box(0, 1, (4, 4, 3)), lambda grey: grey),
        (spaces.Box(-1, 1, (4, 4, 3)), lambda grey: 2 * grey - 1),
        (spaces.Box(-np.inf, np.inf, (4, 4, 3)), lambda grey: grey),
        (spaces.Box(0, 255, (4, 4, 3)), lambda grey: 255 * grey),
        (spaces.Box(0, 255, (4, 4, 3), np.uint8), lambda grey: (255 * grey).round().byte()),
    ],
    ids=["unit", "symmetric", "unbounded", "float", "bytes"],
)
def test_pixels_of_any_range_mean_the_same(space, make):
    grey = torch.randint(256, (1, 2, 4, 4, 3)) / 255
    spec = field_spec(space, "observation")
    regions = regions_of(make(grey), torch.zeros(1, 2).long())
    scaling = FieldScaling(spec, CHOICE)
    scaling.fit(regions)
    torch.testing.assert_close(scaling.regions(regions).observations, grey)


def test_packing_is_undone_by_unpacking():
    space = PackedSpace(MIXED)
    assert [name for name, _ in space.parts] == [
        *("inner.0", "inner.1", "place", "switches", "view")
    ]
    MIXED.seed(0)
    values = [MIXED.sample() for _ in range(5)]
    rows = np.stack([pack(MIXED, value) for value in values])
    assert all(space.contains(row) for row in rows)
    back = unpack(MIXED, rows)
    for n, value in enumerate(values):
        assert (back["place"][n] == value["place"]).all()
        assert (back["inner"][0][n] == value["inner"][0]).all()
        assert back["inner"][1][n] == value["inner"][1]
        assert (back["view"][n] == value["view"]).all()
    assert space_from_spec(space_spec(space)) == space
    spec = field_spec(space, "observation")
    assert FieldSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def mixed_rows(*size):
    MIXED.seed(1)
    rows = [pack(MIXED, MIXED.sample()) for _ in range(int(np.prod(size)))]
    return torch.from_numpy(np.stack(rows)).view(*size, -1)


def test_every_part_has_an_encoder_of_its_own():
    spec = field_spec(PackedSpace(MIXED), "observation")
    regions = regions_of(mixed_rows(3, 20), torch.zeros(3, 20).long())
    scaling = FieldScaling(spec, CHOICE)
    scaling.fit(regions)
    scaled = scaling.regions(regions)
    parts = dict(
        zip([name for name, _ in spec.parts], spec.split(scaled.observations), strict=True)
    )
    assert parts["inner.0"][1].flatten(0, 1).mean(0).abs().max() < 1e-5
    assert set(parts["inner.1"][1].unique().tolist()) == {0, 1, 2}
    assert parts["place"][1].min() == 0
    assert 0 <= parts["view"][1].min() <= parts["view"][1].max() <= 1
    encoder = FieldEncoder(spec, 8)
    own = [
        encode(part[1])
        for encode, part in zip(encoder.encoders, spec.split(scaled.observations), strict=True)
    ]
    torch.testing.assert_close(encoder(scaled.observations), sum(own))
    features = RawFeatures(spec, CHOICE)
    assert features(scaled).shape == (3, 20, features.width)


def test_a_student_of_parts_reconstructs_and_learns_from_each():
    spec = field_spec(PackedSpace(MIXED), "observation")
    student = make_student(observation=spec)
    batch = make_triple(4, observation=FieldSpec("vector", spec.shape))
    for name in ("context", "query"):
        regions = getattr(batch, name)
        size = regions.rewards.shape
        regions.observations, regions.next_observations = mixed_rows(*size), mixed_rows(*size)
    batch.context.observations *= batch.context.mask[..., None]  # absent regions are zeros
    student.fit_statistics(select(batch.query, slice(None)))
    output = student(batch)
    student.actions.nll(output.parameters, batch.query.actions).mean().backward()
    for encode in student.step_encoder.observation.encoders:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encode.parameters())


def test_a_family_of_dict_observations_is_packed_when_loaded():
    family = load_family("test_spaces:MixedFamily")
    task = family.tasks()[0]
    env = family.make_vector_env([task, task])
    shown, _ = env.reset(seed=0)
    assert shown.shape == (2, 3 + 2 + 2 + 16)
    best = family.optimal_actions([task, task], shown)
    assert ((best >= 2) & (best <= 4)).all()
    result = rollout(RandomPolicy(family), family, [task] * 3, n_episodes=2, seed=0)
    assert ((result.returns >= 3) & (result.returns <= 6)).all()


def test_networks_that_know_no_parts_see_what_gymnasium_flattens_to():
    MIXED.seed(0)
    values = [MIXED.sample() for _ in range(20)]
    rows = np.stack([pack(MIXED, value) for value in values])
    flat = np.stack([spaces.flatten(MIXED, value) for value in values])
    np.testing.assert_array_equal(PackedSpace(MIXED).one_hot(rows), flat)


class Told(Mixed):
    observation_space = spaces.Dict({"mission": spaces.Text(9)})

    def __init__(self):
        super().__init__()


gymnasium.register("Told-v0", Told)
gymnasium.register("Mixed-v0", Mixed, max_episode_steps=3)


def test_rows_of_equal_bounds_are_not_of_equal_parts():
    switch, bit = (
        PackedSpace(spaces.Dict({"a": s})) for s in (spaces.Discrete(2), spaces.MultiBinary(1))
    )
    assert switch != bit
    assert switch == PackedSpace(spaces.Dict({"a": spaces.Discrete(2)}))
    assert spaces.Box(0, 1, (1,)) == switch


def test_a_gymnasium_id_of_dict_observations_is_encoded_part_by_part():
    family = load_family(
        "tasks.gymnasium_family:GymnasiumFamily", {"env_id": "Mixed-v0", "grid": {"seed": [0, 1]}}
    )
    assert str(family.observation_space).startswith("Parts(inner.0: Box(-2.0, 2.0, (2,), float32),")
    parts = field_spec(family.observation_space, "observation").parts
    assert {name: spec.kind for name, spec in parts} == {
        "inner.0": "vector",
        "inner.1": "classes",
        "place": "classes",
        "switches": "classes",
        "view": "image",
    }
    learner = SB3VecEnv(family.make_vector_env(family.tasks()))
    shown = [learner.reset()]
    for _ in range(4):
        observations, _, dones, infos = learner.step(np.array([0, 1]))
        shown.append(observations)
        if dones.all():
            shown.append(np.stack([info["terminal_observation"] for info in infos]))
    width = spaces.flatdim(MIXED)
    assert [each.shape for each in shown] == [(2, width)] * 6
    assert learner.observation_space == spaces.Box(-np.inf, np.inf, (width,))
    assert learner.last_transition["observations"].shape == (2, 3 + 2 + 2 + 16)


def test_what_cannot_be_encoded_is_refused_by_name():
    text = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Tuple((spaces.Text(3),))})
    with pytest.raises(FamilyError, match=r"part 'b\.0' is Text"):
        PackedSpace(text)
    with pytest.raises(FamilyError, match=r"part 'mission' is Text"):
        load_family("tasks.gymnasium_family:GymnasiumFamily", {"env_id": "Told-v0"})
    flat = PackedSpace(spaces.Dict({"a": spaces.Discrete(2), "c": spaces.Box(0, 1, (2, 2))}))
    with pytest.raises(SpaceError, match="observation part c Box"):
        field_spec(flat, "observation")


def squashed_normal(parameters):
    mean, log_std = parameters.chunk(2, -1)
    low, high = torch.tensor(BOUNDED.low), torch.tensor(BOUNDED.high)
    transforms = [TanhTransform(), AffineTransform((low + high) / 2, (high - low) / 2, 1)]
    return TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), transforms)


def test_squashed_numbers_agree_with_torchs():
    actions = ActionDistribution(BOUNDED, squash=True)
    ours, target = torch.rand(2, 3, 4, 4) * 2 - 1
    drawn = actions.sample(target, 1.0, torch.Generator().manual_seed(0))
    expected = squashed_normal(ours).log_prob(drawn)
    torch.testing.assert_close(actions.nll(ours, drawn), -expected, atol=2e-3, rtol=1e-3)
    normals = [Independent(Normal(p[..., :2], p[..., 2:].exp()), 1) for p in (target, ours)]
    torch.testing.assert_close(actions.kl(target, ours), kl_divergence(*normals))
    target, ours = target.double(), ours.double()
    many = squashed_normal(target).sample((20000,))
    gap = squashed_normal(target).log_prob(many) - squashed_normal(ours).log_prob(many)
    found = actions.kl(target, ours).double()
    torch.testing.assert_close(found, gap.mean(0), atol=0.2, rtol=0.1)


def test_squashed_actions_stay_within_their_bounds_and_targets_on_them_are_finite():
    actions = ActionDistribution(BOUNDED, squash=True)
    wild = torch.tensor([[[40.0, -40.0, 2.0, 2.0]]])
    for drawn in (actions.mode(wild), actions.sample(wild.expand(1, 500, 4))):
        assert (drawn >= torch.tensor(BOUNDED.low)).all()
        assert (drawn <= torch.tensor(BOUNDED.high)).all()
    edge = torch.tensor([[[1.0, 0.0]]], requires_grad=False)
    parameters = torch.zeros(1, 1, 4, requires_grad=True)
    actions.nll(parameters, edge).sum().backward()
    assert parameters.grad is not None
    assert parameters.grad.isfinite().all()
    assert torch.equal(actions.mode(torch.zeros(1, 1, 4)), torch.tensor([[[-0.5, 5.0]]]))
    with pytest.raises(SpaceError, match="no finite bounds to squash"):
        ActionDistribution(FieldSpec("vector", (2,)), squash=True)


def test_a_room_of_pixels_is_the_room():
    plain, pixels = DarkRoomFamily(4, 6), DarkRoomFamily(4, 6, observation="image")
    assert pixels.observation_space == spaces.Box(0, 255, (4, 4, 1), np.uint8)
    assert "observation" not in plain.tasks()[0].params
    tasks = [4, 7, 13]
    first = plain.make_vector_env([plain.tasks()[i] for i in tasks])
    second = pixels.make_vector_env([pixels.tasks()[i] for i in tasks])
    cells, images = first.reset(seed=0)[0], second.reset(seed=0)[0]
    rng = np.random.default_rng(0)
    for _ in range(13):
        assert (images.sum((1, 2, 3)) == 255).all()
        assert (images[np.arange(3), cells[:, 0], cells[:, 1], 0] == 255).all()
        ours, theirs = (
            family.optimal_actions([family.tasks()[i] for i in tasks], shown)
            for family, shown in ((plain, cells), (pixels, images))
        )
        assert (ours == theirs).all()
        actions = rng.integers(5, size=3)
        cells, rewards, _, _, infos = first.step(actions)
        images, other, _, truncated, shown = second.step(actions)
        assert (rewards == other).all()
        if truncated.any():
            assert (shown["final_obs"].argmax(-1).shape) == (3, 4, 4)
            ended = infos["final_obs"]
            assert (shown["final_obs"][np.arange(3), ended[:, 0], ended[:, 1], 0] == 255).all()
    alone = pixels.make_env(pixels.tasks()[0])
    assert pixels.observation_space.contains(alone.reset(seed=0)[0])
    with pytest.raises(FamilyError, match="observation must be one of cell, image"):
        DarkRoomFamily(4, 6, observation="pixels")


def test_searchers_of_a_room_of_pixels_find_its_goals():
    from tasks.search import search_policies

    family = DarkRoomFamily(4, 12, observation="image")
    tasks = list(family.tasks())
    for make in search_policies(family, tasks).values():
        returns = rollout(make(), family, tasks, n_episodes=6, seed=0).returns
        assert returns[:, -1].tolist() == [family.optimal_return(task) for task in tasks]
