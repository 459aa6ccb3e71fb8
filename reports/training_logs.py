"""How training went: the log.csv of every stage, read and drawn.

<run_dir>/seed_<n>/<method>/<stage>/log.csv    or    <run_dir>/seed_<n>/<method>/log.csv
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from reports import style
from reports.files import write_csv
from reports.records import MethodRecord, title_of, unknown_record
from reports.result_files import ResultsError, check_written, seed_directories

Floats = NDArray[np.float64]

NAME = "training"
LOSS_COLUMNS = ("loss", "action_nll", "rec_loss")  # the first there is
SCORE_COLUMN = "val_score"
STAGE_ORDER = ("full context", "pretrain", "distill", "finetune", "policy_gradient", "on_policy")
FULL_CONTEXT_STAGE = STAGE_ORDER[0]  # teachers are trained in one stage that has no name


@dataclass(frozen=True)
class StageLog:
    """The log of one stage of one method and training seed.

    Attributes:
        method: the method, and "@" and the run where there are several runs.
        stage: e.g. "distill".
        training_seed: the n of seed_<n>.
        columns: numbers by column, `(rows,)` each, nan where a row has none; "step" among them.
    """

    method: str
    stage: str
    training_seed: int
    columns: dict[str, Floats]

    def curve(self, column: str) -> tuple[Floats, Floats] | None:
        """Steps and values of the rows that have `column`, None where none has."""
        values = self.columns.get(column)
        if values is None:
            return None
        known = np.isfinite(values) & np.isfinite(self.columns["step"])
        return (self.columns["step"][known], values[known]) if known.any() else None

    @property
    def loss_column(self) -> str | None:
        """The column that is drawn as the loss."""
        return next((name for name in LOSS_COLUMNS if self.curve(name) is not None), None)


def load_stage_logs(
    run_dirs: Iterable[str | Path],
    seeds: Iterable[int] | None = None,
    *,
    names: Mapping[Path, str] | None = None,
) -> list[StageLog]:
    """Read every log there is, by stage, method, and training seed.

    Args:
        run_dirs: run directories.
        seeds: training seeds; all when None.
        names: what to tell the methods of a run apart by; the run's own name where there are
            several runs and no names, nothing for a run that is not among the names.

    Raises:
        ResultsError: a log is damaged, or not what the stage has written.
    """
    directories = [Path(run_dir) for run_dir in run_dirs]
    wanted = None if seeds is None else set(seeds)
    logs = []
    for run_dir in directories:
        name = run_dir.resolve().name if len(directories) > 1 else ""
        name = name if names is None else names.get(run_dir, "")
        suffix = f"@{name}" if name else ""
        for seed, seed_dir in seed_directories(run_dir):
            if wanted is not None and seed not in wanted:
                continue
            for folder in _stages(seed_dir):
                path = folder / "log.csv"
                check_written(folder, _remedy(path), "tables")
                if not path.exists():
                    continue
                method, *stage = folder.relative_to(seed_dir).parts
                stage_name = stage[0] if stage else FULL_CONTEXT_STAGE
                logs.append(StageLog(method + suffix, stage_name, seed, _read_columns(path)))
    return sorted(logs, key=lambda log: _stage_rank(log.stage))


def _stages(seed_dir: Path) -> list[Path]:
    """Folders of stages that have a log, or may say that they had one."""
    names = [f"{depth}/{name}" for depth in ("*", "*/*") for name in ("log.csv", "model")]
    return sorted({path.parent for name in names for path in seed_dir.glob(name)})


def _remedy(path: Path) -> str:
    return f"bring {path} back, or delete {path.parent} and train the stage again"


def _stage_rank(stage: str) -> tuple[int, str]:
    known = stage in STAGE_ORDER
    return (STAGE_ORDER.index(stage) if known else len(STAGE_ORDER), stage)


def _read_columns(path: Path) -> dict[str, Floats]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = list(rows[0]) if rows else ["step"]
        columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
        if "step" not in columns:
            raise ValueError("no column step")
    except (TypeError, ValueError, OSError) as error:
        raise ResultsError(
            f"{path} is damaged ({error}): expected numbers under a header with the column step; "
            f"{_remedy(path)}"
        ) from error
    return columns


def draw_training(
    logs: Sequence[StageLog], records: Mapping[str, MethodRecord], out_dir: Path
) -> list[Path]:
    """Draw training loss and validation score against updates, a row of axes per stage.

    Args:
        logs: from `load_stage_logs`, at least one.
        records: of the compared methods, by name.
        out_dir: an existing directory; training.{pdf,png,csv} are written there.

    Returns:
        The PDF and the PNG.
    """
    names = {log.method: log.method.partition("@")[0] for log in logs}
    known = {label: records.get(name) or unknown_record(name) for label, name in names.items()}
    logs = sorted(logs, key=lambda log: (_stage_rank(log.stage), known[log.method].rank))
    known = {log.method: known[log.method] for log in logs}
    looks = style.looks(known)
    stages = list(dict.fromkeys(log.stage for log in logs))
    _write_curves(logs, out_dir / f"{NAME}.csv")
    with style.new_figure(6.2, 1.9 * len(stages) + 0.3) as figure:
        grid = figure.subplots(len(stages), 2, squeeze=False)
        figure.subplots_adjust(wspace=0.4, hspace=0.55)
        for (left, right), stage in zip(grid, stages, strict=True):
            stage_logs = [log for log in logs if log.stage == stage]
            losses = sorted({log.loss_column for log in stage_logs if log.loss_column})
            left.set_title(stage)
            left.set_ylabel(f"training {' / '.join(losses).replace('_', ' ') or 'loss'}")
            right.set_ylabel("validation score")
            for log in stage_logs:
                look, label = looks[log.method], title_of(log.method, known[log.method])
                _draw(left, log, log.loss_column, look, label)
                _draw(right, log, SCORE_COLUMN, look, label)
            _finish(left, right)
        return style.save(figure, out_dir, NAME)


def _draw(axes: Axes, log: StageLog, column: str | None, look: style.Look, label: str) -> None:
    curve = None if column is None else log.curve(column)
    if curve is None:
        return
    axes.plot(
        *curve,
        **look.line(lw=0.7 * look.width),
        ms=3,
        markevery=max(1, len(curve[0]) // 5),
        label=label,
    )


def _finish(left: Axes, right: Axes) -> None:
    """Label the axes of one stage; name every method once, though each seed is a line."""
    entries = {}
    for axes in (left, right):
        axes.set_xlabel("update")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
        if not handles:
            axes.set_visible(False)
    holder = right if right.get_visible() else left
    style.legend_beside(
        holder, entries.values(), entries.keys(), at=1.05, handlelength=2, fontsize=7
    )


def _write_curves(logs: Sequence[StageLog], path: Path) -> None:
    rows = [
        (log.stage, log.method, log.training_seed, step, name, value)
        for log in logs
        for name in (log.loss_column, SCORE_COLUMN)
        if name is not None and (curve := log.curve(name)) is not None
        for step, value in zip(*curve, strict=True)
    ]
    write_csv(path, ("stage", "method", "training_seed", "step", "column", "value"), rows)
