"""A family from any registered gymnasium environment and a grid of its keyword arguments."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import FlattenObservation

from tasks.draws import MOST, check_counts
from tasks.family import FamilyError, Task


class GymnasiumFamily:
    """Tasks are all combinations of keyword arguments of one environment id; no code needed.

    Dict and Tuple observations are flattened. Random returns are estimated by seeded rollouts.
    """

    def __init__(
        self,
        env_id: str,
        grid: Mapping[str, Sequence[Any]] | None = None,
        episode_len: int | None = None,
        random_episodes: int = 100,
        random_seed: int = 0,
        optimal_return: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Name the tasks.

        Args:
            env_id: Registered id, `"module:Id-v0"` to import a module first.
            grid: Values of each varied keyword argument, JSON values.
            episode_len: Time limit in steps; None for that of the registration.
            random_episodes: Episodes behind a random return.
            random_seed: Of those episodes.
            optimal_return: Known best return of every task; None where unknown.
            **kwargs: Keyword arguments equal in all tasks.

        Raises:
            FamilyError: The id is unknown, an argument is refused, or no time limit is known.
        """
        check_counts(random_episodes=random_episodes)
        if episode_len is not None:
            check_counts(episode_len=episode_len)
        self._env_id, self._kwargs, self._limit = env_id, kwargs, episode_len
        self._random_episodes, self._random_seed = random_episodes, random_seed
        self._optimal_return = optimal_return
        names, choices = list(grid or {}), [list(values) for values in (grid or {}).values()]
        if (count := math.prod(len(values) for values in choices)) > MOST:
            raise FamilyError(
                f"grid of {env_id!r} makes {count} tasks, at most {MOST} are possible"
            )
        empty = [name for name, values in zip(names, choices, strict=True) if not values]
        if empty:
            raise FamilyError(f"grid of {env_id!r} lists no value for {empty[0]!r}")
        self._tasks = tuple(
            self._task(index, dict(zip(names, values, strict=True)))
            for index, values in enumerate(itertools.product(*choices))
        )
        self.name = env_id.rpartition(":")[2]
        env = self.make_env(self._tasks[0])
        self.observation_space, self.action_space = env.observation_space, env.action_space
        limit = episode_len or getattr(env.spec, "max_episode_steps", None)
        env.close()
        if limit is None:
            raise FamilyError(f"{env_id!r} has no time limit of its own; give episode_len")
        self.episode_len = int(limit)

    def _task(self, index: int, varied: dict[str, Any]) -> Task:
        params = {"env": self._env_id, **self._kwargs, **varied}
        if self._limit is not None:
            params["episode_len"] = self._limit
        name = ",".join(f"{key}={value}" for key, value in varied.items()) or self._env_id
        try:
            json.dumps(params)
        except TypeError as error:
            raise FamilyError(
                f"arguments of {self._env_id!r} must be JSON values: {error}"
            ) from error
        return Task(index, name, params)

    def tasks(self) -> Sequence[Task]:
        """One task per combination, the last argument varying fastest."""
        return self._tasks

    def make_env(self, task: Task, render_mode: str | None = None) -> gymnasium.Env:
        """One environment; raises FamilyError where gymnasium refuses to make it."""
        fixed = ("env", "episode_len")
        kwargs = {name: value for name, value in task.params.items() if name not in fixed}
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        try:
            env = gymnasium.make(self._env_id, max_episode_steps=self._limit, **kwargs)
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            raise FamilyError(f"cannot make {self._env_id!r} with {kwargs}: {error}") from error
        if isinstance(env.observation_space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
            env = FlattenObservation(env)
        return env

    def make_vector_env(self, tasks: Sequence[Task]) -> VectorEnv:
        """A SyncVectorEnv, one copy per entry, autoreset SAME_STEP."""
        makers = [partial(self.make_env, task) for task in tasks]
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)

    def random_return(self, task: Task) -> float:
        """Mean return of `random_episodes` episodes of random actions, equal at every call."""
        env = self.make_env(task)
        seed = int(np.random.SeedSequence([self._random_seed, task.index]).generate_state(1)[0])
        env.action_space.seed(seed)
        returns = []
        for episode in range(self._random_episodes):
            env.reset(seed=seed if episode == 0 else None)
            total, ended = 0.0, False
            while not ended:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                total += float(reward)
                ended = terminated or truncated
            returns.append(total)
        env.close()
        return float(np.mean(returns))

    def optimal_return(self, task: Task) -> float | None:
        """As given at construction; None where unknown."""
        return self._optimal_return

    def optimal_actions(
        self,
        tasks: Sequence[Task],
        observations: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Always raises FamilyError: nothing is known of the environment's solution."""
        raise FamilyError(
            f"family {self.name!r} knows no optimal actions; write a family with optimal_actions "
            "for styles and metrics that need them"
        )
