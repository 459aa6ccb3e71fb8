"""Attention reconstruction: latents are to be to the decoder's attention what the raw region is.

After the Compressive Transformer (Rae et al. 2020, arXiv 1911.05507, section 3.2): the queries, and
the weights of the attention, are held still, so that the compressor alone learns from it. Shapes: B
batch, T steps, L region length, M latents, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ad.decoder import Decoder
from ad.student import CADStudent
from compression.latents import Latents
from nets.attention import CrossAttention
from nets.regions import Regions


class CrossInputs:
    """While open, records what asks each block's cross-attention.

    Args:
        decoder: Whose blocks.
        record: Whether to record at all.

    Attributes:
        inputs: (B, T, D) of every block, of the last forward pass.
    """

    def __init__(self, decoder: Decoder, *, record: bool = True) -> None:
        self.layers = cross_attentions(decoder) if record else []
        self.inputs: list[Tensor] = []

    def __enter__(self) -> CrossInputs:
        def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.inputs.append(args[0].detach())

        self.handles = [layer.register_forward_pre_hook(keep) for layer in self.layers]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def cross_attentions(decoder: Decoder) -> list[CrossAttention]:
    """Return the cross-attention of every block."""
    return [block.cross for block in decoder.layers.blocks]  # pyright: ignore


def attention_loss(
    student: CADStudent, latents: Latents, region: Regions, asked: Sequence[Tensor]
) -> Tensor:
    """Return the squared distance of the two outputs of attention, mean over blocks.

    In units of the raw output's variance over the batch: a constant costs at least 1. Gradients go
    to `latents` alone. Rows whose region is absent do not count.

    Args:
        student: Whose decoder attends, and whose encoder makes tokens of the raw region.
        latents: (B, M, D) of the regions.
        region: Those they came from, (B, L, ...); the mask is empty where there is none.
        asked: (B, T, D) of every block, the inputs of its attention.
    """
    rows = region.mask.any(1)
    if not rows.any():
        return latents.values.sum() * 0
    region = region.map(lambda field: field[rows])
    with torch.no_grad():
        raw, there = student.transition_encoder.read(student.scaling.regions(region))  # (B, N, D)
    shown = None if latents.mask is None else latents.mask[rows]
    total = latents.values.new_zeros(())
    layers = cross_attentions(student.decoder)
    for layer, x in zip(layers, asked, strict=True):
        ours = _attend(layer, x[rows], latents.values[rows], shown)
        with torch.no_grad():
            theirs = _attend(layer, x[rows], raw, there)
            spread = theirs.var((0, 1), unbiased=False).mean().clamp_min(1e-8)
        total = total + (ours - theirs).square().mean() / spread
    return total / len(layers)


def _attend(layer: CrossAttention, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
    """Attend from x (B, T, D) to a memory (B, N, D); the weights get no gradient."""
    still = {name: weight.detach() for name, weight in layer.named_parameters()}
    return functional_call(
        _Attending(layer), {f"layer.{k}": w for k, w in still.items()}, (x, memory, mask)
    )


class _Attending(nn.Module):
    """Projection and attention as one forward, for `functional_call`."""

    def __init__(self, layer: CrossAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        return self.layer(x, self.layer.project(memory), mask)
