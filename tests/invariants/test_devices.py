"""The same numbers on every device: each test runs on the CPU, and on a GPU where there is one."""

import numpy as np
import pytest
import torch
from fixtures import make_student, make_teacher, make_triple, select

from ad.evaluate import evaluate_policy
from ad.losses import LossConfig
from ad.model import Triple
from ad.objectives import ActionObjective
from ad.policy import ContextPolicy
from compression.memory import MemoryConfig
from nets.spaces import field_spec
from tasks.darkroom import DarkRoomFamily

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
        ],
    ),
]
MODELS = {
    "student": make_student,
    "two regions": lambda: make_student(memory=MemoryConfig("accumulate", 2)),
    "codes": lambda: make_student(bottleneck="fsq", bottleneck_kwargs={"levels": [2]}),
    "teacher": lambda: make_teacher(2),
}


def moved(triple, device):
    """The triple on a device."""
    has_context = triple.has_context.to(device)
    return Triple(triple.context.to(device), has_context, triple.query.to(device))


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.mark.parametrize("name", MODELS)
def test_a_device_gives_the_numbers_of_the_cpu(name, device):
    model = MODELS[name]().eval()
    triple = make_triple(6, n_context=2)
    if name in ("student", "codes"):
        triple = make_triple(6)
    with torch.no_grad():
        expected = model(triple).parameters
        found = model.to(device)(moved(triple, device)).parameters
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_a_forward_waits_for_no_transfer(name, device):
    """Every host synchronisation is an idle GPU; on a CPU there is none to be had."""
    model = MODELS[name]().to(device).eval()
    triple = moved(make_triple(4, n_context=1 if name == "student" else 2), device)
    with torch.no_grad():
        model(triple)  # what is made once is made now
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            model(triple)
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def test_acting_takes_the_same_actions(device):
    family = DarkRoomFamily(size=3, horizon=4)
    fields = {
        "observation": field_spec(family.observation_space, "observation"),
        "action": field_spec(family.action_space, "action"),
    }
    counts = {"n_seeds": 3, "n_episodes": 5, "final_episodes": 1, "seed": 0}

    def returns(where):
        student = make_student(region_len=8, **fields).to(where)
        policy = ContextPolicy(student, temperature=0, device=where)
        return evaluate_policy(lambda _: policy, family, family.tasks()[:4], **counts).returns

    np.testing.assert_array_equal(returns(device), returns(torch.device("cpu")))


def test_an_update_in_bf16_is_near_that_in_fp32(device):
    triple = moved(make_triple(16), device)

    def gradient(mixed):
        objective = ActionObjective(make_student(), LossConfig()).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss, _ = objective(triple)
        loss.backward()
        grads = [p.grad.flatten() for p in objective.parameters() if p.grad is not None]
        return torch.cat(grads).float()

    plain, mixed = gradient(False), gradient(True)
    assert torch.cosine_similarity(plain, mixed, dim=0) > 0.98
    assert torch.isfinite(mixed).all()


def test_rows_do_not_see_each_other(device):
    student = make_student().to(device).eval()
    triple = moved(make_triple(6), device)
    with torch.no_grad():
        together = student(triple).parameters[2:4]
        apart = Triple(
            select(triple.context, slice(2, 4)),
            triple.has_context[2:4],
            select(triple.query, slice(2, 4)),
        )
        alone = student(apart).parameters
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)
