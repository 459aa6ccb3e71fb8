"""The most return that so many bits of a task allow, as families say it and evaluation writes it.

A family that knows it has `return_bound(bits)`. The arithmetic stands in `tasks.bounds`.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.bounds import keyed_bandit_accuracy, rate_distortion, return_losses
from tasks.family import TaskFamily, information_bits
from tasks.references import TabularMDP, optimal_return, random_return

N_POINTS = 48
"""Of a written curve, besides that of no bits."""
LEAST_SHARE = 1 / 64
"""Of the bits of a task, at which it begins."""
MOST_POLICIES, MOST_MDPS = 1024, 500
"""That `policy_bound` looks through: all there are, and the first of more."""


@dataclass(frozen=True)
class ReturnBound:
    """No agent whose news of the task are so many bits gets more, on average over the family.

    Attributes:
        bits: `(P,)`, ascending.
        returns: `(P,)` normalised returns, 0 random, 1 optimal.
        accuracies: `(P,)` share of steps with an optimal action; None where nothing is known of it.
        own_episode: Whether an agent may also see its own steps of the one episode that is judged.
        told: `(P,)` bits of the task that an episode's actions tell; None where that is not
            measured.
    """

    bits: np.ndarray
    returns: np.ndarray
    accuracies: np.ndarray | None
    own_episode: bool
    told: np.ndarray | None = None

    def entry(self) -> dict[str, Any]:
        """What result files say of it."""
        optional = {"accuracy": self.accuracies, "told": self.told}
        return {
            "bits": self.bits.tolist(),
            "return": self.returns.tolist(),
            **{name: None if v is None else v.tolist() for name, v in optional.items()},
            "own_episode": self.own_episode,
        }


def return_bound(family: TaskFamily) -> ReturnBound | None:
    """The bound from no bits to all of a task's, None where the family knows none."""
    offered: Any = family
    if not hasattr(family, "return_bound"):
        return None
    most = information_bits(family)
    return offered.return_bound(np.r_[0.0, np.geomspace(LEAST_SHARE * most, most, N_POINTS)])


def keyed_bandit_bound(
    bits: np.ndarray, n_contexts: int, n_actions: int, *, each_once: bool
) -> ReturnBound:
    """Shannon's: the accuracy at so many bits is the return as a share of the episode.

    What an agent learns of one context in an episode says nothing new of another: by the chain rule
    the informations that latents add at each context, whatever is known of those before, sum to no
    more than the bits of the latents.

    Args:
        bits: `(P,)`.
        n_contexts: N.
        n_actions: A.
        each_once: Whether an episode shows no context twice.
    """
    accuracies = np.array([keyed_bandit_accuracy(one, n_contexts, n_actions) for one in bits])
    guessed = 1 / n_actions
    returns = (accuracies - guessed) / (1 - guessed) if n_actions > 1 else np.ones_like(accuracies)
    told = np.minimum(bits, n_contexts * np.log2(n_actions)) if each_once else None
    return ReturnBound(bits, returns, accuracies, each_once, told)


def shared_dynamics_bound(bits: np.ndarray, mdps: Sequence[TabularMDP]) -> ReturnBound | None:
    """Blahut-Arimoto's, with the loss of normalised return as distortion, tasks equally likely.

    It holds for whatever policies an agent has that sees states and bits, not rewards: those that
    are optimal for no task too. Of the return r of a policy in task k, 0 ... best_k, exp(s r) lies
    below its chord, so that Σ_k weights_k exp(s r_k) is at most an expected return itself, of
    rewards mixed from all tasks, which dynamic programming makes the most of.

    Args:
        bits: `(P,)`.
        mdps: All tasks of the family.

    Returns:
        None where tasks differ in more than their rewards, where a reward is negative or no policy
        is better than random.
    """
    first = mdps[0]
    best = np.array([optimal_return(mdp) for mdp in mdps])
    spans = best - [random_return(mdp) for mdp in mdps]
    alike = all(
        np.array_equal(mdp.transitions, first.transitions)
        and np.array_equal(mdp.start, first.start)
        and mdp.horizon == first.horizon
        for mdp in mdps
    )
    rewards = np.stack([mdp.rewards for mdp in mdps])  # (K, S, A)
    if not alike or rewards.min() < 0 or spans.min() <= 0:
        return None

    def most(slope: float, weights: np.ndarray) -> float:
        nothing = weights * np.exp(-slope * best / spans)  # (K,): of a return of 0
        mixed = np.tensordot((weights - nothing) / best, rewards, axes=1)  # (S, A)
        mixture = TabularMDP(first.transitions, mixed, first.start, first.horizon)
        return float(nothing.sum()) + optimal_return(mixture)

    curve = rate_distortion(return_losses(mdps) / spans[:, None], beyond=most)
    lost = curve.distortion(np.maximum(bits, 1e-9))  # tangents at no bits too
    return ReturnBound(bits, 1 - lost, None, own_episode=False)


def policy_bound(bits: np.ndarray, mdps: Iterable[TabularMDP]) -> ReturnBound | None:
    """Blahut-Arimoto's over all policies that take one action in each state, at whatever time.

    Each of them is a word, the loss of normalised return its distortion; tasks, drawn by a family
    from endlessly many, are equally likely. Of so many draws the curve is a little above that of
    the family, on average, so that it errs to the safe side. Policies that draw their action anew
    at each visit are no words: in random MDPs of 6 states 3,500 of them raise it by 0.003 at most.

    Args:
        bits: `(P,)`.
        mdps: Tasks of equal spaces and horizon; no more are made than are looked at.

    Returns:
        None where policies are more than `MOST_POLICIES`, or one is as good as another in a task.
    """
    following = iter(mdps)
    first = next(following)
    n_states, n_actions = first.rewards.shape
    if n_actions**n_states > MOST_POLICIES:
        return None
    mdps = [first, *itertools.islice(following, MOST_MDPS - 1)]
    spans = np.array([optimal_return(mdp) - random_return(mdp) for mdp in mdps])
    if spans.min() <= 0:
        return None
    lost = return_losses(mdps, every_policy(first)) / spans[:, None]
    slopes = np.geomspace(0.05, 200, 30)  # nats per unit of normalised return
    curve = rate_distortion(lost, slopes=slopes, tolerance=1e-3, most_updates=500)
    return ReturnBound(bits, 1 - curve.distortion(bits), None, own_episode=False)


def every_policy(mdp: TabularMDP) -> np.ndarray:
    """All policies `(A^S, H, S, A)` of one action in each state, at whatever time."""
    n_states, n_actions = mdp.rewards.shape
    taken = np.array(list(itertools.product(range(n_actions), repeat=n_states)))  # (J, S)
    return np.repeat(np.eye(n_actions)[taken][:, None], mdp.horizon, axis=1)
