"""Bandits as families: Bernoulli arms, and contexts that each have one paying lever.

Both are one environment: `contexts` that are shown one after the other, `levers` that pay 1 with a
probability that depends on the context, or nothing. Tasks are drawn from a seed and differ in their
parameters. An episode has a fixed length and is then truncated.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tasks.bandit_search import BetaPosterior, LeverPosterior, UCBPolicy
from tasks.draws import check_counts
from tasks.family import FamilyError, Task
from tasks.return_bounds import ReturnBound, keyed_bandit_bound
from tasks.vector import OnlyEnv

ORDERS = ("shuffled", "sampled")


class BanditVectorEnv(VectorEnv):
    """Many bandits stepped as arrays; autoreset SAME_STEP. Observation: the context, an int."""

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, pay: np.ndarray, horizon: int, order: str = "sampled") -> None:
        """Make n bandits.

        Args:
            pay: `(n, N, A)`, probability that a lever pays in a context.
            horizon: Steps in an episode, H.
            order: `shuffled` shows every context once in an episode, in random order, and needs
                H = N; `sampled` draws each anew.
        """
        self.num_envs, n_contexts, n_levers = pay.shape
        self.single_observation_space = Discrete(n_contexts)
        self.single_action_space = Discrete(n_levers)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._pay, self._horizon, self._order = pay, horizon, order
        self._rng = np.random.default_rng()
        self._streams = np.arange(self.num_envs)
        self._begin()

    def _begin(self) -> None:
        """Draw the contexts of an episode, `(n, H)`; all streams are in step."""
        size = (self.num_envs, self._horizon)
        n_contexts = self._pay.shape[1]
        if self._order == "shuffled":
            every = np.broadcast_to(np.arange(n_contexts), size)
            self._contexts = self._rng.permuted(every, axis=1)
        else:
            self._contexts = self._rng.integers(n_contexts, size=size)
        self._elapsed = 0

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode everywhere. Returns contexts `(n,)` int64 and empty infos."""
        if seed is not None:
            seeds = seed if isinstance(seed, int) else [each or 0 for each in seed]
            self._rng = np.random.default_rng(seeds)
        self._begin()
        return self._contexts[:, 0].copy(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Pull levers `(n,)`. An episode's last observation shows its last context again."""
        contexts = self._contexts[:, self._elapsed]
        chance = self._pay[self._streams, contexts, np.asarray(actions)]
        rewards = self._rewards(chance)
        self._elapsed += 1
        ended = np.full(self.num_envs, self._elapsed == self._horizon)
        infos: dict[str, Any] = {}
        if self._elapsed == self._horizon:
            infos = {"final_obs": contexts.copy(), "_final_obs": ended.copy()}
            self._begin()
        observations = self._contexts[:, self._elapsed].copy()
        return observations, rewards, np.zeros(self.num_envs, dtype=bool), ended, infos

    def _rewards(self, chance: np.ndarray) -> np.ndarray:
        """What pulled levers `(n,)` of these entries of `pay` pay."""
        return (self._rng.random(self.num_envs) < chance).astype(np.float64)


class BanditFamily:
    """What bandits share; `_pay` turns a task's parameters into `(N, A)` probabilities."""

    name: str
    episode_len: int
    _order = "sampled"

    def _name_tasks(self, tasks: Iterator[Task], n_contexts: int, n_levers: int) -> None:
        self.observation_space, self.action_space = Discrete(n_contexts), Discrete(n_levers)
        self._tasks = tuple(tasks)
        self._pays = self._pay_of(self._tasks)  # (K, N, A)

    def _pay(self, params: Mapping[str, Any]) -> np.ndarray:
        raise NotImplementedError

    def _pay_of(self, tasks: Sequence[Task]) -> np.ndarray:
        return np.stack([self._pay(task.params) for task in tasks])

    def tasks(self) -> Sequence[Task]:
        """All tasks, in the order they were drawn."""
        return self._tasks

    def make_env(self, task: Task, render_mode: str | None = None) -> gymnasium.Env:
        """One bandit; it cannot be rendered."""
        return OnlyEnv(self.make_vector_env([task]))

    def make_vector_env(self, tasks: Sequence[Task]) -> BanditVectorEnv:
        """One bandit per entry of `tasks`."""
        return BanditVectorEnv(self._pay_of(tasks), self.episode_len, self._order)

    def random_return(self, task: Task) -> float:
        """Exact: contexts and levers are equally likely."""
        return self.episode_len * float(self._pay(task.params).mean())

    def optimal_return(self, task: Task) -> float:
        """Exact: the best lever of every context."""
        return self.episode_len * float(self._pay(task.params).max(-1).mean())

    def optimal_actions(
        self,
        tasks: Sequence[Task],
        observations: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """The best lever `(n,)` in each context `(n,)`, the first of equals."""
        return self._pay_of(tasks)[np.arange(len(tasks)), observations].argmax(-1)

    def optimal_actions_by_index(
        self, indices: np.ndarray, observations: np.ndarray, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """As `optimal_actions`, of the tasks at `indices` `(n,)`."""
        return self._pays[indices, observations].argmax(-1)


class BernoulliBanditFamily(BanditFamily):
    """Arms that pay 1 with a probability of their own, drawn evenly from [0, 1].

    Nothing is observed: the observation is always 0.
    """

    def __init__(
        self, n_arms: int = 10, horizon: int = 100, n_tasks: int = 100, seed: int = 0
    ) -> None:
        """Draw the tasks.

        Args:
            n_arms: Levers, A.
            horizon: Pulls in an episode.
            n_tasks: Number of tasks.
            seed: Of their probabilities, rounded to three digits.

        Raises:
            FamilyError: A number is less than 1, or more tasks are asked for than can differ.
        """
        check_counts(n_arms=n_arms, horizon=horizon, n_tasks=n_tasks)
        self.name, self.episode_len = "bernoulli_bandit", horizon
        thousandths = _distinct_rows(n_tasks, n_arms, 1001, seed)
        tasks = (
            Task(index, f"arms_{index}", {**_params("BernoulliBandit", horizon), "means": means})
            for index, means in enumerate((thousandths / 1000).tolist())
        )
        self._name_tasks(tasks, 1, n_arms)

    @property
    def information_bits(self) -> float:
        """Bits of a task: its probabilities are drawn in thousandths."""
        return int(self.action_space.n) * math.log2(1001)

    def _pay(self, params: Mapping[str, Any]) -> np.ndarray:
        return np.array(params["means"], dtype=np.float64)[None]

    def posterior(self, prior_tasks: Sequence[Task], n_streams: int) -> BetaPosterior:
        """Independent arms, each evenly distributed at first: it knows no task."""
        return BetaPosterior(int(self.action_space.n), n_streams)

    def search_policies(self, prior_tasks: Sequence[Task]) -> dict[str, Callable[[], UCBPolicy]]:
        """UCB1."""
        return {"ucb": lambda: UCBPolicy(self)}


class KeyedBanditFamily(BanditFamily):
    """Contexts that each have one paying lever, drawn independently: N log2 A bits a task."""

    def __init__(
        self,
        n_contexts: int = 16,
        n_actions: int = 4,
        n_tasks: int = 600,
        seed: int = 0,
        order: Literal["shuffled", "sampled"] = "shuffled",
    ) -> None:
        """Draw the tasks.

        Args:
            n_contexts: N, also the steps in an episode.
            n_actions: Levers, A.
            n_tasks: Number of tasks.
            seed: Of their paying levers.
            order: An episode shows every context once in random order (`shuffled`), or draws each
                anew (`sampled`).

        Raises:
            FamilyError: A number is out of range, or more tasks are asked for than can differ.
        """
        check_counts(n_contexts=n_contexts, n_actions=n_actions, n_tasks=n_tasks)
        if order not in ORDERS:
            raise FamilyError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
        self.name, self.episode_len, self._order = "keyed_bandit", n_contexts, order
        self._n_actions = n_actions
        params = {**_params("KeyedBandit", n_contexts), "n_actions": n_actions, "order": order}
        separator = "" if n_actions <= 10 else "-"
        tasks = (
            Task(index, f"keys={separator.join(map(str, keys))}", {**params, "keys": keys})
            for index, keys in enumerate(
                _distinct_rows(n_tasks, n_contexts, n_actions, seed).tolist()
            )
        )
        self._name_tasks(tasks, n_contexts, n_actions)

    @property
    def information_bits(self) -> float:
        """Bits of a task: N log2 A."""
        return self.episode_len * math.log2(self._n_actions)

    @property
    def spells_task(self) -> bool:
        """Whether an episode asks once for every letter of a task: see `ad.recall.ToldBits`."""
        return self._order == "shuffled"

    def _pay(self, params: Mapping[str, Any]) -> np.ndarray:
        return np.eye(params["n_actions"])[params["keys"]]

    def posterior(self, prior_tasks: Sequence[Task], n_streams: int) -> LeverPosterior:
        """Independent contexts, every lever as likely at first: it knows no task."""
        return LeverPosterior(self.episode_len, self._n_actions, n_streams)

    def return_bound(self, bits: np.ndarray) -> ReturnBound:
        """See `keyed_bandit_bound`; levers of shuffled contexts are each pulled once an episode."""
        each_once = self._order == "shuffled"
        return keyed_bandit_bound(bits, self.episode_len, self._n_actions, each_once=each_once)


def _params(env: str, horizon: int) -> dict[str, Any]:
    return {"env": env, "horizon": horizon}


def _distinct_rows(n_rows: int, n_columns: int, n_values: int, seed: int) -> np.ndarray:
    """Different rows `(n_rows, n_columns)` of numbers below `n_values`, evenly drawn.

    A family of fewer tasks from the same seed has the first of these.
    """
    if n_columns * np.log2(n_values) < 40 and n_rows > n_values**n_columns:
        raise FamilyError(
            f"{n_rows} tasks are asked for, but only {n_values**n_columns} can differ; ask for "
            "fewer"
        )
    rng, rows = np.random.default_rng(seed), np.zeros((0, n_columns), dtype=np.int64)
    while len(rows) < n_rows:
        rows = np.concatenate([rows, rng.integers(n_values, size=(n_rows, n_columns))])
        _, first = np.unique(rows, axis=0, return_index=True)
        rows = rows[np.sort(first)]
    return rows[:n_rows]
