"""PPO of stable-baselines3 learning each task from scratch, recorded while it does."""

import warnings
from dataclasses import asdict, replace

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from histories.regions import MarkerRule, RegionCounter
from histories.schema import History
from histories.sources import SourceJob
from tasks.sb3_vec_env import SB3VecEnv
from teacher.ppo_config import SourceConfig


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


def ppo(job: SourceJob, config: SourceConfig | None = None) -> list[History]:
    """PPO learns each task from scratch; one shared policy acts in all streams of a task.

    One update per region. Seeds the global generators of Python, numpy and torch, as SB3 does.
    Equal jobs give equal histories on one machine.
    """
    return [_learn(replace(job, tasks=(task,)), config or SourceConfig()) for task in job.tasks]


def _learn(job: SourceJob, config: SourceConfig) -> History:
    spaces = (job.family.observation_space, job.family.action_space)
    labels = {"style": job.style, "source_seed": job.source_seed, "settings": asdict(config)}
    history = History.empty(*spaces, job.n_streams, job.n_transitions, **labels)
    callback = HistoryLoggerCallback(history, job.marker_rule)
    env = SB3VecEnv(job.family.make_vector_env(list(job.tasks) * job.n_streams))
    # A last, smaller minibatch per epoch is meant; SB3 would say so once per task.
    warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=job.region_len,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        n_epochs=config.n_epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        ent_coef=config.ent_coef,
        clip_range=config.clip_range,
        policy_kwargs={"net_arch": list(config.net_arch)},
        seed=job.seed,
        device="cpu",
    )
    model.learn(job.n_streams * job.n_transitions, callback=callback)
    env.close()
    return history
