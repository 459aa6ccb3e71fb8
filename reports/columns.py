"""Every column of the tables of methods: one record each, and the tables it stands in.

The CSV files, the tables of the terminal, of Markdown, LaTeX and the page, the axes of figures and
the list in docs/reports.md (`reports.column_list`) are made from these records. To add a column,
add a record here; what it measures stands in `reports.measures`.
"""

from collections.abc import Callable

import numpy as np

from reports import measures, statistics
from reports.column import (
    DETAILS,
    HEADLINE,
    SEARCH,
    STATISTICS,
    SWEEP,
    TERMINAL,
    Column,
    Compared,
    at_border,
    by_key,
    copied,
    normalized,
)
from reports.measures import FIRST_EPISODES


def _mean_by_seed(row: Compared) -> str | None:
    method = row.method
    return None if method.record.is_rollout else by_key(method.seeds, method.seed_scores.tolist())


def _raw_final(row: Compared) -> float:
    return float(row.method.returns[..., -row.method.final_episodes :].mean())


def _lost(row: Compared) -> float:
    final = row.method.final_episodes
    return float(statistics.final_minus_best(row.method.curves, final_episodes=final).mean())


def _recall_by_regions(row: Compared) -> str | None:
    every = [result.metrics.get("recall") or [] for result in row.method.results]
    asked = [[entry["region"] for entry in recall] for recall in every]
    if not asked[0] or any(regions != asked[0] for regions in asked):
        return None
    accuracies = [[entry["accuracy"] for entry in recall] for recall in every]
    if any(accuracy is None for recall in accuracies for accuracy in recall):
        return None
    return by_key(asked[0], np.mean(accuracies, axis=0).tolist())


def _prompted(name: str) -> Callable[[Compared], str | None]:
    def by_skill(row: Compared) -> str | None:
        every = [result.metrics.get("prompted") or [] for result in row.method.results]
        skills = [[entry["skill"] for entry in entries] for entries in every]
        values = [[entry[name] for entry in entries] for entries in every]
        unequal = any(asked != skills[0] for asked in skills)
        if not skills[0] or unequal or any(value is None for line in values for value in line):
            return None
        return by_key(skills[0], np.mean(values, axis=0).tolist())

    return by_skill


INTERVAL_MEANING = (
    "95 % interval of the mean over training seeds: Student's t-interval of the seeds' means, from "
    f"{statistics.BOOTSTRAP_SEEDS} seeds on the percentile bootstrap of whole seeds; none with one"
)

COLUMNS: tuple[Column[Compared], ...] = (
    copied("n_latents", "m", "latent tokens a region is compressed to", (HEADLINE,), None),
    Column(
        "seeds",
        "Seeds",
        "training seeds; none of one policy that is only rolled out (random, optimal, searches)",
        lambda row: None if row.method.record.is_rollout else len(row.method.seeds),
        (HEADLINE, STATISTICS, TERMINAL, SWEEP),
        None,
        "n",
    ),
    Column(
        "mean",
        "Mean",
        "mean over training seeds and tasks of the normalised final return, 0 random, 1 optimal",
        normalized(lambda row: row.method.scores.mean()),
        (HEADLINE, STATISTICS, TERMINAL, SWEEP),
        3,
        "mean",
        "normalised return, mean",
    ),
    Column(
        "interval",
        "95 % interval",
        INTERVAL_MEANING,
        normalized(lambda row: row.interval),
        (HEADLINE, STATISTICS, TERMINAL, SWEEP),
        2,
        "95 % interval",
    ),
    Column(
        "interval_low",
        "Interval from",
        "lower bound of that interval",
        normalized(lambda row: row.interval.low),
    ),
    Column(
        "interval_high",
        "Interval to",
        "upper bound of that interval",
        normalized(lambda row: row.interval.high),
    ),
    Column(
        "interval_kind",
        "Interval is",
        "what that interval is: t or bootstrap",
        normalized(lambda row: row.interval.kind or None),
        (STATISTICS,),
    ),
    Column(
        "iqm",
        "IQM",
        "interquartile mean of the same returns; it leaves out the quarter of seeds and tasks that "
        "do worst",
        normalized(lambda row: statistics.iqm(row.method.scores)),
        (HEADLINE, STATISTICS, TERMINAL, SWEEP),
    ),
    Column(
        "tasks_solved",
        "Solved",
        "share of (training seed, task) with a normalised final return of the threshold or more",
        normalized(lambda row: (row.method.scores >= row.solved_threshold).mean()),
        (HEADLINE, TERMINAL, SWEEP),
        2,
        "solved",
    ),
    Column(
        "worst_task",
        "Worst task",
        "lowest normalised final return of a task, each task's being the mean over training seeds",
        normalized(lambda row: measures.worst_task(row.method)[1]),
        (HEADLINE, TERMINAL, SWEEP),
        2,
        "worst\ntask",
    ),
    Column(
        "worst_cell",
        "Worst in any seed",
        "lowest normalised final return of one task in one training seed",
        normalized(lambda row: row.method.scores.min()),
        (STATISTICS,),
        2,
    ),
    Column(
        "worst_task_name",
        "Worst task is",
        "which task that is",
        normalized(lambda row: measures.worst_task(row.method)[0]),
        (STATISTICS,),
    ),
    Column(
        "gap_recovered",
        "Gap rec.",
        "(method - none) / (teacher - none) of mean normalised final returns, over the training "
        f"seeds all three have; a dash where the two lie less than {measures.MIN_GAP:g} apart",
        normalized(lambda row: row.gap.share),
        (HEADLINE, TERMINAL, SWEEP),
        2,
        "gap\nrec.",
        "gap recovered, mean normalised final return",
    ),
    Column(
        "gap_by_seed",
        "Gap rec. by seed",
        "gap recovered of each of these training seeds",
        normalized(lambda row: by_key(list(row.gap.by_seed), list(row.gap.by_seed.values()))),
        (STATISTICS,),
    ),
    Column(
        "episodes_to_0.9",
        "Episodes to 0.9",
        "first episode, from 1, whose normalised return, averaged over tasks and streams, is at "
        "least 0.9 and stays there on average over the five episodes that begin with it; median "
        "over training seeds, a seed that never gets there counting as later than all (empty in "
        "CSV files)",
        normalized(lambda row: row.episodes_to_level),
        (HEADLINE, SEARCH, TERMINAL),
        None,
        "to\n0.9",
    ),
    Column(
        "border_loss",
        "Border loss",
        "return inside minus return after the border",
        at_border(lambda border: border.loss),
        (HEADLINE, SEARCH),
    ),
    copied(
        "context_tokens",
        "Context tokens",
        "tokens an action attends to at most",
        (HEADLINE, TERMINAL),
        None,
        "ctx\ntokens",
    ),
    copied("compression_ratio", "Ratio", "tokens of a region per latent", (DETAILS,), 1),
    copied(
        "context_bytes",
        "Context bytes",
        "bytes of context state of one stream",
        (HEADLINE,),
        None,
        axis="context state of one stream, KB",
    ),
    copied("ms_per_action", "ms / action", "milliseconds per action", (DETAILS,), 2),
    Column(
        "never_to_0.9",
        "Never to 0.9",
        "1 where that median is never, else 0",
        normalized(lambda row: float(np.isinf(row.episodes_to_level))),
        (),
        None,
    ),
    Column(
        "tasks_to_0.9",
        "Tasks to 0.9",
        "share of (training seed, task) whose own return, averaged over streams, gets to 0.9 in "
        "the same sense",
        normalized(lambda row: measures.tasks_to_level(row.method)),
        (SEARCH,),
        2,
    ),
    Column(
        "return_first_10",
        "First 10",
        f"mean normalised return of the first {FIRST_EPISODES} episodes",
        normalized(lambda row: measures.first_return(row.method)),
        (SEARCH,),
    ),
    *(
        Column(
            f"found_by_{episode}",
            f"Found by {episode}",
            f"share of streams with a normalised return above {measures.FOUND_THRESHOLD:g} in one "
            f"of the first {episode} episodes",
            normalized(lambda row, episode=episode: measures.found_by(row.method, episode)),
            (SEARCH,),
            2,
        )
        for episode in (5, 10, 20)
    ),
    Column(
        "cells_visited",
        "Cells / episode",
        f"distinct observations in an episode, mean over the first {FIRST_EPISODES} episodes",
        lambda row: measures.cells_visited(row.method),
        (SEARCH,),
        1,
    ),
    Column(
        "return_after_border",
        "After border",
        "mean normalised return of the first episode to begin in each region, among the second "
        "half of the episodes (and at least the final ones): only this one has nothing but the "
        "context to tell the task by",
        at_border(lambda border: border.after),
        (SEARCH,),
    ),
    Column(
        "return_inside",
        "Inside",
        "mean normalised return of the other episodes of that half",
        at_border(lambda border: border.inside),
        (SEARCH,),
    ),
    Column(
        "goals_found",
        "Goals found",
        "share of streams of which at least half the final episodes have a normalised return above "
        f"{measures.FOUND_THRESHOLD:g}",
        normalized(lambda row: measures.found_at_last(row.method)[0]),
        (SEARCH,),
    ),
    Column(
        "return_once_found",
        "Once found",
        "mean normalised final return of these streams",
        normalized(lambda row: measures.found_at_last(row.method)[1]),
        (SEARCH,),
    ),
    Column(
        "mean_by_seed",
        "Mean by seed",
        "mean normalised final return of each training seed",
        normalized(_mean_by_seed),
        (STATISTICS,),
    ),
    Column(
        "median",
        "Median",
        "median over training seeds and tasks of the normalised final return",
        normalized(lambda row: np.median(row.method.scores)),
        (STATISTICS,),
    ),
    Column(
        "optimality_gap",
        "Optimality gap",
        "mean of how far normalised final returns stay below 1, those above it counting as 1",
        normalized(lambda row: statistics.optimality_gap(row.method.scores)),
        (STATISTICS,),
    ),
    Column(
        "raw_return",
        "Raw return",
        "mean final return, not normalised",
        _raw_final,
        (STATISTICS,),
        2,
        "return",
        "return, mean",
    ),
    Column(
        "raw_first_episode",
        "First episode",
        "mean return of the first episode, not normalised",
        lambda row: row.method.returns[..., 0].mean(),
        (STATISTICS,),
        2,
    ),
    Column(
        "normalised_by",
        "Normalised by",
        "what counts as 1: optimal, or in tasks of unknown optimum the best source, see "
        "`evaluate.normalise`",
        normalized(lambda row: row.method.results[0].normalised_by),
        (STATISTICS,),
    ),
    Column(
        "final_minus_best",
        "Final − best",
        "mean over training seeds and tasks of the normalised final return minus the best running "
        "mean of as many episodes",
        normalized(_lost),
        (STATISTICS,),
    ),
    copied(
        "action_accuracy_recorded",
        "Acc. recorded",
        "accuracy against the recorded action",
        (DETAILS,),
    ),
    copied(
        "action_accuracy_optimal",
        "Acc. optimal",
        "share of actions in the final episodes that the family's expert might take",
        (DETAILS,),
    ),
    copied(
        "recall_return",
        "Recall",
        "normalised return of an episode after the most recorded regions asked for, the context "
        "being frozen",
        (DETAILS, SWEEP),
        axis="recall: normalised return under a frozen context",
    ),
    copied(
        "recall_accuracy",
        "Recall acc.",
        "share of the actions of that episode that the family's expert might take",
        (DETAILS, SWEEP),
        3,
        "recall\nacc.",
        "recall accuracy",
    ),
    copied(
        "recall_bits",
        "Recalled bits",
        "bits of the task that the probabilities of that episode's actions tell, at least; never "
        "more than the bits of the latents",
        (DETAILS, SWEEP),
        1,
        axis="recall: bits of the task told",
    ),
    Column(
        "recall_by_regions",
        "Recall acc. after",
        "recall accuracy after each number of recorded regions asked for, mean over training seeds",
        _recall_by_regions,
        (DETAILS,),
    ),
    *(
        Column(
            f"prompted_{name}",
            f"Prompted, {title}",
            f"mean normalised return {meaning}, by the demonstration's skill",
            _prompted(name),
            (DETAILS,),
        )
        for name, title, meaning in (
            ("demonstrated", "shown", "of the demonstration itself"),
            ("first", "first", "in the agent's own first region after it"),
            ("final", "final", "in the last quarter of the episodes after it"),
        )
    ),
    copied(
        "teacher_kl",
        "Teacher KL",
        "KL divergence from the teacher's action distribution, nats",
        (DETAILS,),
    ),
    copied(
        "return_error",
        "Return error",
        "squared error of a linear read-out of the return to go, fitted on training regions and "
        "scored on test regions, in variances of it",
        (DETAILS, SWEEP),
    ),
    copied("memory_regions", "Regions", "previous regions the context speaks of", (DETAILS,), None),
    copied(
        "reconstruction_accuracy",
        "Rec. acc.",
        "share of a region's observations, actions and next observations that a fresh head, fitted "
        "on frozen latents, reads back from them",
        (DETAILS, SWEEP),
        2,
        "rec.\nacc.",
        "reconstruction\naccuracy",
    ),
    copied(
        "latent_bits",
        "Latent bits",
        "bits one region is kept in",
        (DETAILS, SWEEP),
        None,
        "latent\nbits",
        "bits one region is kept in",
    ),
    copied("train_updates", "Updates", "optimiser updates", (DETAILS,), None),
    copied("train_seconds", "Train s", "seconds of training", (DETAILS,), 0),
    copied("train_targets_per_s", "Targets / s", "training targets per second", (DETAILS,), 0),
    copied("train_peak_mb", "Peak MB", "peak memory of training, MB", (DETAILS,), 0),
    copied(
        "n_parameters_acting",
        "Parameters acting",
        "parameters that take part when it acts",
        (DETAILS,),
        None,
    ),
    copied(
        "n_parameters",
        "Parameters",
        "parameters, those only training needs among them",
        (DETAILS,),
        None,
    ),
)

BY_NAME = {column.name: column for column in COLUMNS}


def axis_title(name: str) -> str:
    """What the axis of a figure that shows this column is called."""
    return BY_NAME[name].axis or BY_NAME[name].title


def shown_in(table: str) -> tuple[Column[Compared], ...]:
    """The columns of a table of methods, in order."""
    return tuple(column for column in COLUMNS if table in column.tables)
