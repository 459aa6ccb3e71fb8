"""Optimal actions estimated from simulator rollouts, where a family tells none itself.

Random episodes are played in every task; their transitions and rewards are counted, and the best
actions of the MDP so counted are found by backward induction over the episode's steps. What the
simulator never showed is taken to lead nowhere and to pay nothing. Observations must be of few
classes and tell the state. Shapes: n streams, S states (one absorbing), A actions, H steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from base.ranges import AtLeast
from base.seeding import derive
from nets.spaces import FieldSpec
from tasks.family import FamilyError, Task, TaskFamily
from tasks.references import action_values, is_optimal
from tasks.vector import take_step

MOST_CELLS = 2**26
"""Largest table of counts, of all tasks that are played at once."""
MOST_STREAMS = 1024


@dataclass(frozen=True)
class MonteCarloConfig:
    """How optimal actions are estimated.

    Attributes:
        n_episodes: Random episodes in every task.
        seed: Of environments and actions.
    """

    n_episodes: Annotated[int, AtLeast(1)] = 2000
    seed: Annotated[int, AtLeast(0)] = 0


class MonteCarloActions:
    """Estimated optimal actions of many tasks.

    Args:
        family: Of Discrete actions and observations of classes.
        tasks: Those estimated.
        observation: The observation field.
        action: The action field.
        config: How much is played.

    Attributes:
        optimal: `(K, H, S, A)` bool, by place in `tasks`.
        values: `(K, S, A)` float32, of the episode's first step.

    Raises:
        FamilyError: Spaces are others, or too large to count in.
    """

    def __init__(
        self,
        family: TaskFamily,
        tasks: Sequence[Task],
        observation: FieldSpec,
        action: FieldSpec,
        config: MonteCarloConfig | None = None,
    ) -> None:
        self.config, self.observation = config or MonteCarloConfig(), observation
        self.first_action = (*action.start, 0)[0]
        kinds = {observation.kind, action.kind}
        n_states = int(np.prod(observation.n_classes)) + 1 if kinds == {"classes"} else 0
        if not n_states or len(action.n_classes) != 1:
            raise FamilyError(
                f"family {family.name!r}: optimal actions are counted out for observations of "
                "classes and a Discrete action, which it has not; take another target"
            )
        self.sizes = (n_states, action.n_classes[0], n_states)
        if (cells := int(np.prod(self.sizes))) > MOST_CELLS:
            raise FamilyError(
                f"family {family.name!r}: counting its transitions would need {cells} cells a "
                f"task, at most {MOST_CELLS} are possible; take another target"
            )
        self.places = {task.index: place for place, task in enumerate(tasks)}
        self.optimal = np.zeros((len(tasks), family.episode_len, *self.sizes[:2]), dtype=bool)
        self.values = np.zeros((len(tasks), *self.sizes[:2]), dtype=np.float32)
        at_once = max(1, min(MOST_CELLS // cells, MOST_STREAMS // 8))
        for first in range(0, len(tasks), at_once):
            part = slice(first, first + at_once)
            values = self._estimate(family, tasks[part])  # (k, H, S, A)
            self.optimal[part], self.values[part] = is_optimal(values), values[:, 0]

    def states(self, observations: np.ndarray) -> np.ndarray:
        """Return the states `(n,)` of observations `(n, ...)`."""
        axes = np.asarray(observations, dtype=np.int64).reshape(len(observations), -1)
        axes = (axes - np.array(self.observation.start or (0,))).T
        return np.asarray(np.ravel_multi_index(tuple(axes), self.observation.n_classes))

    def probabilities(
        self, places: np.ndarray, elapsed: np.ndarray, observations: np.ndarray
    ) -> np.ndarray:
        """Return the best actions, evenly, `(n, A)`.

        Args:
            places: (n,) of the streams' tasks.
            elapsed: (n,) steps of the episode before this one.
            observations: (n, ...).
        """
        step = np.minimum(elapsed, self.optimal.shape[1] - 1)
        best = self.optimal[places, step, self.states(observations)]
        return best / best.sum(-1, keepdims=True)

    def _estimate(self, family: TaskFamily, tasks: Sequence[Task]) -> np.ndarray:
        """Return the best returns (k, H, S, A) of the MDPs that random episodes show."""
        n_copies = max(1, min(self.config.n_episodes, MOST_STREAMS // len(tasks)))
        n_steps = -(-self.config.n_episodes // n_copies) * family.episode_len
        owner = np.repeat(np.arange(len(tasks)), n_copies)
        seed = derive(self.config.seed, "monte carlo", tasks[0].index)
        rng = np.random.default_rng(seed)
        counts = np.zeros((len(tasks), *self.sizes))
        paid = np.zeros(counts.shape[:3])
        env = family.make_vector_env([task for task in tasks for _ in range(n_copies)])
        observations, _ = env.reset(seed=seed)
        for _ in range(n_steps):
            actions = rng.integers(self.sizes[1], size=len(owner))
            step = take_step(env, actions + self.first_action)
            reached = np.where(step.terminated, self.sizes[2] - 1, self.states(step.true_next))
            place = (owner, self.states(observations), actions)
            np.add.at(counts, (*place, reached), 1)
            np.add.at(paid, place, step.rewards)
            observations = step.observations
        env.close()
        seen = counts.sum(-1)  # (k, S, A)
        counts += (seen == 0)[..., None] * np.eye(self.sizes[0])[:, None]
        rewards = paid / np.maximum(seen, 1)
        return action_values(counts / counts.sum(-1, keepdims=True), rewards, family.episode_len)


class MonteCarloLabeller:
    """Tells estimated optimal actions in streams whose tasks it knows.

    Args:
        estimated: Of all their tasks.
        tasks: Of the streams.
    """

    def __init__(self, estimated: MonteCarloActions, tasks: Sequence[Task]) -> None:
        self.estimated = estimated
        self.places = np.array([estimated.places[task.index] for task in tasks])
        self.elapsed = np.zeros(len(tasks), dtype=np.int64)

    def probabilities(self, observations: np.ndarray) -> np.ndarray:
        """As of a `Labeller`."""
        return self.estimated.probabilities(self.places, self.elapsed, observations)

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> None:
        """Count the steps of the episode."""
        self.elapsed = np.where(terminated | truncated, 0, self.elapsed + 1)
