"""Probes find what was planted, ranks and weights are what algebra says, latents change hands."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures import CELLS, CHOICE, HEADS, NUMBERS, WIDTH, make_regions, make_student, make_table

from ad.batches import SamplingConfig, TripleSource
from ad.policy import ContextPolicy, OptimalPolicy
from compression.latents import Latents
from nets.attention import CrossAttention
from nets.spaces import FieldSpec
from pipelines.config import RUN_INDEPENDENT
from probes.latents import (
    attention_on_rewards,
    cosines,
    effective_rank,
    example_region,
    latents_of,
    pooling_attention,
)
from probes.probing import (
    CHOOSE,
    FEATURES,
    FIT,
    Sample,
    chance,
    draw_sample,
    features_of,
    probe,
    run_probes,
    score,
    targets_of,
    varied_parameters,
)
from probes.swap import LatentSwap, draw_pairs, furthest_pair, swap_latents
from probes.traces import cells_of, draws_pictures, goal_cells, play, shown_episodes, trace
from reports.film import background, captioned, trail, write_gif
from reports.terminal import GOAL, LAST, REACHED, VISITED, bar, beside, room
from tasks.darkroom import DarkRoomFamily
from tasks.family import Task

HELD_OUT = ("all", "held-out tasks")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def family_of_nine():
    return DarkRoomFamily(size=3, horizon=5)


# --- attention weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_weights_times_values_are_the_fused_attention(masked):
    cross = CrossAttention(WIDTH, HEADS)
    x, memory = torch.randn(3, 4, WIDTH), torch.randn(3, 7, WIDTH)
    mask = torch.arange(7) < torch.tensor([[7], [3], [5]]) if masked else None
    keys, values = cross.project(memory)
    weights = cross.weights(x, keys, mask)
    assert weights.shape == (3, HEADS, 4, 7)
    mixed = (weights @ values).transpose(1, 2).reshape(3, 4, WIDTH)
    torch.testing.assert_close(cross.out(mixed), cross(x, (keys, values), mask), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, HEADS, 4))
    if mask is not None:
        assert (weights[~mask[:, None, None].expand_as(weights)] == 0).all()


@pytest.mark.parametrize("n_pooling_layers", [1, 2])
def test_pooling_attention_is_that_of_the_latents(n_pooling_layers):
    student = make_student(n_latents=3, n_pooling_layers=n_pooling_layers).eval()
    pooling, regions = student.compressor, make_regions(4, 6, lengths=[6, 2, 5, 6])
    tokens, _ = student.compressor_tokens(regions)
    weights = pooling.attention(tokens, regions.mask)
    assert weights.shape == (4, n_pooling_layers, HEADS, 3, 6)
    # The latents once more, by these weights instead of the fused attention.
    hidden = pooling.encoder(tokens, regions.mask)
    x = pooling.latent_queries.expand(4, -1, -1)
    for i, block in enumerate(pooling.pooling.blocks):
        _, values = block.cross.project(hidden)
        mixed = (weights[:, i] @ values).transpose(1, 2).reshape(4, 3, WIDTH)
        x = x + block.cross.out(mixed)
        x = x + block.feed_forward(block.feed_forward_norm(x))
    again = pooling.pooling.norm(x)
    torch.testing.assert_close(again, pooling(tokens, regions.mask).values, atol=1e-5, rtol=0)


def test_attention_is_averaged_over_heads_and_layers_and_skipped_where_there_is_none():
    regions = make_regions(3, 6)
    attention = pooling_attention(make_student(n_pooling_layers=2).eval(), regions)
    assert attention.shape == (3, 2, 6)
    np.testing.assert_allclose(attention.sum(-1), 1.0, atol=1e-6)
    assert pooling_attention(make_student("mean_pooling").eval(), regions) is None


def test_attention_on_rewards_counts_rewarded_steps_of_rewarded_regions():
    rewards = np.array([[0.0, 1, 0, 1], [0, 0, 0, 0]])
    attention = np.array([[[0.1, 0.2, 0.3, 0.4], [0, 1, 0, 0]], [[0.25] * 4] * 2])
    found = attention_on_rewards(attention, rewards)
    assert found == pytest.approx(
        {"attention_share": 0.8, "strongest_latent_share": 1.0, "step_share": 0.5}
    )
    assert attention_on_rewards(attention, np.zeros((2, 4))) is None


def test_the_example_has_a_typical_number_of_rewards():
    rewards = (np.arange(10) < np.array([[0], [9], [4], [5], [1], [0]])).astype(float)
    assert example_region(rewards) == 2
    assert example_region(np.zeros((3, 4))) == 0


# --- rank and likeness ----------------------------------------------------------------------------


def test_effective_rank_of_known_matrices():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 5))
    assert effective_rank(rows) == pytest.approx(5, abs=0.05)
    assert effective_rank(rows[:, :1] @ rng.normal(size=(1, 8))) == pytest.approx(1, abs=1e-6)
    assert effective_rank(rows + 100.0) == pytest.approx(effective_rank(rows))  # centred
    assert effective_rank(np.full((10, 3), 7.0)) == 0.0
    # Singular values 3 : 1, so exp of the entropy of (3/4, 1/4).
    signs = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert effective_rank(signs * [3.0, 1.0]) == pytest.approx(expected)


def test_cosines_with_and_without_what_all_regions_share():
    rng = np.random.default_rng(0)
    own, shared = rng.normal(size=(500, 2, 64)), 50 * np.ones(64)
    assert cosines(own + shared, centred=False) == pytest.approx(np.ones((2, 2)), abs=0.01)
    assert cosines(own + shared, centred=True) == pytest.approx(np.eye(2), abs=0.02)
    opposite = np.stack([own[:, 0], -own[:, 0]], axis=1)
    assert cosines(opposite, centred=False) == pytest.approx(np.array([[1, -1], [-1, 1]]))


# --- probes ---------------------------------------------------------------------------------------


def planted(kind, n_axes=1, n=400, width=12, noise=0.1):
    """Features in which values stand, and features in which nothing does; values by set."""
    rng = np.random.default_rng(0)
    values = {key: rng.integers(0, 3, size=(n, n_axes)) for key in (FIT, CHOOSE, HELD_OUT)}
    if kind == "cells":
        values = {key: v > 0 for key, v in values.items()}
    weights = rng.normal(size=(3 * n_axes, width))

    def told(v):
        hot = np.eye(3)[v.astype(int)].reshape(len(v), -1)
        return 5 + hot @ weights + noise * rng.normal(size=(len(v), width))

    features = {key: told(v) for key, v in values.items()}
    nothing = {key: rng.normal(size=x.shape) for key, x in features.items()}
    values = {key: v.astype(float) if kind != "classes" else v for key, v in values.items()}
    return features, nothing, values


@pytest.mark.parametrize(("kind", "n_axes"), [("classes", 2), ("number", 1), ("cells", 4)])
def test_a_probe_finds_what_was_planted_and_nothing_else(kind, n_axes):
    features, nothing, values = planted(kind, n_axes)
    floor, truth = chance(kind, values)[HELD_OUT], values[HELD_OUT]
    assert score(kind, truth, probe(kind, features, values)[HELD_OUT]) > 0.95
    blind = score(kind, truth, probe(kind, nothing, values)[HELD_OUT])
    assert blind == pytest.approx(floor, abs=0.08)
    assert floor == pytest.approx({"classes": 1 / 9, "number": 0.0, "cells": 0.5}[kind], abs=0.05)


def test_a_probe_with_nothing_to_fit_on_is_not_made():
    features, _, values = planted("classes")
    few = {key: v[:3] if key == FIT else v for key, v in values.items()}
    assert probe("classes", features, few) is None


def test_scores_of_what_cannot_be_scored_are_unknown():
    assert score("number", np.ones((5, 1)), np.ones((5, 1))) is None
    assert score("cells", np.ones((20, 2)), np.ones((20, 2))) is None
    assert score("classes", np.ones((1, 1)), np.ones((1, 1))) is None
    right = np.array([[1, 2], [1, 2], [3, 4], [0, 0]])
    assert score("classes", right, np.array([[1, 2], [1, 0], [0, 4], [0, 0]])) == 0.5


def test_parameters_that_differ_between_tasks_become_targets():
    found = varied_parameters(family_of_nine().tasks())
    assert list(found) == ["goal"]
    assert found["goal"].tolist() == [[x, y] for x in range(3) for y in range(3)]
    tasks = [
        Task(i, str(i), {"gravity": g, "map": m, "fixed": 3, "nested": [[i]], "ragged": [0] * i})
        for i, (g, m) in enumerate([(9.8, "a"), (1, "b"), (1.6, "a")])
    ]
    found = varied_parameters(tasks)
    assert set(found) == {"gravity", "map"}
    assert found["gravity"].dtype.kind == "f"
    assert found["map"][:, 0].tolist() == ["a", "b", "a"]


def sample_of(n=40, region_len=6, observation=CELLS, lengths=None):
    regions = make_regions(n, region_len, observation=observation, lengths=lengths)
    return Sample(regions, np.arange(n) % 9, np.arange(n) // 9)


def test_targets_are_what_the_regions_say():
    sample = sample_of(lengths=[4] * 40)
    found = {t.name: t for t in targets_of(sample, family_of_nine().tasks(), CELLS, CHOICE)}
    assert list(found) == [
        *("goal", "goal as numbers", "visited cells", "last action", "region return")
    ]
    assert (found["goal"].values[:, 1] == sample.task % 3).all()
    names = [name for name, _ in found["goal"].questions]
    assert names == ["goal[0]", "goal[1]", "goal, all axes"]
    regions = sample.regions
    for i in range(40):
        seen = torch.cat([regions.observations[i, :4], regions.next_observations[i, :4]])
        expected = {int(3 * x + y) for x, y in seen}
        assert set(np.flatnonzero(found["visited cells"].values[i])) == expected
        assert found["last action"].values[i] == regions.actions[i, 3]
        assert found["region return"].values[i] == pytest.approx(
            float(regions.rewards[i, :4].sum())
        )


def test_other_observations_have_no_cells_to_probe():
    sample = sample_of(observation=NUMBERS)
    names = [t.name for t in targets_of(sample, family_of_nine().tasks(), NUMBERS, CHOICE)]
    assert "visited cells" not in names
    assert "goal" in names


def test_features_do_not_disturb_torchs_generator_and_are_repeatable():
    student, sample = make_student().eval(), sample_of()
    state = torch.get_rng_state()
    first, again = (features_of(student, sample.regions, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert tuple(first) == FEATURES
    for kind in FEATURES:
        np.testing.assert_array_equal(first[kind], again[kind])
    assert first["latents"].shape == first["untrained"].shape == (40, 2 * WIDTH)
    assert not np.allclose(first["latents"], first["untrained"])
    np.testing.assert_allclose(
        first["latents"].reshape(40, 2, WIDTH), latents_of(student, sample.regions)
    )


def test_a_sample_holds_different_regions_with_their_tasks_and_streams():
    source = TripleSource(make_table(), SamplingConfig(), batch_size=1)
    sample = draw_sample(source, 20, seed=0)
    address = sample.regions.rewards[:, 0].numpy()  # task * 100 + stream * 10 + region
    assert len(set(address.tolist())) == 20
    assert (address // 100 == sample.task).all()
    assert (address % 100 // 10 == sample.stream).all()
    assert len(draw_sample(source, 10**6, seed=0).task) == len(source.rows)


def test_every_probe_has_a_row_per_set_and_few_rewards_are_few():
    student = make_student().eval()
    samples = {part: sample_of(200) for part in ("train", "validation", "test")}
    for sample in samples.values():
        paid = torch.arange(6) < torch.randint(0, 4, (200, 1))
        sample.regions = dataclasses.replace(sample.regions, rewards=paid.float())
    rows = run_probes(student, samples, family_of_nine().tasks(), CELLS, CHOICE, seed=0)
    goal = [row for row in rows if row["target"] == "goal[0]"]
    assert [(row["regions"], row["tested_on"]) for row in goal] == [
        (regions, on)
        for regions in ("all", "with reward", "few rewards")
        for on in ("other streams", "held-out tasks")
    ]
    n = {(row["regions"], row["tested_on"]): row["n_test"] for row in goal}
    rewarded = int(samples["test"].rewarded.sum())
    assert n["all", "held-out tasks"] == 200
    assert n["with reward", "held-out tasks"] == rewarded < 200
    assert n["few rewards", "held-out tasks"] == 0  # one of six steps is more than a tenth
    assert all(row["latents"] is None for row in goal if row["n_test"] == 0)
    fit = (samples["train"].stream % 4 != 3).sum()
    assert goal[0]["n_fit"] == fit
    assert goal[0]["n_test"] == 200 - fit
    returns = next(row for row in rows if row["target"] == "region return")
    assert returns["raw"] > 0.9  # the sum of a region's rewards is linear in them


def test_looking_may_differ_between_uses_of_a_run_directory():
    assert {"probe", "ship"} <= set(RUN_INDEPENDENT)


# --- acting, recorded -----------------------------------------------------------------------------


def test_cells_are_those_of_the_joint_grid():
    observations = np.array([[[0, 2], [1, 0]], [[2, 2], [2, 1]]])
    assert cells_of(observations, CELLS).tolist() == [[2, 3], [8, 7]]
    assert cells_of(np.array([3, 1]), CHOICE).tolist() == [3, 1]
    assert cells_of(np.zeros((2, 3)), NUMBERS) is None


def test_goals_are_the_one_parameter_that_is_an_observation():
    tasks = family_of_nine().tasks()
    assert goal_cells(tasks, CELLS) == {i: i for i in range(9)}
    assert goal_cells(tasks, FieldSpec("classes", (2,), (2, 2))) is None  # goals lie outside
    assert goal_cells(tasks, NUMBERS) is None
    two = [Task(t.index, t.name, {**t.params, "key": t.params["goal"]}) for t in tasks]
    assert goal_cells(two, CELLS) is None


def test_a_trace_of_the_optimal_policy_ends_at_the_goal():
    family = family_of_nine()
    tasks = [family.tasks()[8], family.tasks()[0]]
    seen = trace(OptimalPolicy(family, tasks), family, tasks, n_steps=10, seed=0)
    assert seen.next_observations.shape == (10, 2, 2)
    for step in (4, 9):  # true last observations, not those of the reset
        assert seen.next_observations[step].tolist() == [[2, 2], [0, 0]]
    assert seen.rewards.sum(0).tolist() == [8.0, 8.0]


def test_played_episodes_have_their_returns_paths_and_pictures():
    family = family_of_nine()
    task = family.tasks()[5]  # the goal (1, 2), one move from the start
    policy = OptimalPolicy(family, [task])
    episodes = list(play(policy, family, task, n_episodes=3, seed=0, shown=[2]))
    assert [e.number for e in episodes] == [1, 2, 3]
    assert [e.total for e in episodes] == [family.optimal_return(task)] * 3
    assert episodes[0].observations.tolist() == [[1, 1], [1, 2], *[[1, 2]] * 4]
    assert [len(e.frames) for e in episodes] == [0, 6, 0]
    assert episodes[1].frames[0].shape == (48, 48, 3)
    assert draws_pictures(family)
    assert shown_episodes(80) == [1, 5, 20, 80]
    assert shown_episodes(5) == [1, 5]


def test_playing_alone_is_acting_in_a_batch_of_one():
    family, student = family_of_nine(), make_student().eval()
    task = family.tasks()[2]
    episodes = list(play(ContextPolicy(student), family, task, n_episodes=4, seed=7))
    seen = trace(ContextPolicy(student), family, [task], n_steps=20, seed=7)
    alone = np.concatenate([e.observations[1:] for e in episodes])
    assert (alone == seen.next_observations[:, 0]).all()


# --- swap -----------------------------------------------------------------------------------------


class LatentsAsSeen(LatentSwap):
    """Notes which latents each region begins with."""

    def start(self, n):
        state = super().start(n)
        self.began = [self.student.memory.read(state.memory).values]
        return state

    def border(self, region, state):
        state = super().border(region, state)
        self.began.append(self.student.memory.read(state.memory).values)
        return state


def test_latents_change_hands_once_and_both_rollouts_are_equal_until_then():
    family, student = family_of_nine(), make_student().eval()
    tasks = [family.tasks()[0], family.tasks()[8]]
    swapped, own = (LatentsAsSeen(student, np.array([1, 0]), after) for after in (2, 0))
    seen = [trace(ContextPolicy(m), family, tasks, n_steps=24, seed=0) for m in (swapped, own)]
    assert len(own.began) == 5
    for region in (0, 1):
        assert torch.equal(swapped.began[region], own.began[region])
    assert torch.equal(swapped.began[2], own.began[2][[1, 0]])
    assert not torch.equal(own.began[2][0], own.began[2][1])
    first, second = (s.next_observations for s in seen)
    assert (first[:12] == second[:12]).all()


def test_an_agent_that_follows_its_latents_goes_to_the_other_goal(monkeypatch):
    family = DarkRoomFamily(size=3, horizon=6)  # an episode is a region
    student = make_student().eval()

    def compress(regions):
        paid = (regions.rewards > 0).float()[..., None]  # (B, L, 1)
        place = (regions.next_observations * paid).sum(1) / paid.sum(1).clamp_min(1)
        return Latents(F.pad(place[:, None], (0, WIDTH - 2)).expand(-1, 2, -1))  # (B, M, D)

    monkeypatch.setattr(student, "compress", compress)

    def parameters(self, observations):  # told its goal in the first region, then by its latents
        wanted = np.array([family.tasks()[8 * (i % 2)].params["goal"] for i in range(self.n)])
        if self.n_closed:
            wanted = self.state.memory.values[:, -1, 0, :2].round().long().numpy()
        tasks = [family.tasks()[int(3 * x + y)] for x, y in wanted]
        told(self, observations)  # as ever, for what it takes note of
        actions = torch.as_tensor(family.optimal_actions(tasks, observations))
        return 100.0 * F.one_hot(actions, 5)

    told = ContextPolicy.parameters
    monkeypatch.setattr(ContextPolicy, "parameters", parameters)
    pairs = [(family.tasks()[0], family.tasks()[8])]
    swap = swap_latents(
        student,
        family,
        pairs,
        CELLS,
        n_seeds=1,
        after=2,
        n_regions_after=2,
        temperature=1.0,
        seed=0,
    )
    rows = {(row["latents"], row["block"]): row for row in swap.by_region()}
    assert rows["own", 0]["at_own_goal"] > 0.4
    assert rows["own", 0]["at_other_goal"] == 0
    assert rows["swapped", -1] == rows["own", -1] | {"latents": "swapped"}
    assert rows["swapped", 0]["at_other_goal"] == rows["own", 0]["at_own_goal"]
    assert rows["swapped", 0]["at_own_goal"] == 0
    assert rows["swapped", 0]["reward"] == 0
    (pair,) = swap.by_pair()
    assert pair["swapped_latents_at_other_goal"] == rows["swapped", 0]["at_other_goal"]
    visits = swap.occupancy("swapped", 0)
    assert visits.sum() == pytest.approx(1.0)
    assert visits[2, 2] > 0.4
    assert visits[0, 0] == 0


def test_pairs_are_different_tasks_and_the_furthest_is_shown():
    tasks = family_of_nine().tasks()
    pairs = draw_pairs(tasks[:4], 10, seed=0)
    assert len({(a.index, b.index) for a, b in pairs}) == 6
    assert all(a.index != b.index for a, b in pairs)
    assert draw_pairs(tasks[:1], 3, seed=0) == []
    some = [(tasks[0], tasks[1]), (tasks[0], tasks[8]), (tasks[3], tasks[8])]
    assert furthest_pair(some, CELLS, {i: i for i in range(9)}) == 1


# --- pictures -------------------------------------------------------------------------------------


def dots(*places, size=4):
    """Frames with a bright mover on a dark floor; one cell of the floor is grey."""
    frames = np.zeros((len(places), size, size, 3), dtype=np.uint8)
    frames[:, 0, 0] = 100
    for frame, (row, column) in zip(frames, places, strict=True):
        frame[row, column] = 200
    return list(frames)


def test_the_scene_is_what_does_not_move_however_long_something_rests():
    film = dots((1, 1), (1, 2), (0, 0), (0, 0), (0, 0), (0, 0))
    scene = background(film)
    assert scene[0, 0].tolist() == [100] * 3
    assert scene.sum() == 300
    shown = trail(film, scene)
    assert shown[0, 0].tolist() == [200] * 3
    assert 0 < shown[1, 1, 0] < shown[1, 2, 0] < 200


def test_a_film_is_written_with_all_its_frames(tmp_path):
    from PIL import Image

    frames = [captioned([("a", frame), ("b", frame)]) for frame in dots((1, 1), (2, 2), (3, 3))]
    path = tmp_path / "new" / "film.gif"
    write_gif(path, frames, per_second=10)
    with Image.open(path) as film:
        assert film.n_frames == 3
        assert film.info["duration"] == 100
        assert film.size == (frames[0].shape[1], frames[0].shape[0])


def test_a_terminal_shows_bars_and_rooms():
    assert bar(0, 10, 8) == " " * 8
    assert bar(10, 10, 8) == "█" * 8
    assert bar(99, 10, 8) == "█" * 8
    assert bar(4.5, 10, 10) == "████▌     "
    path = np.array([[0, 0], [1, 0], [2, 0], [2, 1]])
    assert room(path, (3, 2), [0, 1]) == [f"{GOAL} · {LAST}", f"{VISITED} {VISITED} {VISITED}"]
    assert room(path, (3, 2), [1, 0])[1] == f"{VISITED} {REACHED} {VISITED}"
    blocks = {"one": ["ab", "cd"], "two": ["ef", "gh"]}
    assert beside(blocks, gap=1) == ["one two", "ab  ef", "cd  gh"]
    assert beside(blocks, page_width=8) == ["one", "ab", "cd", "", "two", "ef", "gh"]
