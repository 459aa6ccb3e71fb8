"""Losses beside the actions': returns to go and steps ahead, by hand, and what they are for."""

import pytest
import torch
from fixtures import (
    CELLS,
    CHOICE,
    NUMBERS,
    REGION_LEN,
    make_regions,
    make_student,
    make_table,
    make_teacher,
    make_triple,
)

from ad.auxiliary import AheadHead, ReturnHead, later, reached_after, returns_to_go
from ad.batches import SamplingConfig, TripleSource
from ad.losses import LossConfig
from ad.objectives import ActionObjective
from nets.scaling import FieldScaling
from pipelines.config import RunConfig
from probes.reading import return_error
from training.config import ConfigError, load_config

B = 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_returns_to_go_by_hand(discount):
    regions = make_regions(B, REGION_LEN)
    regions.mask[1, 4:] = False
    regions.terminated[2] = False
    regions.truncated[2] = False
    found = returns_to_go(regions, discount)
    for row in range(B):
        for time in range(REGION_LEN):
            total, weight = 0.0, 1.0
            for step in range(time, REGION_LEN):
                total += weight * float(regions.rewards[row, step]) * bool(regions.mask[row, step])
                weight *= discount
                if regions.ended[row, step]:
                    break
            assert float(found[row, time]) == pytest.approx(total, abs=1e-5)


def test_the_error_of_returns_is_in_their_variances():
    regions, head = make_regions(64, REGION_LEN), ReturnHead(1, 1.0)
    target = returns_to_go(regions)
    hidden = torch.zeros(64, REGION_LEN, 1)
    head.head.weight.data.fill_(1.0)
    head.head.bias.data.zero_()
    assert head.loss(hidden, regions).item() == pytest.approx(1, abs=1e-4)
    known = (target - target.mean()) / target.std(correction=0)
    assert head.loss(known[..., None], regions).item() == pytest.approx(0, abs=1e-6)


def test_what_is_ahead_stops_at_an_end():
    regions = make_regions(B, REGION_LEN)
    regions.mask[1, 4:] = False
    moved = later(regions, 2)
    assert torch.equal(moved.rewards[:, :4], regions.rewards[:, 2:])
    assert not moved.mask[:, -2:].any()
    for ahead, reached in enumerate(reached_after(regions, 4)):
        for row in range(B):
            for first in range(REGION_LEN):
                steps = range(first, first + ahead)
                expected = first + ahead < REGION_LEN and bool(regions.mask[row, first + ahead])
                expected = expected and not any(regions.ended[row, step] for step in steps)
                assert bool(reached[row, first]) == expected


def test_the_loss_of_steps_ahead_asks_for_no_others():
    """Rewards that no step reaches move nothing; the last reached one does."""
    regions = make_regions(B, REGION_LEN)
    regions.terminated[:], regions.truncated[:] = False, False
    regions.mask[:] = False
    regions.mask[:, :2] = True
    head, hidden = AheadHead(CELLS, CHOICE, d_model=8, n_ahead=3), torch.randn(B, REGION_LEN, 8)
    scaling = FieldScaling(CELLS, CHOICE)
    scaling.fit(make_regions(B, REGION_LEN))
    before = float(head.loss(hidden, regions, scaling)[0].detach())
    for place, counts in ((1, True), (2, False)):
        other = regions.map(torch.clone)
        other.rewards[:, place] += 3.0
        after = float(head.loss(hidden, other, scaling)[0].detach())
        assert (abs(after - before) > 1e-4) == counts


@pytest.mark.parametrize("observation", [CELLS, NUMBERS], ids=["classes", "numbers"])
def test_weights_of_zero_add_nothing_and_others_what_they_say(observation):
    batch = make_triple(B, observation=observation)
    student = make_student(observation=observation)
    student.fit_statistics(batch.query)
    plain, metrics = ActionObjective(student, LossConfig())(batch)
    assert not {"return_error", "ahead_loss"} & set(metrics)
    loss, metrics = ActionObjective(student, LossConfig(returns=0.5, ahead=0.25))(batch)
    expected = plain + 0.5 * metrics["return_error"] + 0.25 * metrics["ahead_loss"]
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert {f"ahead_{k}_rewards" for k in (1, 2, 3)} <= set(metrics)
    names = set(student.state_dict())
    assert not {name for name in names if "return" in name or "ahead" in name}  # thrown away


def test_hidden_states_come_to_tell_returns_and_what_comes_next():
    batch, student = make_triple(6), make_student(width=32)
    student.fit_statistics(batch.query)
    objective = ActionObjective(student, LossConfig(returns=1.0, ahead=1.0, n_ahead=2))
    optimizer = torch.optim.Adam(objective.parameters(), lr=5e-3)
    found = []
    for _ in range(150):
        loss, metrics = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append((float(metrics["return_error"]), float(metrics["ahead_loss"])))
    assert found[-1][0] < 0.3 * found[0][0]
    assert found[-1][1] < 0.6 * found[0][1]
    assert all(p.grad is not None for p in objective.ahead_head.parameters())


def test_a_linear_read_out_of_returns():
    """Nearly all is told by hidden states that hold it, nothing by those that hold noise."""
    source = TripleSource(make_table(n_streams=8), SamplingConfig(), batch_size=32)

    class Told(torch.nn.Module):
        def __init__(self, told):
            super().__init__()
            self.told = told

        def forward(self, batch):
            hidden = torch.randn(*batch.query.rewards.shape, 3)
            if self.told:
                hidden[..., 1] = 4 * returns_to_go(batch.query) - 7
            return type("Output", (), {"hidden": hidden if self.told is not None else None})

    assert return_error(Told(True), source, source) < 0.01
    assert return_error(Told(False), source, source) > 0.9
    assert return_error(Told(None), source, source) is None
    for model in (make_student(), make_teacher()):
        assert 0 < return_error(model, source, source) < 1.2


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ("{discount: 0.9}", "discount is 0.9, but returns"),
        ("{n_ahead: 5}", "n_ahead is 5, but ahead"),
        ("{ahead: 1, n_ahead: 30}", "n_ahead is 30, but region_len is 20"),
        ("{returns: -1}", "returns"),
    ],
)
def test_weights_that_make_no_sense_are_refused(tmp_path, loss, told):
    (tmp_path / "a.yaml").write_text(f"region_len: 20\ndistill: {{loss: {loss}}}\n")
    with pytest.raises(ConfigError, match=told):
        load_config(RunConfig, tmp_path / "a.yaml", [])
