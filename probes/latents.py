"""Facts of a set of latents that need no probe: their rank, their likeness, what they attend to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ad.student import CADStudent
from nets.regions import Regions

LEAST = 1e-12


@torch.inference_mode()
def chunked(function: Callable[[Regions], Tensor], regions: Regions) -> np.ndarray:
    """Apply a function of regions chunk by chunk, and join what it returns on its first axis."""
    return np.concatenate([function(part).float().cpu().numpy() for part in regions.chunks()])


def latents_of(student: CADStudent, regions: Regions) -> np.ndarray:
    """Return the latents (N, M, D) of regions."""
    return chunked(lambda part: student.compress(part).values, regions)


def effective_rank(rows: np.ndarray) -> float:
    """Return the effective rank of centred rows (N, F): exp of the entropy of singular values.

    Roy and Vetterli, The effective rank (EUSIPCO 2007), eq. 3: the singular values are divided by
    their sum. Between 1 and min(N - 1, F); 0 where all rows are equal.
    """
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    if values[0] <= LEAST * max(1.0, float(np.abs(rows).max())):
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > LEAST]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def cosines(latents: np.ndarray, *, centred: bool) -> np.ndarray:
    """Return the mean cosine (M, M) between the latents of one region, over regions (N, M, D).

    Args:
        latents: Of N regions.
        centred: Take each latent's mean over regions away first: what is left is what they say of
            the region.
    """
    z = latents - latents.mean(0) if centred else latents
    z = z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), LEAST)
    return np.einsum("nid,njd->ij", z, z) / len(z)


def pooling_attention(student: CADStudent, regions: Regions) -> np.ndarray | None:
    """Return what each latent attends to (N, M, L), heads and pooling layers averaged.

    None where the compressor has no `attention`, or where its tokens are no transitions.
    """
    if student.config.student_parts.compressor.tokenisation != "transition":
        return None
    attention = getattr(student.compressor, "attention", None)
    if attention is None:
        return None

    def weights(part: Regions) -> Tensor:
        return attention(*student.compressor_tokens(part)).mean((1, 2))

    return chunked(weights, regions)


def attention_on_rewards(attention: np.ndarray, rewards: np.ndarray) -> dict[str, float] | None:
    """Return how much attention falls on rewarded steps, and how many of the steps they are.

    Args:
        attention: (N, M, L).
        rewards: (N, L); regions without any reward are left out.
    """
    paid = rewards != 0
    some = paid.any(1)
    if not some.any():
        return None
    on_paid = (attention[some] * paid[some][:, None]).sum(-1)  # (N, M)
    return {
        "attention_share": float(on_paid.mean()),
        "strongest_latent_share": float(on_paid.mean(0).max()),
        "step_share": float(paid[some].mean()),
    }


def example_region(rewards: np.ndarray) -> int:
    """Return the region (of (N, L) rewards) with a typical number of rewarded steps."""
    counts = (rewards != 0).sum(1)
    if not counts.any():
        return 0
    return int(np.abs(counts - np.median(counts[counts > 0])).argmin())
