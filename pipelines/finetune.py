"""Fine-tune compressor and decoder jointly: L_joint = L_AD + gamma x L_rec.

The compressor learns at a smaller rate, `finetune.compressor_lr_ratio`. Output:
<run_dir>/seed_<n>/<method>/finetune/.
"""

from __future__ import annotations

from ad.objectives import ActionObjective
from ad.student import CADStudent
from pipelines.cli import run_main
from pipelines.common import check_method, load_model, open_run
from pipelines.config import STUDENTS, RunConfig
from pipelines.distill import action_objective, action_parents, action_sections, context_regions
from pipelines.fitting import Training, train


def main(config: RunConfig) -> None:
    """Run the stage."""
    check_method(config, STUDENTS, "finetune")
    run = open_run(config, "finetune")
    stage = config.finetune
    distill_dir = run.seed_dir / config.method / "distill"
    parents = action_parents(run, stage)
    parents["distill"] = run.require(distill_dir, "distill", f" method={config.method}")

    def build() -> tuple[ActionObjective, CADStudent, list]:
        model = load_model(CADStudent, distill_dir, run)
        objective = action_objective(run, stage, model, freeze=False)
        return objective, model, model.compressor_parameters()

    train(
        run,
        Training(
            stage="finetune",
            stage_dir=run.seed_dir / config.method / "finetune",
            sections=action_sections(config, stage),
            parents=parents,
            build=build,
            validate_first=stage.keep_start,
            optim=stage.optim,
            slow_ratio=stage.compressor_lr_ratio,
            n_context_regions=context_regions(config, stage),
        ),
    )


if __name__ == "__main__":
    run_main(main)
