"""Action distributions as parameter tensors: categorical for classes, Gaussian for vectors.

Parameters travel as one tensor (B, T, P), so that teacher and student outputs, caches and losses
need no distribution objects. P = sum of classes, or 2 x dimensions (means, then log standard
deviations). Squashed, an action is low + (high - low) (1 + tanh u) / 2 of a Gaussian u.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nets.spaces import FieldSpec, SpaceError

LOG_STD_RANGE = (-5.0, 2.0)
MARGIN = 1e-3
"""How far inside -1 ... 1 squashed targets stay: some lie on the bounds, where u has no end."""


class ActionDistribution:
    """Losses, divergence and sampling for one action field.

    Args:
        spec: The action field, `classes` or `vector`.
        squash: Whether numbers are squashed to their bounds; classes are not concerned.

    Raises:
        SpaceError: For image actions and actions of parts, and where bounds are missing.
    """

    def __init__(self, spec: FieldSpec, *, squash: bool = False) -> None:
        if spec.kind in ("image", "parts"):
            raise SpaceError(
                f"an action of shape {spec.shape} cannot be predicted: expected Discrete, "
                "MultiDiscrete or a Box of one dimension; flatten the action space."
            )
        self.squash = squash and spec.kind == "vector"
        if self.squash and not spec.low:
            raise SpaceError(
                "model.squash_actions is true, but the action space has no finite bounds to squash "
                "to; set it to false, or bound the space."
            )
        self.spec = spec
        self.n_parameters = (
            sum(spec.n_classes) if spec.kind == "classes" else 2 * int(spec.shape[0])
        )

    def _axes(self, parameters: Tensor) -> list[Tensor]:
        return list(parameters.split(self.spec.n_classes, dim=-1))

    def _indices(self, actions: Tensor) -> Tensor:
        return self.spec.indices(actions)

    @staticmethod
    def _gaussian(parameters: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = parameters.float().chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return middle and half width of the action space."""
        low, high = (torch.tensor(bound).to(like) for bound in (self.spec.low, self.spec.high))
        return (low + high) / 2, (high - low) / 2

    def _squashed(self, u: Tensor) -> Tensor:
        middle, half = self._bounds(u)
        return middle + half * u.tanh()

    def nll(self, parameters: Tensor, actions: Tensor, smoothing: float = 0.0) -> Tensor:
        """Negative log-likelihood (B, T) in nats of `actions` (B, T, ...), with label smoothing."""
        if self.spec.kind == "classes":
            indices = self._indices(actions)
            total = torch.zeros(())
            for i, logits in enumerate(self._axes(parameters)):
                loss = F.cross_entropy(
                    logits.float().flatten(0, 1),
                    indices[..., i].flatten(),
                    reduction="none",
                    label_smoothing=smoothing,
                )
                total = total.to(loss) + loss
            return total.view(actions.shape[:2])
        mean, log_std = self._gaussian(parameters)
        values, stretch = actions.float(), torch.zeros_like(mean)
        if self.squash:
            middle, half = self._bounds(values)
            inside = ((values - middle) / half).clamp(MARGIN - 1, 1 - MARGIN)
            values = inside.atanh()
            stretch = half.log() + torch.log1p(-inside.square())  # log |da / du|
        z = (values - mean) * torch.exp(-log_std)
        # 0.5 * log(2 pi)
        return (0.5 * z.square() + log_std + 0.9189385332046727 + stretch).sum(-1)

    def kl(self, target: Tensor, parameters: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(target || ours) (B, T) in nats, both softened by `temperature` (categorical only).

        Squashing both alike changes no divergence: that of the Gaussians is exact.
        """
        if self.spec.kind == "classes":
            total = torch.zeros(())
            for p, q in zip(self._axes(target), self._axes(parameters), strict=True):
                log_p = F.log_softmax(p.float() / temperature, dim=-1)
                log_q = F.log_softmax(q.float() / temperature, dim=-1)
                total = total.to(log_q) + (log_p.exp() * (log_p - log_q)).sum(-1)
            return total
        mean_p, log_p = self._gaussian(target)
        mean_q, log_q = self._gaussian(parameters)
        ratio = torch.exp(2 * (log_p - log_q))
        shift = (mean_p - mean_q).square() * torch.exp(-2 * log_q)
        return (log_q - log_p + 0.5 * (ratio + shift - 1)).sum(-1)

    def cooled(self, parameters: Tensor, temperature: float) -> Tensor:
        """Parameters (..., P) of the distribution that `sample` draws from at a temperature > 0."""
        if self.spec.kind == "classes":
            return parameters / temperature
        mean, log_std = self._gaussian(parameters)
        return torch.cat([mean, log_std + math.log(temperature)], dim=-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Entropy (...) in nats, differential where actions are vectors, before any squashing."""
        if self.spec.kind == "classes":
            total = torch.zeros(())
            for logits in self._axes(parameters):
                log_p = F.log_softmax(logits.float(), dim=-1)
                total = total.to(log_p) - (log_p.exp() * log_p).sum(-1)
            return total
        return (self._gaussian(parameters)[1] + 1.4189385332046727).sum(-1)  # 0.5 log(2 pi e)

    def mode(self, parameters: Tensor) -> Tensor:
        """Most likely action, (..., *shape) from parameters (..., P); the median where squashed."""
        if self.spec.kind == "classes":
            best = torch.stack([axis.argmax(-1) for axis in self._axes(parameters)], dim=-1)
            return self.spec.classes(best)
        mean = self._gaussian(parameters)[0]
        return self._squashed(mean) if self.squash else mean

    def sample(
        self, parameters: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw actions (..., *shape) from parameters (..., P) at a temperature."""
        if self.spec.kind != "classes":
            mean, log_std = self._gaussian(parameters)
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            drawn = mean + temperature * log_std.exp() * noise
            return self._squashed(drawn) if self.squash else drawn
        drawn = []
        for axis in self._axes(parameters):
            uniform = torch.rand(axis.shape, generator=generator, device=axis.device)
            gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1.0 - 1e-7)))
            drawn.append((axis.float() / temperature + gumbel).argmax(-1))
        return self.spec.classes(torch.stack(drawn, dim=-1))
