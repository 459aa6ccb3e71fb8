"""Fine-tune compressor and decoder jointly: L_joint = L_AD + gamma x L_rec.

The compressor learns at a smaller rate, `finetune.compressor_lr_ratio`. Output:
<run_dir>/seed_<n>/<method>/finetune/.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("finetune")

from ad.objectives import ActionObjective
from ad.student import CADStudent
from compression.bottleneck import before_fit
from pipelines.common import N_CODED_REGIONS, Run, fitting_regions
from pipelines.config import RunConfig
from pipelines.distill import action_objective
from pipelines.fitting import Training, train
from pipelines.methods import through
from pipelines.models import build_model, load_model
from pipelines.opening import open_run
from pipelines.stages import check_method, own_config


def main(config: RunConfig) -> None:
    """Run the stage."""
    train(*prepare(config))


def prepare(config: RunConfig) -> tuple[Run, Training]:
    """Open the stage."""
    check_method(config, "finetune", through("finetune"))
    run = open_run(config, "finetune")
    stage = config.finetune

    def build() -> tuple[ActionObjective, CADStudent, list]:
        model = _distilled(run)
        objective = action_objective(run, stage, model, freeze=False)
        return objective, model, model.compressor_parameters()

    return run, Training(
        "finetune",
        build,
        slow_ratio=stage.compressor_lr_ratio,
        validate_first=stage.keep_start,
    )


def _distilled(run: Run) -> CADStudent:
    """Load the distilled student, with the bottleneck that it has from now on.

    A bottleneck that is fitted comes behind the compressor here; else it was trained with it.
    """
    distilled: CADStudent = load_model(run, "distill")
    config = own_config(run.config).compressor
    if before_fit(config) == config:
        return distilled
    student: CADStudent = build_model(run).to(run.accelerator.device)
    own = {f"bottleneck.{k}": value for k, value in student.bottleneck.state_dict().items()}
    student.load_state_dict(distilled.state_dict() | own)
    student.fit_bottleneck(fitting_regions(run, N_CODED_REGIONS))
    return student
