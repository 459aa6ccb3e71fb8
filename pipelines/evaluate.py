"""Evaluate a method in context on held-out tasks, weights frozen.

Held-out tasks x evaluation seeds act in one batch; the student is also run with zeroed, with
shuffled and with the learned "no context" latents. method=random and method=optimal are references,
one rollout for all training seeds. Output: {eval_result.npy, metrics.json}, and recall.npy where
recall is measured, in <run_dir>/seed_<n>/evaluate/<method>/ and <run_dir>/references/<method>/.
"""

from __future__ import annotations

if __name__ == "__main__":  # above the imports, so that --help waits for none of them
    from pipelines.cli import run_stage

    run_stage("evaluate")

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ad.evaluate import evaluate_policy, offline_metrics
from ad.model import InContextModel
from ad.policy import ContextPolicy, Policy
from base.files import write_json, write_npy
from base.hashes import config_hash
from base.seeding import derive
from pipelines.common import Run, source
from pipelines.config import RunConfig
from pipelines.given_contexts import GIVEN_FACTS, given_contexts
from pipelines.methods import METHODS, Method
from pipelines.models import load_model, load_teacher, policy_of
from pipelines.opening import open_run
from pipelines.stages import STAGES, chain, evaluated, has_teacher
from probes.reading import fresh_reconstruction, return_error
from tasks.family import Task, information_bits
from tasks.return_bounds import return_bound
from training.run_dir import git_sha, mark_done, now, stage_done

FORMAT_VERSION = 1
READING_BATCH = 64
"""Regions in a batch of the head that reads latents."""
CONTEXT_FACTS = (
    "n_latents",
    "memory_regions",
    "sees",
    "context_tokens",
    "compression_ratio",
    "context_bytes",
    "n_parameters_acting",
)


def main(config: RunConfig) -> None:
    """Run the stage."""
    run = open_run(config, "evaluate")
    if not run.accelerator.is_main_process:
        return
    if _done(run):
        return
    inputs = run.inputs_of("evaluate")
    parents = run.parents("evaluate")
    trained = {name: parents[STAGES[name].job(config)] for name in chain(config)}
    model, facts = None, {}
    if trained:
        model = load_model(run, list(trained)[-1])
        if config.evaluate.cuts_down:
            student: Any = model
            shown, number = config.evaluate.n_shown or None, config.evaluate.number or None
            student.cut_down(n_shown=shown, number=number)
        compared = STAGES["train_teacher"].job(run.of("teacher").config) in parents
        held = _held(run, model)
        offline = _offline(run, model, compared=compared) | _returns(run, model)
        facts = {**offline, **held, **_training_facts(trained)}
    elif config.method == "optimal":
        bound = return_bound(run.family)
        facts = {"bound": bound and bound.entry()}
    folders = STAGES["evaluate"].folders(config)
    # The method's own directory is marked as done last, after its controls.
    for name, folder in reversed(list(zip(evaluated(config.method), folders, strict=True))):
        started, out = time.perf_counter(), run.root / folder
        own = facts if name == config.method else {}
        _evaluate(run, METHODS[name], model, own, out)
        seconds = time.perf_counter() - started
        mark_done(out, "evaluate", inputs, results=STAGES["evaluate"].results, seconds=seconds)


def _done(run: Run) -> bool:
    """Whether the stage is done; with or without a teacher that it was compared with.

    The teacher adds a divergence to the student's numbers and changes none of them, so a result
    of before there was one, or of when it was still listed, stays.
    """
    folder = run.folder("evaluate")
    if run.evaluated_otherwise():
        told = "with a teacher that methods does not list now"
        if has_teacher(run.config):
            told = "before there was a teacher: the divergence from it is blank"
        run.say(f"{folder} is done, {told}; delete it to have it evaluated anew")
        return True
    if stage_done(folder, run.inputs_of("evaluate")):
        run.say(f"{folder} is done")
        return True
    return False


def _policy(run: Run, method: Method, model: Any, tasks: Sequence[Task]) -> Policy:
    """Return what acts for a method on the tasks of the streams."""
    if method.act is not None:
        return method.act(run.family, tasks)
    temperature = run.config.evaluate.temperature
    region_len = run.config.evaluate.region_len
    return policy_of(
        model, run, temperature, control=method.control, tasks=tasks, region_len=region_len
    )


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


def _offline(run: Run, model: InContextModel, *, compared: bool) -> dict[str, Any]:
    """Agreement with recorded test regions, and with the teacher; contexts as in training."""
    teacher = load_teacher(run) if compared else None
    needed = max(getattr(m, "n_context_regions", 1) for m in (model, teacher))
    n_offline = run.config.evaluate.n_offline
    batches = source(run, "test", n_offline, needed, max_stride=model.max_stride)
    return offline_metrics(model, batches, teacher)


def _returns(run: Run, model: InContextModel) -> dict[str, Any]:
    """How well the return to go is read from hidden states, where that was asked for."""
    if not run.config.evaluate.return_error:
        return {}
    count, needed = run.config.evaluate.n_offline, getattr(model, "n_context_regions", 1)
    settings: Any = {"max_stride": model.max_stride}
    seed = derive(run.config.seed, "return error")
    fit = source(run, "train", count, needed, seed=seed, **settings)
    return {
        "return_error": return_error(model, fit, source(run, "test", count, needed, **settings))
    }


def _held(run: Run, model: InContextModel) -> dict[str, Any]:
    """What latents hold: their bits, and what a fresh head reads of them; nothing without any."""
    settings, seed = run.config.evaluate, derive(run.config.seed, "reading")
    if model.n_latents is None:
        return {}
    student: Any = model
    test = source(run, "test", settings.n_offline, 1)
    with torch.inference_mode():
        bits = float(student.compress(test(0).query).bits_per_region)
    if not settings.reading_updates:
        return {"latent_bits": bits}
    train = source(run, "train", READING_BATCH, 1, seed=seed)
    updates = settings.reading_updates
    return {
        "latent_bits": bits,
        **fresh_reconstruction(student, train, test, updates=updates, seed=seed),
    }


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
    given: dict[str, Any] = dict.fromkeys(GIVEN_FACTS)
    if method.act is None:
        arrays, facts_of_given = given_contexts(run, method, model, tasks)
        given |= facts_of_given
        for name, array in arrays.items():
            write_npy(out / f"{name}.npy", array)
    final = run.normalized(result.returns, tasks)[..., -settings.final_episodes :].mean()
    write_npy(out / "eval_result.npy", result.returns)
    write_npy(out / "episode_starts.npy", result.starts)
    if result.cells_visited is not None:
        write_npy(out / "cells_visited.npy", result.cells_visited)
    write_json(
        out / "metrics.json",
        {
            **_header(run, method, tasks),
            **_context_facts(policies[-1], model),
            "normalized_final": float(final),
            "ms_per_action": result.ms_per_action,
            "action_accuracy_optimal": result.action_accuracy_optimal,
            **given,
            **facts,
        },
    )
    run.say(f"{method.name}: normalised return of the last episodes {final:.3f}, in {out}")


def _header(run: Run, method: Method, tasks: Sequence[Task]) -> dict[str, Any]:
    config, settings, sources = run.config, run.config.evaluate, run.sources()
    return {
        "format_version": FORMAT_VERSION,
        "method": method.name,
        "method_record": method.record(),
        "training_seed": None if method.act else config.seed,
        "region_len": settings.region_len or config.region_len,
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
                "source_return": sources.get(task.index),
                **({"group": task.group} if task.group else {}),
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
        return dict.fromkeys(CONTEXT_FACTS)
    n_latents = model.n_latents
    values = (
        n_latents,
        n_latents and model.memory_regions,
        model.sees,
        policy.context_tokens,
        policy.region_len / n_latents if n_latents else 1.0,
        policy.context_bytes,
        model.n_acting_parameters,
    )
    return dict(zip(CONTEXT_FACTS, values, strict=True))
