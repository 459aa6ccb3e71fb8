"""Losses and their weights, of which `ad.objectives` is made. Shapes: B rows, T steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor

from base.errors import UserError
from base.ranges import Above, AtLeast, Between
from nets.actions import ActionDistribution


class ObjectiveError(UserError):
    """A loss that cannot be computed in this family."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses.

    Attributes:
        alpha: α, weight of cross-entropy on the recorded action.
        beta: β, weight of the divergence from the target; 0 needs none.
        target: Whose distribution that is: the `teacher`'s; `bayes`, how posterior sampling acts
            given the whole history, without noise (prior and noise of the histories: section
            `posterior`); `optimal`, the expert of the task, which the family must have;
            `monte_carlo`, the best actions of the task as simulator rollouts show it; `self`, what
            the student's own weights do when they are shown the raw regions, which is learned from
            recorded actions beside it.
        tau: τ, softening temperature of the divergence.
        kl: Direction of the divergence: `forward`, KL(teacher || student), which covers all that
            the teacher does; `reverse`, KL(student || teacher), which keeps to what it does most;
            `both`, their mean.
        queries: Where the divergence is taken: at the `visited` steps of the current region, or at
            `all` observations there are, which must be classes; student and teacher must then see
            steps alone.
        gamma: γ, weight of reconstruction.
        gamma_final: γ at the last update, approached linearly; null for no change.
        attention: Weight of attention reconstruction: what the decoder's attention makes of the
            latents is to be what it makes of the raw region.
        lambda_cap: λ_cap, weight of the capacity term R(Z), which a bottleneck with a limited
            capacity returns (`compressor.bottleneck`).
        returns: Weight of the squared error of a head that reads the return to go from the
            decoder's hidden states, in variances of it.
        discount: Of the rewards in that return, per step; it ends with the episode or the region.
        ahead: Weight of heads that decode rewards and next observations from the decoder's hidden
            states, given the actions, step after step.
        n_ahead: Steps that these decode.
        label_smoothing: Of the cross-entropy.
        nll_power: q of the generalised cross-entropy (1 - p^q) / q of the recorded action (Zhang
            & Sabuncu 2018, eq. 6) that stands in the place of -log p: the nearer to 1, the more
            right actions count and the less how improbable others were; 0 for -log p itself.
        weights: Of the compressor's own auxiliary losses by name; 1 where not named.
    """

    alpha: Annotated[float, AtLeast(0)] = 1.0
    beta: Annotated[float, AtLeast(0)] = 0.0
    target: Literal["teacher", "bayes", "optimal", "monte_carlo", "self"] = "teacher"
    tau: Annotated[float, Above(0)] = 1.0
    kl: Literal["forward", "reverse", "both"] = "forward"
    queries: Literal["visited", "all"] = "visited"
    gamma: Annotated[float, AtLeast(0)] = 0.0
    gamma_final: Annotated[float, AtLeast(0)] | None = None
    attention: Annotated[float, AtLeast(0)] = 0.0
    lambda_cap: Annotated[float, AtLeast(0)] = 0.0
    returns: Annotated[float, AtLeast(0)] = 0.0
    discount: Annotated[float, Between(0, 1)] = 1.0
    ahead: Annotated[float, AtLeast(0)] = 0.0
    n_ahead: Annotated[int, Between(1, 100)] = 3
    label_smoothing: Annotated[float, Between(0, 1, high_open=True)] = 0.0
    nll_power: Annotated[float, Between(0, 1)] = 0.0
    weights: dict[str, Annotated[float, AtLeast(0)]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse weights that leave nothing to learn from."""
        if self.alpha == self.beta == 0:
            raise ValueError(
                "alpha and beta are both 0, expected one above 0: nothing would teach the decoder"
            )
        for name, value, default in (
            ("kl", self.kl, "forward"),
            ("queries", self.queries, "visited"),
            ("target", self.target, "teacher"),
        ):
            if self.beta == 0 and value != default:
                raise ValueError(
                    f"{name} is {value}, but beta is 0: there is no divergence to take; raise beta "
                    f"above 0, or leave {name} at {default}"
                )
        if self.nll_power > 0 and (self.alpha == 0 or self.label_smoothing > 0):
            raise ValueError(
                f"nll_power is {self.nll_power}, but alpha is {self.alpha} and label_smoothing "
                f"{self.label_smoothing}: it shapes the loss of recorded actions alone, and these "
                "must be taken as they are; raise alpha above 0 and set label_smoothing to 0"
            )
        for name, value, default, of in (
            ("discount", self.discount, 1.0, "returns"),
            ("n_ahead", self.n_ahead, 3, "ahead"),
        ):
            if getattr(self, of) == 0 and value != default:
                raise ValueError(
                    f"{name} is {value}, but {of}, the weight of what it is about, is 0; raise "
                    f"{of} above 0, or leave {name} at {default}"
                )
        if self.queries == "all" and self.target != "teacher":
            raise ValueError(
                f"queries is all, but target is {self.target}, which tells how to act where a "
                "history was and nowhere else; set queries to visited, or target to teacher"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher must have been trained."""
        return self.beta > 0 and self.target == "teacher"


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, T) values over a (B, T) mask."""
    return (values * mask).sum() / mask.sum().clamp_min(1)


def generalised(nll: Tensor, q: float) -> Tensor:
    """Return (1 - p^q) / q of -log p (Zhang & Sabuncu 2018), which is -log p itself at q = 0."""
    return -torch.expm1(-q * nll) / q if q else nll


def divergence(
    actions: ActionDistribution, target: Tensor, parameters: Tensor, config: LossConfig
) -> Tensor:
    """Return the divergence (B, T) in nats that `config.kl` names, softened by τ."""
    forward = reverse = None
    if config.kl != "reverse":
        forward = actions.kl(target, parameters, config.tau)
    if config.kl != "forward":
        reverse = actions.kl(parameters, target, config.tau)
    if forward is None or reverse is None:
        return reverse if forward is None else forward  # pyright: ignore[reportReturnType]
    return (forward + reverse) / 2


def auxiliary_loss(
    losses: Mapping[str, Tensor], lambda_cap: float, weights: Mapping[str, float]
) -> Tensor | float:
    """Return the weighted sum of a compressor's own losses; `capacity` is weighted by λ_cap."""
    every = {"capacity": lambda_cap, **weights}
    return sum((every.get(name, 1.0) * loss for name, loss in losses.items()), 0.0)
