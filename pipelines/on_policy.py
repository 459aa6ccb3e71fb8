"""Distil the student on its own in-context rollouts on training tasks (after DAgger).

The last stage, if `on_policy.enabled`: the student acts, and at every step it came to its
distribution is drawn to the target's, `on_policy.loss.target`: the teacher's on what the student
lived, the exact Bayes actions given it, or the best actions of the task. Output:
<run_dir>/seed_<n>/<method>/on_policy/.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("on_policy")

from functools import partial

from ad.objectives import ActionObjective
from ad.student import CADStudent
from pipelines.config import RunConfig
from pipelines.distill import action_objective
from pipelines.fitting import Training, train
from pipelines.labels import rollout_labels
from pipelines.methods import through
from pipelines.models import load_model
from pipelines.opening import open_run
from pipelines.policy_gradient import rollouts_of
from pipelines.stages import check_enabled, check_method, stage_before


def main(config: RunConfig) -> None:
    """Run the stage."""
    check_method(config, "on_policy", through("on_policy"))
    check_enabled(config, "on_policy")
    run = open_run(config, "on_policy")
    stage = config.on_policy

    def build() -> tuple[ActionObjective, CADStudent, list]:
        model = load_model(run, stage_before(config, "on_policy"))
        objective = action_objective(run, stage, model, freeze=False)
        return objective, model, model.compressor_parameters()

    told = rollout_labels(run, stage.loss.target)
    train(
        run,
        Training(
            "on_policy",
            build,
            slow_ratio=stage.compressor_lr_ratio,
            validate_first=stage.keep_start,
            batches=partial(rollouts_of, run, stage.rollouts, stage.optim, told),
        ),
    )
