"""A comparison as a table: in the terminal, and as CSV, Markdown and LaTeX files.

Every table shows the same strings for the same rows. What is not known is a dash, in the CSV an
empty cell. Nothing is computed here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports.aggregate import DifferenceRow, MethodRow, column_descriptions
from reports.files import is_unknown, write_csv
from reports.results import EvaluationResult, is_point
from reports.statistics import DEFAULT_BOOTSTRAP, Bootstrap

MISSING = "–"
TERMINAL_WIDTH = 80

# Groups of methods that a rule divides: ours, full context, other contexts, controls, points of a
# sweep, their controls, references.
GROUPS = {
    "student": 0,
    "teacher": 1,
    "long_context": 1,
    "none": 2,
    "student_zeroed": 3,
    "student_shuffled": 3,
    "random": 6,
    "optimal": 6,
}
OTHER_GROUP, CONTROL_GROUP, POINT_GROUP, POINT_CONTROL_GROUP = 2, 3, 4, 5

DECIMALS = {
    "compression_ratio": 1,
    "ms_per_action": 2,
    "train_peak_mb": 0,
    "train_targets_per_s": 0,
    "train_seconds": 0,
    "return_mean": 2,
    "first_episode_return": 2,
    "episodes_to_90": 1,
}
COUNTS = {
    "n_latents",
    "seeds",
    "context_tokens",
    "context_bytes",
    "train_updates",
    "n_parameters",
    "latent_bits",
}

RESULT_COLUMNS = {
    "method": "Method",
    "n_latents": "m",
    "seeds": "Seeds",
    "normalized_return": "Return",
    "interval": "95 % CI",
    "gap_recovered": "Gap rec.",
    "tasks_solved": "Solved",
    "context_tokens": "Context tokens",
    "compression_ratio": "Ratio",
    "context_bytes": "Context bytes",
    "ms_per_action": "ms / action",
    "train_targets_per_s": "Targets / s",
    "train_peak_mb": "Peak MB",
}
DETAIL_COLUMNS = {
    "method": "Method",
    "goals_found": "Goals found",
    "return_once_found": "Once found",
    "episodes_to_90": "Episodes to 90 %",
    "final_minus_best": "Final − best",
    "action_accuracy_recorded": "Acc. recorded",
    "action_accuracy_optimal": "Acc. optimal",
    "teacher_kl": "Teacher KL",
    "train_updates": "Updates",
    "train_seconds": "Train s",
    "n_parameters": "Parameters",
    "reconstruction_accuracy": "Rec. acc.",
    "latent_bits": "Latent bits",
}
STATISTIC_COLUMNS = {
    "method": "Method",
    "seeds": "Seeds",
    "normalized_return": "IQM",
    "interval": "95 % CI",
    "return_normalized_mean": "Mean",
    "return_normalized_median": "Median",
    "optimality_gap": "Optimality gap",
    "return_mean": "Raw return",
    "first_episode_return": "First episode",
}
DIFFERENCE_COLUMNS = {
    "method": "Method",
    "seeds": "Common seeds",
    "mean_difference": "Difference",
    "interval": "95 % CI",
    "probability_of_improvement": "P(improvement)",
}
TERMINAL_COLUMNS = {
    "method": "method",
    "n_latents": "m",
    "seeds": "n",
    "normalized_return": "return",
    "interval": "95 % CI",
    "gap_recovered": "gap\nrec.",
    "tasks_solved": "solved",
    "context_tokens": "ctx\ntokens",
    "context_bytes": "ctx\nbytes",
    "ms_per_action": "ms /\nact",
}


def cell(row: MethodRow | DifferenceRow, column: str) -> str:
    """The string every table shows for one column of a row; "interval" joins both bounds."""
    if column == "interval":
        low, high = row.ci_low, row.ci_high
        if low is None or high is None or is_unknown(low) or is_unknown(high):
            return MISSING
        return f"[{_number(low, 2)}, {_number(high, 2)}]"
    value = getattr(row, column)
    if is_unknown(value):
        return MISSING
    if isinstance(value, str):
        return _shown_label(value)
    if column in COUNTS and float(value).is_integer():
        return f"{int(value):,}"
    decimals = 1 if column in COUNTS else DECIMALS.get(column, 3)
    return _number(value, decimals)


def _shown_label(label: str) -> str:
    """A label as tables show it: "m = 8" and "zeroed, m = 8" for the points of a sweep."""
    if not is_point(label):
        return label
    method, _, where = label.partition("@")
    return where if method == "student" else f"{method.removeprefix('student_')}, {where}"


def _short_cell(row: MethodRow, column: str) -> str:
    """`cell` where room is short: two decimals, thousands of bytes and bits."""
    value = getattr(row, column, None)
    two = ("gap_recovered", "tasks_solved", "reconstruction_accuracy")
    if column in two and value is not None:
        return _number(value, 2)
    if column in ("context_bytes", "latent_bits") and value is not None and value >= 10_000:
        return f"{value / 1000:,.0f}k"
    return cell(row, column)


def _number(value: float, decimals: int) -> str:
    # Rounded first, so that no -0.00 is printed; a true minus sign is as wide as a digit.
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "−")


def notes(
    results: Sequence[EvaluationResult],
    rows: Sequence[MethodRow],
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> list[str]:
    """The sentences a reader of the table needs, one per line under it."""
    first = results[0]
    n_tasks, n_evaluation_seeds, n_episodes = first.returns.shape
    n_known = int((first.optimal_returns > first.random_returns).sum())
    tasks = f"{first.part} tasks of {first.metrics['family']}"
    episodes = (
        f"last {first.final_episodes} of {n_episodes} in-context episodes, {n_evaluation_seeds} "
        "evaluation seeds"
    )
    if not n_known:
        return [
            f"No optimal return is known for the {n_tasks} {tasks}: nothing is normalised.",
            f"Returns: mean of the {episodes}.",
            _action_note(results),
        ]
    lines = [
        f"Return: normalised (0 random, 1 optimal), interquartile mean over training seeds and "
        f"{n_tasks} {tasks}; mean of the {episodes}.",
        _interval_note(rows, bootstrap),
        _action_note(results),
    ]
    if n_known < n_tasks:
        lines.append(
            f"{n_tasks - n_known} of {n_tasks} tasks have no known optimal return and count only "
            "in the raw return."
        )
    return [line for line in lines if line]


def _interval_note(rows: Sequence[MethodRow], bootstrap: Bootstrap) -> str:
    trained = [row for row in rows if GROUPS.get(row.method) != GROUPS["random"]]
    alone = [row.method for row in trained if row.seeds == 1]
    drawn = "whole" if bootstrap.whole_seeds else "within each task"
    kind = (
        f"CI: {100 * bootstrap.level:g} % percentile bootstrap, training seeds (n) drawn {drawn}."
    )
    if not alone:
        return kind
    if len(alone) == len(trained):
        return "One seed: no interval. Nothing here says how far training seeds differ."
    return f"{kind} One seed: no interval for {', '.join(alone)}."


def _action_note(results: Sequence[EvaluationResult]) -> str:
    modes = {
        (bool(result.metrics.get("sampled")), result.number("temperature"))
        for result in results
        if GROUPS.get(result.method) != GROUPS["random"]
    }
    if len(modes) > 1:
        return "Actions were not chosen alike by all methods: see sampled, temperature in metrics."
    for sampled, temperature in modes:
        if not sampled:
            return "Actions: argmax."
        at = "" if temperature is None else f" at temperature {temperature:g}"
        return f"Actions: sampled{at}."
    return ""


def difference_notes(rows: Sequence[DifferenceRow]) -> list[str]:
    """What the table of differences shows; nothing where there are none."""
    if not rows:
        return []
    reference = _shown_label(rows[0].reference)
    if reference in ("student", "teacher"):
        reference = f"the {reference}"
    lines = [
        f"Every method minus {reference}, paired by training seed and task: mean difference of the "
        "final returns. P(improvement): probability that a training seed of the method does better "
        f"on a task than one of {reference}, a tie counting half."
    ]
    alone = [cell(row, "method") for row in rows if row.seeds == 1]
    if len(alone) == len(rows):
        lines.append("One common training seed: no interval can be given.")
    elif alone:
        lines.append(f"One common training seed, and so no interval: {', '.join(alone)}.")
    return lines


def group_of(row: MethodRow | DifferenceRow) -> int:
    """The group of methods a row stands in; a rule divides groups."""
    return label_group(row.method)


def label_group(label: str) -> int:
    """The group of a label; the methods of a sweep's points are one, their controls another."""
    group = GROUPS.get(label.split("@")[0], OTHER_GROUP)
    if is_point(label):
        return POINT_CONTROL_GROUP if group == CONTROL_GROUP else POINT_GROUP
    return group


def terminal_table(
    rows: Sequence[MethodRow], columns: Mapping[str, str] = TERMINAL_COLUMNS
) -> Table:
    """The key columns as a rich table that fits 80 columns."""
    columns = dict(columns)
    if all(row.normalized_return is None for row in rows):
        columns = {{"normalized_return": "return_mean"}.get(k, k): v for k, v in columns.items()}
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for column, title in columns.items():
        is_name = column == "method"
        table.add_column(
            title,
            justify="left" if is_name else "right",
            vertical="bottom",
            overflow="fold",
            no_wrap=not is_name,
        )
    for _, group in groupby(rows, key=group_of):
        table.add_section()
        for row in group:
            style = "bold" if row.method == "student" else ""
            cells = [Text(_short_cell(row, column), style=style) for column in columns]
            table.add_row(*cells)
    return table


def print_table(
    rows: Sequence[MethodRow],
    lines: Sequence[str],
    console: Console,
    columns: Mapping[str, str] = TERMINAL_COLUMNS,
) -> None:
    """Print the terminal table and the notes under it."""
    console.print(terminal_table(rows, columns))
    width = min(console.width, TERMINAL_WIDTH)
    for line in lines:
        console.print(Text(line), style="dim", width=width)


def write_differences(rows: Sequence[DifferenceRow], out_dir: Path) -> None:
    """Write differences.csv into `out_dir`."""
    header = [entry.name for entry in fields(DifferenceRow)]
    write_csv(out_dir / "differences.csv", header, [astuple(row) for row in rows])


def write_markdown(
    rows: Sequence[MethodRow],
    lines: Sequence[str],
    path: Path,
    differences: Sequence[DifferenceRow] = (),
) -> None:
    """Tables of results, statistics, differences and details, notes, what each column means."""
    described = column_descriptions()
    parts = ["# Comparison", "", *_markdown_table(rows, RESULT_COLUMNS), ""]
    parts += [line + "  " for line in lines]
    parts += ["", "## Statistics", "", *_markdown_table(rows, STATISTIC_COLUMNS), ""]
    if differences:
        parts += ["## Differences", "", *_markdown_table(differences, DIFFERENCE_COLUMNS), ""]
        parts += [line + "  " for line in difference_notes(differences)]
        parts += [""]
    parts += ["## Details", "", *_markdown_table(rows, DETAIL_COLUMNS), ""]
    parts += ["## Columns", ""]
    for column, title in described_columns().items():
        if described.get(column):
            parts.append(f"- **{title}**: {described[column]}.")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def described_columns() -> dict[str, str]:
    """Every column of the tables of methods that has a description, by its title there."""
    # Statistics call the return by its estimator; its title among the results is the one to keep.
    more = {key: title for key, title in STATISTIC_COLUMNS.items() if key not in RESULT_COLUMNS}
    return RESULT_COLUMNS | more | DETAIL_COLUMNS


def _markdown_table(
    rows: Sequence[MethodRow | DifferenceRow], columns: Mapping[str, str]
) -> list[str]:
    alignment = [":--" if column == "method" else "--:" for column in columns]
    cells = [[cell(row, column).replace("|", "\\|") for column in columns] for row in rows]
    lines = [list(columns.values()), alignment, *cells]
    return ["| " + " | ".join(line) + " |" for line in lines]


LATEX_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "–": "--",
        "−": "$-$",
    }
)


def latex_escape(text: str) -> str:
    """`text` as LaTeX prints it."""
    return text.translate(LATEX_ESCAPES)


def write_latex(
    rows: Sequence[MethodRow],
    lines: Sequence[str],
    path: Path,
    differences: Sequence[DifferenceRow] = (),
) -> None:
    r"""Booktabs tables to `\input`, as in `write_markdown`; needs booktabs and graphicx."""
    tables = [
        _latex_table(rows, RESULT_COLUMNS, " ".join(lines), "tab:comparison"),
        _latex_table(
            rows,
            STATISTIC_COLUMNS,
            "Statistics of the normalised final returns of the same runs.",
            "tab:comparison-statistics",
        ),
        _latex_table(rows, DETAIL_COLUMNS, "Details of the same runs.", "tab:comparison-details"),
    ]
    if differences:
        caption = " ".join(difference_notes(differences))
        tables.insert(
            2, _latex_table(differences, DIFFERENCE_COLUMNS, caption, "tab:comparison-differences")
        )
    head = "% \\usepackage{booktabs, graphicx}"
    path.write_text("\n\n".join([head, *tables]) + "\n", encoding="utf-8")


def _latex_table(
    rows: Sequence[MethodRow | DifferenceRow],
    columns: Mapping[str, str],
    caption: str,
    label: str,
) -> str:
    body = []
    for _, group in groupby(rows, key=group_of):
        body.append(r"  \midrule")
        for row in group:
            cells = (latex_escape(cell(row, column)) for column in columns)
            body.append(f"  {' & '.join(cells)} \\\\")
    heading = " & ".join(latex_escape(title) for title in columns.values())
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{latex_escape(caption)}}}",
            rf"\label{{{label}}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{@{{}}l{'r' * (len(columns) - 1)}@{{}}}}",
            r"  \toprule",
            f"  {heading} \\\\",
            *body,
            r"  \bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    )


def write_tables(
    rows: Sequence[MethodRow],
    lines: Sequence[str],
    out_dir: Path,
    differences: Sequence[DifferenceRow] = (),
) -> None:
    """Write table.csv, table.md, table.tex and differences.csv into `out_dir`.

    Args:
        rows: one per method.
        lines: the notes under the table.
        out_dir: an existing directory.
        differences: from `difference_rows`.
    """
    header = [entry.name for entry in fields(MethodRow)]
    write_csv(out_dir / "table.csv", header, [astuple(row) for row in rows])
    write_differences(differences, out_dir)
    write_markdown(rows, lines, out_dir / "table.md", differences)
    write_latex(rows, lines, out_dir / "table.tex", differences)
