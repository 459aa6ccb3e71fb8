"""Training objectives, each computed inside one module's `forward` so that gradients synchronise.

`PretrainObjective` is L_pre = L_rec, L_pred or a mix of both, + λ_cap · R(Z); `ActionObjective` is
L_AD = α · ℓ_task + β · τ² · KL(p_T || p_A) and, with γ > 0, L_joint = L_AD + γ · L_rec. The teacher
enters as any in-context model of full raw context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ad.attention_matching import CrossInputs, attention_loss
from ad.auxiliary import AheadHead, ReturnHead
from ad.full_context import full_context
from ad.losses import (
    LossConfig,
    ObjectiveError,
    auxiliary_loss,
    divergence,
    generalised,
    masked_mean,
)
from ad.model import InContextModel, Output, Triple, seeded_part
from ad.queries import Questions, answers
from ad.student import CADStudent
from base.ranges import AtLeast
from nets.regions import Regions
from nets.spaces import FieldSpec
from training.optim import StagedObjective, annealed

LABELS_NAME = "labels"
"""In `Triple.extra`: parameters (B, L, P) of how somebody informed would have acted."""


@dataclass(frozen=True)
class PretrainLossConfig:
    """Weights of what a compressor is pretrained on, each constant or going linearly elsewhere.

    Attributes:
        reconstruction: Weight of L_rec, the compressed region read back.
        prediction: Weight of L_pred: from the latents of a region 1 ... `sampling.history_stride`
            regions back, the actions and rewards of each step of the current one.
        reconstruction_final: Weight of L_rec at the last update, approached linearly; null for no
            change.
        prediction_final: Likewise of L_pred.
    """

    reconstruction: Annotated[float, AtLeast(0)] = 1.0
    prediction: Annotated[float, AtLeast(0)] = 0.0
    reconstruction_final: Annotated[float, AtLeast(0)] | None = None
    prediction_final: Annotated[float, AtLeast(0)] | None = None

    def __post_init__(self) -> None:
        """Refuse a stage that begins or ends with nothing to learn."""
        for progress, when in ((0.0, "first"), (1.0, "last")):
            if not any(self.at(progress)):
                raise ValueError(
                    f"reconstruction and prediction both have weight 0 at the {when} update; give "
                    "one of them a weight above 0, or set pretrain.enabled to false"
                )

    def at(self, progress: float) -> tuple[float, float]:
        """Return the weights of L_rec and L_pred when this share of the stage is over."""
        return (
            annealed(self.reconstruction, self.reconstruction_final, progress),
            annealed(self.prediction, self.prediction_final, progress),
        )

    @property
    def reconstructs(self) -> bool:
        """Whether L_rec has a weight at any time."""
        return max(self.reconstruction, self.reconstruction_final or 0.0) > 0

    @property
    def predicts(self) -> bool:
        """Whether L_pred has a weight at any time."""
        return max(self.prediction, self.prediction_final or 0.0) > 0


class PretrainObjective(StagedObjective):
    """L_pre: read a raw region back from its latents, predict a later one from them, or both.

    Without prediction the region compressed is the current one; with it, the previous one, which
    every row must have. The head that predicts belongs to this objective: it is not kept.

    Args:
        student: The module trained.
        loss: Weights of the targets.
        lambda_cap: λ_cap.
        weights: Of the compressor's own losses, as in `LossConfig`.
    """

    n_context_regions = 1

    def __init__(
        self,
        student: CADStudent,
        loss: PretrainLossConfig | None = None,
        *,
        lambda_cap: float = 0.0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.config = loss or PretrainLossConfig()
        self.lambda_cap = lambda_cap
        self.weights = dict(weights or {})
        if self.config.predicts:
            with seeded_part("prediction"):
                self.prediction = student.new_prediction_head()

    def forward(self, batch: Triple) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and metrics (detached scalars) of a batch."""
        student, config, metrics = self.student, self.config, {}
        of_reconstruction, of_prediction = config.at(self.progress)
        region = batch.previous if config.predicts else batch.query
        latents = student.compress(region)
        loss = latents.values.new_zeros(())
        loss = loss + auxiliary_loss(latents.losses, self.lambda_cap, self.weights)
        if config.reconstructs:
            reconstruction, fields = student.reconstruct(latents, region)
            loss = loss + of_reconstruction * reconstruction
            metrics |= {"rec_loss": reconstruction, **fields}
        if config.predicts:
            prediction, fields = student.predict(latents, batch.query, self.prediction)
            loss = loss + of_prediction * prediction
            metrics |= {"pred_loss": prediction, **fields}
        metrics |= {**latents.losses, **latents.metrics, "loss": loss}
        return loss, {name: value.detach() for name, value in metrics.items()}


class ActionObjective(StagedObjective):
    """L_AD and L_joint of an in-context model.

    Args:
        student: The module trained.
        loss: Weights.
        teacher: An in-context model of full raw context, if it is the target; for another target,
            batches bring `LABELS_NAME`. It is not a submodule: it is neither trained nor saved nor
            synchronised.
        freeze_compressor: Whether Cθ gets no gradient, and acts without dropout.

    Raises:
        ValueError: If a teacher is the target and there is none, or one that sees more than a step
            where all observations are asked about.
        ObjectiveError: If there are too many of these, they cannot be counted, or actions have no
            probabilities where the loss is made of them.
    """

    def __init__(
        self,
        student: CADStudent,
        loss: LossConfig,
        teacher: InContextModel | None = None,
        *,
        freeze_compressor: bool = False,
    ) -> None:
        super().__init__()
        if loss.needs_teacher and teacher is None:
            raise ValueError(f"beta is {loss.beta}, which needs a teacher, but there is none")
        if loss.nll_power > 0 and (kind := student.actions.spec.kind) != "classes":
            raise ObjectiveError(
                f"loss.nll_power is {loss.nll_power}, which needs actions that are classes, but "
                f"this family's are a {kind}; set loss.nll_power to 0."
            )
        self.student = student
        self.config = loss
        self._hidden = (teacher, student.compressor_modules if freeze_compressor else [])
        asked = [student, *([teacher] if loss.needs_teacher and teacher is not None else [])]
        spec = FieldSpec.from_json(student.config.observation)
        self.questions = Questions(spec, asked, every=loss.queries == "all")
        for module in self._hidden[1]:
            module.requires_grad_(False)
        width = student.config.student_parts.model.d_model
        if loss.returns > 0:
            with seeded_part("return head"):
                self.return_head = ReturnHead(width, loss.discount)
        if loss.ahead > 0:
            specs = student.reconstruction.specs
            fields = specs["observations"], specs["actions"]
            with seeded_part("ahead head"):
                self.ahead_head = AheadHead(*fields, d_model=width, n_ahead=loss.n_ahead)

    @property
    def companions(self) -> tuple[InContextModel, ...]:
        """The teacher, if there is one."""
        teacher = self._hidden[0]
        return () if teacher is None else (teacher,)

    @property
    def n_context_regions(self) -> int:
        """Previous regions a row of a batch must bring: the student's, or more of the teacher."""
        teacher = self._hidden[0]
        return max(self.student.n_context_regions, getattr(teacher, "n_context_regions", 1))

    def train(self, mode: bool = True) -> ActionObjective:
        """Switch to training, all but what is frozen."""
        super().train(mode)
        for module in self._hidden[1]:
            module.eval()
        return self

    def forward(self, batch: Triple) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and metrics (detached scalars) of a batch."""
        config, actions, query = self.config, self.student.actions, batch.query
        asked, places = self.questions.ask(batch)
        with CrossInputs(self.student.decoder, record=config.attention > 0) as seen:
            output = self.student(asked)
        parameters = answers(output.parameters, places)
        nll = actions.nll(parameters, query.actions, config.label_smoothing)
        of_actions = masked_mean(generalised(nll, config.nll_power), query.mask)
        nll = masked_mean(nll, query.mask)
        loss = config.alpha * of_actions
        loss = loss + auxiliary_loss(output.losses, config.lambda_cap, config.weights)
        metrics = {"action_nll": nll, **output.losses, **output.metrics}
        if config.beta > 0:
            everywhere = config.queries == "all"
            target = self._target(asked, None if everywhere else places)
            if config.target == "self":
                own = actions.nll(target, query.actions, config.label_smoothing)
                metrics["full_context_nll"] = masked_mean(own, query.mask)
                loss, target = loss + metrics["full_context_nll"], target.detach()
            ours = output.parameters if everywhere else parameters
            mask = asked.query.mask if everywhere else query.mask
            kl = masked_mean(divergence(actions, target, ours, config), mask)
            loss = loss + config.beta * config.tau**2 * kl
            metrics[f"{config.target}_kl"] = kl
        if max(config.gamma, config.gamma_final or 0.0) > 0 and output.latents is not None:
            reconstruction, fields = self.student.reconstruct(output.latents, _previous(batch))
            gamma = annealed(config.gamma, config.gamma_final, self.progress)
            loss = loss + gamma * reconstruction
            metrics |= {"rec_loss": reconstruction, **fields}
        if config.attention > 0 and output.latents is not None:
            inputs = [answers(x, places) for x in seen.inputs]
            matched = attention_loss(self.student, output.latents, _previous(batch), inputs)
            loss = loss + config.attention * matched
            metrics["attention_loss"] = matched
        beside, told = self._beside(output, query, places)
        loss, metrics = loss + beside, metrics | told
        return loss, {name: value.detach() for name, value in {**metrics, "loss": loss}.items()}

    def _beside(
        self, output: Output, query: Regions, places: Tensor | None
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Return the weighted losses of what is read from hidden states besides actions."""
        config, loss, metrics = self.config, 0.0, {}
        if output.hidden is None or not (config.returns or config.ahead):
            return loss, metrics
        hidden = answers(output.hidden, places)
        if config.returns > 0:
            metrics["return_error"] = self.return_head.loss(hidden, query)
            loss = loss + config.returns * metrics["return_error"]
        if config.ahead > 0:
            ahead, scores = self.ahead_head.loss(hidden, query, self.student.scaling)
            loss = loss + config.ahead * ahead
            metrics |= {"ahead_loss": ahead, **scores}
        return loss, metrics

    def _target(self, asked: Triple, places: Tensor | None) -> Tensor:
        """Return the parameters (B, T, P) that the student's are to come near to."""
        teacher = self._hidden[0]
        if self.config.target == "self":
            return answers(full_context(self.student, asked), places)
        if self.config.target != "teacher" or teacher is None:
            return asked.extra[LABELS_NAME]
        with torch.no_grad():
            return answers(teacher(asked).parameters, places)


def _previous(batch: Triple) -> Regions:
    """Return the nearest previous regions, masked where there is none."""
    seen = batch.previous
    seen.mask = seen.mask & batch.has_previous[:, None]
    return seen
