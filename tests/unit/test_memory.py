"""A memory that recurs: a slow reference, bounded for ever, flat in bytes, taught over rounds."""

import pytest
import torch
from fixtures import REGION_LEN, WIDTH, make_regions, make_student, make_triple

from ad.losses import LossConfig
from ad.objectives import ActionObjective
from ad.policy import ContextPolicy
from compression.compressor import CompressorError
from compression.latents import Latents
from compression.memory import MemoryConfig, build_memory
from compression.recurrent_memory import UPDATES
from pipelines.config import RunConfig
from training.config import ConfigError, load_config

N, M, ROUNDS = 5, 3, 3
SIZES = {"n_latents": M, "d_model": WIDTH, "region_len": REGION_LEN}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def recurrent(update="gate", n_regions=ROUNDS):
    return build_memory(MemoryConfig("recurrent", n_regions, {"update": update}), **SIZES)


def lead(memory, regions, present=None):
    """What is read after every region; `regions` (R, N, M, D), `present` (R, N)."""
    state, read = memory.start(N), []
    for k, values in enumerate(regions):
        there = torch.ones(N, dtype=torch.bool) if present is None else present[k]
        state = memory.update(state, Latents(values), there)
        read.append(memory.read(state))
    return read


def reference(update, memory, s, z):
    """One latent's update, number by number from the formulas."""
    change = memory.change
    if update == "replace":
        return z
    if update == "residual":
        x = s + change.take.weight @ z + change.take.bias
        x = (x - x.mean()) / (x.var(correction=0) + change.norm.eps).sqrt()
        return x * change.norm.weight + change.norm.bias
    if update == "gate":
        g = torch.sigmoid(change.gate.weight @ torch.cat([s, z]) + change.gate.bias)
        return g * s + (1 - g) * z
    cell = change.cell
    from_z = (cell.weight_ih @ z + cell.bias_ih).chunk(3)
    from_s = (cell.weight_hh @ s + cell.bias_hh).chunk(3)
    r, keep = (torch.sigmoid(from_z[i] + from_s[i]) for i in (0, 1))
    candidate = torch.tanh(from_z[2] + r * from_s[2])
    return (1 - keep) * candidate + keep * s


@pytest.mark.parametrize("update", UPDATES)
def test_an_update_is_its_formula(update):
    memory, regions = recurrent(update), torch.randn(2, N, M, WIDTH)
    found = lead(memory, regions)[-1].values
    for i in range(N):
        for j in range(M):
            expected = reference(update, memory, regions[0, i, j], regions[1, i, j])
            torch.testing.assert_close(found[i, j], expected + memory.positions[j])


@pytest.mark.parametrize("update", UPDATES)
def test_regions_that_are_not_there_change_nothing(update):
    memory, regions = recurrent(update), torch.randn(4, N, M, WIDTH)
    present = torch.tensor([False, True, False, True])[:, None].expand(4, N)
    found = lead(memory, regions, present)
    assert torch.equal(found[0].values, memory.no_context.expand(N, -1, -1))
    assert torch.equal(found[2].values, found[1].values)
    assert torch.equal(found[3].values, lead(memory, regions[[1, 3]])[-1].values)


@pytest.mark.parametrize("update", ["residual", "gate", "gru"])
def test_what_is_remembered_is_bounded_for_eight_times_the_rounds_of_training(update):
    """Of the same latents over and over, and of ones ten times as large as any norm leaves."""
    memory = recurrent(update)
    for parameter in memory.change.parameters():
        torch.nn.init.normal_(parameter, std=1.0)  # anything training may lead to
    for drawn in (torch.randn(1, N, M, WIDTH), 10 * torch.randn(8 * ROUNDS, N, M, WIDTH)):
        regions = drawn.expand(8 * ROUNDS, -1, -1, -1)
        read = lead(memory, regions)
        values = torch.stack([r.values - memory.positions for r in read])
        assert values.isfinite().all()
        if update == "residual":  # of a layer norm: sqrt(D) times its gain, and its bias
            norm = memory.change.norm
            bound = WIDTH**0.5 * norm.weight.abs().max() + norm.bias.norm()
            assert (values[1:].norm(dim=-1) <= bound + 1e-4).all()
        else:  # between what was there and what came
            bound = max(regions.abs().max().item(), 1.0)
            assert values.abs().max() <= bound + 1e-4


def test_a_sum_without_its_norm_would_not_be_bounded():
    """The test above can fail."""
    memory, regions = recurrent("residual"), torch.randn(1, N, M, WIDTH).expand(24, -1, -1, -1)
    bounded = lead(memory, regions)[-1].values.norm(dim=-1).max()
    memory.change.norm = torch.nn.Identity()
    assert lead(memory, regions)[-1].values.norm(dim=-1).max() > 3 * bounded


@pytest.mark.parametrize("update", ["residual", "gate", "gru"])
def test_gradients_reach_all_rounds_and_every_weight(update):
    student = make_student(
        n_latents=M, memory=MemoryConfig("recurrent", ROUNDS, {"update": update})
    )
    batch = make_triple(6, ROUNDS)
    batch.has_context[:], batch.context.mask[:] = True, True
    batch.has_context[0], batch.context.mask[0] = False, False
    compressed = []
    inner = student.compress

    def compress(regions, present=None):
        latents = inner(regions, present)
        latents.values.retain_grad()
        compressed.append(latents.values)
        return latents

    student.compress = compress
    ActionObjective(student, LossConfig())(batch)[0].backward()
    (values,) = compressed
    of_rounds = values.grad.view(6, ROUNDS, M, WIDTH).abs().sum((-1, -2))
    assert (of_rounds[1:] > 0).all()
    assert (of_rounds[0] == 0).all()
    assert all(p.grad.abs().sum() > 0 for p in student.memory.parameters())


@pytest.mark.parametrize("update", UPDATES)
def test_bytes_stay_what_they_are_for_fifty_regions(update):
    student = make_student(
        n_latents=M, memory=MemoryConfig("recurrent", ROUNDS, {"update": update})
    )
    accumulating = make_student(n_latents=M, memory=MemoryConfig("accumulate", ROUNDS))
    sizes = []
    policy = ContextPolicy(student)
    policy.reset(N, 0)
    for _ in range(50):
        policy.resume([make_regions(N, REGION_LEN)])
        held = policy.state.memory
        assert held.values.shape == (N, M, WIDTH)
        sizes.append((policy.context_bytes, policy.context_tokens))
    assert set(sizes) == {sizes[0]}
    assert sizes[0][1] == M + REGION_LEN
    assert accumulating.context_tokens == ROUNDS * M + REGION_LEN
    assert student.memory_regions == 1
    assert accumulating.memory_regions == ROUNDS


def test_it_remembers_what_one_region_cannot_show():
    """The action is the first one of the region before the last."""
    found = {}
    for kind, n_regions in (("one_shot", 1), ("recurrent", 2)):
        student = make_student(region_len=4, memory=MemoryConfig(kind, n_regions))
        objective = ActionObjective(student, LossConfig())
        optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
        for _ in range(80):
            loss, _ = objective(_of_the_region_before(64))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        batch = _of_the_region_before(256)
        actions = student.eval()(batch).parameters[:, 0].argmax(-1)
        found[kind] = (actions == batch.query.actions[:, 0]).float().mean().item()
    assert found["recurrent"] > 0.9
    assert found["one_shot"] < 0.4


def _of_the_region_before(size):
    batch = make_triple(size, 2, region_len=4)
    batch.has_context[:], batch.context.mask[:] = True, True
    batch.query.actions[:] = batch.context.actions[:, 0, :1]
    return batch


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (MemoryConfig("recurrent", 2, {"update": "lstm"}), "replace, residual, gate, gru"),
        (MemoryConfig("recurrent", 1), "set memory.n_regions to 2 or more"),
        (MemoryConfig("accumulate", 2, {"update": "gru"}), "no such setting; it knows: none"),
        (MemoryConfig("recurrent", 2, {"update": 3}), "expected str, got 3"),
    ],
)
def test_a_memory_that_cannot_be_is_refused_when_the_configuration_is_read(tmp_path, config, told):
    with pytest.raises(CompressorError, match=told):
        build_memory(config, **SIZES)
    (tmp_path / "run.yaml").write_text("run_dir: runs/x\n")
    (kwargs,) = [f"{{{k}: {v}}}" for k, v in config.kwargs.items()] or ["{}"]
    overrides = [f"memory.kind={config.kind}", f"memory.n_regions={config.n_regions}"]
    with pytest.raises(ConfigError, match=told):
        load_config(RunConfig, tmp_path / "run.yaml", [*overrides, f"memory.kwargs={kwargs}"])


def retrieval(pick="similar", n_regions=4, **kwargs):
    kwargs = {"k": 2, "pick": pick, **kwargs}
    return build_memory(MemoryConfig("retrieval", n_regions, kwargs), **SIZES)


def test_the_regions_most_like_the_newest_are_read():
    memory = retrieval()
    regions = torch.randn(4, N, M, WIDTH)
    regions[3] = regions[1] + 0.01  # most like the second, then the first
    regions[0] = regions[1] + 0.1
    read = lead(memory, regions)[-1]
    values = read.values - memory.positions.repeat(3, 1)
    shown = values.unflatten(1, (3, M))
    torch.testing.assert_close(shown[:, 0], regions[1] + memory.retrieved)
    torch.testing.assert_close(shown[:, 1], regions[0] + memory.retrieved)
    torch.testing.assert_close(shown[:, 2], regions[3])
    assert read.mask.all()


@pytest.mark.parametrize("pick", ["similar", "random"])
def test_where_there_are_too_few_regions_to_pick_those_there_are_read(pick):
    memory = retrieval(pick)
    empty = memory.read(memory.start(N))
    assert empty.mask.sum(1).tolist() == [M] * N  # "no context" latents
    torch.testing.assert_close(empty.values[:, -M:], memory.no_context.expand(N, -1, -1))
    counts = [read.mask.sum(1).tolist() for read in lead(memory, torch.randn(4, N, M, WIDTH))]
    assert counts == [[M] * N, [2 * M] * N, [3 * M] * N, [3 * M] * N]


def test_an_absent_region_changes_nothing_that_is_retrieved():
    memory = retrieval()
    regions = torch.randn(3, N, M, WIDTH)
    there = torch.ones(4, N, dtype=torch.bool)
    there[3, ::2] = False
    *_, before, after = lead(memory, torch.cat([regions, torch.randn(1, N, M, WIDTH)]), there)
    assert torch.equal(after.values[::2], before.values[::2])
    assert (after.values[1::2] != before.values[1::2]).any()


def test_random_picks_are_past_regions_each_about_as_often():
    memory = retrieval("random", k=1)
    regions = torch.arange(4.0)[:, None, None, None].expand(4, N, M, WIDTH)
    drawn = []
    for _ in range(60):
        read = lead(memory, regions)[-1].values - memory.positions.repeat(2, 1) - memory.retrieved
        drawn += read[:, 0, 0].round().int().tolist()
    assert set(drawn) == {0, 1, 2}
    assert min(drawn.count(k) for k in range(3)) > 60


def test_a_larger_store_is_picked_from_while_acting():
    memory = retrieval(capacity=6, k=1)
    regions = torch.randn(6, N, M, WIDTH)
    regions[5] = regions[0]  # five regions back: more than training is led over
    read = lead(memory, regions)[-1].values - memory.positions.repeat(2, 1)
    torch.testing.assert_close(read[:, :M], regions[0] + memory.retrieved)
    assert memory.n_tokens == 2 * M


def test_hidden_latents_of_a_retrieved_region_stay_hidden():
    memory = retrieval(k=1, n_regions=2)
    shown = torch.tensor([True, True, False]).expand(N, M)
    state = memory.start(N)
    for _ in range(2):
        there = torch.ones(N, dtype=torch.bool)
        state = memory.update(state, Latents(torch.randn(N, M, WIDTH), shown), there)
    assert memory.read(state).mask.tolist() == [[True, True, False] * 2] * N


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("memory={kind: retrieval}", "raise memory.n_regions to 2 or more"),
        ("memory={kind: retrieval, n_regions: 3, kwargs: {k: 3}}", r"expected 1 \.\.\. 2"),
        ("memory={kind: retrieval, n_regions: 3, kwargs: {pick: best}}", "one of similar, random"),
        ("memory={kind: retrieval, n_regions: 3, kwargs: {capacity: 2}}", "capacity is 2"),
    ],
)
def test_retrieval_that_cannot_be_is_refused(tmp_path, override, told):
    (tmp_path / "run.yaml").write_text("seed: 0\n")
    with pytest.raises((ConfigError, CompressorError), match=told):
        load_config(RunConfig, tmp_path / "run.yaml", [override])


@pytest.mark.parametrize("kwargs", ["{capacity: 9}", "{pick: random}"])
def test_policy_gradients_through_what_cannot_be_read_again_are_refused(tmp_path, kwargs):
    (tmp_path / "run.yaml").write_text(
        f"memory: {{kind: retrieval, n_regions: 3, kwargs: {kwargs}}}\n"
    )
    enabled = ["policy_gradient.enabled=true", "policy_gradient.optim.checkpoint_every=10000"]
    rollouts = "policy_gradient.rollouts={n_regions: 5, n_tasks: 4, n_streams: 8}"
    sizes = ["policy_gradient.optim.batch_size=160", "policy_gradient.optim.accumulation_steps=1"]
    with pytest.raises(ConfigError, match=r"led over 3 regions|pick=random"):
        load_config(RunConfig, tmp_path / "run.yaml", [*enabled, rollouts, *sizes])
