"""Fine-tune the student by the expected return of its own in-context rollouts on training tasks.

The last stage, if `policy_gradient.enabled`: actions are rewarded by what the rest of the stream
pays, compared with other streams of the task or with a value head, and held near the distilled
policy by KL. Output: <run_dir>/seed_<n>/<method>/policy_gradient/.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("policy_gradient")

from functools import partial
from typing import Any

from ad.model import InContextModel
from ad.on_policy import Rollouts, RolloutsConfig, Signals
from ad.policy_gradient import PolicyGradientObjective, signals
from ad.student import CADStudent
from base.seeding import derive
from pipelines.common import Run
from pipelines.config import RunConfig
from pipelines.fitting import Training, train
from pipelines.methods import through
from pipelines.models import load_model
from pipelines.opening import open_run
from pipelines.stages import check_enabled, check_method, stage_before
from training.optim import OptimConfig


def main(config: RunConfig) -> None:
    """Run the stage."""
    check_method(config, "policy_gradient", through("policy_gradient"))
    check_enabled(config, "policy_gradient")
    run = open_run(config, "policy_gradient")
    stage = config.policy_gradient

    def build() -> tuple[PolicyGradientObjective, CADStudent, list]:
        before = stage_before(config, "policy_gradient")
        model, reference = load_model(run, before), None
        if stage.loss.kl > 0:
            reference = load_model(run, before).requires_grad_(False)
        objective = PolicyGradientObjective(
            model, stage.loss, temperature=stage.rollouts.temperature, reference=reference
        )
        return objective, model, model.compressor_parameters()

    told = partial(signals, config=stage.loss)
    train(
        run,
        Training(
            "policy_gradient",
            build,
            slow_ratio=stage.compressor_lr_ratio,
            validate_first=stage.keep_start,
            batches=partial(rollouts_of, run, stage.rollouts, stage.optim, told),
        ),
    )


def rollouts_of(
    run: Run,
    config: RolloutsConfig,
    optim: OptimConfig,
    told: Signals,
    objective: Any,
    model: InContextModel,
) -> Rollouts:
    """Return batches of a model's own rollouts on the training tasks of a run."""
    return Rollouts(
        objective,
        model,
        run.family,
        run.tasks("train"),
        config,
        optim,
        told,
        seed=derive(run.config.seed, "rollouts"),
        device=run.accelerator.device,
        rank=run.accelerator.process_index,
        world_size=run.accelerator.num_processes,
    )
