"""Distil the student: L_AD = alpha x CE + beta x tau^2 x KL from the teacher, compressor frozen.

With method=<baseline> the same decoder is trained behind another compressor, with the same budget.
A compressor without pretraining learns along. Output: <run_dir>/seed_<n>/<method>/distill/.
"""

from __future__ import annotations

import numpy as np
import torch

from ad.objectives import ActionObjective
from ad.student import CADStudent
from base.seeding import derive
from pipelines.cli import run_main
from pipelines.common import Run, open_run, source
from pipelines.config import DistillConfig, FinetuneConfig, RunConfig
from pipelines.fitting import Training, train
from pipelines.methods import through
from pipelines.models import build_model, load_compressor, load_teacher
from pipelines.stages import chain, check_method

N_FIT_REGIONS = 4096
"""Training regions that compressors without gradients (PCA) are fitted on."""
ActionStage = DistillConfig | FinetuneConfig


def main(config: RunConfig) -> None:
    """Run the stage."""
    check_method(config, "distill", through("distill"))
    run = open_run(config, "distill")
    stage = config.distill
    pretrained = "pretrain_compressor" in chain(config)

    def build() -> tuple[ActionObjective, CADStudent, list]:
        model = build_model(run)
        if pretrained:
            load_compressor(run, model)
        else:
            _fit_compressor(run, model)
        frozen = stage.freeze_compressor and pretrained
        return action_objective(run, stage, model, freeze=frozen), model, []

    train(run, Training("distill", build, n_context_regions=context_regions(config, stage)))


def action_objective(
    run: Run, stage: ActionStage, model: CADStudent, *, freeze: bool
) -> ActionObjective:
    """Return L_AD (or L_joint) of a model, with the teacher where the loss needs it."""
    teacher = load_teacher(run) if stage.loss.beta > 0 else None
    return ActionObjective(model, stage.loss, teacher, freeze_compressor=freeze)


def context_regions(config: RunConfig, stage: ActionStage) -> int:
    """Previous regions a batch needs: the student's one, or more if the teacher sees more."""
    return max(1, config.teacher.n_context_regions if stage.loss.beta > 0 else 1)


def _fit_compressor(run: Run, model: CADStudent) -> None:
    if model.compressor.tokens != "raw":
        return
    batches = source(run, "train", 1, 1)
    rng = np.random.default_rng(derive(run.config.seed, "fit compressor"))
    # Every region at most once: drawn twice, it would count for two towards the rank.
    rows = rng.permutation(batches.rows)[:N_FIT_REGIONS]
    regions = batches.gather(rows, np.ones(len(rows), dtype=np.int64)).query
    model.to(run.accelerator.device)
    with torch.no_grad():
        model.compressor.fit(model.compressor_tokens(regions), regions.mask)


if __name__ == "__main__":
    run_main(main)
