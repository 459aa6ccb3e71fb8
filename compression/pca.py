"""PCA of whole regions, fitted on training regions: the linear compressor to m x D numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compression.compressor import Compressor, CompressorConfig, CompressorError
from compression.latents import Latents

RANK_TOLERANCE = 1e-6
"""Share of the first component's variance below which a component is taken for noise."""


class PCACompressor(Compressor):
    """Projects a region's flattened raw features onto m x D principal components.

    The projection is fixed; each slot holds other components, so each has a learned linear map
    D -> D of its own after it, by which the decoder reads it. `whiten` scales every component to
    variance 1; without it all are divided by the first one's standard deviation. Regions shorter
    than the region length count as padded with zeros.
    """

    tokens = "raw"
    settings: dict[str, Any] = {"whiten": True}  # noqa: RUF012

    def __init__(
        self,
        config: CompressorConfig,
        *,
        d_model: int,
        n_heads: int,
        region_len: int,
        n_features: int,
    ):
        super().__init__(config, d_model=d_model, n_heads=n_heads, region_len=region_len)
        width = region_len * n_features
        self.n_components = config.n_latents * d_model
        if self.n_components > width:
            raise CompressorError(
                f"pca to compressor.n_latents {config.n_latents} x model.d_model {d_model} numbers "
                f"needs at least as many raw features, but a region has {width}; lower "
                "compressor.n_latents."
            )
        self.mean: Tensor
        self.components: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("components", torch.zeros(self.n_components, width))
        self.read = nn.Parameter(torch.empty(config.n_latents, d_model, d_model))  # in, out
        self.bias = nn.Parameter(torch.zeros(config.n_latents, d_model))
        nn.init.uniform_(self.read, -(d_model**-0.5), d_model**-0.5)

    def fit(self, tokens: Tensor, mask: Tensor) -> None:
        """Fit the projection on raw features (N, T, F) of training regions, N >= m x D.

        Raises:
            CompressorError: If there are fewer regions than components.
        """
        flat = self._flat(tokens, mask).cpu().numpy()
        if len(flat) < self.n_components:
            raise CompressorError(
                f"pca needs at least {self.n_components} training regions, one per component, but "
                f"got {len(flat)}; collect more histories or lower compressor.n_latents."
            )
        from sklearn.decomposition import PCA  # late: it takes half a second

        pca: Any = PCA(self.n_components, svd_solver="randomized", random_state=0).fit(flat)
        # What never varied in training is left out: whitening would blow it up on new regions.
        variance = pca.explained_variance_
        varies = variance > RANK_TOLERANCE * variance[0]
        unit = variance if self.kwargs["whiten"] else variance[0]
        scale = np.where(varies, unit, np.inf) ** -0.5
        self.mean.copy_(torch.from_numpy(pca.mean_))
        self.components.copy_(torch.from_numpy(pca.components_ * scale[:, None]))

    def _flat(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Flatten (B, T, F) to (B, L * F), zero where there is no transition."""
        kept = tokens * mask[..., None]
        return F.pad(kept, (0, 0, 0, self.region_len - kept.shape[1])).flatten(1)

    def codes(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the principal components (B, M, D) of raw features (B, T, F)."""
        flat = self._flat(tokens, mask) - self.mean
        return (flat @ self.components.T).view(len(tokens), self.n_latents, self.d_model)

    def forward(self, tokens: Tensor, mask: Tensor) -> Latents:
        """Map raw features (B, T, F) to latents (B, M, D)."""
        read = torch.einsum("bmd,mde->bme", self.codes(tokens, mask), self.read)
        return Latents(read + self.bias)
