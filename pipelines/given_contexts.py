"""Evaluation under contexts that an agent did not make itself: recorded, or demonstrated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ad.evaluate import Evaluation, evaluate_policy
from ad.policy import Policy
from ad.prompt import PromptedPolicy, demonstrator, prompted_facts
from ad.recall import ToldBits, recorded_regions
from pipelines.common import Run
from pipelines.methods import Method
from pipelines.models import policy_of
from tasks.family import Task

GIVEN_FACTS = ("recall", "recall_return", "recall_accuracy", "recall_bits", "prompted")


def given_contexts(
    run: Run, method: Method, model: Any, tasks: Sequence[Task]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Measure what `evaluate.recall_regions` and `evaluate.prompt_skills` ask for.

    Returns:
        Arrays of normalised returns by the name of their file, and what metrics.json says of them.
    """
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}
    if run.config.evaluate.recall_regions:
        arrays["recall"], of_recall = recalled(run, method, model, tasks)
        facts |= of_recall
    if run.config.evaluate.prompt_skills:
        arrays["prompted"], facts["prompted"] = prompted(run, method, model, tasks)
    return arrays, facts


def recalled(
    run: Run, method: Method, model: Any, tasks: Sequence[Task]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Freeze the context after recorded regions of these tasks, and act for one episode.

    Returns:
        (tasks, seeds, k asked for) normalised returns, and what metrics.json says of them.
    """
    settings, family = run.config.evaluate, run.family
    regions = recorded_regions(
        run.table(settings.part),
        tasks,
        n_regions=max(settings.recall_regions),
        n_streams=settings.n_seeds,
        seed=settings.seed,
        device=run.accelerator.device,
    )

    def after(k: int) -> tuple[Evaluation, float | None]:
        told: list[ToldBits] = []

        def made(streams: Sequence[Task]) -> Policy:
            more: Any = {"control": method.control, "tasks": streams, "context": regions[:k]}
            policy = policy_of(model, run, settings.recall_temperature, **more)
            if not getattr(family, "spells_task", False):
                return policy
            told.append(ToldBits(policy, family, streams))
            return told[0]

        counts = {"n_seeds": settings.n_seeds, "n_episodes": 1, "final_episodes": 1}
        result = evaluate_policy(made, family, tasks, **counts, seed=settings.seed)
        return result, told[0].bits if told else None

    results, bits = zip(*map(after, settings.recall_regions), strict=True)
    returns = np.concatenate([run.normalized(r.returns, tasks) for r in results], axis=-1)
    every = [
        {
            "region": k,
            "return": float(mean),
            "accuracy": result.action_accuracy_optimal,
            "bits": told,
        }
        for k, mean, result, told in zip(
            settings.recall_regions, returns.mean((0, 1)), results, bits, strict=True
        )
    ]
    longest = max(every, key=lambda entry: entry["region"])
    of_longest = {f"recall_{key}": longest[key] for key in ("return", "accuracy", "bits")}
    return returns.astype(np.float32), {"recall": every, **of_longest}


def prompted(
    run: Run, method: Method, model: Any, tasks: Sequence[Task]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Act after demonstrations of every skill asked for, each stream after its own.

    Returns:
        (skills, tasks, seeds, episodes) normalised returns, the demonstration's episodes first, and
        what metrics.json says of each skill.
    """
    settings, family, region_len = run.config.evaluate, run.family, run.config.region_len
    shown = -(-settings.prompt_regions * region_len // family.episode_len)
    n_episodes = shown + settings.prompt_episodes
    final = max(1, settings.prompt_episodes // 4)

    def after(skill: float) -> Evaluation:
        def made(streams: Sequence[Task]) -> Policy:
            more: Any = {"control": method.control, "tasks": streams}
            policy = policy_of(model, run, settings.temperature, **more)
            shown_by = demonstrator(family, streams, skill)
            return PromptedPolicy(policy, shown_by, settings.prompt_regions)

        counts = {"n_seeds": settings.n_seeds, "n_episodes": n_episodes, "final_episodes": final}
        return evaluate_policy(made, family, tasks, **counts, seed=settings.seed)

    results = [after(skill) for skill in settings.prompt_skills]
    entries = [
        {
            "skill": skill,
            **prompted_facts(
                run.normalized(result.returns, tasks),
                result.starts // region_len,
                n_shown=settings.prompt_regions,
                final_episodes=final,
            ),
        }
        for skill, result in zip(settings.prompt_skills, results, strict=True)
    ]
    returns = np.stack([run.normalized(result.returns, tasks) for result in results])
    return returns.astype(np.float32), entries
