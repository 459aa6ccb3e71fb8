"""In-context evaluation of any policy; offline agreement with recorded actions and the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import torch
from gymnasium.spaces import Box

from ad.batches import TripleSource
from ad.losses import masked_mean
from ad.model import InContextModel
from ad.policy import Policy
from ad.rollout import rollout
from base.ranges import AtLeast, Between, Distinct, PlainName
from base.seeding import derive
from tasks.family import FamilyError, Task, TaskFamily, expert_of


@dataclass(frozen=True)
class EvaluateConfig:
    """How policies are evaluated.

    Attributes:
        n_episodes: In-context episodes per stream.
        n_seeds: Evaluation streams per task.
        temperature: Of the sampled actions; 0 takes the most likely one.
        final_episodes: Last episodes that count as the final return.
        seed: Of environments and sampling.
        allow_training_tasks: Evaluate on training tasks too, which is refused otherwise.
        part: Which part of the split: test, validation or train.
        n_offline: Triples for the offline metrics.
        reading_updates: Updates of the fresh head that tells what can be read back from frozen
            latents, the same for every method; 0 leaves that blank.
        return_error: Whether a linear read-out of the return to go, from the hidden states that
            actions are read from, is fitted on training regions and scored on test regions.
        recall_regions: Numbers k of recorded regions after which the context is frozen and the
            return of an episode measured; 0 is an empty context, an empty list measures none.
        recall_temperature: Of the actions sampled there; 0 takes the most likely one.
        prompt_skills: Skills of demonstrations after which acting is measured besides: the share of
            the expert's actions in them, the others being random; an empty list measures none.
        prompt_regions: Regions of a demonstration.
        prompt_episodes: Episodes after it; the last quarter counts as final.
        n_shown: Latents of a region that are shown, the first of nested ones; 0 for all.
        number: Format that plain latents are rounded to: `bf16` or `int8`; empty for none.
        normalise: What is 1 in returns where no optimum is known: `optimal` leaves them as they
            are, `source` takes the best mean return that the sources of histories have reached in
            a region of the task.
        region_len: Transitions of a region while acting; 0 for the L of training. With
            `sampling.jitter` it may be more than L.
        name: Results go to `evaluate_<name>` instead of `evaluate`, so that one trained run can be
            evaluated in several ways.
    """

    n_episodes: Annotated[int, AtLeast(1)] = 80
    n_seeds: Annotated[int, AtLeast(1)] = 16
    temperature: Annotated[float, AtLeast(0)] = 1.0
    final_episodes: Annotated[int, AtLeast(1)] = 10
    seed: Annotated[int, AtLeast(0)] = 0
    allow_training_tasks: bool = False
    part: Literal["test", "validation", "train"] = "test"
    n_offline: Annotated[int, AtLeast(1)] = 512
    reading_updates: Annotated[int, AtLeast(0)] = 300
    return_error: bool = False
    recall_regions: Annotated[list[Annotated[int, AtLeast(0)]], Distinct()] = field(
        default_factory=list
    )
    recall_temperature: Annotated[float, AtLeast(0)] = 0.0
    prompt_skills: Annotated[list[Annotated[float, Between(0, 1)]], Distinct()] = field(
        default_factory=list
    )
    prompt_regions: Annotated[int, AtLeast(1)] = 1
    prompt_episodes: Annotated[int, AtLeast(1)] = 20
    n_shown: Annotated[int, AtLeast(0)] = 0
    number: Literal["", "bf16", "int8"] = ""
    normalise: Literal["optimal", "source"] = "optimal"
    region_len: Annotated[int, AtLeast(0)] = 0
    name: Annotated[str, PlainName()] = ""

    @property
    def cuts_down(self) -> bool:
        """Whether latents are cut down at test."""
        return bool(self.n_shown or self.number)

    def __post_init__(self) -> None:
        """Refuse what cannot be evaluated."""
        if self.part == "train" and not self.allow_training_tasks:
            raise ValueError(
                "part is train, but evaluating on training tasks says nothing about unseen ones; "
                "set evaluate.allow_training_tasks=true if that is meant"
            )
        if self.final_episodes > self.n_episodes:
            raise ValueError(
                f"final_episodes is {self.final_episodes}, expected 1 ... {self.n_episodes}"
            )


@dataclass(frozen=True)
class ValidationConfig:
    """In-context rollouts on validation tasks, by which the best checkpoint is chosen.

    Attributes:
        n_episodes: Episodes per stream; the last quarter counts.
        n_seeds: Streams per validation task.
        temperature: Of the sampled actions.
        seed: Of environments and sampling.
    """

    n_episodes: Annotated[int, AtLeast(1)] = 40
    n_seeds: Annotated[int, AtLeast(1)] = 8
    temperature: Annotated[float, AtLeast(0)] = 1.0
    seed: Annotated[int, AtLeast(0)] = 0


@dataclass
class Evaluation:
    """What an evaluation gave.

    Attributes:
        returns: (tasks, seeds, episodes) float32.
        starts: (tasks, seeds, episodes) int64, the step at which an episode began.
        cells_visited: (tasks, seeds, episodes) float32, or None; see `ad.rollout.Rollout`.
        ms_per_action: Milliseconds per environment step, all streams together.
        action_accuracy_optimal: Share of actions in the final episodes that the expert might take,
            or None where the family has no expert.
    """

    returns: np.ndarray
    starts: np.ndarray
    cells_visited: np.ndarray | None
    ms_per_action: float
    action_accuracy_optimal: float | None


class _ExpertAgreement:
    """Counts over the last steps of a rollout how often an action is one the expert might take."""

    def __init__(self, family: TaskFamily, tasks: Sequence[Task], first_step: int) -> None:
        self.family, self.tasks, self.first_step = family, tasks, first_step
        self.rng = np.random.default_rng(0)
        self.step, self.right, self.total = 0, 0, 0
        self.known = not isinstance(family.action_space, Box)  # no two real actions are equal

    def __call__(self, observations: np.ndarray, actions: np.ndarray) -> None:
        self.step += 1
        if self.step <= self.first_step or not self.known:
            return
        try:
            # Ties between optimal actions are broken at random: a few draws collect them all.
            drawn = [
                self.family.optimal_actions(self.tasks, observations, self.rng) for _ in range(8)
            ]
        except FamilyError:
            self.known = False
            return
        match = (np.stack(drawn) == actions).reshape(8, len(actions), -1).all(-1).any(0)
        self.right += int(match.sum())
        self.total += len(actions)

    @property
    def share(self) -> float | None:
        return self.right / self.total if self.known and self.total else None


def evaluate_policy(
    make_policy: Callable[[Sequence[Task]], Policy],
    family: TaskFamily,
    tasks: Sequence[Task],
    *,
    n_seeds: int,
    n_episodes: int,
    final_episodes: int,
    seed: int,
) -> Evaluation:
    """Roll a policy out on tasks x evaluation seeds at once.

    Args:
        make_policy: Builds the policy for the tasks of the streams, in their order.
        family: Makes the environments.
        tasks: Each is run in `n_seeds` streams.
        n_seeds: Evaluation seeds.
        n_episodes: In-context episodes per stream.
        final_episodes: Over which agreement with the expert is counted.
        seed: Of environments and sampling.
    """
    streams = [task for task in tasks for _ in range(n_seeds)]
    first = (n_episodes - final_episodes) * family.episode_len
    agreement = _ExpertAgreement(family, streams, first)
    result = rollout(
        make_policy(streams), family, streams, n_episodes=n_episodes, seed=seed, on_step=agreement
    )
    shape = (len(tasks), n_seeds, n_episodes)
    visited = result.cells_visited
    return Evaluation(
        result.returns.reshape(shape),
        result.starts.reshape(shape),
        None if visited is None else visited.reshape(shape),
        result.ms_per_action,
        agreement.share,
    )


def normalized(
    returns: np.ndarray,
    family: TaskFamily,
    tasks: Sequence[Task],
    sources: Mapping[int, float | None] = MappingProxyType({}),
) -> np.ndarray:
    """Return (R - R_random) / (R_optimal - R_random) of (tasks, ...) returns.

    Where a family does not know its optimum, by what sources have reached, by task index; where
    that is not known or no better than random, R - R_random: good enough to rank checkpoints by.
    """
    shape = (-1,) + (1,) * (returns.ndim - 1)
    random = np.array([family.random_return(task) for task in tasks])
    best = [family.optimal_return(task) for task in tasks]
    reached = [sources.get(task.index) for task in tasks]
    span = [
        b - r if b is not None else s - r if s is not None and s > r else 1.0
        for r, b, s in zip(random, best, reached, strict=True)
    ]
    return (returns - random.reshape(shape)) / np.maximum(span, 1e-9).reshape(shape)


def has_expert(family: TaskFamily) -> bool:
    """Whether a family can act optimally, in every kind of its tasks."""
    tasks = list({task.group: task for task in reversed(family.tasks())}.values())
    env = family.make_vector_env(tasks)
    observations, _ = env.reset(seed=0)
    env.close()
    try:
        expert_of(family, tasks).act(observations)
    except FamilyError:
        return False
    return True


def validation_scores(
    make_policy: Callable[[Sequence[Task]], Policy],
    family: TaskFamily,
    tasks: Sequence[Task],
    config: ValidationConfig,
) -> dict[str, float]:
    """Roll out on validation tasks; `score` is the normalised return of the last quarter."""
    n_final = max(1, config.n_episodes // 4)
    result = evaluate_policy(
        make_policy,
        family,
        tasks,
        n_seeds=config.n_seeds,
        n_episodes=config.n_episodes,
        final_episodes=n_final,
        seed=derive(config.seed, "validation"),
    )
    scores = normalized(result.returns, family, tasks)
    return {
        "score": float(scores[..., -n_final:].mean()),
        "first": float(scores[..., :n_final].mean()),
        "worst_task": float(scores[..., -n_final:].mean((1, 2)).min()),
    }


@torch.inference_mode()
def offline_metrics(
    model: InContextModel, source: TripleSource, teacher: InContextModel | None = None
) -> dict[str, Any]:
    """Agreement on recorded test regions.

    Args:
        model: Any in-context model.
        source: Draws the triples; its first batch is used.
        teacher: Compared by KL(teacher || model) where given.

    Returns:
        `action_accuracy_recorded`, `action_nll_recorded`, `teacher_kl` (None without a teacher).
    """
    batch, actions = source(0), model.actions
    output = model(batch)
    mask = batch.query.mask if output.mask is None else output.mask
    recorded = batch.query.actions
    same = (actions.mode(output.parameters) == recorded).reshape(*mask.shape, -1).all(-1).float()
    known = actions.spec.kind == "classes"
    kl = None
    if teacher is not None:
        target = teacher(batch).parameters
        kl = float(masked_mean(actions.kl(target, output.parameters), mask))
    nll = actions.nll(output.parameters, recorded)
    return {
        "action_accuracy_recorded": float(masked_mean(same, mask)) if known else None,
        "action_nll_recorded": float(masked_mean(nll, mask)),
        "teacher_kl": kl,
    }
