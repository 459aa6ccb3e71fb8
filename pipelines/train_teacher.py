"""Train the full-context teacher (or, with method=long_context, AD over several raw regions).

L_T = CE(action) + 0.1 x CE(token type) on training tasks; the best checkpoint is chosen by
in-context rollouts on validation tasks. Output: <run_dir>/seed_<n>/{teacher,long_context}/.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("train_teacher")

from dataclasses import replace

from ad.model import InContextModel
from pipelines.common import Run, fit_statistics
from pipelines.config import RunConfig
from pipelines.fitting import Training, train
from pipelines.methods import through
from pipelines.models import build_model
from pipelines.opening import open_run
from pipelines.stages import check_method, own_config
from teacher.model import RawContextObjective


def main(config: RunConfig) -> None:
    """Run the stage."""
    train(*prepare(config))


def prepare(config: RunConfig) -> tuple[Run, Training]:
    """Open the stage."""
    check_method(config, "train_teacher", ("student", *through("train_teacher")))
    if config.method == "student":
        config = replace(config, method="teacher")
    run = open_run(config, "train_teacher")

    def build() -> tuple[RawContextObjective, InContextModel, list]:
        model = build_model(run)
        fit_statistics(run, model)
        weights = {"token_type_nll": own_config(config).teacher.token_type_weight}
        smoothing = own_config(config).train_teacher.label_smoothing
        return RawContextObjective(model, smoothing, weights), model, []

    return run, Training("train_teacher", build)
