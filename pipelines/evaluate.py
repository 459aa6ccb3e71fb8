"""Evaluate a method in context on held-out tasks, weights frozen.

Held-out tasks x evaluation seeds act in one batch; the student is also run with zeroed and with
shuffled latents. method=random and method=optimal are the references. Output:
<run_dir>/seed_<n>/evaluate/<method>/{eval_result.npy, metrics.json}.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ad.evaluate import (
    evaluate_policy,
    normalized,
    offline_metrics,
    reconstruction_metrics,
)
from ad.objectives import Triple
from ad.policy import ContextPolicy, OptimalPolicy, Policy, RandomPolicy
from ad.student import CADStudent
from base.files import write_json, write_npy
from base.hashes import config_hash
from pipelines.cli import run_main
from pipelines.common import (
    Run,
    inputs_hash,
    last_stage,
    load_model,
    load_teacher,
    open_run,
    policy_of,
    source,
)
from pipelines.config import RAW_CONTEXT, REFERENCES, RunConfig
from tasks.family import Task, information_bits
from teacher.model import TeacherModel
from training.run_dir import git_sha, mark_done, now, read_meta, stage_done

FORMAT_VERSION = 1
CONTROLS = ("zeroed", "shuffled")
Maker = Callable[[Sequence[Task]], Policy]


def main(config: RunConfig) -> None:
    """Run the stage."""
    run = open_run(config, "evaluate")
    if not run.accelerator.is_main_process:
        return
    method = config.method
    trained = {} if method in REFERENCES else _trained(run)
    inputs = inputs_hash(evaluate_sections(config), trained)
    folder = run.seed_dir / results_name(config)
    if stage_done(folder / method, inputs):
        run.say(f"{folder / method} is done")
        return
    model, facts = None, {}
    if trained:
        model = _model(run)
        facts = {**_offline(run, model, trained), **_training_facts(trained)}
    # The method's own directory is marked as done last, after its controls.
    for name, make in reversed(_policies(run, model)):
        started = time.perf_counter()
        _evaluate(run, name, make, model, facts if name == method else {})
        mark_done(folder / name, "evaluate", inputs, seconds=time.perf_counter() - started)


def evaluate_sections(config: RunConfig) -> dict:
    """Configuration that an evaluation depends on."""
    return {"evaluate": asdict(config.evaluate), "method": config.method}


def results_name(config: RunConfig) -> str:
    """Name of the folder of a seed's evaluations."""
    return f"evaluate_{config.evaluate.name}" if config.evaluate.name else "evaluate"


def evaluated(method: str) -> tuple[str, ...]:
    """Names of what is run for a method: itself, and the controls of the student."""
    return (method, *(f"student_{c}" for c in CONTROLS if method == "student"))


def _policies(run: Run, model: Any) -> list[tuple[str, Maker]]:
    """Return what is run for this method, by name: the method itself, then its controls."""
    method, temperature = run.config.method, run.config.evaluate.temperature
    if method == "random":
        return [(method, lambda tasks: RandomPolicy(run.family))]
    if method == "optimal":
        return [(method, lambda tasks: OptimalPolicy(run.family, tasks))]
    named: list[tuple[str, Maker]] = [(method, lambda tasks: policy_of(model, run, temperature))]
    if method == "student":

        def control(kind: str) -> Maker:
            return lambda tasks: policy_of(
                model,
                run,
                temperature,
                control=kind,
                tasks_of_streams=np.array([task.index for task in tasks]),
            )

        named += [(f"student_{kind}", control(kind)) for kind in CONTROLS]
    return named


def _trained(run: Run) -> dict[str, dict[str, Any]]:
    """Return the meta.json of each stage that trained this method."""
    method, folder = run.config.method, run.seed_dir / run.config.method
    extra = "" if method == "teacher" else f" method={method}"
    if method in RAW_CONTEXT:
        return {"train": run.require(folder, "train_teacher", extra)}
    last = last_stage(run.config)
    run.require(folder / last, last, extra)
    stages = {name: read_meta(folder / name) for name in ("pretrain", "distill", "finetune")}
    return {name: meta for name, meta in stages.items() if meta}


def _model(run: Run) -> TeacherModel | CADStudent:
    folder = run.seed_dir / run.config.method
    if run.config.method in RAW_CONTEXT:
        return load_model(TeacherModel, folder, run)
    return load_model(CADStudent, folder / last_stage(run.config), run)


def _training_facts(trained: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Sum up the training stages; speed and memory are those of the last, joint one."""
    results = [meta["result"] for meta in trained.values()]
    last = list(trained.values())[-1]
    return {
        "train_updates": sum(result["updates"] for result in results),
        "train_seconds": sum(result["seconds"] for result in results),
        "train_targets_per_s": last["result"]["targets_per_s"],
        "train_peak_mb": last["train_peak_mb"],
        "n_parameters": last["n_parameters"],
    }


def _offline(run: Run, model: Any, trained: Mapping[str, Any]) -> dict[str, Any]:
    """Agreement with recorded test regions and with the teacher, contexts as in training."""
    teacher = None
    if read_meta(run.seed_dir / "teacher") is not None:
        teacher, _ = load_teacher(run)
    needed = max(getattr(m, "n_context_regions", 1) for m in (model, teacher))
    batches = source(run, "test", run.config.evaluate.n_offline, needed)

    def act(batch: Triple) -> torch.Tensor:
        if isinstance(model, TeacherModel):
            return model(batch)
        return model(batch.previous, batch.has_previous, batch.query)[0]

    metrics = offline_metrics(act, model.actions, batches, teacher)
    gamma = run.config.distill.loss.gamma + ("finetune" in trained) * run.config.finetune.loss.gamma
    if "pretrain" in trained or (gamma > 0 and isinstance(model, CADStudent)):
        metrics |= reconstruction_metrics(model, batches)
    return metrics


def _evaluate(run: Run, name: str, make: Maker, model: Any, facts: dict[str, Any]) -> None:
    """Roll one policy out and write its result files."""
    settings = run.config.evaluate
    tasks = run.tasks(settings.part)
    policies: list[Policy] = []

    def made(streams: Sequence[Task]) -> Policy:
        policies.append(make(streams))
        return policies[-1]

    result = evaluate_policy(
        made,
        run.family,
        tasks,
        n_seeds=settings.n_seeds,
        n_episodes=settings.n_episodes,
        final_episodes=settings.final_episodes,
        seed=settings.seed,
    )
    final = normalized(result.returns, run.family, tasks)[..., -settings.final_episodes :].mean()
    out = run.seed_dir / results_name(run.config) / name
    write_npy(out / "eval_result.npy", result.returns)
    write_json(
        out / "metrics.json",
        {
            **_header(run, name, tasks),
            **_context_facts(policies[-1], model),
            "normalized_final": float(final),
            "ms_per_action": result.ms_per_action,
            "action_accuracy_optimal": result.action_accuracy_optimal,
            **facts,
        },
    )
    run.say(f"{name}: normalised return of the last episodes {final:.3f}, in {out}")


def _header(run: Run, name: str, tasks: Sequence[Task]) -> dict[str, Any]:
    config, settings = run.config, run.config.evaluate
    return {
        "format_version": FORMAT_VERSION,
        "method": name,
        "training_seed": config.seed,
        "split_identity": run.split.identity,
        "split_name": run.split.name,
        "part": settings.part,
        "family": run.family.name,
        "horizon": run.family.episode_len,
        "task_bits": information_bits(run.family),
        "sampled": settings.temperature > 0,
        "temperature": settings.temperature,
        "tasks": [
            {
                "index": task.index,
                "name": task.name,
                "params": task.params,
                "random_return": run.family.random_return(task),
                "optimal_return": run.family.optimal_return(task),
            }
            for task in tasks
        ],
        "n_evaluation_seeds": settings.n_seeds,
        "n_episodes": settings.n_episodes,
        "final_episodes": settings.final_episodes,
        "config_hash": config_hash(asdict(config)),
        "git_sha": git_sha(),
        "created": now(),
    }


def _context_facts(policy: Policy, model: Any) -> dict[str, Any]:
    """Tokens and bytes of context state, as the policy that has just acted really held them."""
    if not isinstance(policy, ContextPolicy):
        names = ("n_latents", "latent_bits", "context_tokens", "compression_ratio", "context_bytes")
        return dict.fromkeys(names)
    n_latents = None if isinstance(model, TeacherModel) else model.compressor.n_latents
    return {
        "n_latents": n_latents,
        "latent_bits": n_latents and n_latents * model.config.student_parts.model.d_model * 32,
        "context_tokens": policy.context_tokens,
        "compression_ratio": policy.model.region_len / n_latents if n_latents else 1.0,
        "context_bytes": policy.context_bytes,
    }


if __name__ == "__main__":
    run_main(main)
