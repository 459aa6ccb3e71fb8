"""What a training step costs in memory, counted rather than read off a noisy machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def training_bytes(objective: nn.Module, batch: Any) -> int:
    """Bytes a training step holds at its peak: weights, gradients, AdamW state, saved activations.

    Activations are what autograd keeps for the backward pass of `objective(batch)`, each storage
    counted once. The same count on any device; temporary buffers of single operations are left out.
    """
    storages: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in objective.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # The graph must stay alive while it is counted: freed storages would be reused.
        loss, _ = objective(batch)
    activations = sum(storages.values())
    del loss
    weights = sum(p.numel() * p.element_size() for p in objective.parameters())
    trained = sum(p.numel() * p.element_size() for p in objective.parameters() if p.requires_grad)
    return weights + 3 * trained + activations
