"""Strided attention: an encoder, then layers whose queries are fewer than their keys."""

from __future__ import annotations

from torch import Tensor, nn

from compression.compressor import Compressor, CompressorConfig
from compression.latents import Latents
from compression.query_pooling import Encoder
from compression.windows import to_windows
from nets.transformer import Block


class Strided(Compressor):
    """The encoder's hidden states, thinned from L to m in `n_pooling_layers` steps.

    A step cuts the states into windows; the first state of each attends to its whole window and
    goes on alone. The counts between L and m fall by an equal factor. With `causal` a latent knows
    nothing that lies behind its own window.
    """

    learns = True

    def __init__(self, config: CompressorConfig, *, d_model: int, n_heads: int, region_len: int):
        super().__init__(config, d_model=d_model, n_heads=n_heads, region_len=region_len)
        self.encoder = Encoder(config, d_model, n_heads, region_len)
        n_steps = config.n_pooling_layers
        ratio = (config.n_latents / region_len) ** (1 / n_steps)
        between = [round(region_len * ratio**i) for i in range(1, n_steps)]
        self.lengths = [region_len, *between, config.n_latents]
        self.steps = nn.ModuleList(
            Block(
                d_model,
                n_heads,
                dropout=config.dropout,
                self_attention=False,
                cross_attention=True,
            )
            for _ in range(n_steps)
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(self, tokens: Tensor, mask: Tensor) -> Latents:
        """Map tokens (B, T, D) to latents (B, M, D)."""
        x = self.encoder(tokens, mask)
        for i, step in enumerate(self.steps):
            x, mask = self._thin(step, x, mask, self.lengths[i], self.lengths[i + 1])
        return Latents(self.norm(x))

    @staticmethod
    def _thin(
        step: nn.Module, x: Tensor, mask: Tensor, before: int, after: int
    ) -> tuple[Tensor, Tensor]:
        """Return `after` of `before` states (B, N, D), and which of them stand for any token."""
        windows, held = to_windows(x, mask, before, after)  # (B, M, P, D)
        flat, places = windows.flatten(0, 1), held.flatten(0, 1)
        filled = places[:, :1]  # padding trails: a window whose first place is empty has none
        keys = step.cross.project(flat)  # pyright: ignore
        # An empty window attends to its zeros: over no keys at all softmax is undefined.
        thinned = step(flat[:, :1], memory=keys, memory_mask=places | ~filled)
        return thinned.view(*windows.shape[:2], -1), filled.view(windows.shape[:2])
