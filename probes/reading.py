"""What latents hold: a fresh reconstruction head, fitted on frozen latents within a fixed budget.

The head a student was trained with goes stale when its encoder moves on, and some students have
none that was ever trained. A fresh one, fitted in the same way for every method, tells what can be
read from the latents themselves. Shapes: B batch, M latents, D width, L region length.
"""

from __future__ import annotations

from typing import Any

import torch

from ad.auxiliary import returns_to_go
from ad.batches import TripleSource
from ad.model import InContextModel
from ad.student import CADStudent
from compression.latents import Latents
from compression.reconstruction import build_reconstruction

READABLE = ("observations", "actions", "next_observations")
LEARNING_RATE = 2e-3
RIDGE = 1e-3
"""Penalty of the linear read-out of returns, per row, of standardised hidden states."""


def fresh_reconstruction(
    student: CADStudent, fit: TripleSource, test: TripleSource, *, updates: int, seed: int = 0
) -> dict[str, Any]:
    """Fit a head on latents of training regions, test it on regions of other tasks.

    Args:
        student: Frozen; only its latents are used.
        fit: Draws training regions; the current regions of its batches are read.
        test: Draws the regions tested on; those of its first batch.
        updates: Of AdamW with a one-cycle schedule.
        seed: Of the head's first weights.

    Returns:
        `rec_loss` (1: nothing beyond the marginals is read), `rec_<field>` as
        `ReconstructionHead.loss` scores fields, and `reconstruction_accuracy`, the mean over
        observations, actions and next observations; None where one is not of classes.
    """
    parts = student.config.student_parts
    device = next(student.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = build_reconstruction(
            student.reconstruction.specs["observations"],
            student.reconstruction.specs["actions"],
            parts.reconstruction,
            n_latents=parts.compressor.n_latents,
            d_model=parts.model.d_model,
            n_heads=parts.model.n_heads,
            region_len=student.longest_region,
        ).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=updates)
    student.eval()
    for step in range(updates):
        regions = fit(step).query
        with torch.no_grad():
            latents = student.compress(regions)
        loss, _ = student.reconstruct(Latents(latents.values, latents.mask), regions, head)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    regions = test(0).query
    with torch.no_grad():
        loss, fields = student.reconstruct(student.compress(regions), regions, head)
    scores = {name: float(value) for name, value in fields.items()}
    known = all(student.reconstruction.specs[name].kind == "classes" for name in READABLE)
    mean = sum(scores[f"rec_{name}"] for name in READABLE) / len(READABLE)
    return {
        "rec_loss": float(loss),
        **scores,
        "reconstruction_accuracy": mean if known else None,
    }


@torch.inference_mode()
def return_error(model: InContextModel, fit: TripleSource, test: TripleSource) -> float | None:
    """Return how far off a linear read-out of the return to go is, in variances of it.

    The read-out is fitted by ridge regression on the hidden states that actions are read from, at
    the steps of the first batch of `fit`, and scored on those of `test`: the same for every model,
    whether or not it was trained to tell returns. None where a model shows no hidden states.
    """
    model.eval()
    found = []
    for batch in (fit(0), test(0)):
        hidden = model(batch).hidden
        if hidden is None:
            return None
        mask = batch.query.mask
        found.append((hidden[mask].double(), returns_to_go(batch.query)[mask].double()))
    (told, target), (asked, true) = found
    mean, deviation = told.mean(0), told.std(0).clamp_min(1e-6)
    told, asked = (told - mean) / deviation, (asked - mean) / deviation
    penalty = RIDGE * len(told) * torch.eye(told.shape[1]).to(told)
    weights = torch.linalg.solve(told.T @ told + penalty, told.T @ (target - target.mean()))
    error = (asked @ weights + target.mean() - true).square().mean()
    return float(error / true.var(correction=0).clamp_min(1e-12))
