"""Exact reference returns of finite, tabular, finite-horizon MDPs by dynamic programming.

Knows nothing of environments: a family describes its task as a `TabularMDP`.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TabularMDP:
    """A finite MDP with an episode of fixed length.

    Attributes:
        transitions: `(S, A, S)` float, probability of the next state.
        rewards: `(S, A)` float, expected reward of an action.
        start: `(S,)` float, distribution of the first state.
        horizon: Steps in an episode; absorbing states model earlier ends.
    """

    transitions: np.ndarray
    rewards: np.ndarray
    start: np.ndarray
    horizon: int

    def __post_init__(self) -> None:
        """Raises ValueError where shapes disagree or a distribution does not sum to one."""
        n_states, n_actions = self.rewards.shape
        if self.transitions.shape != (n_states, n_actions, n_states):
            raise ValueError(
                f"transitions must be {(n_states, n_actions, n_states)} to fit the rewards, "
                f"got {self.transitions.shape}"
            )
        if self.start.shape != (n_states,):
            raise ValueError(f"start must be {(n_states,)}, got {self.start.shape}")
        if not (np.allclose(self.transitions.sum(-1), 1.0) and np.isclose(self.start.sum(), 1.0)):
            raise ValueError("transition rows and the start distribution must each sum to one")

    @classmethod
    def deterministic(
        cls, next_states: np.ndarray, rewards: np.ndarray, start: int, horizon: int
    ) -> "TabularMDP":
        """From `next_states` `(S, A)` int and `rewards` `(S, A)`."""
        n_states = next_states.shape[0]
        start_distribution = np.zeros(n_states)
        start_distribution[start] = 1.0
        return cls(np.eye(n_states)[next_states], rewards, start_distribution, horizon)


def policy_return(mdp: TabularMDP, policy: np.ndarray) -> float:
    """Expected undiscounted return of one episode of the stationary `policy` `(S, A)`."""
    state_transitions = np.einsum("sa,sat->st", policy, mdp.transitions)
    state_rewards = (policy * mdp.rewards).sum(-1)  # (S,)
    values = np.zeros_like(state_rewards)
    for _ in range(mdp.horizon):
        values = state_rewards + state_transitions @ values
    return float(mdp.start @ values)


def random_return(mdp: TabularMDP) -> float:
    """Expected undiscounted return of one episode of uniformly random actions."""
    return policy_return(mdp, np.full(mdp.rewards.shape, 1.0 / mdp.rewards.shape[1]))


def optimal_return(mdp: TabularMDP) -> float:
    """Best expected undiscounted return of one episode, by backward induction over its steps."""
    return float(mdp.start @ optimal_action_values(mdp)[0].max(-1))


def optimal_action_values(mdp: TabularMDP) -> np.ndarray:
    """Best expected return from each step, state and action on, `(H, S, A)`."""
    return action_values(mdp.transitions, mdp.rewards, mdp.horizon)


def action_values(transitions: np.ndarray, rewards: np.ndarray, horizon: int) -> np.ndarray:
    """As `optimal_action_values`, of many MDPs: `(..., S, A, S)` and `(..., S, A)`.

    Returns:
        `(..., H, S, A)`.
    """
    flat = transitions.reshape(*rewards.shape[:-2], -1, transitions.shape[-1])  # (..., SA, S)
    values = np.zeros((*rewards.shape[:-2], horizon, *rewards.shape[-2:]))
    values[..., -1, :, :] = rewards
    for step in reversed(range(horizon - 1)):
        best = values[..., step + 1, :, :].max(-1)  # (..., S)
        ahead = (flat @ best[..., None]).reshape(rewards.shape)
        values[..., step, :, :] = rewards + ahead
    return values


def is_optimal(values: np.ndarray) -> np.ndarray:
    """Which of the actions of the last axis are best, equal ones all: bool, shaped as `values`."""
    return np.isclose(values, values.max(-1, keepdims=True), rtol=0, atol=1e-9)
