"""Stages of a configuration: their order, and what their hashes depend on."""

import pytest

from pipelines.config import RunConfig
from pipelines.methods import METHODS, TRAINED, untrained_of
from pipelines.plan import StackedStage, plan, stacked, unneeded
from pipelines.stage import StageError
from pipelines.stages import history_regions
from tasks.darkroom import DarkRoomFamily
from training.config import load_config

ROOM = DarkRoomFamily(size=3, horizon=5)

CONFIG = """
family: {kwargs: {size: 3, horizon: 5}}
split: {n_validation: 1, n_test: 2}
distill: {loss: {beta: 0.5}}
finetune: {loss: {beta: 0.5}}
"""


@pytest.fixture
def planned(tmp_path):
    """Return what `pipelines.run` would do: stages by their short names."""
    (tmp_path / "a.yaml").write_text(CONFIG)

    def stages(*overrides):
        planned = plan(load_config(RunConfig, tmp_path / "a.yaml", overrides))
        return {stage.name.removeprefix("seed_0/"): stage for stage in planned}

    return stages


def after(stages, name):
    return {before.removeprefix("seed_0/") for before in stages[name].after}


def test_a_whole_run_is_every_stage_after_what_it_needs(planned):
    stages = planned()
    assert {name for name in stages if name.endswith("evaluate")} == {
        f"{name}/evaluate" for name in (*TRAINED, *untrained_of(ROOM)) if METHODS[name].usual
    }
    assert after(stages, "triples") == {"collect"}
    assert after(stages, "student/distill") == {
        "triples",
        "teacher/train_teacher",
        "student/pretrain_compressor",
    }
    assert after(stages, "pca/distill") == {"triples", "teacher/train_teacher"}
    assert after(stages, "pca/finetune") == {"triples", "teacher/train_teacher", "pca/distill"}
    assert after(stages, "pca/evaluate") == {"pca/distill", "pca/finetune", "teacher/train_teacher"}
    assert after(stages, "long_context/train_teacher") == {"triples"}
    assert stages["student/evaluate"].folders == (
        "seed_0/evaluate/student",
        "seed_0/evaluate/student_zeroed",
        "seed_0/evaluate/student_shuffled",
        "seed_0/evaluate/student_no_context",
    )
    done = set()
    for stage in stages.values():  # in an order in which they could run one by one
        assert set(stage.after) <= done
        done.add(stage.name)


def test_a_run_does_only_what_is_asked_for(planned):
    stages = planned(
        "methods=[student]",
        "pretrain.enabled=false",
        "finetune.enabled=false",
        "distill.loss.beta=0",
        "histories=" + __file__,
    )
    assert {name: after(stages, name) for name in stages} == {
        "triples": set(),
        "student/distill": {"triples"},
        "student/evaluate": {"student/distill"},
        "posterior_sampling/evaluate": set(),
        "coverage/evaluate": set(),
        "random/evaluate": set(),
        "optimal/evaluate": set(),
        "cost": set(),
    }


def test_what_only_done_stages_need_is_not_run(planned):
    stages = list(planned("methods=[student, truncation]", "distill.loss.beta=0").values())
    names = {stage.name for stage in stages}
    ends = {name for name in names if name.endswith("/evaluate")}
    assert unneeded(stages, set()) == set()
    assert unneeded(stages, ends | {"cost"}) == names - ends - {"cost"}
    assert unneeded(stages, names) == set()
    # One method lacks its evaluation: its own chain is run, and what both are made from.
    own = {name for name in names if name.startswith("seed_0/student/")} - ends
    assert unneeded(stages, ends - {"seed_0/truncation/evaluate"}) == own


@pytest.mark.parametrize(
    ("override", "unchanged"),
    [
        ("evaluate.n_episodes=90", {"teacher/train_teacher", "student/finetune", "none/finetune"}),
        ("finetune.loss.gamma=3", {"teacher/train_teacher", "student/distill"}),
        ("compressor.n_latents=3", {"triples", "teacher/train_teacher", "teacher/evaluate"}),
        ("decoder.n_layers=1", {"teacher/train_teacher", "student/pretrain_compressor"}),
        ("train_teacher.label_smoothing=0.1", {"triples", "student/pretrain_compressor"}),
        ("source.clip_range=0.3", {"random/evaluate"}),
        ("n_workers=7", {"student/evaluate"}),
    ],
)
def test_a_stage_is_a_function_of_its_own_configuration_and_its_parents(
    planned, override, unchanged
):
    before, changed = planned(), planned(override)
    same = {name for name in before if before[name].inputs == changed[name].inputs}
    assert unchanged <= same
    affected = {
        "evaluate.n_episodes=90": {"student/evaluate", "random/evaluate"},
        "finetune.loss.gamma=3": {"student/finetune", "pca/evaluate"},
        "compressor.n_latents=3": {"student/pretrain_compressor", "pca/distill"},
        "decoder.n_layers=1": {"student/distill", "pca/finetune"},
        "train_teacher.label_smoothing=0.1": {"teacher/evaluate", "student/distill"},
        "source.clip_range=0.3": {"collect", "triples", "teacher/train_teacher", "pca/evaluate"},
        "n_workers=7": set(),
    }[override]
    assert not affected & same


def test_pretraining_depends_on_the_stride_where_it_draws_pairs(planned):
    def pretrained(*overrides):
        return planned(*overrides)["student/pretrain_compressor"].inputs

    stride, pairs = "sampling.history_stride=2", "pretrain.loss.prediction=1"
    assert pretrained() == pretrained(stride)
    assert len({pretrained(), pretrained(pairs), pretrained(pairs, stride)}) == 3


def test_cost_is_measured_as_far_as_a_whole_history_can_be_acted_with():
    assert history_regions(RunConfig(region_len=80))[-1] == 50
    assert history_regions(RunConfig(region_len=200))[-1] == 20
    assert history_regions(RunConfig(region_len=9000)) == (1,)


def test_seeds_share_data_alone(planned):
    stages = planned("seeds=[0, 1]", "methods=[teacher, student]")
    for name in ("teacher/train_teacher", "student/pretrain_compressor", "student/evaluate"):
        assert stages[name].inputs != stages[f"seed_1/{name}"].inputs
    assert len([name for name in stages if name in ("collect", "triples")]) == 2


def inputs(stages, name):
    return stages[name].inputs


@pytest.mark.parametrize(
    "override",
    [
        "family={kwargs: {size: 3, horizon: 6}}",
        "split.seed=1",
        "evaluate={part: validation}",
        "evaluate.seed=1",
        "evaluate.n_seeds=3",
    ],
)
def test_what_is_not_trained_is_told_apart_by_what_it_is_evaluated_on(planned, override):
    before, changed = planned(), planned(override)
    for name in ("random/evaluate", "optimal/evaluate"):
        assert inputs(before, name) != inputs(changed, name)
    assert inputs(before, "random/evaluate") != inputs(before, "optimal/evaluate")


def test_references_are_one_rollout_for_all_training_seeds(planned):
    one, two = planned(), planned("seeds=[0, 1]")
    for name in ("random", "optimal"):
        assert two[f"{name}/evaluate"].folders == (f"references/{name}",)
        assert inputs(two, f"{name}/evaluate") == inputs(one, f"{name}/evaluate")
        assert [stage for stage in two if stage.endswith(f"{name}/evaluate")] == [
            f"{name}/evaluate"
        ]
    named = planned("evaluate.name=argmax")
    assert named["random/evaluate"].folders == ("references_argmax/random",)


def test_an_evaluation_depends_on_the_teacher_it_is_compared_with(planned):
    without = "distill.loss.beta=0", "finetune.loss.beta=0", "methods=[student]"
    before, changed = planned(*without), planned(*without, "teacher.n_layers=1")
    assert inputs(before, "student/evaluate") == inputs(changed, "student/evaluate")
    methods = "methods=[student, teacher]"
    before, changed = planned(*without, methods), planned(*without, methods, "teacher.n_layers=1")
    assert inputs(before, "student/finetune") == inputs(changed, "student/finetune")
    assert inputs(before, "student/evaluate") != inputs(changed, "student/evaluate")


def test_long_context_has_a_section_of_its_own(planned):
    before, changed = planned(), planned("long_context.n_context_regions=3")
    assert inputs(before, "teacher/train_teacher") == inputs(changed, "teacher/train_teacher")
    name = "long_context/train_teacher"
    assert inputs(before, name) != inputs(changed, name)


def test_training_stages_of_all_seeds_can_be_one_job_each(planned):
    every = list(planned("seeds=[3,7]", "methods=[student, none]").values())
    jobs = {job.name: job for job in stacked(every)}
    trained = [job for job in jobs.values() if isinstance(job, StackedStage)]
    assert {job.name for job in trained} == {
        "seeds_3_7/teacher/train_teacher",
        "seeds_3_7/student/pretrain_compressor",
        "seeds_3_7/student/distill",
        "seeds_3_7/student/finetune",
        "seeds_3_7/none/distill",
        "seeds_3_7/none/finetune",
    }
    assert [s.config.seed for s in jobs["seeds_3_7/student/distill"].stages] == [3, 7]
    assert set(jobs["seeds_3_7/student/distill"].after) == {
        "triples",
        "seeds_3_7/teacher/train_teacher",
        "seeds_3_7/student/pretrain_compressor",
    }
    assert "seeds_3_7/student/finetune" in jobs["seed_7/student/evaluate"].after
    done = set()
    for job in jobs.values():  # in an order in which they could run one by one
        assert set(job.after) <= done
        done.add(job.name)
    alone = list(planned("methods=[student]").values())
    assert stacked(alone) == alone


def test_rollouts_of_more_tasks_than_are_trained_on_are_refused_before_anything_runs(planned):
    assert planned("policy_gradient.enabled=true", "policy_gradient.rollouts.n_tasks=6")
    with pytest.raises(
        StageError, match=r"on_policy\.rollouts\.n_tasks is 12, .* 6 training tasks"
    ):
        planned("on_policy.enabled=true", "on_policy.rollouts.n_tasks=12", "on_policy.loss.beta=1")
