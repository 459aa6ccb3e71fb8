"""How posterior sampling acts, as a distribution: what its actions are, given all a stream saw.

A learner of its histories can know no more of the next action than this mixture over the tasks that
may have been drawn, weighted by how well they explain what the stream has done since the draw.
Shapes: n streams, K hypotheses, A actions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete

from tasks.family import FamilyError, Task, TaskFamily
from tasks.posterior import posterior_of


class BayesActions:
    """Exact action distributions of `tasks.search.PosteriorSamplingPolicy`, its noise left out.

    At an episode's start the draw is distributed as the posterior. Within the episode it stays, so
    that actions tell of it; what is ruled out is drawn anew. The posterior gives either
    `action_probabilities(observations)` `(n, A)`, where draws leave no trace within an episode, or
    `weights()` `(n, K)`, unnormalised, and `action_table(observations)` `(n, K, A)`; `redrawn`
    `(n,)` bool, if it has that, says after `update` where the hypotheses are other ones now, of
    whose draw nothing done so far tells. A stream in which nothing is possible acts at random.
    """

    def __init__(
        self,
        family: TaskFamily,
        prior_tasks: Sequence[Task],
        n_streams: int,
        *,
        noise: float = 0.0,
    ) -> None:
        """Begin `n_streams` that know the prior only.

        Args:
            family: Of the tasks; its posterior tells distributions.
            prior_tasks: That are drawn from.
            n_streams: n.
            noise: Share of random actions among those that are told by `update`.

        Raises:
            FamilyError: The family has no such posterior, or other than Discrete actions.
        """
        if not isinstance(family.action_space, Discrete):
            raise FamilyError(
                f"family {family.name!r}: exact Bayes actions need a Discrete action space, got "
                f"{family.action_space}; take loss.target=optimal or teacher instead"
            )
        self.posterior: Any = posterior_of(family, prior_tasks, n_streams)
        self.direct = hasattr(self.posterior, "action_probabilities")
        if not tells_actions(self.posterior):
            raise FamilyError(
                f"family {family.name!r}: its posterior draws tasks, but does not tell how likely "
                "each action is; give it action_probabilities, or weights and action_table "
                "(tasks/bayes.py says what they return), or take loss.target=optimal or teacher"
            )
        self.noise, self.n_actions = noise, int(family.action_space.n)
        self.first_action = int(family.action_space.start)
        self.starts = np.ones(n_streams, dtype=bool)
        self.drawn = np.zeros(0)

    def probabilities(self, observations: np.ndarray) -> np.ndarray:
        """Probabilities `(n, A)` of the next actions."""
        if self.direct:
            found = self.posterior.action_probabilities(observations)
            return _normalised(found, 1.0)
        weights = _normalised(self.posterior.weights(), 0.0)  # (n, K)
        if not self.drawn.size:
            self.drawn = weights.copy()
        kept = np.where(self.starts[:, None], 0.0, self.drawn * (weights > 0))
        drawn = kept + (1 - kept.sum(-1, keepdims=True)) * weights
        self.table = self.posterior.action_table(observations)  # (n, K, A)
        self.drawn = drawn
        return _normalised(np.einsum("nk,nka->na", drawn, self.table), 1.0)

    def update(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """Take in one transition of every stream, whoever chose its action; `ended` `(n,)` bool."""
        if not self.direct:
            place = actions[:, None, None].astype(np.int64) - self.first_action
            taken = np.take_along_axis(self.table, place, -1)
            likelihood = (1 - self.noise) * taken[..., 0] + self.noise / self.n_actions
            explained = self.drawn * likelihood
            # An action that no draw explains tells nothing of the draw.
            told = explained.sum(-1, keepdims=True) > 0
            self.drawn = _normalised(np.where(told, explained, self.drawn), 0.0)
        self.posterior.update(observations, actions, rewards, next_observations, ended)
        self.starts = np.logical_or(ended, getattr(self.posterior, "redrawn", False))


def tells_actions(posterior: Any) -> bool:
    """Whether a posterior tells how likely each action is, and does not only draw tasks."""
    return hasattr(posterior, "action_probabilities") or hasattr(posterior, "action_table")


def _normalised(weights: np.ndarray, otherwise: float) -> np.ndarray:
    """Rows that sum to one; those without any weight are even, or stay zero."""
    weights = np.asarray(weights, dtype=np.float64)
    total = weights.sum(-1, keepdims=True)
    even = otherwise / weights.shape[-1]
    return np.where(total > 0, weights / np.where(total > 0, total, 1.0), even)
