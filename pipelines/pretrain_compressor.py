"""Pretrain a compressor by reconstruction of raw regions: L_pre = L_rec + lambda_cap x R(Z).

Per-field reconstruction accuracy is logged; the best checkpoint is chosen by the reconstruction
loss on regions of validation tasks. Output: <run_dir>/seed_<n>/<method>/pretrain/.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("pretrain_compressor")

from collections.abc import Callable

import torch

from ad.objectives import PretrainObjective
from ad.student import CADStudent
from compression.compressor import compressor_class
from pipelines.common import Run, fit_statistics, open_run, source
from pipelines.config import RunConfig
from pipelines.fitting import Training, train
from pipelines.methods import through
from pipelines.models import build_model
from pipelines.stages import StageError, check_method, own_config


def main(config: RunConfig) -> None:
    """Run the stage."""
    check_method(config, "pretrain_compressor", through("pretrain_compressor"))
    run = open_run(config, "pretrain_compressor")
    kind = own_config(config).compressor.kind
    if not compressor_class(kind).learns:
        raise StageError(
            f"compressor.kind {kind!r} has no encoder to pretrain; go on with pipelines.distill."
        )

    def build() -> tuple[PretrainObjective, CADStudent, list]:
        model = build_model(run)
        fit_statistics(run, model)
        return _objective(config, model), model, []

    train(run, Training("pretrain_compressor", build, validate=_reconstruction_validation))


def _objective(config: RunConfig, model: CADStudent) -> PretrainObjective:
    return PretrainObjective(model, config.pretrain.lambda_cap, config.pretrain.weights)


def _reconstruction_validation(run: Run, model: CADStudent) -> Callable[[], dict[str, float]]:
    """Return the validation of a compressor: reconstruction of validation tasks' regions."""
    batch = source(run, "validation", 512, 1)(0)
    objective = _objective(run.config, model)

    @torch.inference_mode()
    def validate() -> dict[str, float]:
        _, metrics = objective(batch)
        scores = {name: float(value) for name, value in metrics.items()}
        return {"score": -scores["rec_loss"], **scores}

    return validate
