"""Pretrain a compressor: L_pre = L_rec, L_pred or a mix of both, + lambda_cap x R(Z).

Each field's accuracy is logged; the best checkpoint is chosen on regions of validation tasks by
the losses, weighted as at the stage's end. Output: <run_dir>/seed_<n>/<method>/pretrain/.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("pretrain_compressor")

from collections.abc import Callable

import torch

from ad.model import Triple
from ad.objectives import PretrainObjective
from ad.student import CADStudent
from compression.compressor import compressor_class
from pipelines.common import Run, fit_statistics, source
from pipelines.config import RunConfig
from pipelines.fitting import Training, train
from pipelines.methods import through
from pipelines.models import build_model
from pipelines.opening import open_run
from pipelines.stage import StageError
from pipelines.stages import check_method, own_config


def main(config: RunConfig) -> None:
    """Run the stage."""
    train(*prepare(config))


def prepare(config: RunConfig) -> tuple[Run, Training]:
    """Open the stage."""
    check_method(config, "pretrain_compressor", through("pretrain_compressor"))
    run = open_run(config, "pretrain_compressor")
    kind = own_config(config).compressor.kind
    if not compressor_class(kind).learns:
        raise StageError(
            f"compressor.kind {kind!r} has no encoder to pretrain; go on with pipelines.distill."
        )
    settings = config.pretrain
    # What nothing lies before cannot be predicted from anything.
    first_region = int(settings.loss.predicts)

    def build() -> tuple[PretrainObjective, CADStudent, list]:
        model = build_model(run, "pretrain_compressor")
        fit_statistics(run, model)
        objective = PretrainObjective(
            model, settings.loss, lambda_cap=settings.lambda_cap, weights=settings.weights
        )
        return objective, model, []

    def validation(run: Run, objective: PretrainObjective) -> Callable[[], dict[str, float]]:
        batch = source(run, "validation", 512, 1, first_region=first_region)(0)
        return lambda: validation_scores(objective, batch)

    return run, Training(
        "pretrain_compressor", build, validate=validation, first_region=first_region
    )


@torch.inference_mode()
def validation_scores(objective: PretrainObjective, batch: Triple) -> dict[str, float]:
    """Return the losses of a batch; `score` weighs them as the last update does, at any time."""
    _, metrics = objective(batch)
    scores = {name: float(value) for name, value in metrics.items()}
    weights = dict(zip(("rec_loss", "pred_loss"), objective.config.at(1.0), strict=True))
    return {
        "score": -sum(weights[name] * scores[name] for name in weights.keys() & scores),
        **scores,
    }
