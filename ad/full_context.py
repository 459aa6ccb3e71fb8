"""The student's own weights, shown the raw regions where it is shown latents otherwise.

Self-distillation: a decoder that reads raw tokens and latents alike is its own teacher. What it
would do with the full context, learned from recorded actions, is what it is to do with latents.
Shapes: B batch, R regions, N tokens of a region, M latents of the memory, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ad.model import Triple
from ad.student import CADStudent
from compression.latents import Latents
from nets.positions import sinusoids


def full_context(student: CADStudent, batch: Triple) -> Tensor:
    """Return action parameters (B, T, P) given the raw tokens of all regions of the memory.

    Tokens are those that the compressor reads, with sinusoids of how many tokens before the current
    region they lie. Where no region is there, the learned "no context" latents are read, as always.

    Args:
        student: Whose encoders and decoder; its compressor has no part in it.
        batch: As the student is given it.
    """
    n_regions = student.n_context_regions
    regions, places, _ = batch.each_once(n_regions)
    _, present = batch.nearest(n_regions)  # (B, R)
    tokens, there = student.transition_encoder.read(student.scaling.regions(regions))
    values = tokens[places].flatten(1, 2)  # (B, R N, D)
    shown = (there[places] & present[..., None]).flatten(1, 2)
    length, width = values.shape[1:]
    before = sinusoids(torch.arange(-length, 0, device=values.device), width)
    values = values + before.to(values) * width**-0.5
    nothing = student.memory.read(student.memory.start(len(places)))
    unread = nothing.shown.bool() & ~present.any(1, keepdim=True)
    context = Latents(torch.cat([nothing.values, values], 1), torch.cat([unread, shown], 1))
    return student.decode(batch.query, context)
