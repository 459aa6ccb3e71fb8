"""Source algorithms: who makes the learning histories.

PPO of stable-baselines3 learning one task from scratch, an expert whose noise is annealed, and
uniformly random play. Each returns a `History`; storing it is no business of this module.
"""

import warnings
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from base.ranges import Above, AtLeast, Between
from histories.regions import MarkerRule, RegionCounter
from histories.schema import FIELDS, History
from tasks.family import Task, TaskFamily
from tasks.sb3_vec_env import SB3VecEnv
from tasks.vector import final_observations


@dataclass(frozen=True)
class SourceConfig:
    """PPO's settings; one rollout of `region_len` steps per update.

    Attributes:
        learning_rate: Of Adam.
        batch_size: Transitions in a minibatch. Small ones cost nearly all the time.
        n_epochs: Passes over a rollout.
        gamma: Discount of PPO's own targets.
        gae_lambda: Of generalised advantage estimation.
        ent_coef: Weight of the entropy bonus.
        clip_range: Of PPO's probability ratio; small, it spreads learning over the whole history.
        net_arch: Hidden widths of policy and value network.
    """

    learning_rate: Annotated[float, Above(0)] = 6e-4
    batch_size: Annotated[int, AtLeast(2)] = 512
    n_epochs: Annotated[int, AtLeast(1)] = 10
    gamma: Annotated[float, Between(0, 1)] = 0.99
    gae_lambda: Annotated[float, Between(0, 1)] = 0.95
    ent_coef: Annotated[float, AtLeast(0)] = 0.01
    clip_range: Annotated[float, Above(0)] = 0.15
    net_arch: tuple[Annotated[int, AtLeast(1)], ...] = (64, 64)


class HistoryLoggerCallback(BaseCallback):
    """Records every stream that an SB3 algorithm steps, with compress markers beside it.

    Attributes:
        history: The arrays, filled up to `n_recorded` transitions per stream.
        steps_in_compression: `(streams,)` int64, transitions in each stream's open region.
    """

    def __init__(self, history: History, rule: MarkerRule) -> None:
        """Record into `history`, made by `History.empty`, until it is full."""
        super().__init__()
        self.history = history
        self.n_recorded = 0
        self._counter = RegionCounter(history.n_streams, rule)

    @property
    def steps_in_compression(self) -> np.ndarray:
        """`(streams,)` int64, 0 where a region has just ended."""
        return self._counter.steps_in_compression

    def _on_step(self) -> bool:
        ended, infos = self.locals["dones"], self.locals["infos"]
        next_observations = self.locals["new_obs"]
        truncated = np.zeros(len(ended), dtype=bool)
        if ended.any():
            next_observations = next_observations.copy()
            for index in np.flatnonzero(ended):  # at episode ends only
                next_observations[index] = infos[index]["terminal_observation"]
                truncated[index] = infos[index].get("TimeLimit.truncated", False)
        history, time = self.history, self.n_recorded
        history.observations[:, time] = self.model._last_obs
        history.actions[:, time] = self.locals["clipped_actions"]
        history.rewards[:, time] = self.locals["rewards"]  # PPO adds its bootstrap after this
        history.next_observations[:, time] = next_observations
        history.terminated[:, time] = ended & ~truncated
        history.truncated[:, time] = truncated
        history.compress_markers[:, time] = self._counter.step(ended)
        self.n_recorded += 1
        return True


def learn_history(
    family: TaskFamily,
    task: Task,
    *,
    n_streams: int,
    n_regions: int,
    region_len: int,
    source_seed: int,
    config: SourceConfig | None = None,
    marker_rule: MarkerRule | None = None,
) -> History:
    """PPO learns `task` from scratch; one shared policy acts in all streams.

    Seeds the global generators of Python, numpy and torch, as SB3 does. Equal arguments give
    equal histories on one machine.

    Args:
        family: Of the task.
        task: To learn.
        n_streams: Copies of the environment, S.
        n_regions: PPO updates; T = n_regions * region_len.
        region_len: Steps per stream in a rollout.
        source_seed: Together with the task, seeds everything.
        config: PPO's settings.
        marker_rule: None for the rule `rollout`.

    Returns:
        A history `(S, T, ...)` of style `ppo`.
    """
    config = config or SourceConfig()
    history = _empty(family, n_streams, n_regions * region_len, "ppo", source_seed, asdict(config))
    callback = HistoryLoggerCallback(history, marker_rule or MarkerRule("rollout", region_len))
    env = SB3VecEnv(family.make_vector_env([task] * n_streams))
    # A last, smaller minibatch per epoch is meant; SB3 would say so once per task.
    warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=region_len,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        n_epochs=config.n_epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        ent_coef=config.ent_coef,
        clip_range=config.clip_range,
        policy_kwargs={"net_arch": list(config.net_arch)},
        seed=_seed(task, source_seed),
        device="cpu",
    )
    model.learn(n_streams * n_regions * region_len, callback=callback)
    env.close()
    return history


@dataclass(frozen=True)
class NoiseConfig:
    """Noise of the annealed-noise expert (after Zisman et al. 2024, arXiv 2312.12275).

    Attributes:
        anneal_ratio: Share of the history over which epsilon falls linearly from 1 to 0; the expert
            acts without noise from there on.
        max_repeat: A random action is repeated 1 ... max_repeat times, evenly drawn, but not over
            an episode's end (temporally extended noise, after Dabney et al. 2021, arXiv
            2006.01782). Epsilon stays the share of random steps.
    """

    anneal_ratio: Annotated[float, Between(0, 1, low_open=True)] = 1.0
    max_repeat: Annotated[int, AtLeast(1)] = 1

    def epsilons(self, n_transitions: int) -> np.ndarray:
        """Share of random steps at every transition, `(n_transitions,)`."""
        annealed = max(2, round(self.anneal_ratio * n_transitions))
        return np.interp(np.arange(n_transitions), [0, annealed - 1], [1.0, 0.0])


def noise_expert_history(
    family: TaskFamily,
    task: Task,
    *,
    n_streams: int,
    n_regions: int,
    region_len: int,
    source_seed: int,
    config: NoiseConfig | None = None,
    marker_rule: MarkerRule | None = None,
) -> History:
    """An expert whose noise is annealed over the history; no learning needed.

    A share epsilon of the steps takes uniformly random actions, the others one of
    `family.optimal_actions`. Arguments and result as `learn_history`, style `noise_expert`.

    Raises:
        FamilyError: The family knows no optimal actions.
    """
    config = config or NoiseConfig()
    n_transitions = n_regions * region_len
    settings = asdict(config)
    history = _empty(family, n_streams, n_transitions, "noise_expert", source_seed, settings)
    rule = marker_rule or MarkerRule("rollout", region_len)
    return _play(family, task, history, config.epsilons(n_transitions), rule, config.max_repeat)


def random_history(
    family: TaskFamily,
    task: Task,
    *,
    n_streams: int,
    n_regions: int,
    region_len: int,
    source_seed: int,
    marker_rule: MarkerRule | None = None,
) -> History:
    """Uniformly random play. Arguments and result as `learn_history`, style `random`."""
    n_transitions = n_regions * region_len
    history = _empty(family, n_streams, n_transitions, "random", source_seed, {})
    epsilons = np.ones(n_transitions)
    return _play(family, task, history, epsilons, marker_rule or MarkerRule("rollout", region_len))


def _play(
    family: TaskFamily,
    task: Task,
    history: History,
    epsilons: np.ndarray,
    rule: MarkerRule,
    max_repeat: int = 1,
) -> History:
    """Fill `history` epsilon-greedily around the optimal actions; `epsilons` is `(T,)`."""
    tasks = [task] * history.n_streams
    env = family.make_vector_env(tasks)
    counter = RegionCounter(history.n_streams, rule)
    seed = _seed(task, history.source_seed)
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)
    observations, _ = env.reset(seed=seed)
    left = np.zeros(len(tasks), dtype=np.int64)  # steps left of each stream's random action
    repeated = env.action_space.sample()
    mean_repeat = (1 + max_repeat) / 2
    for time, epsilon in enumerate(epsilons):
        # Starts are rarer than random steps, so that these make up the share epsilon.
        start_ratio = epsilon / (mean_repeat - (mean_repeat - 1) * epsilon)
        starts = (left == 0) & (rng.random(len(tasks)) < start_ratio)
        left[starts] = rng.integers(1, max_repeat + 1, size=int(starts.sum()))
        repeated[starts] = env.action_space.sample()[starts]
        actions = repeated.copy()
        if epsilon < 1.0:
            follow = left == 0
            actions[follow] = family.optimal_actions(tasks, observations, rng)[follow]
        left = np.maximum(left - 1, 0)
        next_observations, rewards, terminated, truncated, infos = env.step(actions)
        values = (
            *(observations, actions, rewards, final_observations(next_observations, infos)),
            *(terminated, truncated, counter.step(terminated | truncated)),
        )
        for name, value in zip(FIELDS, values, strict=True):
            getattr(history, name)[:, time] = value
        left[terminated | truncated] = 0
        observations = next_observations
    env.close()
    return history


def _empty(
    family: TaskFamily,
    n_streams: int,
    n_transitions: int,
    style: str,
    source_seed: int,
    settings: dict[str, Any],
) -> History:
    spaces = (family.observation_space, family.action_space)
    labels = {"style": style, "source_seed": source_seed, "settings": settings}
    return History.empty(*spaces, n_streams, n_transitions, **labels)


def _seed(task: Task, source_seed: int) -> int:
    """One seed per task and source seed, so that no two tasks share their exploration."""
    return int(np.random.SeedSequence([source_seed, task.index]).generate_state(1)[0] >> 1)
