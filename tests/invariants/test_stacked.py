"""Training seeds in a stack: each ends as it would alone, resumed, caught up, with its dropout."""

import csv

import pytest
import torch
from accelerate import Accelerator
from fixtures import make_sliding_window, make_student, make_table, make_teacher
from safetensors.torch import load_file

from ad.batches import SamplingConfig, TripleSource
from ad.losses import LossConfig
from ad.objectives import ActionObjective, PretrainObjective
from compression.memory import MemoryConfig
from teacher.model import RawContextObjective
from training.checkpoint import latest_checkpoint
from training.loop import fit
from training.optim import OptimConfig
from training.stacked import Member, StackError, fit_together

CONFIG = OptimConfig(updates=4, batch_size=8, log_every=1, validate_every=1, checkpoint_every=1)
SEEDS = (1, 5)


class KilledError(Exception):
    """What stands for the end of a process."""


def distilled(seed, **settings):
    student = make_student(dropout=0.2, seed=seed, memory=MemoryConfig("accumulate", 2))
    teacher = make_teacher(2, seed=seed).eval().requires_grad_(False)
    loss = LossConfig(alpha=0.5, beta=0.5, gamma=0.1, gamma_final=0.3)
    return ActionObjective(student, loss, teacher, **settings)


MAKERS = {
    "distilled, each from its own teacher": distilled,
    "compressor frozen": lambda seed: distilled(seed, freeze_compressor=True),
    "memory that recurs": lambda seed: ActionObjective(
        make_student(seed=seed, memory=MemoryConfig("recurrent", 2)), LossConfig()
    ),
    "codes, nested": lambda seed: ActionObjective(
        make_student(seed=seed, bottleneck="fsq", bottleneck_kwargs={"levels": [3, 3]}),
        LossConfig(),
    ),
    "pretrained": lambda seed: PretrainObjective(make_student("patches", seed=seed)),
    "raw context": lambda seed: RawContextObjective(make_teacher(2, seed=seed)),
}


def member(folder, seed, make, *, config=CONFIG, kill_at=None, window=1):
    objective = make(seed)
    source = TripleSource(
        make_table(),
        SamplingConfig(window=window),
        batch_size=config.batch_size,
        n_context_regions=objective.n_context_regions,
        seed=seed,
        accumulation_steps=config.accumulation_steps,
    )

    def batches(step, micro):
        if step == kill_at:
            raise KilledError
        seen.append(step)
        return source(step, micro)

    seen = [0]

    def validate():
        torch.rand(3)  # whatever validation draws must not disturb training
        size = sum(p.abs().sum().item() for p in objective.parameters())
        return {"score": seen[-1], "size": size}

    slow = [p for p in objective.parameters() if p.requires_grad][:3]
    return Member(
        objective, batches, folder / str(seed), Accelerator(cpu=True), seed, validate, slow
    )


def alone(folder, seed, make, config=CONFIG, **settings):
    each = member(folder, seed, make, config=config, **settings)
    result = fit(
        each.objective,
        each.batches,
        config,
        each.stage_dir,
        each.accelerator,
        seed=seed,
        targets_per_update=48,
        validate=each.validate,
        validate_first=True,
        slow=each.slow,
        slow_ratio=0.5,
    )
    return each.objective.state_dict(), result


def together(folder, make, seeds=SEEDS, config=CONFIG, **settings):
    members = [member(folder, seed, make, config=config, **settings) for seed in seeds]
    results = fit_together(
        members, config, targets_per_update=48, validate_first=True, slow_ratio=0.5
    )
    return [m.objective.state_dict() for m in members], results


def rows(stage_dir):
    with (stage_dir / "log.csv").open(newline="") as file:
        return [
            {k: float(v) for k, v in row.items() if v and k != "seconds"}
            for row in csv.DictReader(file)
        ]


def check_equal(mine, theirs):
    """To rounding; what moves a key's bias is rounding alone, for a softmax is blind to it."""
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        if name.endswith("kv.bias"):
            width = len(tensor) // (3 if "qkv" in name else 2)
            values = [each[name][-width:] for each in (mine, theirs)]
        else:
            values = [tensor, theirs[name]]
        torch.testing.assert_close(*values, atol=2e-6, rtol=1e-4, msg=lambda m, n=name: n + m)


def same(mine, theirs):
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


@pytest.mark.parametrize("name", MAKERS)
def test_a_seed_in_a_stack_ends_as_it_would_alone(tmp_path, name):
    weights, results = together(tmp_path / "stack", MAKERS[name])
    for seed, mine, result in zip(SEEDS, weights, results, strict=True):
        theirs, expected = alone(tmp_path / "alone", seed, MAKERS[name])
        check_equal(mine, theirs)
        assert result["best_step"] == expected["best_step"] == CONFIG.updates
        logs = [rows(tmp_path / where / str(seed)) for where in ("stack", "alone")]
        for one, other in zip(*logs, strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert not same(*weights)


def test_one_micro_batch_after_the_other_and_more_rows_than_one_update_changes_nothing(tmp_path):
    config = OptimConfig(updates=3, batch_size=8, accumulation_steps=2, max_grad_norm=0.1)
    weights, _ = together(tmp_path / "stack", distilled, config=config)
    for seed, mine in zip(SEEDS, weights, strict=True):
        check_equal(mine, alone(tmp_path / "alone", seed, distilled, config)[0])


def test_a_killed_stack_goes_on_and_ends_as_it_would_have(tmp_path):
    whole, results = together(tmp_path / "whole", distilled)
    with pytest.raises(KilledError):
        together(tmp_path / "killed", distilled, kill_at=2)
    again, told = together(tmp_path / "killed", distilled)
    assert all(same(*pair) for pair in zip(whole, again, strict=True))
    assert [t["best_step"] for t in told] == [r["best_step"] for r in results]
    for seed in SEEDS:
        logs = [rows(tmp_path / where / str(seed)) for where in ("whole", "killed")]
        assert logs[0] == logs[1]


def test_a_seed_goes_on_alone_from_a_stack_and_the_others_catch_up_with_it(tmp_path):
    whole, _ = together(tmp_path / "whole", distilled)
    with pytest.raises(KilledError):
        together(tmp_path / "killed", distilled, kill_at=1)
    with pytest.raises(KilledError):
        alone(tmp_path / "killed", SEEDS[1], distilled, kill_at=3)
    steps = [latest_checkpoint(tmp_path / "killed" / str(seed)).name for seed in SEEDS]
    assert steps == ["000001", "000003"]
    again, _ = together(tmp_path / "killed", distilled)
    for one, other in zip(whole, again, strict=True):
        check_equal(one, other)
    last = latest_checkpoint(tmp_path / "killed" / str(SEEDS[0]))
    check_equal(load_file(last / "model.safetensors"), again[0])
    moments = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    parameters = {p.shape for p in distilled(0).parameters() if p.requires_grad}
    assert {state["exp_avg"].shape for state in moments.values()} == parameters
    bytes_each = (last / "optimizer.pt").stat().st_size
    assert bytes_each < 3 * (last / "model.safetensors").stat().st_size  # no other seed's


def test_noise_of_a_bottleneck_is_each_seeds_own(tmp_path):
    def noisy(seed):
        return ActionObjective(make_student(bottleneck="gaussian", seed=0), LossConfig())

    config = OptimConfig(updates=3, batch_size=8)
    weights, _ = together(tmp_path / "stack", noisy, config=config)
    again, _ = together(tmp_path / "again", noisy, config=config)
    assert not same(*weights)
    assert all(same(*pair) for pair in zip(weights, again, strict=True))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda seed: PretrainObjective(make_student(n_latents=seed + 1)), "different shapes"),
        (lambda seed: PretrainObjective(make_student(bottleneck="vq")), "changes as it is trained"),
        (lambda seed: RawContextObjective(make_sliding_window(4)), "cannot be mapped"),
    ],
)
def test_what_cannot_be_one_model_is_told_before_anything_is_written(tmp_path, make, reason):
    with pytest.raises(StackError, match=reason):
        together(tmp_path, make)
    assert not list(tmp_path.iterdir())
