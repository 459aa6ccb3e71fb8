"""Matched initial weights: from the first update on, attention finds what is equal.

With independent weights a query says nothing of the keys it will once have to find, and recall of
many items, which needs encoder, latents and decoder to agree on an address, stays a plateau for
hundreds of updates. Here queries and keys begin as one projection (mimetic initialisation, Trockman
& Kolter 2023, arXiv 2305.09828), and equal fields have equal encodings in both tokenisations: an
observation attends to those who hold it before anything is learned. Nothing stays tied.
"""

from __future__ import annotations

from torch import nn

from nets.embeddings import StepEncoder


def match(module: nn.Module) -> None:
    """Call `match()` of every part that has one; weights are drawn from torch's generator.

    A part of a user's own offers `match()` where it can begin so, as `nets.attention` does.
    """
    for part in module.modules():
        if callable(getattr(part, "match", None)):
            part.match()  # pyright: ignore[reportCallIssue]


def match_tokens(steps: StepEncoder, transitions: nn.Module) -> None:
    """Let step tokens begin with the observation and action encodings of transition tokens."""
    for name in ("observation", "action") if steps.sees == "region" else ("observation",):
        getattr(steps, name).load_state_dict(getattr(transitions, name).state_dict())
    steps.match()
