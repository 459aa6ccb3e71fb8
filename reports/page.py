"""A comparison as one HTML file that can be mailed, printed and read without a network.

What stands on the page, in which order; how it looks stands in page.html.j2. Images are inlined,
there are no scripts, and what a colour says is said in words as well.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from reports.column import DETAILS, HEADLINE, TABLES, number
from reports.figures import shown_per_task
from reports.paper import PrintedTable, described
from reports.report import Report, ReportOptions
from reports.results import training_seeds
from reports.scores import MethodScores, is_normalized
from reports.tables import MISSING

CAPTIONS = {
    "learning_curves": (
        "Learning in context",
        "Return against in-context episode: mean over training seeds and tasks. The band is the "
        "range of the training seeds, from 8 seeds on a bootstrap interval. Grey: random, optimal, "
        "the sources of the histories, and searches by rule (dashed).",
    ),
    "pairs": (
        "Error against pairs",
        "Mean error of the prediction after so many pairs of input and output: squared, in "
        "variances of the outputs, or the share of wrong classes. Grey: rules that know all pairs.",
    ),
    "borders": (
        "At the borders",
        "When a region is full it is turned into context and dropped. Left: return by the place of "
        "an episode in its region, from the second region on, in the second half of the episodes; "
        "the first has nothing but the context to tell the task by. Right: return against episode, "
        "a thin line at every border.",
    ),
    "bars": (
        "Final return",
        "Mean (bar), its 95 % interval (line), the training seeds (strokes), and a circle for each "
        "training seed and task.",
    ),
    "profiles": (
        "Performance profiles",
        "Share of training seeds and tasks whose normalised final return is at least the value on "
        "the axis; bands as in the learning curves. Higher is better everywhere; lines that cross "
        "are better at different tasks.",
    ),
    "gap": (
        "Gap recovered",
        "Mean final return as a share of the way from no context (0) to the teacher (1): filled "
        "marker over the training seeds that all three have, a circle for each of them. Controls "
        "should fall back to no context.",
    ),
    "bits": (
        "Return against bits of context",
        "What is got for the bits that an action can read. Left: the final return. Then, if they "
        "were measured, the first episode of a region, which has nothing but the context, and an "
        "episode under a context frozen after recorded regions. The curve is the most that so many "
        "bits allow, on average over the family, drawn only where nothing else tells the task; "
        "above it, grey, is out of reach. The vertical line is what it takes to name a task.",
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


@dataclass(frozen=True)
class Image:
    """A picture on the page: PNG in base64, width in pixels, caption."""

    data: str
    width: int
    caption: str


@dataclass(frozen=True)
class HtmlTable:
    """Headings, and groups of (CSS class, cells) that a rule divides."""

    header: Sequence[str]
    groups: Sequence[Sequence[tuple[str, Sequence[str]]]]


@dataclass(frozen=True)
class PageSection:
    """A section of the page; what is empty is left out."""

    title: str
    image: Image | None = None
    text: str = ""
    table: HtmlTable | None = None
    notes: Sequence[str] = ()
    code: str = ""
    terms: Mapping[str, str] = field(default_factory=dict)


def write_page(
    report: Report,
    methods: Sequence[MethodScores],
    out_dir: Path,
    options: ReportOptions,
    *,
    title: str = "Comparison",
    lead: Sequence[PageSection] = (),
) -> None:
    """Write report.html.

    Args:
        report: what it shows; of figures the PNG.
        methods: what it was computed from.
        out_dir: an existing directory.
        options: of the report; commands and configuration are left out when empty.
        title: first word or words of the heading.
        lead: sections that come before the results.
    """
    first = methods[0].results[0]
    printed = {table.heading: [table_section(table)] for table in report.tables}
    headline, details = printed.pop(TABLES[HEADLINE], []), printed.pop(TABLES[DETAILS], [])
    breakdown = _task_breakdown(methods, options.solved_threshold)
    sections = [
        *lead,
        *headline,
        *figure_sections(
            ("learning_curves", "pairs", "borders", "bars", "profiles", "gap", "bits"),
            report.figures,
        ),
        *(section for sections in printed.values() for section in sections),
        *figure_sections(("cost",), report.figures),
        *figure_sections(("tasks",), report.figures, *breakdown),
        *details,
        *figure_sections(("training",), report.figures),
        PageSection("Commands", code="\n".join(options.commands)),
        PageSection("Configuration", code=options.config_text.strip()),
        PageSection("What the columns mean", terms=described(report.tables)),
    ]
    environment = Environment(
        loader=PackageLoader("reports", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(
        heading=f"{title} on {first.metrics['family']}, {first.part} tasks",
        facts=_facts(methods),
        sections=[s for s in sections if s.image or s.table or s.code or s.terms],
    )
    (out_dir / "report.html").write_text(page, encoding="utf-8")


def _facts(methods: Sequence[MethodScores]) -> dict[str, str]:
    """Where the numbers come from: runs, seeds, versions, the days they were made."""
    results = [result for method in methods for result in method.results]
    metrics = [result.metrics for result in results]
    seeds = training_seeds(results)

    def distinct(key: str) -> str:
        values = dict.fromkeys(str(entry[key]) for entry in metrics if entry.get(key) is not None)
        if len(values) > MAX_NAMED:
            return f"{len(values)} different"
        return ", ".join(values) or MISSING

    days = sorted(str(entry["created"])[:10] for entry in metrics if entry.get("created"))
    return {
        "Runs": _runs(list(dict.fromkeys(str(result.run_dir) for result in results))),
        "Training seeds": ", ".join(map(str, seeds)) or MISSING,
        "Split": str(metrics[0]["split_identity"])[:16],
        "Git commit": distinct("git_sha"),
        "Configuration": distinct("config_hash"),
        "Evaluated": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else MISSING,
    }


def _runs(names: Sequence[str]) -> str:
    if len(names) <= MAX_NAMED:
        return ", ".join(names)
    return f"{len(names)} under {os.path.commonpath(names)}"


def table_section(table: PrintedTable) -> PageSection:
    """A table and the sentences under it."""
    groups = [
        [("ours" if row.is_ours else "", cells) for row, cells in group] for group in table.groups
    ]
    return PageSection(table.heading, table=HtmlTable(table.titles, groups), notes=table.notes)


def figure_sections(
    names: Sequence[str],
    figures: Mapping[str, Sequence[Path]],
    text: str = "",
    table: HtmlTable | None = None,
    captions: Mapping[str, tuple[str, str]] = CAPTIONS,
) -> list[PageSection]:
    """The sections of the figures that there are: PNG, caption, and what is to stand under it."""
    found = []
    for name in names:
        path = next((path for path in figures.get(name, ()) if path.suffix == ".png"), None)
        if path is not None:
            content = path.read_bytes()
            width = int.from_bytes(content[16:20], "big")  # of the header chunk, which comes first
            data = base64.b64encode(content).decode("ascii")
            title, caption = captions[name]
            image = Image(data, round(PIXELS_PER_DOT * width), caption)
            found.append(PageSection(title, image, text, table))
    return found


def _task_breakdown(
    methods: Sequence[MethodScores], solved_threshold: float
) -> tuple[str, HtmlTable | None]:
    """Every task with its returns, hardest first, and the failed ones by name."""
    shown = shown_per_task(methods)
    if not shown:
        return "", None
    first = shown[0]
    means = np.stack([method.task_scores.mean(axis=0) for method in shown], axis=1)  # (T, M)
    judged = is_normalized(methods)
    rows, failed = [], []
    for task in np.argsort(means[:, 0], kind="stable"):  # nan last
        name = first.results[0].tasks[task].name
        is_failed = bool(judged and means[task, 0] < solved_threshold)
        if is_failed:
            failed.append(name)
        scores = [MISSING if np.isnan(mean) else number(mean, 3) for mean in means[task]]
        known = np.isfinite(means[task, 0])
        verdict = ("failed" if is_failed else "solved") if judged and known else MISSING
        rows.append(("failed" if is_failed else "", [name, *scores, verdict]))
    text = ""
    if judged:
        named = f": {', '.join(failed)}" if failed else ""
        text = (
            f"{first.title.capitalize()} fails {len(failed)} of "
            f"{int(np.isfinite(means[:, 0]).sum())} tasks (normalised final return, averaged over "
            f"training and evaluation seeds, below {solved_threshold:g}){named}."
        )
    header = ["Task", *(method.title for method in shown), f"{first.title} verdict"]
    return text, HtmlTable(header, [rows])
