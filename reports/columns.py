"""Every column of every table: one record each, and the tables it stands in.

The CSV files, the tables of the terminal, of Markdown, LaTeX and the page, the axes of figures and
the list in docs/reports.md (`python -m reports.columns` writes it) are made from these records. To
add a column, add a record here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from reports import measures, statistics
from reports.measures import FIRST_EPISODES, SOLVED_THRESHOLD
from reports.scores import MethodScores
from reports.statistics import Interval

Subject = TypeVar("Subject")
Value = float | str | Interval | None

HEADLINE, SEARCH, STATISTICS, DETAILS = "headline", "search", "statistics", "details"
DIFFERENCES, TERMINAL, SWEEP = "differences", "terminal", "sweep"
TABLES = {
    HEADLINE: "Results",
    SEARCH: "Search and borders",
    STATISTICS: "Statistics",
    DETAILS: "Details",
}
"""The tables of methods that a report prints, by name, in order."""


@dataclass(frozen=True)
class Column(Generic[Subject]):
    """One column.

    Attributes:
        name: in CSV files.
        title: its heading.
        description: what its numbers mean.
        compute: from what a row is about to its value; nan and None are not known.
        tables: where it is shown; table.csv has every column but those of intervals.
        decimals: shown; None for counts, which are whole.
        short: heading where room is short; the title if empty.
        axis: how a figure's axis calls it; the title if empty.
    """

    name: str
    title: str
    description: str
    compute: Callable[[Subject], Any]
    tables: tuple[str, ...] = ()
    decimals: int | None = 3
    short: str = ""
    axis: str = ""


@dataclass(frozen=True)
class Compared:
    """What a row of methods is about.

    Attributes:
        method: the row's.
        methods: all of the comparison, itself among them.
        solved_threshold: normalised final return from which a task counts as solved.
    """

    method: MethodScores
    methods: Sequence[MethodScores]
    solved_threshold: float = SOLVED_THRESHOLD

    @cached_property
    def interval(self) -> Interval:
        """Of the mean, over training seeds."""
        return statistics.seed_interval(self.method.replicated(self.method.seed_scores))

    @cached_property
    def border(self) -> measures.Border | None:
        """Return at the border."""
        return measures.border(self.method)

    @cached_property
    def gap(self) -> measures.Gap:
        """Gap recovered."""
        return measures.gap_recovered(self.method, self.methods)

    @cached_property
    def episodes_to_level(self) -> float:
        """Median over training seeds, never being later than any episode."""
        return float(np.median(measures.episodes_to_level(self.method)))


@dataclass(frozen=True)
class Pair:
    """What a row of differences is about: both sets of scores are of the same seeds and tasks.

    Attributes:
        seeds: training seeds that both have.
        scores: `(S, T')` of the method.
        reference: `(S, T')` of the method it is set against.
        reference_label: its label.
    """

    seeds: tuple[int, ...]
    scores: statistics.Floats
    reference: statistics.Floats
    reference_label: str

    @property
    def by_seed(self) -> statistics.Floats:
        """`(S,)` mean difference."""
        return (self.scores - self.reference).mean(axis=1)

    @cached_property
    def interval(self) -> Interval:
        """Of the mean difference, over training seeds."""
        return statistics.seed_interval(self.by_seed)


def _normalized(compute: Callable[[Compared], Any]) -> Callable[[Compared], Any]:
    """Not known where returns cannot be normalised."""
    return lambda row: compute(row) if row.method.has_reference.any() else None


def _measured(key: str) -> Callable[[Compared], Value]:
    """Mean over training seeds of a number of metrics.json, whole where all are the same."""

    def mean(row: Compared) -> Value:
        known = [n for result in row.method.results if (n := result.number(key)) is not None]
        if not known:
            return None
        return known[0] if len(set(known)) == 1 else float(np.mean(known))

    return mean


def _copied(
    name: str,
    title: str,
    description: str,
    tables: tuple[str, ...],
    decimals: int | None = 3,
    short: str = "",
    axis: str = "",
) -> Column[Compared]:
    return Column(name, title, description, _measured(name), tables, decimals, short, axis)


def _at_border(compute: Callable[[measures.Border], Any]) -> Callable[[Compared], Any]:
    return _normalized(lambda row: None if row.border is None else compute(row.border).mean())


def seed_values(seeds: Sequence[int], values: Sequence[float], decimals: int = 3) -> str:
    """Values by training seed in one cell: "0: 0.971, 1: 0.962"."""
    return ", ".join(
        f"{seed}: {round(float(value), decimals) + 0.0:.{decimals}f}"
        for seed, value in zip(seeds, values, strict=True)
    )


def _mean_by_seed(row: Compared) -> str | None:
    method = row.method
    shown = None if method.record.is_rollout else seed_values(method.seeds, method.seed_scores)
    return shown


def _raw_final(row: Compared) -> float:
    return float(row.method.returns[..., -row.method.final_episodes :].mean())


def _lost(row: Compared) -> float:
    final = row.method.final_episodes
    return float(statistics.final_minus_best(row.method.curves, final_episodes=final).mean())


INTERVAL = (
    "95 % interval of the mean over training seeds: Student's t-interval of the seeds' means, from "
    f"{statistics.BOOTSTRAP_SEEDS} seeds on the percentile bootstrap of whole seeds; none with one"
)

COLUMNS: tuple[Column[Compared], ...] = (
    Column(
        "n_latents",
        "m",
        "latent tokens a region is compressed to",
        _measured("n_latents"),
        (HEADLINE,),
        None,
    ),
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
        _normalized(lambda row: row.method.scores.mean()),
        (HEADLINE, STATISTICS, TERMINAL, SWEEP),
        3,
        "mean",
        "normalised return, mean",
    ),
    Column(
        "interval",
        "95 % interval",
        INTERVAL,
        _normalized(lambda row: row.interval),
        (HEADLINE, STATISTICS, TERMINAL, SWEEP),
        2,
        "95 %\ninterval",
    ),
    Column(
        "interval_low",
        "Interval from",
        "lower bound of that interval",
        _normalized(lambda row: row.interval.low),
    ),
    Column(
        "interval_high",
        "Interval to",
        "upper bound of that interval",
        _normalized(lambda row: row.interval.high),
    ),
    Column(
        "interval_kind",
        "Interval is",
        "what that interval is: t or bootstrap",
        _normalized(lambda row: row.interval.kind or None),
        (STATISTICS,),
    ),
    Column(
        "iqm",
        "IQM",
        "interquartile mean of the same returns; it leaves out the quarter of seeds and tasks that "
        "do worst",
        _normalized(lambda row: statistics.iqm(row.method.scores)),
        (HEADLINE, STATISTICS, TERMINAL, SWEEP),
    ),
    Column(
        "tasks_solved",
        "Solved",
        "share of (training seed, task) with a normalised final return of the threshold or more",
        _normalized(lambda row: (row.method.scores >= row.solved_threshold).mean()),
        (HEADLINE, TERMINAL, SWEEP),
        2,
        "solved",
    ),
    Column(
        "worst_task",
        "Worst task",
        "lowest normalised final return of a task, each task's being the mean over training seeds",
        _normalized(lambda row: measures.worst_task(row.method)[1]),
        (HEADLINE, TERMINAL, SWEEP),
        2,
        "worst\ntask",
    ),
    Column(
        "worst_task_name",
        "Worst task is",
        "which task that is",
        _normalized(lambda row: measures.worst_task(row.method)[0]),
        (STATISTICS,),
    ),
    Column(
        "gap_recovered",
        "Gap rec.",
        "(method - none) / (teacher - none) of mean normalised final returns, over the training "
        f"seeds all three have; a dash where the two lie less than {measures.MIN_GAP:g} apart",
        _normalized(lambda row: row.gap.share),
        (HEADLINE, TERMINAL, SWEEP),
        2,
        "gap\nrec.",
        "gap recovered, mean normalised final return",
    ),
    Column(
        "gap_by_seed",
        "Gap rec. by seed",
        "gap recovered of each of these training seeds",
        _normalized(lambda row: seed_values(list(row.gap.by_seed), list(row.gap.by_seed.values()))),
        (STATISTICS,),
    ),
    _copied(
        "context_tokens",
        "Context tokens",
        "tokens an action attends to at most",
        (HEADLINE, TERMINAL),
        None,
        "ctx\ntokens",
    ),
    _copied("compression_ratio", "Ratio", "tokens of a region per latent", (HEADLINE,), 1),
    _copied(
        "context_bytes",
        "Context bytes",
        "bytes of context state of one stream",
        (HEADLINE, SWEEP),
        None,
        "ctx\nbytes",
        "context state of one stream, KB",
    ),
    _copied("ms_per_action", "ms / action", "milliseconds per action", (HEADLINE,), 2, "ms /\nact"),
    Column(
        "episodes_to_0.9",
        "Episodes to 0.9",
        "first episode, from 1, whose normalised return, averaged over tasks and streams, is at "
        "least 0.9 and stays there on average over the five episodes that begin with it; median "
        "over training seeds, a seed that never gets there counting as later than all (empty in "
        "CSV files)",
        _normalized(lambda row: row.episodes_to_level),
        (HEADLINE, SEARCH, TERMINAL, SWEEP),
        1,
        "to\n0.9",
    ),
    Column(
        "never_to_0.9",
        "Never to 0.9",
        "1 where that median is never, else 0",
        _normalized(lambda row: float(np.isinf(row.episodes_to_level))),
        (),
        None,
    ),
    Column(
        "tasks_to_0.9",
        "Tasks to 0.9",
        "share of (training seed, task) whose own return, averaged over streams, gets to 0.9 in "
        "the same sense",
        _normalized(lambda row: measures.tasks_to_level(row.method)),
        (SEARCH,),
        2,
    ),
    Column(
        "return_first_10",
        "First 10",
        f"mean normalised return of the first {FIRST_EPISODES} episodes",
        _normalized(lambda row: measures.first_return(row.method)),
        (SEARCH,),
    ),
    *(
        Column(
            f"found_by_{episode}",
            f"Found by {episode}",
            f"share of streams with a normalised return above {measures.FOUND_THRESHOLD:g} in one "
            f"of the first {episode} episodes",
            _normalized(lambda row, episode=episode: measures.found_by(row.method, episode)),
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
        _at_border(lambda border: border.after),
        (SEARCH,),
    ),
    Column(
        "return_inside",
        "Inside",
        "mean normalised return of the other episodes of that half",
        _at_border(lambda border: border.inside),
        (SEARCH,),
    ),
    Column(
        "border_loss",
        "Border loss",
        "return inside minus return after the border",
        _at_border(lambda border: border.loss),
        (HEADLINE, SEARCH),
    ),
    Column(
        "goals_found",
        "Goals found",
        "share of streams of which at least half the final episodes have a normalised return above "
        f"{measures.FOUND_THRESHOLD:g}",
        _normalized(lambda row: measures.found_at_last(row.method)[0]),
        (SEARCH,),
    ),
    Column(
        "return_once_found",
        "Once found",
        "mean normalised final return of these streams",
        _normalized(lambda row: measures.found_at_last(row.method)[1]),
        (SEARCH,),
    ),
    Column(
        "mean_by_seed",
        "Mean by seed",
        "mean normalised final return of each training seed",
        _normalized(_mean_by_seed),
        (STATISTICS,),
    ),
    Column(
        "median",
        "Median",
        "median over training seeds and tasks of the normalised final return",
        _normalized(lambda row: np.median(row.method.scores)),
        (STATISTICS,),
    ),
    Column(
        "optimality_gap",
        "Optimality gap",
        "mean of how far normalised final returns stay below 1, those above it counting as 1",
        _normalized(lambda row: statistics.optimality_gap(row.method.scores)),
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
        "final_minus_best",
        "Final − best",
        "mean over training seeds and tasks of the normalised final return minus the best running "
        "mean of as many episodes",
        _normalized(_lost),
        (STATISTICS,),
    ),
    _copied(
        "action_accuracy_recorded",
        "Acc. recorded",
        "accuracy against the recorded action",
        (DETAILS,),
    ),
    _copied(
        "action_accuracy_optimal",
        "Acc. optimal",
        "share of actions in the final episodes that the family's expert might take",
        (DETAILS,),
    ),
    _copied(
        "teacher_kl",
        "Teacher KL",
        "KL divergence from the teacher's action distribution, nats",
        (DETAILS,),
    ),
    _copied(
        "memory_regions", "Regions", "previous regions the context speaks of", (DETAILS,), None
    ),
    _copied(
        "reconstruction_accuracy",
        "Rec. acc.",
        "share of a region's observations, actions and next observations read back from its latents",
        (DETAILS, SWEEP),
        2,
        "rec.\nacc.",
        "reconstruction\naccuracy",
    ),
    _copied(
        "latent_bits",
        "Latent bits",
        "bits one region is kept in",
        (DETAILS, SWEEP),
        None,
        "latent\nbits",
        "bits one region is kept in",
    ),
    _copied("train_updates", "Updates", "optimiser updates", (DETAILS,), None),
    _copied("train_seconds", "Train s", "seconds of training", (DETAILS,), 0),
    _copied("train_targets_per_s", "Targets / s", "training targets per second", (DETAILS,), 0),
    _copied("train_peak_mb", "Peak MB", "peak memory of training, MB", (DETAILS,), 0),
    _copied(
        "n_parameters_acting",
        "Parameters acting",
        "parameters that take part when it acts",
        (DETAILS,),
        None,
    ),
    _copied(
        "n_parameters",
        "Parameters",
        "parameters, those only training needs among them",
        (DETAILS,),
        None,
    ),
)

DIFFERENCE_COLUMNS: tuple[Column[Pair], ...] = (
    Column("reference", "Reference", "what is subtracted", lambda pair: pair.reference_label),
    Column(
        "seeds",
        "Common seeds",
        "training seeds that both have",
        lambda pair: len(pair.seeds),
        (DIFFERENCES,),
        None,
    ),
    Column(
        "mean_difference",
        "Difference",
        "mean difference of the normalised final returns, paired by training seed and task",
        lambda pair: pair.by_seed.mean(),
        (DIFFERENCES,),
    ),
    Column(
        "interval",
        "95 % interval",
        "interval of that mean, as in the table of results",
        lambda pair: pair.interval,
        (DIFFERENCES,),
        2,
    ),
    Column("interval_low", "Interval from", "its lower bound", lambda pair: pair.interval.low),
    Column("interval_high", "Interval to", "its upper bound", lambda pair: pair.interval.high),
    Column(
        "interval_kind",
        "Interval is",
        "t or bootstrap",
        lambda pair: pair.interval.kind or None,
        (DIFFERENCES,),
    ),
    Column(
        "difference_by_seed",
        "By seed",
        "mean difference of each training seed",
        lambda pair: seed_values(pair.seeds, pair.by_seed.tolist()),
        (DIFFERENCES,),
    ),
    Column(
        "probability_of_improvement",
        "P(improvement)",
        "probability that a training seed of the method does better on a task than one of the "
        "reference, a tie counting half",
        lambda pair: statistics.probability_of_improvement(pair.scores, pair.reference),
        (DIFFERENCES,),
    ),
)

BY_NAME = {column.name: column for column in COLUMNS}


def shown_in(table: str) -> tuple[Column[Any], ...]:
    """The columns of a table, in order."""
    every: tuple[Column[Any], ...] = (*COLUMNS, *DIFFERENCE_COLUMNS)
    return tuple(column for column in every if table in column.tables)


def axis_title(name: str) -> str:
    """What the axis of a figure that shows this column is called."""
    column = BY_NAME[name]
    return column.axis or column.title


BEGIN, END = "<!-- columns: made by python -m reports.columns -->", "<!-- end of columns -->"


def documentation() -> str:
    """The list of columns as Markdown tables."""
    parts = []
    named = [*TABLES.items(), ("", "In table.csv only")]
    listed: set[str] = set()
    for table, heading in named:
        new = [
            column
            for column in COLUMNS
            if column.name not in listed and (table in column.tables if table else True)
        ]
        listed |= {column.name for column in new}
        parts.append(_doc_table(heading, new))
    parts.append(_doc_table("Differences", DIFFERENCE_COLUMNS))
    return "\n\n".join(parts)


def _doc_table(heading: str, columns: Sequence[Column[Any]]) -> str:
    rows = [f"| {c.title} | `{c.name}` | {c.description} |" for c in columns]
    return "\n".join(
        [f"**{heading}**", "", "| column | in CSV | meaning |", "|---|---|---|", *rows]
    )


def documented(text: str) -> str:
    """A page with the list between its two marks made anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{documentation()}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write the list of columns into docs/reports.md."""
    page = Path(__file__).parents[1] / "docs" / "reports.md"
    page.write_text(documented(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
