"""Evaluate a method in context on held-out tasks, weights frozen.

Held-out tasks x evaluation seeds act in one batch; the student is also run with zeroed, with
shuffled and with the learned "no context" latents. method=random and method=optimal are references,
one rollout for all training seeds. Output: {eval_result.npy, metrics.json} in
<run_dir>/seed_<n>/evaluate/<method>/ and <run_dir>/references/<method>/.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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
from ad.policy import ContextPolicy, Policy
from ad.student import CADStudent
from base.files import write_json, write_npy
from base.hashes import config_hash
from pipelines.cli import run_main
from pipelines.common import Run, open_run, source
from pipelines.config import RunConfig
from pipelines.methods import METHODS, Method
from pipelines.models import acting_parameters, load_model, load_teacher, policy_of
from pipelines.stages import STAGES, chain, evaluated
from tasks.family import Task
from teacher.model import TeacherModel
from training.run_dir import git_sha, mark_done, now, stage_done

FORMAT_VERSION = 1
Maker = Callable[[Sequence[Task]], Policy]


def main(config: RunConfig) -> None:
    """Run the stage."""
    run = open_run(config, "evaluate")
    if not run.accelerator.is_main_process:
        return
    inputs = run.inputs_of("evaluate")
    if stage_done(run.folder("evaluate"), inputs):
        run.say(f"{run.folder('evaluate')} is done")
        return
    parents = run.parents("evaluate")
    trained = {name: parents[STAGES[name].job(config)] for name in chain(config)}
    model, facts = None, {}
    if trained:
        model = load_model(run, list(trained)[-1])
        compared = STAGES["train_teacher"].job(run.of("teacher").config) in parents
        facts = {
            **_offline(run, model, list(trained), compared=compared),
            **_training_facts(trained),
        }
    folders = STAGES["evaluate"].folders(config)
    # The method's own directory is marked as done last, after its controls.
    for name, folder in reversed(list(zip(evaluated(config.method), folders, strict=True))):
        started, out = time.perf_counter(), run.root / folder
        own = facts if name == config.method else {}
        _evaluate(run, METHODS[name], model, own, out)
        mark_done(out, "evaluate", inputs, seconds=time.perf_counter() - started)


def _policy(run: Run, method: Method, model: Any, tasks: Sequence[Task]) -> Policy:
    """Return what acts for a method on the tasks of the streams."""
    if method.act is not None:
        return method.act(run.family, tasks)
    control = {}
    if method.control is not None:
        streams = np.array([task.index for task in tasks])
        control = {"control": method.control, "tasks_of_streams": streams}
    return policy_of(model, run, run.config.evaluate.temperature, **control)


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


def _offline(run: Run, model: Any, trained: Sequence[str], *, compared: bool) -> dict[str, Any]:
    """Agreement with recorded test regions, and with the teacher; contexts as in training."""
    teacher = load_teacher(run) if compared else None
    needed = max(getattr(m, "n_context_regions", 1) for m in (model, teacher))
    batches = source(run, "test", run.config.evaluate.n_offline, needed)

    def act(batch: Triple) -> torch.Tensor:
        if isinstance(model, TeacherModel):
            return model(batch)
        return model(batch.previous, batch.has_previous, batch.query)[0]

    metrics = offline_metrics(act, model.actions, batches, teacher)
    gamma = run.config.distill.loss.gamma + ("finetune" in trained) * run.config.finetune.loss.gamma
    if "pretrain_compressor" in trained or (gamma > 0 and isinstance(model, CADStudent)):
        metrics |= reconstruction_metrics(model, batches)
    return metrics


def _evaluate(run: Run, method: Method, model: Any, facts: Mapping[str, Any], out: Path) -> None:
    """Roll one method out and write its result files."""
    settings = run.config.evaluate
    tasks = run.tasks(settings.part)
    policies: list[Policy] = []

    def made(streams: Sequence[Task]) -> Policy:
        policies.append(_policy(run, method, model, streams))
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
    write_npy(out / "eval_result.npy", result.returns)
    write_json(
        out / "metrics.json",
        {
            **_header(run, method, tasks),
            **_context_facts(policies[-1], model),
            "normalized_final": float(final),
            "ms_per_action": result.ms_per_action,
            "action_accuracy_optimal": result.action_accuracy_optimal,
            "n_parameters_acting": None if model is None else acting_parameters(model),
            **facts,
        },
    )
    run.say(f"{method.name}: normalised return of the last episodes {final:.3f}, in {out}")


def _header(run: Run, method: Method, tasks: Sequence[Task]) -> dict[str, Any]:
    config, settings = run.config, run.config.evaluate
    return {
        "format_version": FORMAT_VERSION,
        "method": method.name,
        "method_record": method.record(),
        "training_seed": None if method.act else config.seed,
        "region_len": config.region_len,
        "split_identity": run.split.identity,
        "split_name": run.split.name,
        "part": settings.part,
        "family": run.family.name,
        "horizon": run.family.episode_len,
        "task_bits": math.log2(len(run.family.tasks())),
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
        "config_hash": config_hash(config),
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
