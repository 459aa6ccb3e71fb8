"""How much return so many bits can buy: rate-distortion bounds beside measured returns.

A compressor that keeps R bits of a task loses at least D(R) of what knowing the task would earn
(Shannon 1959, Coding theorems for a discrete source with a fidelity criterion). In closed form for
bandits of contexts with one paying lever; by Blahut-Arimoto for whatever has a matrix of losses.

The bound holds for every code, but only codes of many letters together come near it: the contexts
of a bandit are many, the goal of a room is one. What a code of single letters can do is
`codebook_distortion`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import entr, logsumexp

from tasks.family import FamilyError
from tasks.references import TabularMDP, is_optimal, optimal_action_values, optimal_return

Beyond = Callable[[float, np.ndarray], float]
BITS = 1 / np.log(2)  # in a nat


def keyed_bandit_accuracy(bits: float, n_contexts: int, n_actions: int) -> float:
    """Largest share of contexts whose paying lever can be known from so many bits of a task.

    With b = bits / N a context, the 1 - D that solves b = log2 A - H_b(D) - D log2(A - 1): the rate
    of an evenly distributed source under Hamming distortion (Cover & Thomas 2006, Elements of
    Information Theory, section 10.3 and problem 10.5). Contexts are independent, so their rates
    add up.

    Args:
        bits: Kept of a task; nothing is gained above N log2 A.
        n_contexts: N.
        n_actions: A.

    Returns:
        Between 1/A and 1; also the return of an episode, as a share of its steps.
    """
    per_context = bits / n_contexts
    if per_context <= 0 or n_actions == 1:
        return 1.0 / n_actions
    if per_context >= np.log2(n_actions):
        return 1.0

    def excess(wrong: float) -> float:
        uncertainty = entr(wrong) + entr(1 - wrong) + wrong * np.log(n_actions - 1)
        return float(np.log2(n_actions) - uncertainty * BITS) - per_context

    return 1.0 - root_scalar(excess, bracket=(0.0, 1.0 - 1.0 / n_actions)).root


@dataclass(frozen=True)
class RateDistortion:
    """A rate-distortion function by points and tangents.

    Attributes:
        rates: `(P,)` bits, ascending.
        distortions: `(P,)` reached at these rates.
        slopes: `(T,)`, nats per unit of distortion.
        intercepts: `(T,)` nats: no code has R < intercept - slope · D, R in nats.
        span: Least and largest distortion worth having, at full rate and at none.
    """

    rates: np.ndarray
    distortions: np.ndarray
    slopes: np.ndarray
    intercepts: np.ndarray
    span: tuple[float, float]

    def distortion(self, bits: np.ndarray | float) -> np.ndarray:
        """Least distortion at so many bits, shaped as they are: never above the true bound."""
        nats = np.asarray(bits, dtype=np.float64) / BITS
        tangents = (self.intercepts - nats[..., None]) / self.slopes
        # No tangent touches the curve where it begins.
        return np.where(nats > 0, np.clip(tangents.max(-1), *self.span), self.span[1])


def rate_distortion(
    distortions: np.ndarray,
    source: np.ndarray | None = None,
    *,
    beyond: Beyond | None = None,
    slopes: Sequence[float] | np.ndarray | None = None,
    tolerance: float = 1e-6,
    most_updates: int = 2000,
) -> RateDistortion:
    """The rate-distortion function of a finite source (Blahut 1972; Arimoto 1972).

    One point of the curve per slope; each also bounds the whole curve from below, converged or not
    (Blahut 1972, Computation of channel capacity and rate-distortion functions, theorem 6).

    Args:
        distortions: `(K, J)`, what it costs to stand letter k by letter j, at least 0.
        source: `(K,)` probabilities of the letters; None for even ones.
        beyond: Where there are more words than columns: from a slope s and weights `(K,)`, the
            most that Σ_k weights_k exp(-s d(k, y)) comes to for any word y, or more. The bound then
            holds for codes that use those words too.
        slopes: Nats per unit of distortion, more than 0; None for 120 that suit the distortions.
        tolerance: Nats between a point and its bound at which it has converged.
        most_updates: Of a point.
    """
    n_letters = len(distortions)
    source = np.full(n_letters, 1.0 / n_letters) if source is None else np.asarray(source)
    least, most = float(source @ distortions.min(1)), float((source @ distortions).min())
    if slopes is None:
        scale = max(most - least, 1e-12)
        slopes = np.geomspace(1e-3, 1e3, 120) / scale
    log_words = np.full(distortions.shape[1], -np.log(distortions.shape[1]))  # (J,)
    points = []
    for slope in np.sort(np.asarray(slopes, dtype=np.float64)):
        # Where a word has all but vanished at one slope it could not come back at the next.
        start = np.logaddexp(log_words, np.log(1e-6) - np.log(len(log_words)))
        log_words, point = _point(
            distortions, source, slope, start - logsumexp(start), beyond, tolerance, most_updates
        )
        points.append((*point, slope))
    rates, reached, intercepts, used = np.array(points).T
    order = np.argsort(rates, kind="stable")
    return RateDistortion(
        rates[order] * BITS, reached[order], used, intercepts, (least, max(least, most))
    )


def _point(
    distortions: np.ndarray,
    source: np.ndarray,
    slope: float,
    log_words: np.ndarray,
    beyond: Beyond | None,
    tolerance: float,
    most_updates: int,
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Log-probabilities of the words, and rate, distortion and intercept in nats."""
    least = distortions.min(1)
    kernel = np.exp(-slope * (distortions - least[:, None]))  # (K, J)
    words = np.exp(log_words)
    for _ in range(most_updates):
        totals = kernel @ words  # (K,)
        gains = (source / totals) @ kernel  # (J,): what each word's probability is multiplied by
        gap = float(np.log(gains.max()))
        if gap < tolerance:
            break
        words = words * gains
    if beyond is not None:
        gap = max(gap, float(np.log(beyond(slope, source / totals * np.exp(slope * least)))))
    with np.errstate(divide="ignore"):
        logs = np.log(totals) - slope * least
        log_words = np.log(words)
    channel = kernel * words / totals[:, None]  # (K, J)
    distortion = float(source @ (channel * distortions).sum(1))
    free = -float(source @ logs)
    return log_words, (max(free - slope * distortion, 0.0), distortion, free - gap)


def codebook(distortions: np.ndarray, n_words: int, source: np.ndarray | None = None) -> np.ndarray:
    """Columns `(n_words,)` of a code that has one of them for each letter, log2 of them in bits.

    Words are chosen one after the other, each for the most it saves; that saves at least 1 - 1/e of
    what the best words would (Nemhauser, Wolsey & Fisher 1978), beginning with the best single one.

    Args:
        distortions: `(K, J)`, as in `rate_distortion`.
        n_words: 1 ... J.
        source: `(K,)` probabilities of the letters; None for even ones.
    """
    if source is None:
        source = np.full(len(distortions), 1.0 / len(distortions))
    costs, chosen = np.full(len(distortions), np.inf), []
    for _ in range(n_words):
        every = np.minimum(costs[:, None], distortions)  # (K, J)
        chosen.append(int((source @ every).argmin()))
        costs = every[:, chosen[-1]]
    return np.array(chosen)


def codebook_distortion(
    distortions: np.ndarray, n_words: int, source: np.ndarray | None = None
) -> float:
    """Distortion of `codebook`, arguments as there."""
    least = distortions[:, codebook(distortions, n_words, source)].min(1)
    return float(np.average(least, weights=source))


def return_losses(mdps: Sequence[TabularMDP], policies: np.ndarray | None = None) -> np.ndarray:
    """What each policy earns less than the optimal one, in each MDP.

    By default the policies are the MDPs' own optimal ones, ties evenly shared: row k, column j is
    what is lost in k by who takes it for j. A bound made of these speaks of agents that act
    optimally for some task; add policies that hedge between tasks where such may earn more.

    Args:
        mdps: K of equal spaces and horizon.
        policies: `(J, H, S, A)`, probabilities of the actions at each time; None for the default.

    Returns:
        `(K, J)`, expected undiscounted return of an episode, at least 0, exact.
    """
    if policies is None:
        policies = optimal_policies(mdps)
    losses = np.empty((len(mdps), len(policies)))
    for row, mdp in enumerate(mdps):
        returns = policy_returns(mdp, policies)
        losses[row] = np.maximum(optimal_return(mdp) - returns, 0.0)
    return losses


def optimal_policies(mdps: Sequence[TabularMDP]) -> np.ndarray:
    """Optimal policies `(K, H, S, A)`, every optimal action of a state and time equally likely."""
    if not mdps:
        raise FamilyError("losses need at least one task, got none")
    optimal = np.stack([is_optimal(optimal_action_values(mdp)) for mdp in mdps])
    return optimal / optimal.sum(-1, keepdims=True)


def policy_returns(mdp: TabularMDP, policies: np.ndarray) -> np.ndarray:
    """Expected undiscounted returns `(J,)` of one episode of policies `(J, H, S, A)`, exact."""
    n_policies, horizon, n_states, n_actions = policies.shape
    flat = mdp.transitions.reshape(-1, n_states)  # (SA, S)
    values = np.zeros((n_states, n_policies))
    for step in reversed(range(horizon)):
        ahead = (flat @ values).reshape(n_states, n_actions, n_policies)
        earned = mdp.rewards[..., None] + ahead  # (S, A, J)
        values = np.einsum("jsa,saj->sj", policies[:, step], earned)
    return mdp.start @ values
