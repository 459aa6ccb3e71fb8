"""What a report is made with and from, and what it says before it is a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from reports.cost import CostRow, load_cost
from reports.measures import SOLVED_THRESHOLD
from reports.paper import PrintedTable
from reports.records import MethodRecord
from reports.result_files import EvaluationResult
from reports.rows import Row
from reports.scores import MethodScores, stack_methods
from reports.source_curves import SourceCurves, load_source_curves
from reports.training_logs import StageLog


@dataclass(frozen=True)
class ReportOptions:
    """How a report is made, of a comparison and of a sweep alike.

    Attributes:
        folder: where the evaluations are, `evaluate` or `evaluate_<name>`.
        solved_threshold: normalised final return from which a task counts as solved.
        commands: what was run, for the page.
        config_text: the resolved configuration, for the page.
        console: the table is printed there; not at all when None.
    """

    folder: str = "evaluate"
    solved_threshold: float = SOLVED_THRESHOLD
    commands: Sequence[str] = ()
    config_text: str = ""
    console: Console | None = None


DEFAULT_OPTIONS = ReportOptions()


@dataclass(frozen=True)
class Material:
    """Everything a report is made from, as the result files give it.

    Attributes:
        methods: all of them.
        logs: of the training stages.
        sources: learning curves of the sources of the histories.
        cost: what acting costs, if it was measured.
    """

    methods: Sequence[MethodScores]
    logs: Sequence[StageLog]
    sources: Sequence[SourceCurves]
    cost: Sequence[CostRow]

    @classmethod
    def of(
        cls,
        results: Sequence[EvaluationResult],
        run_dirs: Sequence[Path],
        logs: Sequence[StageLog],
    ) -> "Material":
        """Results and logs, and what else lies in the run directories."""
        sources = load_source_curves(run_dirs, results[0].tasks, results[0].part)
        return cls(stack_methods(results), logs, sources, load_cost(run_dirs))

    @property
    def records(self) -> dict[str, MethodRecord]:
        """What each method says of itself, by its name."""
        return {method.method: method.record for method in self.methods}


@dataclass(frozen=True)
class Report:
    """What a comparison says, before it is a page.

    Attributes:
        rows: one per method.
        notes: the sentences under the table.
        tables: as they are printed.
        figures: PDF and PNG of each figure, by its name; of one that is not drawn nothing.
    """

    rows: list[Row]
    notes: list[str]
    tables: list[PrintedTable]
    figures: dict[str, list[Path]]
