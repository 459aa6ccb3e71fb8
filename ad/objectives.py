"""Training objectives, each computed inside one module's `forward` so that gradients synchronise.

`PretrainObjective` is L_pre = L_rec + λ_cap · R(Z); `ActionObjective` is
L_AD = α · ℓ_task + β · τ² · KL(p_T || p_A) and, with γ > 0, L_joint = L_AD + γ · L_rec. The teacher
enters as any module that maps the raw context to action parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from ad.student import CADStudent
from base.ranges import Above, AtLeast, Between
from nets.embeddings import Regions


@dataclass
class Triple:
    """A batch of (X, q, Y): previous regions, whether there are any, and current regions.

    Attributes:
        context: The R previous regions per row, nearest last: fields (B, R, L, ...).
        has_context: (B, R) bool.
        query: Current regions: fields (B, L, ...); their actions are the targets Y.
    """

    context: Regions
    has_context: Tensor
    query: Regions

    def to(self, device: torch.device | str) -> Triple:
        """Return the batch on a device."""
        return Triple(self.context.to(device), self.has_context.to(device), self.query.to(device))

    @property
    def previous(self) -> Regions:
        """The nearest previous region of every row: fields (B, L, ...)."""
        return self.context.map(lambda field: field[:, -1])

    @property
    def has_previous(self) -> Tensor:
        """(B,) bool, whether there is one."""
        return self.has_context[:, -1]


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses.

    Attributes:
        alpha: α, weight of cross-entropy on the recorded action.
        beta: β, weight of the divergence from the teacher; 0 needs no teacher.
        tau: τ, softening temperature of the divergence.
        gamma: γ, weight of reconstruction.
        lambda_cap: λ_cap, weight of the capacity term R(Z), here the mean square of the latents.
        label_smoothing: Of the cross-entropy.
    """

    alpha: Annotated[float, AtLeast(0)] = 1.0
    beta: Annotated[float, AtLeast(0)] = 0.0
    tau: Annotated[float, Above(0)] = 1.0
    gamma: Annotated[float, AtLeast(0)] = 0.0
    lambda_cap: Annotated[float, AtLeast(0)] = 0.0
    label_smoothing: Annotated[float, Between(0, 1, high_open=True)] = 0.0


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, T) values over a (B, T) mask."""
    return (values * mask).sum() / mask.sum().clamp_min(1)


class PretrainObjective(nn.Module):
    """L_pre: reconstruct the raw region from its latents."""

    def __init__(self, student: CADStudent, lambda_cap: float = 0.0) -> None:
        super().__init__()
        self.student = student
        self.lambda_cap = lambda_cap

    def forward(self, batch: Triple) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and metrics (detached scalars) of the current regions of a batch."""
        latents = self.student.compress(batch.query)
        reconstruction, metrics = self.student.reconstruction.loss(latents, batch.query)
        capacity = latents.square().mean()
        loss = reconstruction + self.lambda_cap * capacity
        metrics |= {"rec_loss": reconstruction, "capacity": capacity, "loss": loss}
        return loss, {name: value.detach() for name, value in metrics.items()}


class ActionObjective(nn.Module):
    """L_AD and L_joint of a student (or any module with the same call).

    Args:
        student: The module trained.
        loss: Weights.
        teacher: Maps a `Triple` to action parameters (B, L, P); needed if beta > 0. It is not a
            submodule: it is neither trained nor saved nor synchronised.
        freeze_compressor: Whether Cθ gets no gradient.

    Raises:
        ValueError: If beta > 0 and there is no teacher.
    """

    def __init__(
        self,
        student: CADStudent,
        loss: LossConfig,
        teacher: nn.Module | None = None,
        *,
        freeze_compressor: bool = False,
    ) -> None:
        super().__init__()
        if loss.beta > 0 and teacher is None:
            raise ValueError(f"beta is {loss.beta}, which needs a teacher, but there is none")
        self.student = student
        self.config = loss
        self._teacher = [teacher]  # a list hides it from nn.Module
        self.frozen = student.compressor_parameters() if freeze_compressor else []
        for parameter in self.frozen:
            parameter.requires_grad_(False)

    def forward(self, batch: Triple) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and metrics (detached scalars) of a batch."""
        config, actions, query = self.config, self.student.actions, batch.query
        parameters, latents = self.student(batch.previous, batch.has_previous, query)
        nll = masked_mean(
            actions.nll(parameters, query.actions, config.label_smoothing), query.mask
        )
        loss = config.alpha * nll
        metrics = {"action_nll": nll.detach()}
        teacher = self._teacher[0]
        if teacher is not None and config.beta > 0:
            with torch.no_grad():
                target = teacher(batch)
            kl = masked_mean(actions.kl(target, parameters, config.tau), query.mask)
            loss = loss + config.beta * config.tau**2 * kl
            metrics["teacher_kl"] = kl.detach()
        if config.gamma > 0:
            seen = batch.previous.map(lambda field: field)
            seen.mask = seen.mask & batch.has_previous[:, None]
            reconstruction, fields = self.student.reconstruction.loss(latents, seen)
            loss = loss + config.gamma * reconstruction
            metrics |= {"rec_loss": reconstruction.detach(), **fields}
        if config.lambda_cap > 0:
            loss = loss + config.lambda_cap * latents.square().mean()
        metrics["loss"] = loss.detach()
        return loss, metrics
