"""Sources that need no learning: an expert whose noise is annealed, and uniformly random play."""

from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np

from base.ranges import AtLeast, Between
from histories.schema import History
from histories.sources import SourceJob
from tasks.family import expert_of
from tasks.noise import RepeatedNoise
from teacher.playing import play


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


def noise_expert(job: SourceJob, config: NoiseConfig | None = None) -> list[History]:
    """An expert whose noise is annealed over the history; no learning needed.

    A share epsilon of the steps takes uniformly random actions, the others one of the optimal ones
    (`tasks.family.expert_of`).

    Raises:
        FamilyError: The family knows no optimal actions.
    """
    config = config or NoiseConfig()
    return play(
        job, _Noisy(job, config.epsilons(job.n_transitions), config.max_repeat), asdict(config)
    )


def random_play(job: SourceJob) -> list[History]:
    """Uniformly random play."""
    return play(job, _Noisy(job, np.ones(job.n_transitions), max_repeat=1), {})


class _Noisy:
    """Epsilon-greedy around the optimal actions of every stream's own task."""

    def __init__(self, job: SourceJob, epsilons: np.ndarray, max_repeat: int) -> None:
        self.family, self.epsilons, self.max_repeat = job.family, epsilons, max_repeat
        streams = [task for task in job.tasks for _ in range(job.n_streams)]
        self.expert = expert_of(job.family, streams)

    def reset(self, n: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.noise = RepeatedNoise(self.family.action_space, n, self.max_repeat, seed)
        self.expert.reset()
        self.time = 0

    def act(self, observations: np.ndarray) -> np.ndarray:
        epsilon = self.epsilons[self.time]
        self.time += 1
        if epsilon >= 1.0:
            return self.noise.sample()
        actions = self.expert.act(observations, self.rng)
        return self.noise.mix(actions, epsilon)

    def observe(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_observations: np.ndarray,
    ) -> None:
        self.noise.observe(terminated | truncated)
        self.expert.observe(rewards, terminated, truncated, next_observations)
