"""A family from any registered gymnasium environment, whose arguments and attributes are varied."""

import difflib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from base.errors import UserError
from base.imports import ImportPathError, import_object
from tasks.distributions import varied_values
from tasks.draws import check_counts
from tasks.family import FamilyError, Task
from tasks.packed import PackedObservations

ATTRIBUTE, OF_WRAPPER = "unwrapped.", "wrappers."
MOST_PROCESSES = 512
LONGEST = 24
"""Of a value in a task's name; a longer one gives way to the task's number."""


class GymnasiumFamily:
    """Tasks are variations of one environment id; no code needed.

    A name that begins with `unwrapped.` is an attribute of the unwrapped environment, such as
    `unwrapped.force_mag` of CartPole, and is set once the environment is made; `wrappers.0.order`
    is the argument `order` of the first wrapper; any other name is a keyword argument. Dict and
    Tuple observations are packed. Random returns are estimated by seeded rollouts.
    """

    def __init__(
        self,
        env_id: str,
        grid: Mapping[str, Sequence[Any]] | None = None,
        episode_len: int | None = None,
        random_episodes: int = 100,
        random_seed: int = 0,
        optimal_return: float | None = None,
        draw: Mapping[str, Mapping[str, Any]] | None = None,
        n_tasks: int | None = None,
        draw_seed: int = 0,
        wrappers: Sequence[str | Mapping[str, Any]] = (),
        vector: Literal["sync", "async"] = "sync",
        **kwargs: Any,
    ) -> None:
        """Name the tasks.

        Args:
            env_id: Registered id, `"module:Id-v0"` to import a module first.
            grid: Values of each varied name, JSON values; all combinations are tasks.
            episode_len: Time limit in steps; None for that of the registration.
            random_episodes: Episodes behind a random return.
            random_seed: Of those episodes.
            optimal_return: Known best return of every task; None where unknown.
            draw: Distributions of varied names, see `tasks.distributions.varied_values`.
            n_tasks: Tasks to draw; they take the combinations of `grid` in turn.
            draw_seed: Of the draws.
            wrappers: Import paths `module:Class` of wrappers, the innermost first, or mappings
                `{target: module:Class, kwargs: {...}}`.
            vector: `async` steps every copy in a process of its own, which pays where a step takes
                milliseconds; `sync` in this one.
            **kwargs: Keyword arguments and attributes equal in all tasks.

        Raises:
            FamilyError: The id is unknown, an argument, attribute or wrapper is refused, or no time
                limit is known.
        """
        check_counts(random_episodes=random_episodes)
        if episode_len is not None:
            check_counts(episode_len=episode_len)
        if vector not in ("sync", "async"):
            raise FamilyError(f"vector must be sync or async, got {vector!r}")
        self._env_id, self._kwargs, self._limit = env_id, kwargs, episode_len
        self._random_episodes, self._random_seed = random_episodes, random_seed
        self._optimal_return, self._vector = optimal_return, vector
        self._wrappers = [_wrapper(entry) for entry in wrappers]
        self._random_returns: dict[int, float] = {}
        self._space: gymnasium.Space | None = None
        varied = varied_values(grid or {}, draw or {}, n_tasks, draw_seed)
        _check_wrapper_names([*kwargs, *varied[0]], len(self._wrappers))
        self._tasks = tuple(self._task(index, values) for index, values in enumerate(varied))
        self.name = env_id.rpartition(":")[2]
        env = self.make_env(self._tasks[0])
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._space = self.observation_space
        limit = episode_len or getattr(env.spec, "max_episode_steps", None)
        self._check_kept(env)
        env.close()
        if limit is None:
            raise FamilyError(f"{env_id!r} has no time limit of its own; give episode_len")
        self.episode_len = int(limit)

    def _task(self, index: int, varied: dict[str, Any]) -> Task:
        params = {"env": self._env_id, **self._kwargs, **varied}
        if self._limit is not None:
            params["episode_len"] = self._limit
        if self._wrappers:
            params["wrappers"] = [[target, kwargs] for target, kwargs in self._wrappers]
        shown = {key: f"={value}" for key, value in varied.items()}
        named = (
            _short(key) + (value if len(value) <= LONGEST else f" {index}")
            for key, value in shown.items()
        )
        try:
            json.dumps(params)
        except TypeError as error:
            raise FamilyError(
                f"arguments of {self._env_id!r} must be JSON values: {error}"
            ) from error
        return Task(index, ",".join(named) or self._env_id, params)

    def tasks(self) -> Sequence[Task]:
        """One task per combination, the last argument varying fastest; or per draw."""
        return self._tasks

    def make_env(self, task: Task, render_mode: str | None = None) -> gymnasium.Env:
        """One environment; raises FamilyError where gymnasium refuses to make it."""
        fixed = ("env", "episode_len", "wrappers")
        given = {name: value for name, value in task.params.items() if name not in fixed}
        elsewhere = (ATTRIBUTE, OF_WRAPPER)
        kwargs = {name: value for name, value in given.items() if not name.startswith(elsewhere)}
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        try:
            env = gymnasium.make(self._env_id, max_episode_steps=self._limit, **kwargs)
        except UserError:
            raise
        except Exception as error:  # whatever an environment raises of arguments it cannot take
            raise FamilyError(f"cannot make {self._env_id!r} with {kwargs}: {error}") from error
        for name, value in given.items():
            if name.startswith(ATTRIBUTE):
                _set(env.unwrapped, name, value)
        for place, (target, fixed_settings) in enumerate(self._wrappers):
            settings = {**fixed_settings, **_of_wrapper(place, given)}
            try:
                env = import_object(target)(env, **settings)
            except UserError as error:
                if not isinstance(error, ImportPathError):
                    raise
                raise FamilyError(
                    "a wrapper must be an import path such as "
                    f"'gymnasium.wrappers:FlattenObservation': {error}"
                ) from error
            except Exception as error:
                raise FamilyError(
                    f"wrapper {target!r} refuses {self._env_id!r} with {settings}: {error}"
                ) from error
        if isinstance(env.observation_space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
            env = PackedObservations(env)
        if self._space is not None and env.observation_space != self._space:
            raise FamilyError(
                f"task {task.name} of {self._env_id!r} has the observation space "
                f"{env.observation_space}, the first task {self._space}: tasks of a family share "
                "it; vary what leaves it as it is, or wrap the environment"
            )
        return env

    def _check_kept(self, env: gymnasium.Env) -> None:
        """Refuse attributes that `reset` sets anew."""
        env.reset(seed=0)
        for name, value in self._tasks[0].params.items():
            if name.startswith(ATTRIBUTE):
                owner, last = _owner(env.unwrapped, name)
                if not np.array_equal(getattr(owner, last), value):
                    raise FamilyError(
                        f"{name} of {self._env_id!r} was set to {value!r}, but reset() makes it "
                        f"{getattr(owner, last)!r}: it cannot be varied in this way"
                    )

    def make_vector_env(self, tasks: Sequence[Task]) -> VectorEnv:
        """Gymnasium's own, sync or async, one copy per entry, autoreset SAME_STEP."""
        makers = [partial(self.make_env, task) for task in tasks]
        if self._vector == "sync":
            return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
        if len(makers) > MOST_PROCESSES:
            raise FamilyError(
                f"vector is async, but {len(makers)} copies would be as many processes, at most "
                f"{MOST_PROCESSES} are started; lower collect.n_streams or evaluate.n_seeds"
            )
        return AsyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)

    def random_return(self, task: Task) -> float:
        """Mean return of `random_episodes` episodes of random actions, equal at every call."""
        if task.index not in self._random_returns:
            self._random_returns[task.index] = self._estimated(task)
        return self._random_returns[task.index]

    def _estimated(self, task: Task) -> float:
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


def _wrapper(entry: Any) -> tuple[str, dict[str, Any]]:
    """Import path and arguments of a wrapper as a file states it."""
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and set(entry) <= {"target", "kwargs"} and "target" in entry:
        return str(entry["target"]), dict(entry.get("kwargs") or {})
    raise FamilyError(
        "a wrapper must be an import path 'module:Class' or {target: 'module:Class', kwargs: "
        f"{{...}}}}, got {entry!r}"
    )


def _of_wrapper(place: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a task gives a wrapper by its place."""
    prefix = f"{OF_WRAPPER}{place}."
    return {
        name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)
    }


def _check_wrapper_names(names: Sequence[str], n_wrappers: int) -> None:
    """Refuse names of wrappers that are not there; raises FamilyError."""
    for name in names:
        _, _, rest = name.partition(OF_WRAPPER)
        place, _, argument = rest.partition(".")
        known = place.isdecimal() and int(place) < n_wrappers and argument
        if name.startswith(OF_WRAPPER) and not known:
            raise FamilyError(
                f"{name!r} must be wrappers.PLACE.ARGUMENT, such as wrappers.0.order, the places "
                f"being those of the {n_wrappers} wrappers, from 0"
            )


def _short(name: str) -> str:
    """A varied name as task names show it."""
    if name.startswith(OF_WRAPPER):
        return name.split(".", 2)[2]
    return name.removeprefix(ATTRIBUTE)


def _owner(env: Any, name: str) -> tuple[Any, str]:
    """The object whose attribute a dotted name is, and the attribute."""
    path = name.removeprefix(ATTRIBUTE).split(".")
    for part in path[:-1]:
        env = getattr(env, part, None)
    return env, path[-1]


def _set(env: Any, name: str, value: Any) -> None:
    """Set an attribute that is there already, in the type that it has."""
    owner, last = _owner(env, name)
    if not hasattr(owner, last):
        near = difflib.get_close_matches(last, [n for n in dir(owner) if not n.startswith("_")])
        raise FamilyError(
            f"{name}: {type(owner).__name__} has no attribute {last!r}"
            f"{'; did you mean ' + ', '.join(near) + '?' if near else ''}"
        )
    present = getattr(owner, last)
    if isinstance(present, np.ndarray):
        value = np.asarray(value, dtype=present.dtype)
    elif isinstance(present, tuple):
        value = tuple(value)
    try:
        setattr(owner, last, value)
    except AttributeError as error:
        raise FamilyError(f"{name} of {type(owner).__name__} cannot be set: {error}") from error
