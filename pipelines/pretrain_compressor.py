"""Pretrain a compressor by reconstruction of raw regions: L_pre = L_rec + lambda_cap x R(Z).

Per-field reconstruction accuracy is logged; the best checkpoint is chosen by the reconstruction
loss on regions of validation tasks. Output: <run_dir>/seed_<n>/<method>/pretrain/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch

from ad.objectives import PretrainObjective
from ad.student import CADStudent
from compression.compressor import compressor_class
from pipelines.cli import run_main
from pipelines.common import (
    Run,
    StageError,
    check_method,
    method_config,
    open_run,
    source,
    student_config,
)
from pipelines.config import STUDENTS, RunConfig
from pipelines.fitting import Training, train


def main(config: RunConfig) -> None:
    """Run the stage."""
    check_method(config, STUDENTS, "pretrain_compressor")
    run = open_run(config, "pretrain_compressor")
    own = method_config(config)
    if not compressor_class(own.compressor.kind).learns:
        raise StageError(
            f"compressor.kind {own.compressor.kind!r} has no encoder to pretrain; go on with "
            "pipelines.distill."
        )
    stage = config.pretrain

    def build() -> tuple[PretrainObjective, CADStudent, list]:
        model = CADStudent(student_config(run))
        return PretrainObjective(model, stage.lambda_cap), model, []

    train(
        run,
        Training(
            stage="pretrain",
            stage_dir=run.seed_dir / config.method / "pretrain",
            sections=pretrain_sections(config),
            parents={"triples": run.require(run.triples_dir, "build_triples")},
            build=build,
            optim=stage.optim,
            validate=_reconstruction_validation,
        ),
    )


def pretrain_sections(config: RunConfig) -> dict:
    """Configuration that a pretrained compressor depends on."""
    return {
        "seed": config.seed,
        "model": asdict(config.model),
        "compressor": asdict(method_config(config).compressor),
        "reconstruction": asdict(config.reconstruction),
        "stage": asdict(config.pretrain),
        "max_region": config.sampling.max_region,
    }


def _reconstruction_validation(run: Run, model: CADStudent) -> Callable[[], dict[str, float]]:
    """Return the validation of a compressor: reconstruction of validation tasks' regions."""
    batch = source(run, "validation", 512, 1)(0)
    objective = PretrainObjective(model, run.config.pretrain.lambda_cap)

    @torch.inference_mode()
    def validate() -> dict[str, float]:
        _, metrics = objective(batch)
        scores = {name: float(value) for name, value in metrics.items()}
        return {"score": -scores["rec_loss"], **scores}

    return validate


if __name__ == "__main__":
    run_main(main)
