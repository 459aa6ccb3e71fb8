"""What a training stage learns the actions from, where it is neither histories nor the teacher.

Labels are made when a stage begins and are not kept: they follow from the histories, or from the
rollouts, and the sections named here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ad.batches import Table
from ad.objectives import LABELS_NAME
from ad.on_policy import Lived
from base.seeding import derive
from tasks.bayes import tells_actions
from tasks.family import Task
from tasks.mixture import Member, by_member
from tasks.posterior import posterior_of
from teacher.labels import (
    LABELS,
    BayesLabeller,
    DrawnLabeller,
    ExpertLabeller,
    Labeller,
    label_streams,
    label_table,
)
from teacher.monte_carlo import MonteCarloActions, MonteCarloLabeller

if TYPE_CHECKING:
    import numpy as np

    from pipelines.common import Run


def labeller_maker(run: Run, kind: str) -> Any:
    """Return what makes the labeller of the streams of training tasks, by a name of `LABELS`."""
    family, config = run.family, run.config
    if kind == "optimal":
        seed = derive(config.seed, "labels")
        return lambda tasks: ExpertLabeller(family, tasks, run.action, seed)
    if kind == "bayes":
        # No prior but the training tasks: what is held out is not even in the targets.
        prior = run.tasks("train") if config.posterior.tasks == "train" else family.tasks()
        indices = [task.index for task in prior]
        return lambda tasks: by_member(family, tasks, partial(_bayes, run, indices))
    tasks = run.tasks("train")
    estimated = MonteCarloActions(family, tasks, run.observation, run.action, config.monte_carlo)
    return lambda streams: MonteCarloLabeller(estimated, streams)


def _bayes(run: Run, prior: Sequence[int], member: Member) -> Labeller:
    """Return posterior sampling over those tasks of a prior that are one family's."""
    family, every, n = member.family, member.family.tasks(), len(member.tasks)
    known = [every[index] for index in member.own(prior)]
    if not tells_actions(posterior_of(family, known, 1)):
        seed = derive(run.config.seed, "labels")
        return DrawnLabeller(family, known, n, run.action, seed)
    return BayesLabeller(family, known, n, run.config.posterior.noise)


def recorded_labels(run: Run, table: Table, kind: str) -> np.ndarray | None:
    """Return labels (rows, L, P) of a table of training regions; None if `kind` is none."""
    if kind not in LABELS:
        return None
    run.say(f"labels of recorded regions: {kind}")
    return label_table(table, run.family.tasks(), labeller_maker(run, kind))


def rollout_labels(run: Run, kind: str) -> Any:
    """Return what labels rollouts: (S, K, L, P) of what was lived, by name; nothing if no label."""
    if kind not in LABELS:
        return lambda lived: {}
    make = labeller_maker(run, kind)
    return partial(labels_of, make)


def labels_of(make: Any, lived: Lived) -> dict[str, Tensor]:
    """Return the labels (S, K, L, P) of what was lived, by the name that objectives know."""
    names = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
    fields = {name: getattr(lived.regions, name).flatten(1, 2).cpu().numpy() for name in names}
    tasks: Sequence[Task] = lived.tasks
    labeller: Labeller = make(tasks)
    labels = torch.from_numpy(label_streams(labeller, fields))  # (S, K L, P)
    shape = (*lived.log_probs.shape, labels.shape[-1])
    return {LABELS_NAME: labels.view(shape).to(lived.log_probs.device)}
