"""The live table of a sweep: each cell with its state, elapsed time, time left and best metric."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.plan import PlannedStage
from pipelines.stages import STAGES
from pipelines.sweep import Cell
from training.jobs import JobResult, PrintingListener

REFRESH_SECONDS = 2.0
MAX_NAME_WIDTH = 44  # so that the table fits 80 columns
STYLES = {"running": "cyan", "failed": "bold red", "skipped": "yellow", "finished": "green"}


@dataclass
class Row:
    """One line of the table: a cell, or a stage that several cells share.

    Attributes:
        name: Of its job.
        run_dir: Where its stages' folders are.
        stages: What it has to run; empty where nothing is left.
        cell: None for a shared stage.
        n_reused: Stages that are done already.
        state: waiting, running, finished, failed, skipped or reused.
        started: `time.monotonic()` of its start.
        seconds: How long it took, once it has ended.
        done_before: Share of its updates that an earlier run had done.
    """

    name: str
    run_dir: Path
    stages: tuple[PlannedStage, ...]
    cell: Cell | None = None
    n_reused: int = 0
    state: str = "waiting"
    started: float = 0.0
    seconds: float | None = None
    done_before: float = 0.0

    def __post_init__(self) -> None:
        """A row without work has its result from elsewhere."""
        if not self.stages:
            self.state = "reused"

    def progress(self) -> float:
        """Share of the updates of its stages that are done, from their logs."""
        total = done = 0
        for stage in self.stages:
            record = STAGES[stage.module]
            if record.section:
                total += record.settings(stage.config).optim.updates
                done += last_step(self.run_dir / stage.folders[0] / "log.csv")
        return done / total if total else 0.0

    def metric(self) -> str:
        """Normalised return on test tasks, or else the best validation score so far."""
        if self.cell is not None:
            done = [s for s in self.cell.stages if s.module == "evaluate"]
            for stage in done:
                value = final_return(self.run_dir / stage.folders[0])
                if value is not None:
                    return f"{value:.3f}"
        scores = [best_score(self.run_dir / s.folders[0] / "log.csv") for s in self.stages]
        known = [score for score in scores if score is not None]
        return f"val {max(known):.3f}" if known else ""


class SweepTable(PrintingListener):
    """Rows that follow what becomes of their jobs.

    On a terminal the whole table is drawn anew every two seconds, elsewhere a line is printed for
    each event.
    """

    def __init__(self, rows: Sequence[Row], console: Console) -> None:
        super().__init__()
        self.rows = {row.name: row for row in rows}
        self.console = console
        self.display: Live | None = None
        self.drawn = 0.0
        self.results: Sequence[JobResult] = ()

    def started(self, name: str, seconds: float) -> None:
        """Follow a job that has started."""
        row = self.rows[name]
        row.state, row.started, row.done_before = "running", time.monotonic(), row.progress()
        self._tell(f"{seconds:8.1f} s  started   {name}")

    def ended(self, result: JobResult) -> None:
        """Follow a job that has ended, or will not be started."""
        row = self.rows[result.name]
        row.state, row.seconds = result.status, result.seconds
        self._tell(f"{result.seconds:8.1f} s  {result.status:<9} {result.name}  {row.metric()}")

    def done(self, results: Sequence[JobResult]) -> None:
        """Keep what there is to tell until the table stands."""
        self.results = results

    def tick(self) -> None:
        """Draw anew, now and then."""
        if self.display is not None and time.monotonic() - self.drawn >= REFRESH_SECONDS:
            self.display.update(self.table(), refresh=True)
            self.drawn = time.monotonic()

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show the table while jobs run; it stays as it was last, what failed named under it."""
        if self.console.is_terminal:
            with Live(self.table(), console=self.console, auto_refresh=False) as self.display:
                try:
                    yield
                finally:
                    self.display.update(self.table(), refresh=True)
            self.display = None
        else:
            yield
            self.console.print(self.table())
        super().done(self.results)

    def print(self, heading: str) -> None:
        """Print the table once."""
        self.console.print(heading, soft_wrap=True)
        self.console.print(self.table(plan_only=True))

    def table(self, *, plan_only: bool = False) -> Table:
        """The rows as a table that fits 80 columns."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        longest = max(map(len, self.rows), default=0)
        table.add_column("cell", overflow="fold", min_width=min(longest, MAX_NAME_WIDTH))
        columns = ("to run", "reused") if plan_only else ("state", "elapsed", "ETA", "return")
        for column in columns:
            table.add_column(column, justify="left" if column in ("state", "to run") else "right")
        for row in self.rows.values():
            if plan_only:
                named = ", ".join(
                    stage.name.removeprefix(f"seed_{stage.config.seed}/") for stage in row.stages
                )
                table.add_row(Text(row.name), named or "nothing", str(row.n_reused or ""))
                continue
            state = Text(row.state, style=STYLES.get(row.state, ""))
            table.add_row(Text(row.name), state, *self._times(row), row.metric())
        return table

    def _times(self, row: Row) -> tuple[str, str]:
        if row.state != "running":
            return ("" if not row.seconds else clock(row.seconds)), ""
        elapsed, progress = time.monotonic() - row.started, row.progress()
        new = progress - row.done_before
        left = clock(elapsed * (1 - progress) / new) if new > 0 else ""
        return clock(elapsed), left

    def _tell(self, line: str) -> None:
        if self.display is None:
            self.console.print(line.rstrip(), soft_wrap=True)
        self.drawn = 0.0
        self.tick()


def clock(seconds: float) -> str:
    """Return e.g. `1:05:09` or `3:07`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def last_step(log: Path) -> int:
    """Return the last update of a stage's log, 0 without one."""
    rows = _rows(log)
    return int(rows[-1]["step"]) if rows else 0


def best_score(log: Path) -> float | None:
    """Return the best validation score of a stage's log."""
    scores = [float(row["val_score"]) for row in _rows(log) if row.get("val_score")]
    return max(scores, default=None)


def final_return(folder: Path) -> float | None:
    """Return the normalised final return of an evaluation, None where it is not done."""
    try:
        value: Any = json.loads((folder / "metrics.json").read_text()).get("normalized_final")
    except (OSError, ValueError):
        return None
    return None if value is None else float(value)


def _rows(log: Path) -> list[dict[str, str]]:
    try:
        with log.open(newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []
