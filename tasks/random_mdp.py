"""Random MDPs ("Garnets"): few states, unseen transitions, unseen states that pay.

After Archibald, McKinnon & Thomas (1995, On the generation of Markov decision processes): every
action leads from every state to `branching` different states, drawn evenly. Their probabilities are
the pieces of an interval cut at random places; here the cuts lie on a grid of 1/resolution, so that
a task is a finite number of bits. `n_rewarded` states pay 1 to a step that ENDS on them. An episode
begins in state 0, lasts `horizon` steps and is then truncated. The agent sees the state.

What is optimal depends on the steps that are left, therefore the family has an `expert`, which
counts them (`tasks.family.Expert`), and no `optimal_actions`. The posterior counts likewise.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tasks.draws import check_counts
from tasks.family import FamilyError, Task
from tasks.garnet_search import GarnetPosterior, TimedExpert, dense, expected, subsets
from tasks.references import TabularMDP, action_values, is_optimal, optimal_return, random_return
from tasks.return_bounds import ReturnBound, policy_bound
from tasks.vector import OnlyEnv

CHUNK = 256  # tasks drawn at once, whatever their number, so that fewer tasks are the first of more
MOST_COMPOSITIONS = 5000  # ways to divide the probability that the posterior looks through

MOST_TABLE = 2**32  # bytes


class RandomMDPVectorEnv(VectorEnv):
    """Many MDPs stepped as arrays; autoreset SAME_STEP. Observation: the state, an int."""

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, transitions: np.ndarray, pays: np.ndarray, horizon: int) -> None:
        """Make n MDPs of transitions `(n, S, A, S)` that pay on arrival as `pays` `(n, S)` says."""
        self.num_envs, n_states, n_actions, _ = transitions.shape
        self.single_observation_space = Discrete(n_states)
        self.single_action_space = Discrete(n_actions)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        cumulative = transitions.cumsum(-1)
        self._cumulative = np.where(cumulative > 1 - 1e-9, 1.0, cumulative)  # sums are rounded
        self._pays, self._horizon = pays.astype(np.float64), horizon
        self._rng = np.random.default_rng()
        self._streams = np.arange(self.num_envs)
        self._begin()

    def _begin(self) -> None:
        self._states = np.zeros(self.num_envs, dtype=np.int64)
        self._elapsed = 0

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Every MDP to state 0. Returns observations `(n,)` int64 and empty infos."""
        if seed is not None:
            seeds = seed if isinstance(seed, int) else [each or 0 for each in seed]
            self._rng = np.random.default_rng(seeds)
        self._begin()
        return self._states.copy(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Act `(n,)`; see `TaskFamily.make_vector_env` for the ends."""
        cumulative = self._cumulative[self._streams, self._states, np.asarray(actions)]  # (n, S)
        self._states = (self._rng.random((self.num_envs, 1)) < cumulative).argmax(-1)
        rewards = self._pays[self._streams, self._states]
        self._elapsed += 1
        ended = np.full(self.num_envs, self._elapsed == self._horizon)
        infos: dict[str, Any] = {}
        if self._elapsed == self._horizon:
            infos = {"final_obs": self._states, "_final_obs": ended.copy()}
            self._begin()
        terminated = np.zeros(self.num_envs, dtype=bool)
        return self._states.copy(), rewards, terminated, ended, infos


class RandomMDPFamily:
    """MDPs drawn from a seed; S·A transitions of log2 C(S, b) + log2 C(resolution - 1, b - 1) bits.

    log2 C(S, n_rewarded) more for the states that pay, a little less for the tasks refused because
    acting well gains too little in them.
    """

    def __init__(
        self,
        n_states: int = 6,
        n_actions: int = 3,
        branching: int = 1,
        horizon: int = 20,
        n_rewarded: int = 1,
        resolution: int = 10,
        least_gain: float = 1.0,
        n_tasks: int = 1000,
        seed: int = 0,
    ) -> None:
        """Draw the tasks.

        Args:
            n_states: S.
            n_actions: A.
            branching: States that an action may lead to, b; 1 for certain transitions.
            horizon: Steps in an episode.
            n_rewarded: States that pay.
            resolution: Probabilities are positive multiples of 1/resolution.
            least_gain: Tasks whose optimal return is not this much above that of random play are
                refused, for nothing can be learned in them.
            n_tasks: Number of tasks, all different.
            seed: Of the draws.

        Raises:
            FamilyError: A number is out of range, or tasks are not to be had.
        """
        check_counts(
            n_states=n_states,
            n_actions=n_actions,
            branching=branching,
            horizon=horizon,
            n_rewarded=n_rewarded,
            resolution=resolution,
            n_tasks=n_tasks,
        )
        if (needed := 8 * CHUNK * n_actions * n_states**2) > MOST_TABLE:
            raise FamilyError(
                f"n_states {n_states} and n_actions {n_actions} need tables of "
                f"{needed / 2**30:.1f} GiB, at most {MOST_TABLE / 2**30:.0f} are possible; take "
                "smaller ones"
            )
        for name, value in {"branching": branching, "n_rewarded": n_rewarded}.items():
            if value > n_states:
                raise FamilyError(f"{name} must be at most n_states, {n_states}, got {value}")
        self.name, self.episode_len, self._shape = "random_mdp", horizon, (n_states, n_actions)
        self.observation_space, self.action_space = Discrete(n_states), Discrete(n_actions)
        self.branching, self.n_rewarded, self.resolution = branching, n_rewarded, resolution
        self.compositions = _compositions(resolution, branching)  # (C, b)
        kept: dict[str, Task] = {}
        n_drawn, n_good = 0, 0
        for params, gains in self._draw(np.random.default_rng(seed)):
            n_drawn, n_good = n_drawn + CHUNK, n_good + int((gains >= least_gain).sum())
            for index in np.flatnonzero(gains >= least_gain):
                task = Task(len(kept), f"mdp_{len(kept)}", params[index])
                kept.setdefault(task.key(), task)
            if len(kept) >= n_tasks:
                break
            if n_drawn > 20 * (n_tasks + CHUNK):
                raise FamilyError(
                    f"among {n_drawn} random MDPs only {len(kept)} differ and gain {least_gain}, "
                    f"n_tasks is {n_tasks}; lower least_gain or n_tasks, or enlarge the MDPs"
                )
        self._tasks = tuple(kept.values())[:n_tasks]
        self._accepted = n_good / n_drawn

    @property
    def information_bits(self) -> float:
        """Bits of a task; what the refusals take away is estimated from the draws."""
        n_states, n_actions = self._shape
        targets = math.comb(n_states, self.branching) * len(self.compositions)
        pays = math.comb(n_states, self.n_rewarded)
        return n_states * n_actions * math.log2(targets) + math.log2(pays * self._accepted)

    def _draw(self, rng: np.random.Generator) -> Iterator[tuple[list[dict[str, Any]], np.ndarray]]:
        """Parameters of `CHUNK` tasks at a time, with their gains over random play."""
        n_states, rows = self._shape[0], (CHUNK, *self._shape)
        room = {"env": "RandomMDP", "n_states": n_states, "n_actions": self._shape[1]}
        while True:
            targets = np.sort(subsets(rng, np.zeros((*rows, n_states)), self.branching))
            parts = self.compositions[rng.integers(len(self.compositions), size=rows)]
            rewarded = np.sort(subsets(rng, np.zeros((CHUNK, n_states)), self.n_rewarded))
            fields = (targets, parts / self.resolution, rewarded)
            every = zip(*(field.tolist() for field in fields), strict=True)
            params = [
                {
                    **room,
                    "horizon": self.episode_len,
                    "next_states": own[0],
                    "probabilities": own[1],
                    "rewarded": own[2],
                }
                for own in every
            ]
            yield params, self._gains(fields)

    def _gains(self, fields: Sequence[np.ndarray]) -> np.ndarray:
        transitions, pays = dense(fields, self._shape[0])
        rewards = expected(transitions, pays)
        best = action_values(transitions, rewards, self.episode_len)[:, 0, 0].max(-1)
        averaged = (transitions.mean(2, keepdims=True), rewards.mean(2, keepdims=True))
        return best - action_values(*averaged, self.episode_len)[:, 0, 0, 0]

    def tasks(self) -> Sequence[Task]:
        """All tasks, in the order they were drawn."""
        return self._tasks

    def make_env(self, task: Task, render_mode: str | None = None) -> gymnasium.Env:
        """One MDP; it cannot be rendered."""
        return OnlyEnv(self.make_vector_env([task]))

    def make_vector_env(self, tasks: Sequence[Task]) -> RandomMDPVectorEnv:
        """One MDP per entry of `tasks`."""
        return RandomMDPVectorEnv(*self._arrays(tasks), self.episode_len)

    def random_return(self, task: Task) -> float:
        """Exact, by dynamic programming."""
        return random_return(self.tabular(task))

    def optimal_return(self, task: Task) -> float:
        """Exact, by backward induction."""
        return optimal_return(self.tabular(task))

    def optimal_actions(
        self,
        tasks: Sequence[Task],
        observations: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Raise FamilyError: what is optimal depends on the steps that are left."""
        raise FamilyError(
            f"family {self.name!r} has no optimal actions by observations alone: they depend on "
            "the time in the episode; use tasks.family.expert_of"
        )

    def expert(self, tasks: Sequence[Task]) -> TimedExpert:
        """Follows backward induction; see `tasks.family.expert_of`."""
        own = {task.index: task for task in tasks}
        transitions, pays = self._arrays(list(own.values()))
        optimal = is_optimal(
            action_values(transitions, expected(transitions, pays), self.episode_len)
        )
        places = {index: place for place, index in enumerate(own)}
        return TimedExpert(optimal, np.array([places[task.index] for task in tasks]))

    def tabular(self, task: Task) -> TabularMDP:
        """The task; its states are the observations."""
        (transitions,), (pays,) = self._arrays([task])
        start = np.eye(1, len(pays))[0]
        return TabularMDP(transitions, expected(transitions, pays), start, self.episode_len)

    def return_bound(self, bits: np.ndarray) -> ReturnBound | None:
        """The most return that so many bits allow who takes one action in each state."""
        return policy_bound(bits, map(self.tabular, self._tasks))

    def posterior(self, prior_tasks: Sequence[Task], n_streams: int) -> GarnetPosterior:
        """Transitions and states that pay are unknown; it knows no task."""
        shape = (n_streams, *self._shape)
        return GarnetPosterior(
            shape, self.compositions / self.resolution, self.n_rewarded, self.episode_len
        )

    def _arrays(self, tasks: Sequence[Task]) -> tuple[np.ndarray, np.ndarray]:
        """Transitions `(n, S, A, S)` and which states pay, `(n, S)` bool."""
        fields = ("next_states", "probabilities", "rewarded")
        arrays = [np.array([task.params[name] for task in tasks]) for name in fields]
        return dense(arrays, self._shape[0])


def _compositions(total: int, n_parts: int) -> np.ndarray:
    """All ways to write `total` as an ordered sum of positive integers, `(C, n_parts)`."""
    if n_parts > total:
        raise FamilyError(f"resolution must be at least branching, {n_parts}, got {total}")
    count = math.comb(total - 1, n_parts - 1)
    if count > MOST_COMPOSITIONS:
        raise FamilyError(
            f"resolution {total} and branching {n_parts} give {count} ways to share the "
            f"probability, the posterior looks through {MOST_COMPOSITIONS} at most; lower one"
        )
    if n_parts == 1:
        return np.array([[total]])
    cuts = np.array(list(itertools.combinations(range(1, total), n_parts - 1)))
    return np.diff(cuts, axis=-1, prepend=0, append=total)
