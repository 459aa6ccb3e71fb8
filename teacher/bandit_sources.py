"""Classic bandit algorithms as sources, for families of Discrete observations and actions."""

from histories.schema import History
from histories.sources import SourceJob
from tasks.bandit_search import LinUCBPolicy, UCBPolicy
from tasks.search import PosteriorSamplingPolicy
from teacher.playing import play


def ucb(job: SourceJob, exploration: float = 2.0) -> list[History]:
    """UCB1 in each context; `exploration` is the constant under its root.

    Raises:
        FamilyError: Observations or actions are not Discrete.
    """
    return play(job, UCBPolicy(job.family, exploration), {"exploration": exploration})


def linucb(job: SourceJob, exploration: float = 1.0) -> list[History]:
    """LinUCB; `exploration` is its bonus in standard deviations.

    Raises:
        FamilyError: The family has no arms of known features.
    """
    return play(job, LinUCBPolicy(job.family, exploration), {"exploration": exploration})


def thompson(job: SourceJob) -> list[History]:
    """Posterior sampling that draws anew at every step (Thompson 1933).

    Of families whose posterior enumerates tasks the prior is the training tasks.

    Raises:
        FamilyError: The family has no posterior.
    """
    policy = PosteriorSamplingPolicy(job.family, job.train_tasks, every_step=True)
    return play(job, policy, {})
