"""The sentences a reader of a table needs, a line each under it."""

from collections.abc import Sequence

from reports.result_files import EvaluationResult
from reports.rows import Row
from reports.scores import MethodScores, is_normalized
from reports.statistics import BOOTSTRAP_SEEDS


def notes(methods: Sequence[MethodScores]) -> list[str]:
    """What the numbers of a table are means of, what its intervals are, how actions were chosen."""
    first = methods[0].results[0]
    n_tasks, n_evaluation_seeds, n_episodes = first.returns.shape
    n_known = int((first.best_returns > first.random_returns).sum())
    tasks = f"{first.part} tasks of {first.metrics['family']}"
    episodes = (
        f"last {first.final_episodes} of {n_episodes} in-context episodes, {n_evaluation_seeds} "
        "evaluation seeds"
    )
    if not is_normalized(methods):
        return [
            f"No optimal return is known for the {n_tasks} {tasks}: nothing is normalised "
            "(evaluate.normalise=source takes what sources of the histories reached).",
            f"Returns: mean of the {episodes}.",
            *_action_note(methods),
        ]
    lines = [
        f"Returns: normalised (0 random, {_best(first)}), over training seeds and {n_tasks} "
        f"{tasks}; mean of the {episodes}.",
        *_interval_note(methods),
        *_rollout_note(methods),
        *_action_note(methods),
    ]
    if n_known < n_tasks:
        or_source = ", nor a source better than random," if first.n_by_source else ""
        lines.append(
            f"{n_tasks - n_known} of {n_tasks} tasks have no known optimal return{or_source} and "
            "count only in the raw return."
        )
    return lines


def _best(result: EvaluationResult) -> str:
    """What a normalised return of 1 is."""
    n = result.n_by_source
    if not n:
        return "1 optimal"
    source = "1 the best mean return of a region that sources of the histories reached in the task"
    if n == len(result.tasks):
        return f"{source}, no optimum being known"
    return f"1 optimal; in {n} tasks of unknown optimum {source}"


def _interval_note(methods: Sequence[MethodScores]) -> list[str]:
    trained = [method for method in methods if not method.record.is_rollout]
    counts = [len(method.seeds) for method in trained]
    if not counts:
        return []
    if max(counts) == 1:
        return ["One seed: no interval. Nothing here says how far training seeds differ."]
    kinds = []
    if any(1 < count < BOOTSTRAP_SEEDS for count in counts):
        kinds.append("t-interval of the training seeds' means (n of them), not cut off at 0 or 1")
    if max(counts) >= BOOTSTRAP_SEEDS:
        kinds.append("percentile bootstrap of whole training seeds")
    if len(kinds) == 2:
        kinds[1] += f" from {BOOTSTRAP_SEEDS} seeds on"
    alone = [method.title for method in trained if len(method.seeds) == 1]
    more = f" One seed: no interval for {', '.join(alone)}." if alone else ""
    return [f"95 % interval of the mean: {'; '.join(kinds)}.{more}"]


def _rollout_note(methods: Sequence[MethodScores]) -> list[str]:
    names = [method.title for method in methods if method.record.is_rollout]
    if not names:
        return []
    return [f"Rolled out, not trained, so without seeds and interval: {', '.join(names)}."]


def _action_note(methods: Sequence[MethodScores]) -> list[str]:
    modes = {
        (bool(result.metrics.get("sampled")), result.number("temperature"))
        for method in methods
        if not method.record.is_rollout
        for result in method.results
    }
    if len(modes) > 1:
        return [
            "Actions were not chosen alike by all methods: see sampled, temperature in metrics."
        ]
    for sampled, temperature in modes:
        if not sampled:
            return ["Actions: argmax."]
        at = "" if temperature is None else f" at temperature {temperature:g}"
        return [f"Actions: sampled{at}."]
    return []


def difference_notes(rows: Sequence[Row], reference: MethodScores | None) -> list[str]:
    """What the table of differences shows; nothing where there are none."""
    if not rows or reference is None:
        return []
    name = f"the {reference.title}" if reference.label == reference.method else reference.title
    lines = [f"Every trained method minus {name}, paired by training seed and task."]
    alone = [row.title for row in rows if row["seeds"] == 1]
    if len(alone) == len(rows):
        lines.append("One common training seed: no interval can be given.")
    elif alone:
        lines.append(f"One common training seed, and so no interval: {', '.join(alone)}.")
    return lines
