"""A rule that predicts from pairs as a source of histories."""

from histories.schema import History
from histories.sources import SourceJob
from tasks.pair_search import PairsPolicy
from teacher.playing import play


def predictor(job: SourceJob, rule: str = "ridge", n_neighbours: int = 3) -> list[History]:
    """Predict by a rule from the pairs of the stream so far; see `tasks.pair_search`.

    Raises:
        FamilyError: The family shows no pairs, or there is no such rule.
    """
    policy = PairsPolicy(job.family, rule, n_neighbours)
    return play(job, policy, {"rule": rule, "n_neighbours": n_neighbours})
