"""Distil the student: L_AD = alpha x CE + beta x tau^2 x KL from the teacher, compressor frozen.

With method=<baseline> the same decoder is trained behind another compressor, with the same budget.
A compressor without pretraining learns along. Output: <run_dir>/seed_<n>/<method>/distill/.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch

from ad.objectives import ActionObjective
from ad.student import CADStudent
from base.seeding import derive
from pipelines.cli import run_main
from pipelines.common import (
    Run,
    check_method,
    is_pretrained,
    load_model,
    load_teacher,
    method_config,
    open_run,
    source,
    student_config,
)
from pipelines.config import STUDENTS, DistillConfig, FinetuneConfig, RunConfig
from pipelines.fitting import Training, train

N_FIT_REGIONS = 4096
"""Training regions that compressors without gradients (PCA) are fitted on."""
ActionStage = DistillConfig | FinetuneConfig


def main(config: RunConfig) -> None:
    """Run the stage."""
    check_method(config, STUDENTS, "distill")
    run = open_run(config, "distill")
    stage = config.distill
    parents = action_parents(run, stage)
    pretrain_dir = run.seed_dir / config.method / "pretrain"
    pretrained = is_pretrained(config)
    if pretrained:
        extra = f" method={config.method}"
        parents["pretrain"] = run.require(pretrain_dir, "pretrain_compressor", extra)

    def build() -> tuple[ActionObjective, CADStudent, list]:
        if pretrained:
            model = load_model(CADStudent, pretrain_dir, run)
        else:
            model = CADStudent(student_config(run))
            _fit_compressor(run, model)
        frozen = stage.freeze_compressor and pretrained
        return action_objective(run, stage, model, freeze=frozen), model, []

    train(
        run,
        Training(
            stage="distill",
            stage_dir=run.seed_dir / config.method / "distill",
            sections=distill_sections(config),
            parents=parents,
            build=build,
            optim=stage.optim,
            n_context_regions=context_regions(config, stage),
        ),
    )


def action_parents(run: Run, stage: ActionStage) -> dict:
    """Stages that any training of actions is made from."""
    parents = {"triples": run.require(run.triples_dir, "build_triples")}
    if stage.loss.beta > 0:
        parents["teacher"] = run.require(run.seed_dir / "teacher", "train_teacher")
    return parents


def action_objective(
    run: Run, stage: ActionStage, model: CADStudent, *, freeze: bool
) -> ActionObjective:
    """Return L_AD (or L_joint) of a model, with the teacher where the loss needs it."""
    teacher = load_teacher(run)[0] if stage.loss.beta > 0 else None
    return ActionObjective(model, stage.loss, teacher, freeze_compressor=freeze)


def action_sections(config: RunConfig, stage: ActionStage) -> dict:
    """Configuration that a trained student depends on."""
    own = method_config(config)
    return {
        "seed": config.seed,
        "method": config.method,
        "model": asdict(own.model),
        "compressor": asdict(own.compressor),
        "reconstruction": asdict(own.reconstruction),
        "decoder": asdict(own.decoder),
        "stage": asdict(stage),
        "sampling": asdict(own.sampling),
    }


def distill_sections(config: RunConfig) -> dict:
    """Configuration that a distilled student depends on."""
    return action_sections(config, config.distill) | {"pretrained": is_pretrained(config)}


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
