"""Whatever stable-baselines3 (or sb3-contrib) can learn with, recorded while it learns each task.

Style `sb3:NAME` names the algorithm's class, on-policy or off-policy.
"""

import importlib
import inspect
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from histories.regions import MarkerRule, RegionCounter
from histories.schema import History
from histories.sources import SourceError, SourceJob
from tasks.sb3_vec_env import SB3VecEnv

GIVEN = ("env", "seed", "verbose", "tensorboard_log", "_init_setup_model")
"""Arguments of algorithms that the collection sets."""
MASKED = "MaskablePPO"  # wants to be told which actions are allowed, which no family says


class HistoryLoggerCallback(BaseCallback):
    """Records every stream that an SB3 algorithm steps, with compress markers beside it.

    What the environment did is taken from the environment, an `SB3VecEnv`: algorithms scale, clip
    and transpose, each in its own way, what they keep of a step.

    Attributes:
        history: The arrays, filled up to `n_recorded` transitions per stream.
        steps_in_compression: `(streams,)` int64, transitions in each stream's open region.
    """

    def __init__(self, history: History, rule: MarkerRule) -> None:
        """Record into `history`, made by `History.empty`; learning ends when it is full."""
        super().__init__()
        self.history = history
        self.n_recorded = 0
        self._counter = RegionCounter(history.n_streams, rule)

    @property
    def steps_in_compression(self) -> np.ndarray:
        """`(streams,)` int64, 0 where a region has just ended."""
        return self._counter.steps_in_compression

    def _on_step(self) -> bool:
        env: Any = self.training_env.unwrapped
        history, time = self.history, self.n_recorded
        for name, values in env.last_transition.items():
            getattr(history, name)[:, time] = values
        ended = history.terminated[:, time] | history.truncated[:, time]
        history.compress_markers[:, time] = self._counter.step(ended)
        self.n_recorded += 1
        return self.n_recorded < history.n_transitions


def sb3(job: SourceJob, algorithm: str, **kwargs: Any) -> list[History]:
    """An algorithm learns each task from scratch; one shared policy acts in all streams of a task.

    Seeds the global generators of Python, numpy and torch, as SB3 does. Equal jobs give equal
    histories on one machine.

    Args:
        job: What to make.
        algorithm: Class of stable_baselines3 or sb3_contrib: PPO, A2C, DQN, SAC, TD3, DDPG, TRPO, …
        **kwargs: Of the class. A number as `action_noise` is the standard deviation of Gaussian
            noise on actions scaled to -1 ... 1. `n_steps` is the region length where not given,
            `buffer_size` at most a history's transitions.

    Raises:
        SourceError: There is no such algorithm, it does not take the arguments or the family's
            spaces, or learns without the rollouts that `marker_rule` follows.
    """
    cls = algorithm_class(algorithm)
    return [
        record(replace(job, tasks=(task,)), cls, kwargs, {"algorithm": algorithm, **kwargs})
        for task in job.tasks
    ]


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    """The class of an algorithm by its name; raises SourceError."""
    found = {}
    for module in ("stable_baselines3", "sb3_contrib"):
        try:
            imported = importlib.import_module(module)
        except ImportError:
            continue
        found |= {
            key: value
            for key, value in vars(imported).items()
            if inspect.isclass(value)
            and issubclass(value, OnPolicyAlgorithm | OffPolicyAlgorithm)
            and key != MASKED
        }
    if name not in found:
        raise SourceError(
            f"style 'sb3:{name}' names no algorithm; known: {', '.join(sorted(found))}"
            + ("" if "TRPO" in found else "; pip install sb3-contrib for more")
        )
    return found[name]


def record(
    job: SourceJob, cls: type[BaseAlgorithm], kwargs: Mapping[str, Any], settings: dict[str, Any]
) -> History:
    """The history of a job's one task, in which `cls(**kwargs)` learns.

    Raises:
        SourceError: As `sb3`.
    """
    kwargs = _arguments(job, cls, kwargs)
    spaces = (job.family.observation_space, job.family.action_space)
    labels = {"style": job.style, "source_seed": job.source_seed, "settings": settings}
    history = History.empty(*spaces, job.n_streams, job.n_transitions, **labels)
    env = SB3VecEnv(job.family.make_vector_env(list(job.tasks) * job.n_streams))
    # A last, smaller minibatch per epoch is meant; SB3 would say so once per task.
    warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
    try:
        model: Any = cls(env=env, seed=job.seed, **kwargs)
    except (AssertionError, TypeError, ValueError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(
            f"style {job.style!r}: {cls.__name__} cannot be made for family {job.family.name!r} "
            f"with actions {job.family.action_space}: {said}"
        ) from error
    callback = HistoryLoggerCallback(history, job.marker_rule)
    model.learn(job.n_streams * job.n_transitions, callback=callback)
    env.close()
    return history


def _arguments(
    job: SourceJob, cls: type[BaseAlgorithm], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """What the class is called with, besides environment and seed."""
    style, rule = job.style, job.marker_rule
    takes = inspect.signature(cls).parameters
    given = {"policy": _policy_of(cls), "device": "cpu"} | dict(kwargs)
    if set_here := [name for name in GIVEN if name in kwargs]:
        raise SourceError(f"style {style!r}: {set_here[0]} is set by the collection; remove it")
    if unknown := [name for name in given if name not in takes]:
        raise SourceError(
            f"style {style!r}: {cls.__name__} has no argument {unknown[0]!r}; it takes "
            + ", ".join(name for name in takes if name not in GIVEN)
        )
    if "train_freq" in given and isinstance(given["train_freq"], list):
        given["train_freq"] = tuple(given["train_freq"])
    if issubclass(cls, OffPolicyAlgorithm):
        if rule.name != "fixed":
            raise SourceError(
                f"style {style!r} learns off-policy, without rollouts that "
                f"collect.marker_rule={rule.name} could follow; set collect.marker_rule to fixed"
            )
        most = takes["buffer_size"].default
        given.setdefault("buffer_size", min(most, job.n_streams * job.n_transitions))
        noise = given.get("action_noise")
        if isinstance(noise, int | float):
            size = (math.prod(job.family.action_space.shape or ()),)
            given["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, float(noise)))
    elif given.setdefault("n_steps", job.region_len) != job.region_len and rule.name == "rollout":
        raise SourceError(
            f"style {style!r}: n_steps is {given['n_steps']}, but collect.marker_rule=rollout ends "
            f"regions with rollouts and region_len is {job.region_len}; leave n_steps out, or set "
            "collect.marker_rule to fixed"
        )
    return given


def _policy_of(cls: type[BaseAlgorithm]) -> str:
    return "MlpPolicy" if "MlpPolicy" in cls.policy_aliases else next(iter(cls.policy_aliases))
