"""What bottlenecks by codes share: a projection to the code's width and back, and their use.

Shapes: B batch, M latents, D width of a latent, C width of a code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression.compressor import CompressorError

MOST_CODES = 65_536
"""Codes beyond which their use is not worth counting, and no batch could tell them apart."""


class CodeProjection(nn.Module):
    """Linear maps from D to C and from C back to D; the way back ends in a norm.

    The same for all latents, learned from the first update on.

    The norm gives latents of every bottleneck the scale of those that a compressor returns.

    Args:
        d_model: D.
        width: C.
        n_outputs: Numbers on the way down, C if not given.
    """

    def __init__(self, d_model: int, width: int, n_outputs: int | None = None) -> None:
        super().__init__()
        self.down = nn.Linear(d_model, n_outputs or width)
        self.up = nn.Sequential(nn.Linear(width, d_model), nn.LayerNorm(d_model))


class FittedProjection(nn.Module):
    """Affine maps of each latent's own from D to C and back, fitted on what a compressor holds.

    Down lead a latent's C first principal components over training regions, back least squares
    from what became of them. Both are learned on from there.

    Args:
        n_latents: M.
        d_model: D.
        width: C.

    Raises:
        CompressorError: C is more than D.
    """

    def __init__(self, n_latents: int, d_model: int, width: int) -> None:
        super().__init__()
        if width > d_model:
            raise CompressorError(
                f"compressor.bottleneck_kwargs.fitted is true, but a code of {width} numbers has "
                f"more than the {d_model} of a latent, which it is fitted to; take fewer, or raise "
                "model.d_model."
            )
        self.mean = nn.Parameter(torch.zeros(n_latents, d_model))
        self.to_code = nn.Parameter(torch.zeros(n_latents, d_model, width))
        self.from_code = nn.Parameter(torch.zeros(n_latents, width, d_model))
        self.offset = nn.Parameter(torch.zeros(n_latents, d_model))

    def down(self, values: Tensor) -> Tensor:
        """Map latents (B, M, D) to numbers (B, M, C)."""
        return torch.einsum("bmd,mdc->bmc", values - self.mean, self.to_code)

    def up(self, numbers: Tensor) -> Tensor:
        """Map numbers (B, M, C) to latents (B, M, D)."""
        return torch.einsum("bmc,mcd->bmd", numbers, self.from_code) + self.offset

    @torch.no_grad()
    def fit_down(self, values: Tensor) -> Tensor:
        """Fit the way down on latents (N, M, D); return the numbers' variances, (M, C)."""
        values = values.cpu().double()  # not every device has doubles
        mean = values.mean(0)
        centred = (values - mean).transpose(0, 1)  # (M, N, D)
        variances, axes = torch.linalg.eigh(centred.mT @ centred / len(values))  # ascending
        width = self.to_code.shape[-1]
        self.mean.copy_(mean)
        self.to_code.copy_(axes.flip(-1)[..., :width])
        return variances.flip(-1)[..., :width].clamp_min(0)

    @torch.no_grad()
    def fit_up(self, numbers: Tensor, values: Tensor) -> None:
        """Fit the way back from numbers (N, M, C), what `down` gives or made of it, to latents."""
        numbers, values = numbers.cpu().double(), values.cpu().double()
        centre, mean = numbers.mean(0), values.mean(0)
        x, y = (numbers - centre).transpose(0, 1), (values - mean).transpose(0, 1)
        slope = torch.linalg.pinv(x.mT @ x, hermitian=True) @ (x.mT @ y)  # (M, C, D)
        self.from_code.copy_(slope)
        self.offset.copy_(mean - torch.einsum("mc,mcd->md", centre, slope))


def code_use(indices: Tensor, n_codes: int, shown: Tensor | None = None) -> dict[str, Tensor]:
    """Return how evenly a batch uses a codebook.

    Args:
        indices: Codes chosen, of any shape.
        n_codes: Size of the codebook.
        shown: Which of them count, of a shape that fits theirs; None for all.

    Returns:
        `codebook_perplexity`, exp(entropy) of the shares, 1 ... n_codes; `codebook_use`, the share
        of codes chosen at all. A batch of few codes bounds both.
    """
    every = torch.ones_like(indices, dtype=torch.float)
    weights = every if shown is None else every * shown
    none = every.new_zeros(n_codes)
    counts = none.scatter_add(0, indices.flatten().long(), weights.flatten())
    shares = counts / counts.sum().clamp_min(1)
    return {
        "codebook_perplexity": torch.special.entr(shares).sum().exp(),
        "codebook_use": (counts > 0).float().mean(),
    }


def check_counts(**counts: int) -> None:
    """Refuse settings below 1.

    Raises:
        CompressorError: One is.
    """
    for name, value in counts.items():
        if value < 1:
            key = f"compressor.bottleneck_kwargs.{name}"
            raise CompressorError(f"{key} is {value}, expected at least 1; change {key}.")


def check_n_codes(n_codes: int, key: str) -> None:
    """Refuse fewer codes than 2 and more than `MOST_CODES`.

    Raises:
        CompressorError: There are.
    """
    if not 2 <= n_codes <= MOST_CODES:
        raise CompressorError(
            f"compressor.bottleneck_kwargs.{key}: {n_codes} codes, expected 2 ... {MOST_CODES}; "
            "for more bits take several codes a latent (n_groups, n_heads)."
        )


def store_every_buffer(module: nn.Module) -> None:
    """Make buffers that a library leaves out of its state dict part of it.

    `from_pretrained` builds a model without memory and fills what was stored; buffers that were not
    would hold whatever lay there.
    """
    for part in module.modules():
        for name in tuple(part._non_persistent_buffers_set):
            part.register_buffer(name, part.get_buffer(name))
