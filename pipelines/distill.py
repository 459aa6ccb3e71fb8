"""Distil the student: L_AD = alpha x CE + beta x tau^2 x KL from the teacher, compressor frozen.

With method=<baseline> the same decoder is trained behind another compressor, with the same budget.
A compressor without pretraining learns along. Output: <run_dir>/seed_<n>/<method>/distill/.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("distill")

from ad.objectives import ActionObjective
from ad.student import CADStudent
from pipelines.common import Run, fit_statistics
from pipelines.config import DistillConfig, FinetuneConfig, OnPolicyConfig, RunConfig
from pipelines.fitting import Training, train
from pipelines.methods import through
from pipelines.models import build_model, load_compressor, load_teacher
from pipelines.opening import open_run
from pipelines.stages import chain, check_method

ActionStage = DistillConfig | FinetuneConfig | OnPolicyConfig


def main(config: RunConfig) -> None:
    """Run the stage."""
    train(*prepare(config))


def prepare(config: RunConfig) -> tuple[Run, Training]:
    """Open the stage."""
    check_method(config, "distill", through("distill"))
    run = open_run(config, "distill")
    stage = config.distill
    pretrained = "pretrain_compressor" in chain(config)

    def build() -> tuple[ActionObjective, CADStudent, list]:
        model = build_model(run, "distill")
        if pretrained:
            load_compressor(run, model)
        else:
            fit_statistics(run, model)
        frozen = stage.freeze_compressor and pretrained
        return action_objective(run, stage, model, freeze=frozen), model, []

    return run, Training("distill", build)


def action_objective(
    run: Run, stage: ActionStage, model: CADStudent, *, freeze: bool
) -> ActionObjective:
    """Return L_AD (or L_joint) of a model, with the teacher where the loss needs it."""
    teacher = load_teacher(run) if stage.loss.needs_teacher else None
    return ActionObjective(model, stage.loss, teacher, freeze_compressor=freeze)
