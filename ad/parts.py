"""A region that is compressed while it is being filled: its parts, and who reads which.

After n, 2 n, ... steps a region is compressed as far as it is, its steps so far are dropped, and
the next n steps read those latents beside what the memory holds. In training all parts of a current
region are compressed beside the previous regions, each as a shorter region: what comes later is not
in it. Shapes: B rows, T steps, C parts of a row, M latents of a region, N of the memory, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compression.latents import Latents
from nets.regions import REGION_FIELDS, Regions, blanked, padded


def with_parts(
    regions: Regions, present: Tensor, query: Regions, part_len: int
) -> tuple[Regions, Tensor]:
    """Join regions with every current region as far as it is after n, 2 n, ... steps.

    Args:
        regions: (U, L, ...).
        present: (U,) bool, which of them are there.
        query: Current regions (B, T, ...).
        part_len: n.

    Returns:
        Fields (U + B C, ...), a row's C parts together, and which of them are there.
    """
    n_steps = query.mask.shape[1]
    ends = torch.arange(part_len, n_steps, part_len, device=present.device)  # (C,)
    steps = torch.arange(n_steps, device=present.device)
    filled = (query.mask[:, None] & (steps < ends[:, None])).flatten(0, 1)  # (B C, T)
    parts = query.map(lambda field: blanked(field.repeat_interleave(len(ends), dim=0), filled))
    longest = max(n_steps, regions.mask.shape[1])
    joined = [vars(padded(each, longest)) for each in (regions, parts)]
    every = Regions(**{name: torch.cat([each[name] for each in joined]) for name in REGION_FIELDS})
    return every, torch.cat([present, present.new_ones(len(filled))])


def beside_parts(
    shown: Latents, parts: Latents, place: Callable[[Tensor], Tensor], part_len: int, n_steps: int
) -> Latents:
    """Return latents of the past and of all parts, each part for the steps right after it.

    Args:
        shown: What the memory holds, (B, N, D).
        parts: Of each row's C parts, (B C, M, D).
        place: Gives a part's latents their positions.
        part_len: n.
        n_steps: T.

    Returns:
        (B, N + C M, D), with a mask (B, T, N + C M).
    """
    batch, n_latents = len(shown.values), parts.values.shape[1]
    size = (batch, len(parts.values) // batch * n_latents)
    values = torch.cat([shown.values, place(parts.values).reshape(*size, -1)], dim=1)
    chunk = torch.arange(n_steps, device=values.device) // part_len  # (T,)
    part = torch.arange(size[1], device=values.device) // n_latents + 1  # (C M,)
    own = (chunk[:, None] == part) & parts.shown.bool().reshape(size)[:, None]  # (B, T, C M)
    before = shown.shown.bool()[:, None].expand(-1, n_steps, -1)
    return Latents(values, torch.cat([before, own], dim=2))


def beside_part(
    shown: Latents, part: Latents | None, place: Callable[[Tensor], Tensor], n_latents: int
) -> Latents:
    """Return latents of the past and, where there is one, of a part: one shape in either case.

    Args:
        shown: What the memory holds, (n, N, D).
        part: (n, M, D), or None.
        place: Gives it its positions.
        n_latents: M.

    Returns:
        (n, N + M, D), with a mask (n, N + M).
    """
    if part is None:
        values = shown.values.new_zeros(len(shown.values), n_latents, shown.values.shape[2])
        there = values[..., 0].bool()
    else:
        values, there = place(part.values), part.shown.bool()
    mask = torch.cat([shown.shown.bool(), there], dim=1)
    return Latents(torch.cat([shown.values, values], dim=1), mask)
