"""Vector quantisation: each latent becomes the nearest entries of a learned codebook."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from compression.bottleneck import Bottleneck
from compression.codes import (
    CodeProjection,
    FittedProjection,
    check_counts,
    check_n_codes,
    code_use,
    store_every_buffer,
)
from compression.compressor import CompressorError
from compression.latents import Latents

ROWS = 32
"""Of an update, that a fitted codebook's averages begin as."""


class Codebook(Bottleneck):
    """A latent becomes `n_heads` codes of `width` numbers from one codebook (van den Oord 2017).

    The codebook begins as k-means of the first batch and follows the latents by an exponential
    moving average (`decay`). A code chosen less often than `dead_below` times an update, on the
    same average, is replaced by a latent of the batch. Loss `commitment`: the mean squared distance
    of latents from their codes. `bits` = M · n_heads · log2 `codebook_size`. Always in fp32.

    With `n_blocks` G above 0 the M latents are coded together, G runs of M / G side by side, each
    by one word of M / G · `width` numbers from a codebook of its own: a word then spends its bits
    on many items at once, as the codes behind Shannon's bound do. `bits` = G · log2
    `codebook_size`. With `fitted` the codebook is k-means of what a compressor holds that was
    trained without a bottleneck, each latent at its `width` first principal components.
    """

    keeps_address = False
    settings: dict[str, Any] = {  # noqa: RUF012
        "codebook_size": 512,
        "width": 16,
        "n_heads": 1,
        "decay": 0.99,
        "dead_below": 0.05,
        "n_blocks": 0,
        "fitted": False,
    }

    def __init__(self, kwargs: dict[str, Any], *, n_latents: int, d_model: int) -> None:
        super().__init__(kwargs, n_latents=n_latents, d_model=d_model)
        self.n_heads, self.n_codes = self.kwargs["n_heads"], self.kwargs["codebook_size"]
        width, decay = self.kwargs["width"], self.kwargs["decay"]
        self.n_blocks = self.kwargs["n_blocks"]
        check_counts(width=width, n_heads=self.n_heads)
        check_n_codes(self.n_codes, "codebook_size")
        if not 0 < decay < 1:
            raise CompressorError(
                f"compressor.bottleneck_kwargs.decay is {decay}, expected more than 0 and less "
                "than 1; change compressor.bottleneck_kwargs.decay."
            )
        if self.n_blocks and (self.n_blocks < 0 or n_latents % self.n_blocks or self.n_heads > 1):
            raise CompressorError(
                f"compressor.bottleneck_kwargs.n_blocks is {self.n_blocks} with n_heads "
                f"{self.n_heads}, expected a divisor of the {n_latents} latents and one head; "
                "change compressor.bottleneck_kwargs."
            )
        blocks = max(self.n_blocks, 1)
        size = n_latents // blocks * width if self.n_blocks else width
        self.joint = self.n_blocks > 0
        self.code: CodeProjection | FittedProjection = (
            FittedProjection(n_latents, d_model, self.n_heads * width)
            if self.kwargs["fitted"]
            else CodeProjection(d_model, self.n_heads * width)
        )
        self.quantize = VectorQuantize(
            blocks * size,
            self.n_codes,
            codebook_dim=size,
            heads=blocks,
            separate_codebook_per_head=blocks > 1,
            decay=decay,
            kmeans_init=True,
            threshold_ema_dead_code=self.kwargs["dead_below"],
            commitment_weight=0.0,  # computed here, training or not
        )
        store_every_buffer(self.quantize)

    def fit(self, latents: Latents) -> None:
        """Make the codebook of k-means of a compressor's latents (N, M, D), with `fitted`.

        Raises:
            CompressorError: There are fewer latents than codes.
        """
        if not isinstance(self.code, FittedProjection):
            return
        from sklearn.cluster import MiniBatchKMeans  # late: it takes half a second

        values = latents.values.float()
        self.code.fit_down(values)
        down = self.code.down(values)
        words, _ = self._words(down, latents)
        blocks = words.flatten(0, 1).chunk(max(self.n_blocks, 1), dim=-1)  # each (N, C)
        if len(blocks[0]) < self.n_codes:
            raise CompressorError(
                f"compressor.bottleneck_kwargs.codebook_size is {self.n_codes}, but training has "
                f"{len(blocks[0])} words to fit it on; take fewer codes or more histories."
            )
        codebook: Any = self.quantize._codebook
        for i, block in enumerate(blocks):
            settings: Any = {"n_init": 3, "batch_size": 4096, "random_state": 0}
            means: Any = MiniBatchKMeans(self.n_codes, **settings)
            found = means.fit(block.detach().cpu().numpy())
            counts = np.bincount(found.labels_, minlength=self.n_codes) / len(block)
            size = torch.from_numpy(np.maximum(counts, 1e-6)).to(codebook.cluster_size) * ROWS
            codebook.embed[i] = torch.from_numpy(found.cluster_centers_).to(codebook.embed)
            codebook.cluster_size[i] = size
            codebook.embed_avg[i] = codebook.embed[i] * size[:, None]
        codebook.initted.fill_(1)
        was_training = self.quantize.training
        coded = self.quantize.eval()(words)[0]  # the codebook stays as it is
        self.quantize.train(was_training)
        self.code.fit_up(coded.reshape(down.shape), values)

    def forward(self, latents: Latents) -> Latents:
        """Replace the latents by codes; in training the codebook follows."""
        with torch.autocast(latents.values.device.type, enabled=False):
            down = self.code.down(latents.values.float())  # (B, M, H x C)
            each, mask = self._words(down, latents)
            code, indices, _ = self.quantize(each, mask=mask)
            errors = (each - code.detach()).square().mean(-1)
            commitment = errors.mean() if mask is None else errors[mask].mean()
        n_codes = self.n_blocks or latents.n_shown * self.n_heads
        return latents.replaced(
            self.code.up(code.reshape(down.shape).to(latents.values)),
            losses={"commitment": commitment},
            metrics=code_use(indices if mask is None else indices[mask], self.n_codes),
            bits=n_codes * math.log2(self.n_codes),
            codes=indices.reshape(len(down), -1, self.n_blocks or self.n_heads).long(),
        )

    def decoded(self, codes: Tensor) -> Tensor:
        """Return the latents (B, M, D) of codes (B, M, H), or of G words of all, (B, 1, G)."""
        codebook = self.quantize.codebook  # (C, numbers), or (G, C, numbers)
        if self.n_blocks > 1:
            words = torch.arange(self.n_blocks, device=codes.device)
            entries = codebook[words, codes]  # (B, 1, G, numbers)
        else:
            entries = codebook[codes]
        values = entries.reshape(len(codes), -1, self.n_heads * self.kwargs["width"])
        return self.code.up(values.to(next(self.code.parameters())))

    def _words(self, down: Tensor, latents: Latents) -> tuple[Tensor, Tensor | None]:
        """Return what is coded, (B, words, numbers), and the mask (B, words) of what is shown."""
        if not self.n_blocks:
            mask = latents.mask
            mask = None if mask is None else mask.repeat_interleave(self.n_heads, dim=1)
            return down.unflatten(-1, (self.n_heads, -1)).flatten(1, 2), mask
        shown = None if latents.mask is None else latents.mask.any(1, keepdim=True)
        return down.flatten(1)[:, None], shown
