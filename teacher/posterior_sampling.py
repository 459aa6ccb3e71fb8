"""Posterior sampling as a source: it searches for its task, finds it, and keeps to it."""

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from base.ranges import AtLeast, Between
from histories.schema import History
from histories.sources import SourceJob
from tasks.search import PosteriorSamplingPolicy
from teacher.playing import play


@dataclass(frozen=True)
class PosteriorConfig:
    """What posterior sampling knows and how it strays from the tasks it draws.

    Attributes:
        tasks: Its prior: `train` for the split's training tasks, so that no history walks towards a
            held-out task because it was drawn; `all` for every task of the family. A family whose
            posterior knows no single task, such as bandits of independent levers, has one prior
            for both.
        noise: Share of uniformly random actions.
        max_repeat: Longest run of one random action, as in `noise.max_repeat`.
        overshoot: When the drawn task is ruled out within an episode, the last action is repeated
            1 ... overshoot times, evenly drawn, unless it pays; 0 for never.
    """

    tasks: Literal["train", "all"] = "train"
    noise: Annotated[float, Between(0, 1, high_open=True)] = 0.0
    max_repeat: Annotated[int, AtLeast(1)] = 1
    overshoot: Annotated[int, AtLeast(0)] = 0


def posterior_sampling(job: SourceJob, config: PosteriorConfig | None = None) -> list[History]:
    """Every stream draws tasks still possible and follows their optimal policies.

    The histories of held-out tasks, which a prior of training tasks lacks, end in random play once
    the prior is ruled out; they serve offline measures only.

    Raises:
        FamilyError: The family has no posterior.
    """
    config = config or PosteriorConfig()
    prior = job.train_tasks if config.tasks == "train" else job.family.tasks()
    policy = PosteriorSamplingPolicy(
        job.family,
        prior,
        noise=config.noise,
        max_repeat=config.max_repeat,
        overshoot=config.overshoot,
    )
    return play(job, policy, asdict(config))
