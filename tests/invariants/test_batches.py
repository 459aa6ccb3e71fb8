"""Batches: contexts really lie s regions back in the same stream, shares partition the batch."""

import numpy as np
import pytest
import torch
from fixtures import REGION_LEN, make_table, select

from ad.batches import SamplingConfig, TripleSource

N_REGIONS = 5
TABLE = make_table(n_tasks=2, n_streams=3, n_regions=N_REGIONS)
BATCH = 24


def make_source(stride=3, max_region=0, **settings):
    sampling = SamplingConfig(history_stride=stride, max_region=max_region)
    return TripleSource(TABLE, sampling, **{"batch_size": BATCH, "seed": 7, **settings})


def addresses(rewards):
    """Stream (task and stream as one number) and region of rows, read off their first rewards."""
    address = rewards[..., 0].round().long()
    return address // 10, address % 10


def all_rows():
    return np.arange(len(TABLE.region))


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("n_context", [1, 3])
def test_a_context_lies_s_regions_back_in_the_same_stream(stride, n_context):
    source = make_source(n_context_regions=n_context)
    batch = source.gather(all_rows(), np.full(len(all_rows()), stride))
    assert batch.context.rewards.shape == (30, n_context, REGION_LEN)
    stream, region = addresses(batch.query.rewards)
    assert sorted(set(region.tolist())) == list(range(N_REGIONS))
    context_stream, context_region = addresses(batch.context.rewards)
    for row in range(30):
        step = min(stride, max(int(region[row]), 1))  # shortened to what there is
        for r, back in enumerate(step + b for b in range(n_context - 1, -1, -1)):
            exists = back <= region[row]
            assert batch.has_context[row, r] == exists
            if exists:
                assert context_stream[row, r] == stream[row]
                assert context_region[row, r] == region[row] - back
            else:  # handed out as absent: nothing in it, no field of another row
                assert not batch.context.mask[row, r].any()
                assert not any(vars(batch.context)[name][row, r].any() for name in TABLE.columns)
    assert torch.equal(batch.has_previous, region > 0)
    assert torch.equal(batch.previous.rewards, batch.context.rewards[:, -1])


def test_a_stride_stops_at_the_beginning_of_the_history():
    batch = make_source().gather(all_rows(), np.full(len(all_rows()), 99))
    _, region = addresses(batch.query.rewards)
    _, before = addresses(batch.previous.rewards)
    assert (before[region > 0] == 0).all()


def test_a_model_may_ask_for_contexts_right_before():
    drawn = make_source(stride=4)
    near = make_source(stride=4, max_stride=1)
    assert (near.draw(3)[0] == drawn.draw(3)[0]).all()  # the same rows as every other method
    assert set(near.draw(3)[1]) == {1}


def test_every_field_comes_from_the_same_row():
    rows = np.array([7, 3, 29])
    batch = make_source().gather(rows, np.array([1, 2, 3]))
    for name, column in TABLE.columns.items():
        assert (getattr(batch.query, name).numpy() == column[rows]).all()
        assert (getattr(batch.previous, name).numpy() == column[rows - [1, 2, 3]]).all()


def test_drawn_rows_and_strides_cover_what_they_may():
    source = make_source(stride=3)
    drawn = [source.draw(step) for step in range(40)]
    rows, strides = (np.concatenate(part) for part in zip(*drawn, strict=True))
    assert set(rows) == set(range(30))
    assert set(strides) == {1, 2, 3}
    early = make_source(max_region=2)
    assert (TABLE.region[np.concatenate([early.draw(s)[0] for s in range(40)])] < 2).all()


def test_batches_depend_on_seed_and_step_alone():
    def rewards(step, **settings):
        return make_source(**settings)(step).query.rewards

    source = make_source()
    first = source(3).query.rewards
    source(4)
    assert torch.equal(source(3).query.rewards, first)
    assert torch.equal(rewards(3), first)
    assert not torch.equal(rewards(4), first)
    assert not torch.equal(rewards(3, seed=8), first)


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 4), (2, 3), (4, 2)])
def test_shares_of_processes_and_micro_batches_partition_the_batch(world_size, accumulation):
    whole = make_source()(5)
    shares = [
        make_source(rank=rank, world_size=world_size, accumulation_steps=accumulation)(5, micro)
        for rank in range(world_size)
        for micro in range(accumulation)
    ]
    assert {len(share.has_context) for share in shares} == {BATCH // len(shares)}
    found = torch.cat([share.query.rewards[:, 0] for share in shares])
    assert torch.equal(found.sort().values, whole.query.rewards[:, 0].sort().values)
    found = torch.cat([share.previous.rewards[:, 0] for share in shares])
    assert torch.equal(found.sort().values, whole.previous.rewards[:, 0].sort().values)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="24 is no multiple of 5 processes x 1 accumulation steps"):
        make_source(world_size=5)


JITTER = 0.7  # of regions of 6: borders move by up to 2, lengths are 2 ... 10


def jittered(**settings):
    sampling = SamplingConfig(history_stride=1, jitter=JITTER, **settings)
    return TripleSource(TABLE, sampling, batch_size=BATCH, seed=7, n_context_regions=2)


def test_jittered_regions_divide_every_history_without_gap():
    source = jittered()
    lengths = []
    for step in range(20):
        batch = source.gather(all_rows(), np.ones(30, dtype=np.int64), source.cut(step))
        assert batch.query.rewards.shape == (30, 10)
        lengths += batch.query.mask.sum(1).tolist()
        for name in ("observations", "rewards", "terminated"):
            for stream in range(6):
                rows = slice(stream * N_REGIONS, (stream + 1) * N_REGIONS)
                found = vars(batch.query)[name][rows][batch.query.mask[rows]].numpy()
                assert (found == TABLE.columns[name][rows].reshape(found.shape)).all()
        assert not batch.query.rewards[~batch.query.mask].any()
    assert set(lengths) == set(range(2, 11))


def test_a_jittered_context_ends_where_the_current_region_begins():
    source = jittered()
    batch = source.gather(all_rows(), np.ones(30, dtype=np.int64), source.cut(3))
    for row in range(30):
        assert batch.has_context[row].sum() == min(2, TABLE.region[row])
        assert batch.context.mask[row].any(-1).tolist() == batch.has_context[row].tolist()
        if batch.has_previous[row]:
            before, after = select(batch.previous, row), select(batch.query, row)
            joined = torch.cat([before.rewards[before.mask], after.rewards[after.mask]])
            hundredths = (joined * 100).round().long()
            times = hundredths // 100 % 10 * REGION_LEN + hundredths % 100
            assert (times.diff() == 1).all()


def test_a_cut_is_drawn_anew_for_every_update_and_alike_for_every_process():
    one, other = jittered(), jittered()
    assert (one.cut(1).begins == other.cut(1).begins).all()
    assert (one.cut(1).begins != one.cut(2).begins).any()
    assert make_source().cut(1) is None


def test_what_is_told_besides_follows_the_jittered_steps():
    sampling = SamplingConfig(history_stride=1, jitter=JITTER)
    told = {"labels": TABLE.columns["rewards"].copy()}
    batch = TripleSource(TABLE, sampling, batch_size=BATCH, seed=7, extra=told)(4)
    mask = batch.query.mask
    assert torch.equal(batch.extra["labels"][mask], batch.query.rewards[mask])


def test_windows_share_their_jittered_regions():
    source = jittered(window=4)
    batch = source(2)
    shared = batch.shared.regions.map(lambda field: field[batch.shared.places])
    there = batch.has_context
    assert torch.equal(shared.rewards[there], batch.context.rewards[there])
    assert torch.equal(shared.mask[there], batch.context.mask[there])


def test_regions_of_many_lengths_cannot_be_jittered():
    table = make_table()
    table.columns["mask"] = table.columns["mask"].copy()
    table.columns["mask"][3, -1] = False
    sampling = SamplingConfig(jitter=JITTER)
    with pytest.raises(ValueError, match="borders can be moved between regions of one length"):
        TripleSource(table, sampling, batch_size=BATCH)
