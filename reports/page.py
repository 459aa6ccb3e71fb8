"""A comparison as one HTML file that can be mailed, printed and read without a network.

Images are inlined, there are no scripts, and what a colour says is said in words as well.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template

import numpy as np

from reports import style
from reports.aggregate import (
    SOLVED_THRESHOLD,
    DifferenceRow,
    MethodRow,
    MethodScores,
    column_descriptions,
    is_normalized,
    stack_methods,
)
from reports.figures import SHOWN_PER_TASK
from reports.results import EvaluationResult, training_seeds
from reports.tables import (
    DETAIL_COLUMNS,
    DIFFERENCE_COLUMNS,
    MISSING,
    RESULT_COLUMNS,
    STATISTIC_COLUMNS,
    cell,
    described_columns,
    difference_notes,
    group_of,
)

CAPTIONS = {
    "learning_curves": (
        "Learning in context",
        "Return against in-context episode: interquartile mean over training seeds and tasks, "
        "with the bootstrap band where there are several training seeds.",
    ),
    "bars": (
        "Final return",
        "Interquartile mean (bar), its interval (thick line), and a circle for each training seed "
        "and task.",
    ),
    "profiles": (
        "Performance profiles",
        "Share of training seeds and tasks whose normalised final return is at least the value on "
        "the axis, with the bootstrap band where there are several training seeds. Higher is "
        "better everywhere; lines that cross are better at different tasks.",
    ),
    "gap": (
        "Gap recovered",
        "Mean final return as a share of the way from no context (0) to the teacher (1): filled "
        "marker over all training seeds, a circle for each of them. Zeroed and shuffled latents "
        "should fall back to no context.",
    ),
    "cost": (
        "Cost of acting",
        "Context state of one stream, and processor time per action, against the regions of "
        "history behind an action: the whole history kept raw, the teacher's fixed window of raw "
        "regions, and the student's latents. Measured with untrained models of the run's sizes, as "
        "weights change no cost; all axes are logarithmic.",
    ),
    "tasks": ("Task by task", "Final return on each task, averaged over evaluation seeds."),
    "training": (
        "Training",
        "Training loss and validation score of every stage; one line per training seed.",
    ),
}

MAX_NAMED = 3  # versions of one kind that are worth listing
PIXELS_PER_DOT = 0.6  # shown at one scale, so that letters are of one size in all figures

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #111; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #bbb; }
.facts, figcaption, .notes { color: #444; font-size: 0.87rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15rem 0.4rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 1.5px solid #111; vertical-align: bottom; white-space: normal; }
tbody + tbody tr:first-child td { border-top: 1px solid #bbb; }
tr.ours td, tr.failed td:first-child { font-weight: bold; }
figure { margin: 1rem 0; break-inside: avoid; }
figure img { max-width: 100%; height: auto; }
pre { background: #f4f4f4; padding: 0.7rem; overflow-x: auto; font-size: 0.8rem; }
dl { font-size: 0.85rem; columns: 2 22rem; }
dt { font-weight: bold; break-after: avoid; }
dd { margin: 0 0 0.3rem 0; break-inside: avoid; }
@page { margin: 14mm; }
@media print {
  body { max-width: none; margin: 0; font-size: 10pt; }
  table { font-size: 7pt; }
  th, td { padding: 0.1rem 0.25rem; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
  pre { white-space: pre-wrap; }
}
</style>
</head>
<body>
$body
</body>
</html>
""")


def write_page(
    rows: Sequence[MethodRow],
    results: Sequence[EvaluationResult],
    figures: Mapping[str, Sequence[Path]],
    commands: Sequence[str],
    config_text: str,
    out: str | Path,
    *,
    notes: Sequence[str] = (),
    differences: Sequence[DifferenceRow] = (),
    solved_threshold: float = SOLVED_THRESHOLD,
    title: str = "Comparison",
    lead: Sequence[str] = (),
) -> Path:
    """Write the page.

    Args:
        rows: from `method_rows`.
        results: what the rows were computed from.
        figures: files of each figure by its name, from `write_figures`; the PNG is shown.
        commands: what was run, in order; the section is left out when empty.
        config_text: the resolved configuration; the section is left out when empty.
        out: the file to write.
        notes: sentences under the table, from `tables.notes`.
        differences: from `difference_rows`; the section is left out when empty.
        solved_threshold: normalised final return below which a task counts as failed.
        title: first word or words of the heading.
        lead: sections, from `section` and `figure`, that come before the results.

    Returns:
        `out`.
    """
    methods = stack_methods(results)
    heading = f"{title} on {results[0].metrics['family']}, {results[0].part} tasks"
    parts = [
        f"<h1>{escape(heading)}</h1>",
        _facts(results),
        *lead,
        section("Results", method_table(rows, RESULT_COLUMNS) + notes_under(notes)),
        figure("learning_curves", figures),
        figure("bars", figures),
        figure("profiles", figures),
        figure("gap", figures),
        section("Statistics", method_table(rows, STATISTIC_COLUMNS)),
        section("Differences", _difference_table(differences)),
        figure("cost", figures),
        figure("tasks", figures, _task_breakdown(methods, solved_threshold)),
        section("Details", method_table(rows, DETAIL_COLUMNS)),
        figure("training", figures),
        section("Commands", _pre("\n".join(commands))),
        section("Configuration", _pre(config_text.strip())),
        section("What the columns mean", _legend()),
    ]
    out = Path(out)
    page = PAGE.substitute(title=escape(heading), body="\n".join(filter(None, parts)))
    out.write_text(page, encoding="utf-8")
    return out


def section(title: str, content: str) -> str:
    """A section of the page; nothing without content, which is HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def _facts(results: Sequence[EvaluationResult]) -> str:
    """Where the numbers come from: runs, seeds, versions, the days they were made."""
    metrics = [result.metrics for result in results]

    def distinct(key: str) -> str:
        values = dict.fromkeys(str(entry[key]) for entry in metrics if entry.get(key) is not None)
        if len(values) > MAX_NAMED:
            return f"{len(values)} different"
        return ", ".join(values) or MISSING

    days = sorted(str(entry["created"])[:10] for entry in metrics if entry.get("created"))
    facts = {
        "Runs": _runs(list(dict.fromkeys(str(result.run_dir) for result in results))),
        "Training seeds": ", ".join(map(str, training_seeds(results))),
        "Split": str(metrics[0]["split_identity"])[:16],
        "Git commit": distinct("git_sha"),
        "Configuration": distinct("config_hash"),
        "Evaluated": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else MISSING,
    }
    text = " · ".join(f"{escape(name)}: {escape(value)}" for name, value in facts.items())
    return f'<p class="facts">{text}</p>'


def _runs(names: Sequence[str]) -> str:
    if len(names) <= MAX_NAMED:
        return ", ".join(names)
    return f"{len(names)} under {os.path.commonpath(names)}"


def _table(header: Sequence[str], groups: Sequence[Sequence[tuple[str, Sequence[str]]]]) -> str:
    """A table of groups of (CSS class, cells)."""
    lines = ["<div class='scroll'><table>", "<thead><tr>"]
    lines += [f'<th scope="col">{escape(name)}</th>' for name in header]
    lines.append("</tr></thead>")
    for group in groups:
        lines.append("<tbody>")
        for css, cells in group:
            opening = f'<tr class="{css}">' if css else "<tr>"
            lines.append(opening + "".join(f"<td>{escape(text)}</td>" for text in cells) + "</tr>")
        lines.append("</tbody>")
    return "\n".join([*lines, "</table></div>"])


def method_table(rows: Sequence[MethodRow | DifferenceRow], columns: Mapping[str, str]) -> str:
    """Rows as a table, divided into groups of methods."""
    groups = [
        [
            ("ours" if row.method == "student" else "", [cell(row, name) for name in columns])
            for row in group
        ]
        for _, group in groupby(rows, key=group_of)
    ]
    return _table(list(columns.values()), groups)


def _difference_table(rows: Sequence[DifferenceRow]) -> str:
    if not rows:
        return ""
    return method_table(rows, DIFFERENCE_COLUMNS) + notes_under(difference_notes(rows))


def notes_under(notes: Sequence[str]) -> str:
    """Sentences under a table, a line each."""
    lines = "<br>\n".join(map(escape, notes))
    return f'\n<p class="notes">{lines}</p>' if lines else ""


def figure(
    name: str,
    figures: Mapping[str, Sequence[Path]],
    more: str = "",
    captions: Mapping[str, tuple[str, str]] = CAPTIONS,
) -> str:
    """The section of a figure: its PNG, its caption, and more HTML; nothing without the figure."""
    image = next((path for path in figures.get(name, ()) if path.suffix == ".png"), None)
    if image is None:
        return ""
    title, caption = captions[name]
    data = base64.b64encode(image.read_bytes()).decode("ascii")
    content = (
        f'<figure><img alt="{escape(caption)}" width="{_shown_width(image)}" '
        f'src="data:image/png;base64,{data}">\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n{more}"
    )
    return section(title, content)


def _shown_width(image: Path) -> int:
    with image.open("rb") as file:
        width = file.read(20)[16:]  # of the header chunk, which comes first
    return round(PIXELS_PER_DOT * int.from_bytes(width, "big"))


def _task_breakdown(methods: Sequence[MethodScores], solved_threshold: float) -> str:
    """Every task with its returns, hardest first, and the failed ones by name."""
    shown = [method for method in methods if method.label in SHOWN_PER_TASK]
    if not shown:
        return ""
    first = shown[0]
    means = np.stack([method.task_scores.mean(axis=0) for method in shown], axis=1)  # (T, M)
    judged = is_normalized(methods)
    groups, failed = [], []
    for task in np.argsort(means[:, 0], kind="stable"):  # nan last
        name = first.results[0].tasks[task].name
        is_failed = bool(judged and means[task, 0] < solved_threshold)
        if is_failed:
            failed.append(name)
        scores = [MISSING if np.isnan(m) else f"{m:.3f}".replace("-", "−") for m in means[task]]
        known = np.isfinite(means[task, 0])
        verdict = ("failed" if is_failed else "solved") if judged and known else MISSING
        groups.append(("failed" if is_failed else "", [name, *scores, verdict]))
    text = ""
    if judged:
        named = f": {', '.join(failed)}" if failed else ""
        text = (
            f"<p>{escape(style.title(first.label).capitalize())} fails {len(failed)} of "
            f"{int(np.isfinite(means[:, 0]).sum())} tasks (normalised final return, averaged over "
            f"training and evaluation seeds, below {solved_threshold:g}){escape(named)}.</p>\n"
        )
    header = ["Task", *(style.title(method.label) for method in shown)]
    return text + _table([*header, f"{style.title(first.label)} verdict"], [groups])


def _pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>" if text else ""


def _legend() -> str:
    described = column_descriptions()
    entries = [
        f"<dt>{escape(title)}</dt><dd>{escape(described[name])}.</dd>"
        for name, title in described_columns().items()
        if described.get(name)
    ]
    return "<dl>\n" + "\n".join(entries) + "\n</dl>"
