"""Functions to be learned in context: an episode is one pair of an input and its output.

The agent is shown an input x ~ N(0, I), its action is the prediction, and then the true output is
told: it stands in the last observation of the episode, and in those that follow until the next is
told. A number is rewarded by minus the squared error, a class by 1 where it is right. Which
functions there are is after Garg, Tsipras, Liang & Valiant (2022, arXiv 2208.01066), scaled so that
outputs vary as N(0, 1) over tasks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tasks.draws import check_counts
from tasks.family import FamilyError, Task
from tasks.pair_search import RULES, PairsPolicy, RegressionPosterior
from tasks.vector import OnlyEnv

ENV = "Supervised"
LIMIT = 4.0
"""Largest number that can be predicted, in standard deviations of the outputs."""
N_INPUTS = 4096
"""Inputs behind the references: one sample for all tasks."""
Numbers = Mapping[str, np.ndarray]


def _linear(rng: np.random.Generator, d: int, size: int) -> Numbers:
    return {"weights": rng.normal(0, d**-0.5, d)}


def _sparse(rng: np.random.Generator, d: int, size: int) -> Numbers:
    weights = np.zeros(d)
    weights[rng.choice(d, size, replace=False)] = rng.normal(0, size**-0.5, size)
    return {"weights": weights}


def _relu(rng: np.random.Generator, d: int, size: int) -> Numbers:
    first = rng.normal(0, d**-0.5, (size, d))
    return {"first": first, "second": rng.normal(0, (2 / size) ** 0.5, size)}


def _tree(rng: np.random.Generator, d: int, size: int) -> Numbers:
    return {"coordinates": rng.integers(d, size=2**size - 1), "leaves": rng.normal(0, 1, 2**size)}


DRAWS: dict[str, Callable[[np.random.Generator, int, int], Numbers]] = {
    "linear": _linear,
    "sparse": _sparse,
    "relu": _relu,
    "tree": _tree,
}
SIZES = {"linear": 1, "sparse": 3, "relu": 100, "tree": 4}
"""Without being told: inputs that count, hidden units, depth; a linear function has none."""
MOST_DEPTH = 12


def outputs(numbers: Numbers, inputs: np.ndarray) -> np.ndarray:
    """Values `(n,)` of n functions, whose numbers are stacked, at inputs `(n, d)`."""
    if "weights" in numbers:
        return np.einsum("nd,nd->n", numbers["weights"], inputs)
    if "first" in numbers:
        hidden = np.matmul(numbers["first"], inputs[..., None])[..., 0].clip(0)  # (n, h)
        return (hidden * numbers["second"]).sum(-1)
    streams, node = np.arange(len(inputs)), np.zeros(len(inputs), dtype=np.int64)
    n_inner = numbers["coordinates"].shape[1]
    while node[0] < n_inner:  # all are at one depth
        right = inputs[streams, numbers["coordinates"][streams, node]] > 0
        node = 2 * node + 1 + right
    return numbers["leaves"][streams, node - n_inner]


class SupervisedVectorEnv(VectorEnv):
    """Many functions asked as arrays, autoreset SAME_STEP; see the module for what is shown."""

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, family: "SupervisedFamily", indices: np.ndarray) -> None:
        """Ask the functions of the tasks at `indices` `(n,)`."""
        self.num_envs = len(indices)
        self.single_observation_space = family.observation_space
        self.single_action_space = family.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._family, self._indices = family, indices
        self._rng = np.random.default_rng()
        self._forget()

    def _forget(self) -> None:
        self._told = np.zeros((self.num_envs, self._family.n_told))
        self._draw()

    def _draw(self) -> None:
        self._inputs = self._rng.standard_normal((self.num_envs, self._family.dimension))

    def _shown(self) -> np.ndarray:
        return np.concatenate([self._inputs, self._told], axis=-1).astype(np.float32)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw inputs; no output has been told yet."""
        if seed is not None:
            seeds = seed if isinstance(seed, int) else [each or 0 for each in seed]
            self._rng = np.random.default_rng(seeds)
        self._forget()
        return self._shown(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Predict outputs `(n,)`, or `(n, 1)` numbers, are told the true ones, see new inputs."""
        family, actions = self._family, np.asarray(actions)
        true = family.answers(self._indices, self._inputs, self._rng)
        rewards = family.rewards(actions, true)
        self._told = family.told(true)
        final = self._shown()
        self._draw()
        ended = np.ones(self.num_envs, dtype=bool)
        infos = {"final_obs": final, "_final_obs": ended.copy()}
        return self._shown(), rewards, ended, np.zeros_like(ended), infos


class SupervisedFamily:
    """Functions of one kind, drawn from a seed; a task is named by its draw.

    Optimal is to know the function. Linear functions with numbers as outputs have a posterior.
    """

    def __init__(
        self,
        function: str = "linear",
        dimension: int = 20,
        size: int | None = None,
        n_classes: int = 0,
        noise: float = 0.0,
        n_tasks: int = 4000,
        seed: int = 0,
    ) -> None:
        """Draw the tasks.

        Args:
            function: `linear`; `sparse`, linear in a few inputs; `relu`, a network of one hidden
                layer; `tree`, a decision tree that looks at signs of inputs.
            dimension: Of an input, d.
            size: Inputs that count, 3; hidden units, 100; depth of the tree, 4; None for these.
            n_classes: The output is in which of so many equally likely intervals it falls; 0 for
                the number itself.
            noise: Standard deviation of noise on numbers; what is told, and judged by, has it.
            n_tasks: Number of tasks.
            seed: Of their draws; fewer tasks of one seed are the first of more.

        Raises:
            FamilyError: An argument is out of range.
        """
        if function not in DRAWS:
            raise FamilyError(f"function must be one of {', '.join(DRAWS)}, got {function!r}")
        size = SIZES[function] if size is None else size
        check_counts(dimension=dimension, size=size, n_tasks=n_tasks)
        self._check(function, dimension, size, n_classes, noise)
        self.name, self.episode_len = "supervised", 1
        self.function, self.dimension, self.noise = function, dimension, float(noise)
        self.n_classes = n_classes
        self.n_told = n_classes or 1
        shown = dimension + self.n_told
        self.observation_space = Box(-np.inf, np.inf, (shown,), np.float32)
        number = Box(-LIMIT, LIMIT, (1,), np.float32)
        self.action_space = Discrete(n_classes) if n_classes else number
        self._borders = np.array([NormalDist().inv_cdf(k / n_classes) for k in range(1, n_classes)])
        params = {
            **{"env": ENV, "function": function, "dimension": dimension, "size": size},
            **{"n_classes": n_classes, "noise": self.noise, "seed": seed},
        }
        self._tasks = tuple(
            Task(index, f"{function}_{index}", {**params, "draw": index})
            for index in range(n_tasks)
        )
        drawn = [
            DRAWS[function](np.random.default_rng([seed, index]), dimension, size)
            for index in range(n_tasks)
        ]
        self._numbers = {name: np.stack([one[name] for one in drawn]) for name in drawn[0]}
        self._inputs = np.random.default_rng(0).standard_normal((N_INPUTS, dimension))

    @staticmethod
    def _check(function: str, dimension: int, size: int, n_classes: int, noise: float) -> None:
        if function == "sparse" and size > dimension:
            raise FamilyError(f"size must be at most dimension, {dimension}, got {size}")
        if function == "tree" and size > MOST_DEPTH:
            raise FamilyError(f"size, a tree's depth, must be at most {MOST_DEPTH}, got {size}")
        if type(n_classes) is not int or (n_classes != 0 and not 2 <= n_classes <= 100):
            raise FamilyError(f"n_classes must be 0, or 2 ... 100, got {n_classes!r}")
        if not (math.isfinite(noise) and noise >= 0):
            raise FamilyError(f"noise must be at least 0 and finite, got {noise}")
        if noise and n_classes:
            raise FamilyError(f"noise is on numbers, but n_classes is {n_classes}; set it to 0")

    def tasks(self) -> Sequence[Task]:
        """All tasks, in the order they were drawn."""
        return self._tasks

    def make_env(self, task: Task, render_mode: str | None = None) -> gymnasium.Env:
        """One function; it cannot be rendered."""
        return OnlyEnv(self.make_vector_env([task]))

    def make_vector_env(self, tasks: Sequence[Task]) -> SupervisedVectorEnv:
        """One function per entry of `tasks`."""
        return SupervisedVectorEnv(self, _indices(tasks))

    def answers(
        self, indices: np.ndarray, inputs: np.ndarray, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """True outputs `(n,)` of the tasks at `indices`: classes, or numbers, noisy with `rng`."""
        values = outputs({k: v[indices] for k, v in self._numbers.items()}, inputs)
        if self.n_classes:
            return np.searchsorted(self._borders, values)
        if self.noise and rng is not None:
            values = values + self.noise * rng.standard_normal(len(values))
        return values

    def told(self, true: np.ndarray) -> np.ndarray:
        """Outputs as observations show them: numbers `(n, 1)`, or classes one-hot `(n, C)`."""
        return np.eye(self.n_classes)[true] if self.n_classes else true[:, None]

    def rewards(self, actions: np.ndarray, true: np.ndarray) -> np.ndarray:
        """Rewards `(n,)` of predictions; numbers are cut to those that can be predicted."""
        if self.n_classes:
            return (actions == true).astype(np.float64)
        return -((np.clip(actions[:, 0], -LIMIT, LIMIT) - true) ** 2)

    def random_return(self, task: Task) -> float:
        """Exact for classes; for numbers given the mean square of 4,096 outputs."""
        if self.n_classes:
            return 1 / self.n_classes
        return -(LIMIT**2 / 3 + float((self._sample(task) ** 2).mean()) + self.noise**2)

    def optimal_return(self, task: Task) -> float:
        """1 for classes; minus the noise, and minus what 4,096 outputs lie beyond the limit."""
        if self.n_classes:
            return 1.0
        values = self._sample(task)
        beyond = float(((values - values.clip(-LIMIT, LIMIT)) ** 2).mean())
        return 0.0 - beyond - self.noise**2

    def _sample(self, task: Task) -> np.ndarray:
        numbers = {
            k: np.broadcast_to(v[task.index], (256, *v.shape[1:])) for k, v in self._numbers.items()
        }
        return np.concatenate(
            [outputs(numbers, part) for part in self._inputs.reshape(-1, 256, self.dimension)]
        )

    def optimal_actions(
        self,
        tasks: Sequence[Task],
        observations: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """The true output, `(n,)` classes or `(n, 1)` float32."""
        return self.optimal_actions_by_index(_indices(tasks), observations)

    def optimal_actions_by_index(
        self, indices: np.ndarray, observations: np.ndarray, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """As `optimal_actions`, of the tasks at `indices` `(n,)`."""
        inputs = np.asarray(observations, dtype=np.float64)[:, : self.dimension]
        return self.predicted(self.answers(indices, inputs))

    def predicted(self, values: np.ndarray) -> np.ndarray:
        """Actions of outputs `(n,)`: classes as they are, numbers `(n, 1)` within the limit."""
        if self.n_classes:
            return values
        return values.clip(-LIMIT, LIMIT).astype(np.float32)[:, None]

    @property
    def posterior(self) -> Callable[[Sequence[Task], int], RegressionPosterior] | None:
        """Of linear functions: regression with the prior they are drawn from; it knows no task."""
        if self.function != "linear" or self.n_classes:
            return None
        return lambda prior_tasks, n_streams: RegressionPosterior(self, n_streams)

    def search_policies(self, prior_tasks: Sequence[Task]) -> dict[str, Callable[[], Any]]:
        """Least squares, ridge regression, nearest neighbours and averaging."""
        return {rule: lambda rule=rule: PairsPolicy(self, rule) for rule in RULES}


def _indices(tasks: Sequence[Task]) -> np.ndarray:
    return np.array([task.index for task in tasks], dtype=np.int64)
