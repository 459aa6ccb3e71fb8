"""Windows: what is computed once for several current regions is what each would compute alone."""

import numpy as np
import pytest
import torch
from fixtures import REGION_LEN, make_apart, make_student, make_table

from ad.batches import SamplingConfig, TripleSource
from ad.losses import LossConfig
from ad.objectives import ActionObjective
from compression.memory import MemoryConfig
from teacher.model import RawContextObjective

N_REGIONS, STREAMS = 8, 6
TABLE = make_table(n_tasks=2, n_streams=3, n_regions=N_REGIONS)


def make_source(window, *, batch_size=24, table=TABLE, n_context_regions=2, stride=1, **settings):
    sampling = SamplingConfig(history_stride=stride, window=window)
    return TripleSource(
        table,
        sampling,
        **{"batch_size": batch_size, "n_context_regions": n_context_regions, "seed": 7, **settings},
    )


def addresses(rewards):
    address = rewards[..., 0].round().long()
    return address // 10, address % 10


@pytest.mark.parametrize("stride", [1, 3])
def test_a_window_is_consecutive_and_has_its_own_contexts(stride):
    source = make_source(4, stride=stride)
    for step in range(5):
        batch = source(step)
        stream, region = (each.view(-1, 4) for each in addresses(batch.query.rewards))
        assert (stream == stream[:, :1]).all()
        assert (region.diff(dim=1) == 1).all()
        _, strides = source.draw(step)
        for row, back in enumerate(strides):
            for r, place in enumerate((back + 1, back)):
                there = place <= region.flatten()[row]
                assert batch.has_context[row, r] == there
                if there:
                    found = addresses(batch.context.rewards[row, r][None])
                    assert found == (stream.flatten()[row], region.flatten()[row] - place)


@pytest.mark.parametrize(("window", "n_regions"), [(2, 8), (4, 8), (8, 8), (3, 8), (5, 5)])
def test_windows_cover_every_region_alike(window, n_regions):
    table = make_table(n_tasks=2, n_streams=3, n_regions=n_regions)
    source = make_source(window, batch_size=window, table=table)
    covered = np.bincount((source.firsts[:, None] + np.arange(window)).ravel())
    if n_regions % window == 0:
        assert (covered == 1).all()
    else:  # the last window overlaps the one before
        assert covered.min() == 1
        assert covered.max() == 2
    assert len(covered) == len(table.region)


def test_a_window_of_one_draws_as_ever():
    alone = TripleSource(TABLE, SamplingConfig(), batch_size=24, n_context_regions=2, seed=7)
    rows, strides = make_source(1, stride=8).draw(3)
    assert (rows == alone.draw(3)[0]).all()
    assert (strides == alone.draw(3)[1]).all()
    assert alone(3).shared is None


def test_shares_take_whole_windows():
    whole = make_source(4)(5)
    shares = [
        make_source(4, rank=r, world_size=2, accumulation_steps=3)(5, m)
        for r in range(2)
        for m in range(3)
    ]
    found = torch.cat([share.query.rewards.view(-1, 4, REGION_LEN) for share in shares])
    wanted = whole.query.rewards.view(-1, 4, REGION_LEN)
    assert torch.equal(found[found[:, 0, 0].argsort()], wanted[wanted[:, 0, 0].argsort()])
    with pytest.raises(ValueError, match=r"24 is no multiple of 1 processes x 4 .* x windows of 4"):
        make_source(4, accumulation_steps=4)


def test_a_window_longer_than_a_history_is_refused():
    with pytest.raises(ValueError, match=r"sampling.window is 9, but a history has only 8 regions"):
        make_source(9, batch_size=9)


def alone(batch):
    """The same batch without the knowledge of what its rows share."""
    return type(batch)(batch.context, batch.has_context, batch.query)


OBJECTIVES = {
    "student": lambda: ActionObjective(
        make_student(memory=MemoryConfig("accumulate", 2)), LossConfig(gamma=0.1)
    ),
    "student, counted codes": lambda: ActionObjective(
        make_student(bottleneck="fsq"), LossConfig(gamma=0.1)
    ),
    "regions apart": lambda: RawContextObjective(make_apart(2), weights={"token_type_nll": 0.0}),
    "three regions apart": lambda: RawContextObjective(
        make_apart(3), weights={"token_type_nll": 0.0}
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_window_has_the_loss_and_gradient_of_its_rows_alone(name):
    objective = OBJECTIVES[name]()
    batch = make_source(8, n_context_regions=3, stride=2)(0)
    assert len(batch.shared.regions.mask) < batch.has_context.sum()  # something is shared
    found = []
    for each in (batch, alone(batch)):
        objective.zero_grad()
        loss, metrics = objective(each)
        loss.backward()
        gradients = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
        found.append((loss, metrics["action_nll"], gradients))
    torch.testing.assert_close(found[0][:2], found[1][:2])
    assert found[0][2].keys() == found[1][2].keys()
    for parameter, gradient in found[0][2].items():
        torch.testing.assert_close(gradient, found[1][2][parameter], atol=1e-6, rtol=1e-4)


def test_a_batch_without_any_context_is_taken():
    source = make_source(1)
    first = np.flatnonzero(TABLE.region == 0)
    source.sampling = SamplingConfig(window=2)
    batch = source.gather(first, np.ones(len(first), dtype=int))
    model = make_apart(2).eval()
    torch.testing.assert_close(model(batch).parameters, model(alone(batch)).parameters)
