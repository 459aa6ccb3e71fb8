"""Policy gradient on in-context rollouts: ℓ_task is the negative expected return of the stream.

Actions are judged by what the rest of the stream pays, later episodes and regions included, so that
searching and remembering are worth something. The log-probabilities are computed anew offline, from
the regions and latents that were acted with. Shapes: B rows, L region length, S streams, K regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ad.losses import ObjectiveError, auxiliary_loss, masked_mean
from ad.model import InContextModel, Triple
from ad.on_policy import Lived
from ad.student import CADStudent
from base.ranges import Above, AtLeast, Between
from training.optim import StagedObjective


@dataclass(frozen=True)
class PolicyGradientLossConfig:
    """What the policy gradient is made of.

    Attributes:
        discount: Of rewards, per step; nothing ends at an episode's end.
        baseline: What returns are compared with: `streams`, the mean of the other streams of the
            same task at the same step, or `value`, a head that reads the decoder's hidden states
            and is thrown away after the stage.
        clip: Largest change of an action's probability, as a share, that an update is rewarded for.
        entropy: Weight of the entropy bonus.
        kl: Weight of KL(student || student the stage began with).
        value: Weight of the value head's squared error, returns having variance 1.
    """

    discount: Annotated[float, Between(0, 1)] = 0.99
    baseline: Literal["streams", "value"] = "streams"
    clip: Annotated[float, Above(0)] = 0.2
    entropy: Annotated[float, AtLeast(0)] = 0.01
    kl: Annotated[float, AtLeast(0)] = 0.1
    value: Annotated[float, Above(0)] = 0.5


def returns_to_go(rewards: Tensor, discount: float) -> Tensor:
    """Return what every step (S, T) and those after it pay, discounted."""
    total, totals = torch.zeros_like(rewards[:, 0]), []
    for reward in rewards.flip(1).unbind(1):
        total = reward + discount * total
        totals.append(total)
    return torch.stack(totals[::-1], dim=1)


def mean_of_others(values: Tensor, tasks: Tensor) -> Tensor:
    """Return, for every stream of `values` (S, T), the mean of those that share its task (S,).

    Every task must have two streams or more.
    """
    same = (tasks[:, None] == tasks).to(values) - torch.eye(len(tasks)).to(values)
    return same @ values / same.sum(1, keepdim=True)


def signals(lived: Lived, config: PolicyGradientLossConfig) -> dict[str, Tensor]:
    """Return `returns` to go, and `baseline` where it is of other streams, both (S, K, L)."""
    rewards = lived.regions.rewards.flatten(1)  # (S, K L)
    returns = returns_to_go(rewards, config.discount)
    told = {"returns": returns}
    if config.baseline == "streams":
        tasks = torch.tensor([task.index for task in lived.tasks], device=returns.device)
        told["baseline"] = mean_of_others(returns, tasks)
    return {name: field.view(lived.log_probs.shape) for name, field in told.items()}


class PolicyGradientObjective(StagedObjective):
    """Clipped policy gradient (PPO, arXiv 1707.06347) of an in-context student.

    The student stays in evaluation mode: what is trained is what acted, without dropout.

    Args:
        student: The module trained.
        loss: Weights.
        temperature: At which it acted.
        reference: The student as the stage began; needed if `loss.kl` > 0, neither trained nor
            saved.

    Raises:
        ObjectiveError: Actions are no classes.
    """

    def __init__(
        self,
        student: CADStudent,
        loss: PolicyGradientLossConfig,
        *,
        temperature: float = 1.0,
        reference: InContextModel | None = None,
    ) -> None:
        super().__init__()
        if student.actions.spec.kind != "classes":
            raise ObjectiveError(
                "policy_gradient needs actions of classes (Discrete, MultiDiscrete, MultiBinary), "
                f"but this family's are a {student.actions.spec.kind}, kept clipped, whose "
                "likelihood is another; set policy_gradient.enabled to false."
            )
        if loss.kl > 0 and reference is None:
            raise ValueError(f"kl is {loss.kl}, which needs a reference, but there is none")
        self.student, self.config, self.temperature = student, loss, temperature
        self.n_context_regions = student.n_context_regions
        self._hidden = (reference,)
        if loss.baseline == "value":
            width = student.config.student_parts.model.d_model
            self.value = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def train(self, mode: bool = True) -> PolicyGradientObjective:
        """Switch to training, all but the student's dropout."""
        super().train(mode)
        self.student.eval()
        return self

    def forward(self, batch: Triple) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and metrics (detached scalars) of a batch of its own rollouts."""
        config, actions, query = self.config, self.student.actions, batch.query
        mask, told = query.mask, batch.extra
        output = self.student(batch)
        parameters = actions.cooled(output.parameters, self.temperature)
        advantages, value_loss = self._advantages(output.hidden, told, mask)
        change = -actions.nll(parameters, query.actions) - told["log_probs"]
        ratio = change.exp()
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        gain = masked_mean(torch.minimum(ratio * advantages, clipped * advantages), mask)
        entropy = masked_mean(actions.entropy(parameters), mask)
        loss = -gain - config.entropy * entropy + config.value * value_loss
        loss = loss + auxiliary_loss(output.losses, 0.0, {})
        metrics = {
            "policy_gain": gain,
            "entropy": entropy,
            "reward": masked_mean(query.rewards, mask),
            "clipped": masked_mean((ratio != clipped).float(), mask),
            **output.losses,
        }
        if config.baseline == "value":
            metrics["value_loss"] = value_loss
        reference = self._hidden[0]
        if reference is not None and config.kl > 0:
            with torch.no_grad():
                before = actions.cooled(reference(batch).parameters, self.temperature)
            kl = masked_mean(actions.kl(parameters, before), mask)
            loss = loss + config.kl * kl
            metrics["start_kl"] = kl
        return loss, {name: value.detach() for name, value in {**metrics, "loss": loss}.items()}

    def _advantages(
        self, hidden: Tensor | None, told: dict[str, Tensor], mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return advantages (B, L) of mean square 1, and the value head's loss."""
        returns, value_loss = told["returns"], told["returns"].new_zeros(())
        if self.config.baseline == "streams":
            advantages = returns - told["baseline"]
        else:
            assert hidden is not None
            centre = masked_mean(returns, mask)
            scale = masked_mean((returns - centre).square(), mask).sqrt() + 1e-6
            target = (returns - centre) / scale
            values = self.value(hidden.detach())[..., 0]  # (B, L)
            value_loss = masked_mean((values - target).square(), mask)
            advantages = (target - values).detach()
        return advantages / (masked_mean(advantages.square(), mask).sqrt() + 1e-6), value_loss
