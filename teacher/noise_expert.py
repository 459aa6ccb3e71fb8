"""Sources that do not learn: an expert or controller of annealed noise, uniformly random play."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np

from base.ranges import AtLeast, Between
from histories.schema import History
from histories.sources import SourceJob
from tasks.family import controller_of, expert_of
from tasks.noise import NoisyExpert
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
        std: Instead of random actions among the expert's, Gaussian noise of this standard deviation
            times epsilon on all of them; for actions that are real numbers. 0 for none.
    """

    anneal_ratio: Annotated[float, Between(0, 1, low_open=True)] = 1.0
    max_repeat: Annotated[int, AtLeast(1)] = 1
    std: Annotated[float, AtLeast(0)] = 0.0

    def __post_init__(self) -> None:
        """Refuse runs of random actions where there are none."""
        if self.std and self.max_repeat > 1:
            raise ValueError(
                f"max_repeat is {self.max_repeat}, but with std {self.std} no action is random and "
                "repeated; set one of them to its default, 1 or 0"
            )

    def epsilons(self, n_transitions: int) -> np.ndarray:
        """Share of random steps at every transition, `(n_transitions,)`."""
        annealed = max(2, round(self.anneal_ratio * n_transitions))
        return np.interp(np.arange(n_transitions), [0, annealed - 1], [1.0, 0.0])


def noise_expert(job: SourceJob, config: NoiseConfig | None = None) -> list[History]:
    """An expert whose noise is annealed over the history; no learning needed.

    A share epsilon of the steps takes uniformly random actions, the others one of the optimal ones
    (`tasks.family.expert_of`); with `config.std` all are optimal ones with noise on them.

    Raises:
        FamilyError: The family knows no optimal actions.
    """
    config = config or NoiseConfig()
    return play(job, _noisy(job, config.epsilons(job.n_transitions), config), asdict(config))


def noise_controller(job: SourceJob, config: NoiseConfig | None = None) -> list[History]:
    """As `noise_expert`, of a family's controller, who acts well though not optimally.

    Raises:
        FamilyError: The family offers no `controller(tasks)`.
    """
    config = config or NoiseConfig()
    actor = _noisy(job, config.epsilons(job.n_transitions), config, controller_of)
    return play(job, actor, asdict(config))


def random_play(job: SourceJob) -> list[History]:
    """Uniformly random play."""
    return play(job, _noisy(job, np.ones(1), NoiseConfig()), {})


def _noisy(
    job: SourceJob, epsilons: np.ndarray, config: NoiseConfig, make: Any = expert_of
) -> NoisyExpert:
    streams = [task for task in job.tasks for _ in range(job.n_streams)]
    return NoisyExpert(job.family, streams, epsilons, config.max_repeat, make, config.std)
