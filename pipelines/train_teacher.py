"""Train the full-context teacher (or, with method=long_context, AD over several raw regions).

L_T = CE(action) + 0.1 x CE(token type) on training tasks; the best checkpoint is chosen by
in-context rollouts on validation tasks. Output: <run_dir>/seed_<n>/{teacher,long_context}/.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from pipelines.cli import run_main
from pipelines.common import check_method, open_run, raw_context_config, teacher_config
from pipelines.config import RAW_CONTEXT, RunConfig
from pipelines.fitting import Training, train
from teacher.model import TeacherModel, TeacherObjective


def main(config: RunConfig) -> None:
    """Run the stage."""
    name = "long_context" if config.method == "long_context" else "teacher"
    check_method(config, ("student", *RAW_CONTEXT), "train_teacher")
    config = replace(config, method=name)  # seeds derive from it
    run = open_run(config, "train_teacher")
    stage = config.train_teacher

    def build() -> tuple[TeacherObjective, TeacherModel, list]:
        model = TeacherModel(teacher_config(run, name))
        return TeacherObjective(model, stage.label_smoothing), model, []

    train(
        run,
        Training(
            stage=name,
            stage_dir=run.seed_dir / name,
            sections=teacher_sections(config, name),
            parents={"triples": run.require(run.triples_dir, "build_triples")},
            build=build,
            optim=stage.optim,
            n_context_regions=raw_context_config(config, name).n_context_regions,
        ),
    )


def teacher_sections(config: RunConfig, name: str) -> dict:
    """Configuration that a raw-context model (`teacher` or `long_context`) depends on."""
    return {
        "seed": config.seed,
        "model": asdict(config.model),
        "teacher": asdict(raw_context_config(config, name)),
        "stage": asdict(config.train_teacher),
        "sampling": asdict(config.sampling),
    }


if __name__ == "__main__":
    run_main(main)
