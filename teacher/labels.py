"""Targets that know more than a history shows: how somebody informed acts where a stream was.

`bayes`: posterior sampling without noise, given the whole history of the stream, as a distribution
(of some draws, where its posterior tells no probabilities);
`optimal`: the family's expert, which knows the task; `monte_carlo`: the best actions of the task as
simulator rollouts show it (`teacher.monte_carlo`). They are told of the steps of recorded histories
or of own rollouts, whoever acted. Shapes: S streams, T steps, L region length, P action parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ad.batches import Table
from nets.spaces import FieldSpec
from tasks.bayes import BayesActions
from tasks.family import FamilyError, Task, TaskFamily, expert_of
from tasks.search import PosteriorSamplingPolicy

LABELS = ("bayes", "optimal", "monte_carlo")
MOST_STREAMS = 2048
"""Streams that are labelled at once."""
LEAST = 1e-6
"""Probability that stands for none: a divergence in either direction stays finite."""
N_DRAWS = 8
"""Draws by which an expert shows which actions are equally good."""
POSTERIOR_DRAWS = 4
"""Draws that stand for a posterior which tells no probabilities of actions."""


class Labeller(Protocol):
    """Tells, step by step, how somebody informed would act in n streams."""

    def probabilities(self, observations: np.ndarray) -> np.ndarray:
        """Probabilities `(n, P)` of every class of every axis of the action."""
        ...

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> None:
        """Take in what the stream did instead."""
        ...


MakeLabeller = Callable[[Sequence[Task]], Labeller]
"""Makes the labeller of streams in these tasks."""


class BayesLabeller:
    """Posterior sampling over `prior_tasks`, which is not told the tasks of the streams."""

    def __init__(
        self, family: TaskFamily, prior_tasks: Sequence[Task], n_streams: int, noise: float
    ) -> None:
        self.belief = BayesActions(family, prior_tasks, n_streams, noise=noise)
        self.probabilities = self.belief.probabilities

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> None:
        """As of a `Labeller`."""
        ended = terminated | truncated
        self.belief.update(observations, actions, rewards, next_observations, ended)


class DrawnLabeller:
    """Posterior sampling where its posterior only draws: the share of some draws' actions.

    Right on average, whatever their number. A draw lasts as long as posterior sampling keeps it,
    though the stream may do something else.

    Args:
        family: Of the tasks; has a posterior.
        prior_tasks: That it may know.
        n_streams: n.
        action: Of the family.
        seed: Of the draws.
    """

    def __init__(
        self,
        family: TaskFamily,
        prior_tasks: Sequence[Task],
        n_streams: int,
        action: FieldSpec,
        seed: int,
    ) -> None:
        self.n_classes, self.start = classes_of(family, action), action.start or (0,)
        self.policy = PosteriorSamplingPolicy(family, prior_tasks)
        self.policy.reset(n_streams * POSTERIOR_DRAWS, seed)

    def probabilities(self, observations: np.ndarray) -> np.ndarray:
        """As of a `Labeller`."""
        n = len(observations)
        drawn = self.policy.act(np.repeat(observations, POSTERIOR_DRAWS, axis=0))
        axes = drawn.reshape(n, POSTERIOR_DRAWS, len(self.n_classes)) - np.array(self.start)
        return np.concatenate(
            [np.eye(k)[axes[..., i]].mean(1) for i, k in enumerate(self.n_classes)], axis=-1
        )

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> None:
        """As of a `Labeller`."""
        fields = (observations, actions, rewards, terminated, truncated, next_observations)
        each = [np.repeat(field, POSTERIOR_DRAWS, axis=0) for field in fields]
        self.policy.acted(*each[:2])
        self.policy.observe(*each[2:])


class ExpertLabeller:
    """The family's expert; what it draws among equally good actions, averaged over draws.

    Raises:
        FamilyError: Actions are no classes, or the family has no expert (when first asked).
    """

    def __init__(
        self, family: TaskFamily, tasks: Sequence[Task], action: FieldSpec, seed: int
    ) -> None:
        self.n_classes, self.start = classes_of(family, action), action.start or (0,)
        self.expert = expert_of(family, tasks)
        self.expert.reset()
        self.rng = np.random.default_rng(seed)

    def probabilities(self, observations: np.ndarray) -> np.ndarray:
        """As of a `Labeller`."""
        drawn = [self.expert.act(observations, self.rng) for _ in range(N_DRAWS)]
        axes = np.stack(drawn).reshape(N_DRAWS, len(observations), len(self.n_classes))
        axes = axes - np.array(self.start)
        shares = [np.eye(n)[axes[..., i]].mean(0) for i, n in enumerate(self.n_classes)]
        return np.concatenate(shares, axis=-1)

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> None:
        """As of a `Labeller`."""
        self.expert.observe(rewards, terminated, truncated, next_observations)


def classes_of(family: TaskFamily, action: FieldSpec) -> tuple[int, ...]:
    """Return the classes of every axis of the action; raises FamilyError where there are none."""
    if action.kind != "classes":
        raise FamilyError(
            f"family {family.name!r}: labels are distributions over actions of classes, but its "
            f"action is a {action.kind}; learn from a teacher or from recorded actions instead"
        )
    return action.n_classes


def label_streams(labeller: Labeller, fields: dict[str, np.ndarray]) -> np.ndarray:
    """Return log-probabilities `(S, T, P)` float32 at every step of streams.

    They are parameters of the family's action distribution.

    Args:
        labeller: Of these streams, that has been told of nothing.
        fields: Raw `(S, T, ...)`: `observations, actions, rewards, next_observations, terminated,
            truncated`, from the streams' first step on.
    """
    labels = []
    for time in range(fields["rewards"].shape[1]):
        now = {name: field[:, time] for name, field in fields.items()}
        found = labeller.probabilities(now["observations"])
        labels.append(np.log(np.maximum(found, LEAST)).astype(np.float32))
        labeller.update(**now)
    return np.stack(labels, axis=1)


_TOLD = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")


def label_table(table: Table, tasks: Sequence[Task], make: MakeLabeller) -> np.ndarray:
    """Return labels `(rows, L, P)` float32 of all regions of a table, those of padding zero.

    Args:
        table: Regions; rows of one stream are consecutive, ascending from region 0.
        tasks: Of the family, by index.
        make: Of the labeller.
    """
    mask = table.columns["mask"]
    starts = np.flatnonzero(table.region == 0)
    ends = np.append(starts[1:], len(table.region))
    labels: np.ndarray | None = None
    for first in range(0, len(starts), MOST_STREAMS):
        part = slice(first, first + MOST_STREAMS)
        spans = [slice(*ends_of) for ends_of in zip(starts[part], ends[part], strict=True)]
        steps = [np.flatnonzero(mask[span].reshape(-1)) for span in spans]
        longest = max(len(index) for index in steps)
        # Shorter streams repeat their last step: what is labelled after the end is not kept.
        places = [np.pad(index, (0, longest - len(index)), mode="edge") for index in steps]
        fields = {
            name: np.stack(
                [_flat(table.columns[name][s])[i] for s, i in zip(spans, places, strict=True)]
            )
            for name in _TOLD
        }
        labeller = make([tasks[int(table.task[span.start])] for span in spans])
        found = label_streams(labeller, fields)  # (S, T, P)
        if labels is None:
            labels = np.zeros((*mask.shape, found.shape[-1]), dtype=np.float32)
        for span, index, of_stream in zip(spans, steps, found, strict=True):
            own: Any = labels[span]
            _flat(own)[index] = of_stream[: len(index)]
    assert labels is not None
    return labels


def _flat(field: np.ndarray) -> np.ndarray:
    """View regions `(K, L, ...)` of a stream as steps `(K L, ...)`."""
    return field.reshape(-1, *field.shape[2:])
