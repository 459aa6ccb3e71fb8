"""Recall of many items: regions of (key, value) pairs, and the value of every key asked for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compression.compressor import CompressorConfig, build_compressor
from nets.transformer import Transformer

WIDTH, HEADS = 32, 4
N_ITEMS, N_VALUES, N_LATENTS = 12, 4, 4
CHANCE = 1 / N_VALUES


class Recall(nn.Module):
    """Items to latents by a compressor; each key attends to them and names its value."""

    def __init__(self, kind, **settings):
        super().__init__()
        config = CompressorConfig(kind=kind, n_latents=N_LATENTS, **{"n_layers": 0, **settings})
        sizes = {"d_model": WIDTH, "n_heads": HEADS, "region_len": N_ITEMS}
        self.compressor = build_compressor(config, **sizes)
        self.items = nn.Embedding(N_ITEMS * N_VALUES, WIDTH)
        self.asked = nn.Embedding(N_ITEMS, WIDTH)
        self.reader = Transformer(WIDTH, HEADS, 1, self_attention=False, cross_attention=True)
        self.head = nn.Linear(WIDTH, N_VALUES)

    def forward(self, order, values):
        tokens = self.items(order * N_VALUES + values.gather(1, order))
        mask = torch.ones_like(order, dtype=torch.bool)
        memory = self.reader.project_memory(self.compressor(tokens, mask).values)
        return self.head(self.reader(self.asked.weight.expand(len(order), -1, -1), memory=memory))


def accuracy_after(updates, kind, batch=64, **settings):
    """Share of values recalled from regions never seen before, over the last updates."""
    torch.manual_seed(0)
    model = Recall(kind, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=updates)
    right = []
    for _ in range(updates):
        order = torch.rand(batch, N_ITEMS).argsort(1)  # every key once, anywhere
        values = torch.randint(N_VALUES, (batch, N_ITEMS))  # by key
        logits = model(order, values)
        loss = F.cross_entropy(logits.flatten(0, 1), values.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        right.append((logits.argmax(-1) == values).float().mean().item())
    return np.mean(right[-10:])


@pytest.mark.parametrize(
    ("kind", "updates", "at_least"), [("key_slots", 150, 0.9), ("patches", 250, 0.7)]
)
def test_latents_hold_many_items(kind, updates, at_least):
    """Twelve items of two bits in four latents: one item a latent would give 0.5."""
    assert accuracy_after(updates, kind) > at_least


def test_without_a_region_nothing_is_recalled():
    assert accuracy_after(40, "none") < CHANCE + 0.1
