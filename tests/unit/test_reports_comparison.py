"""Tables and figures as files: what they show, what they never invent, what they leave behind."""

import csv
import io

import matplotlib as mpl
import numpy as np
import pytest
from reports_data import METHODS, ROLLOUTS, task_entries, write_method, write_run
from rich.console import Console

from reports import (
    border_figure,
    column_list,
    columns,
    cost,
    curves,
    differences,
    figures,
    gap,
    paper,
    profiles,
    style,
    tables,
)
from reports.comparison import ReportOptions, write_comparison
from reports.notes import difference_notes, notes
from reports.records import MethodRecord
from reports.result_files import ResultsError
from reports.results import load_results
from reports.rows import Row, method_rows
from reports.scores import stack_methods
from reports.source_curves import load_source_curves
from reports.statistics import Interval

LEARNERS = [method for method in METHODS if method not in ROLLOUTS]


def row(label, title=None, section=2, **values):
    every = {column.name: None for column in columns.COLUMNS} | values
    return Row(label, title or label, section, label == "student", 40, every)


ROW = row(
    "mean_pooling_encoded",
    "mean pooling, encoded",
    n_latents=8,
    seeds=5,
    mean=0.71234,
    interval=Interval(-0.021, 0.8049, "t"),
    interval_low=-0.021,
    interval_high=0.8049,
    iqm=0.81,
    tasks_solved=1.0,
    worst_task=-0.0004,
    worst_task_name="goal=(0,0)",
    gap_recovered=0.5,
    context_tokens=88,
    context_bytes=180_224,
    border_loss=0.05,
    compression_ratio=10.0,
    ms_per_action=1.2345,
    **{"episodes_to_0.9": np.inf},
)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def printed(rows, lines=()):
    console = Console(file=io.StringIO(), width=80, color_system=None)
    tables.print_table(rows, lines, console)
    return console.file.getvalue()


def cell(name, found=ROW, **kwargs):
    return tables.cell(found, columns.BY_NAME[name], **kwargs)


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run", seeds=(0, 1), n_evaluation_seeds=2, n_episodes=20)


@pytest.fixture
def methods(run_dir):
    return stack_methods(load_results([run_dir]))


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    """Scores of every method by name, of one seed and few episodes."""
    run = write_run(
        tmp_path_factory.mktemp("stacked"), seeds=(0,), n_evaluation_seeds=2, n_episodes=8
    )
    return {method.label: method for method in stack_methods(load_results([run]))}


# --- tables ---


def test_cells():
    assert cell("mean") == "0.712"
    assert cell("interval") == "[−0.02, 0.80]"
    assert cell("worst_task") == "0.00"  # no -0.00
    assert cell("context_bytes") == "180,224"
    assert cell("context_bytes", short=True) == "180k"
    assert cell("n_latents") == "8"
    assert cell("episodes_to_0.9") == ">40"  # never
    assert cell("train_seconds") == "–"
    assert cell("interval", row("x", interval=Interval(np.nan, np.nan, ""))) == "–"


def test_headline_tables_show_mean_iqm_solved_and_worst_task_together(tmp_path):
    paper.write_markdown(paper.printed_tables([ROW], [], [], []), tmp_path / "table.md")
    lines = (tmp_path / "table.md").read_text().splitlines()
    header = lines[lines.index("## Results") + 2]
    headline = [name.strip() for name in header.split("|")]
    places = [headline.index(t) for t in ("Mean", "95 % interval", "IQM", "Solved", "Worst task")]
    assert places == list(range(places[0], places[0] + 5))


def test_terminal_table_fits_80_columns_and_keeps_names_whole():
    text = printed([row("student", seeds=5), ROW], ["A note. " * 30])
    assert max(map(len, text.splitlines())) <= 80
    for value in ("mean pooling, encoded", "0.712", "[−0.02, 0.80]", "0.810", "1.00", ">40", "–"):
        assert value in text


def test_columns_of_which_nothing_is_known_are_left_out():
    shown = [column.name for column in tables.table_columns([row("student", mean=1.0)], "headline")]
    assert shown == ["mean"]


def test_csv_holds_every_column_in_full_and_nothing_invented(tmp_path):
    tables.write_rows([ROW], columns.COLUMNS, tmp_path / "table.csv")
    (found,) = read_csv(tmp_path / "table.csv")
    assert list(found) == ["method", *(c.name for c in columns.COLUMNS if c.name != "interval")]
    assert (found["method"], found["mean"]) == ("mean_pooling_encoded", "0.71234")
    assert found["teacher_kl"] == ""
    assert found["episodes_to_0.9"] == ""  # never; a column of its own tells
    assert b"\r" not in (tmp_path / "table.csv").read_bytes()


def test_markdown_rows_have_as_many_cells_as_the_header(tmp_path):
    printed_tables = paper.printed_tables([ROW, row("odd|name")], ["A note."], [], [])
    paper.write_markdown(printed_tables, tmp_path / "table.md")
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [table.heading for table in printed_tables] == [
        "Results",
        "Search and borders",
        "Statistics",
        "Details",
    ]
    for table in printed_tables:
        start = lines.index("| " + " | ".join(table.titles) + " |")
        for line in lines[start : start + 4]:
            assert line.replace("\\|", "").count("|") == len(table.titles) + 1
    assert "A note.  " in lines
    assert any(line.startswith("- **IQM**: interquartile mean") for line in lines)
    assert not any(line.startswith("- **Teacher KL**") for line in lines)  # not shown


def test_latex_is_escaped_and_balanced(tmp_path):
    rows = [row("student"), ROW, row("a&b#c$d{e}f~g^h\\i<j_k")]
    printed_tables = paper.printed_tables(rows, ["95 % of x_1."], [], [])
    paper.write_latex(printed_tables, tmp_path / "table.tex")
    text = (tmp_path / "table.tex").read_text()
    assert r"mean pooling, encoded & 8 & 5 & 0.712 & [$-$0.02, 0.80] & 0.810 & 1.00" in text
    escaped = r"a\&b\#c\$d\{e\}f\textasciitilde{}g\textasciicircum{}h\textbackslash{}i\textless{}j"
    assert escaped + r"\_k" in text
    assert r"95 \% of x\_1." in text
    assert r"\textgreater{}40" in text
    found = text.split(r"\begin{tabular}")[1:]
    assert len(found) == text.count(r"\end{tabular}") == len(printed_tables)
    for drawn, table in zip(found, printed_tables, strict=True):
        body = [line for line in drawn.splitlines() if line.endswith(r"\\")]
        assert {line.replace(r"\&", "").count("&") for line in body} == {len(table.columns)}
    assert text.isascii()


def test_notes_say_what_was_averaged_and_what_the_interval_is(tmp_path):
    write_run(tmp_path / "run", seeds=(0, 1), source=False, n_episodes=20)
    lines = notes(stack_methods(load_results([tmp_path / "run"])))
    assert "8 test tasks of darkroom; mean of the last 10 of 20 in-context" in lines[0]
    assert lines[1].startswith("95 % interval of the mean: t-interval of the training seeds' means")
    assert "no interval" not in lines[1]  # what is rolled out is not trained
    assert lines[2].endswith("random, optimal, posterior sampling, coverage sweep.")
    assert lines[3] == "Actions: sampled at temperature 1."

    lines = notes(stack_methods(load_results([tmp_path / "run"], seeds=[1])))
    assert "One seed: no interval" in lines[1]

    write_method(tmp_path / "run", "extra", 0, n_episodes=20, temperature=0.5)
    lines = notes(stack_methods(load_results([tmp_path / "run"])))
    assert lines[1].endswith("One seed: no interval for extra.")
    assert "not chosen alike" in lines[3]


def test_notes_name_the_bootstrap_from_eight_seeds_on(tmp_path):
    write_run(tmp_path, methods=("student",), seeds=range(8), source=False, n_episodes=5)
    assert (
        "percentile bootstrap of whole training seeds."
        in notes(stack_methods(load_results([tmp_path])))[1]
    )


def test_the_list_of_columns_in_the_docs_is_current():
    page = column_list.PAGE.read_text(encoding="utf-8")
    assert column_list.documented(page) == page, "run python -m reports.column_list"
    for column in (*columns.COLUMNS, *differences.COLUMNS):
        assert column.description in page


# --- figures ---


def test_spread_keeps_order_distance_and_what_needs_no_moving():
    assert style.spread([0.5, 0.0, 1.0], 0.1, 0, 1) == [0.5, 0.0, 1.0]
    generator = np.random.default_rng(0)
    for _ in range(50):
        positions = generator.normal(0.5, 0.4, size=7)
        moved = np.array(style.spread(positions.tolist(), 0.1, 0.0, 1.0))
        order = np.argsort(positions)
        assert (np.diff(moved[order]) > 0.1 - 1e-9).all()
        assert moved.min() > -1e-9
        assert moved.max() < 1 + 1e-9


def test_methods_differ_in_more_than_colour(stacked):
    records = {label: stacked[label].record for label in LEARNERS}
    records |= {"student@a": records["student"], "student@b": records["student"]}
    records |= {name: MethodRecord(name, name, "baseline", 30) for name in ("one", "two")}
    markers = [look.marker for look in style.looks(records).values()]
    assert len(set(markers)) == len(records)


def test_searches_are_dashed_and_grey(stacked):
    searches = {name: stacked[name].record for name in ("posterior_sampling", "coverage")}
    found = style.looks(searches).values()
    for look in found:
        assert look.dashes != "-"
        assert len(set(mpl.colors.to_rgb(look.color))) == 1
    assert len({look.color for look in found}) == 2


def relabelled(method, label):
    return type(method)(label, method.results)


def labels_of(panels):
    return [tuple(method.label for method in panel.methods) for panel in panels]


def test_arrange_shows_every_curve_once_and_the_student_in_all(stacked):
    methods = [stacked[label] for label in LEARNERS]
    methods += [relabelled(stacked["pca"], f"pca@{i}") for i in range(9)]
    methods += [relabelled(stacked["student_zeroed"], f"student_zeroed@{i}") for i in range(5)]
    panels = labels_of(curves.arrange(methods))
    assert all(panel[0] == "student" for panel in panels)
    shown = [label for panel in panels for label in panel if label != "student"]
    assert sorted(shown) == sorted({method.label for method in methods} - {"student"})
    assert max(map(len, panels)) <= curves.MAX_CURVES
    few = [stacked["student"], stacked["pca"]]
    assert labels_of(curves.arrange(few)) == [("student", "pca")]


def test_arrange_puts_the_points_of_a_sweep_after_what_they_share(stacked):
    points = tuple(f"student@m = {m}" for m in range(9))
    drawn = [relabelled(stacked["student"], label) for label in points]
    panels = labels_of(curves.arrange([stacked["teacher"], stacked["none"], *drawn]))
    assert panels == [("teacher", "none"), points[:7], points[7:]]
    panels = labels_of(curves.arrange([*(stacked[label] for label in LEARNERS), *drawn]))
    assert {label for panel in panels for label in panel} == {*LEARNERS, *points}


def test_method_curve_is_the_mean_of_every_episode_in_the_range_of_the_seeds(methods):
    student = methods[0]
    curve = curves.method_curve(student, style.STUDENT_LOOK)
    for episode in (0, 7, 19):
        by_seed = student.episodes[..., episode].mean(axis=(1, 2))
        assert curve.returns[episode] == pytest.approx(by_seed.mean())
        bounds = curve.band.low[episode], curve.band.high[episode]
        assert bounds == pytest.approx((by_seed.min(), by_seed.max()))
    assert curve.band.kind == "range"
    assert curves.band_remark([curve]) == "(bands: range of the training seeds)"
    assert curve.episodes[0] == 1


def test_source_curve_stands_at_the_middle_of_its_regions(run_dir, methods):
    tasks = methods[0].results[0].tasks
    (source,) = load_source_curves([run_dir], tasks, "test")
    curve, final = curves.source_levels(methods[0], source)
    assert (curve.label, final.title) == ("source_ppo", "source PPO, final")
    assert curve.episodes[:2] == pytest.approx([2.5, 6.5])  # episodes 1-4, 5-8
    assert final.returns == pytest.approx(np.full(2, curve.returns[-2:].mean()))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Rows, directory and printed table of a whole comparison."""
    run = write_run(
        tmp_path_factory.mktemp("whole"), seeds=(0, 1), n_evaluation_seeds=2, n_episodes=20
    )
    out = run / "new" / "comparison"
    console = Console(file=io.StringIO(), width=80)
    before = mpl.rcParams.copy()
    rows = write_comparison([run], out, options=ReportOptions(console=console))
    assert dict(mpl.rcParams) == dict(before)
    return rows, out, console.file.getvalue()


def test_figures_of_an_earlier_report_go_when_they_are_drawn_no_more(tmp_path):
    run = write_run(
        tmp_path / "run", methods=("student", "none"), seeds=(0,), n_episodes=5, source=False
    )
    out = tmp_path / "out"
    out.mkdir()
    stale = ("gap.png", "gap_points.csv", "bits_bound.csv", "sweep_m.pdf", "heatmap.csv")
    own = ("notes.csv", "gaps.png", "sweep_m.txt")
    for name in (*stale, *own):
        (out / name).write_text("of before")
    write_comparison([run], out)
    found = {path.name for path in out.iterdir()}
    assert not found & set(stale)
    assert set(own) | {"bars.png", "report.html"} <= found


def test_write_comparison_writes_everything_and_returns_the_rows(report):
    rows, out, printed = report
    assert [row.label for row in rows] == list(METHODS)
    assert "student" in printed
    names = {path.name for path in out.iterdir()}
    plots = {
        f"{name}.{suffix}"
        for name in ("learning_curves", "borders", "bars", "profiles", "gap", "tasks")
        for suffix in ("pdf", "png", "csv")
    }
    assert names == plots | {"table.csv", "table.md", "table.tex", "differences.csv"} | {
        "bars_points.csv",
        "borders_positions.csv",
        "by_seed.csv",
        "checksums.json",
        "gap_points.csv",
        "report.html",
    }
    assert (out / "bars.pdf").read_bytes().startswith(b"%PDF")

    assert [row["method"] for row in read_csv(out / "table.csv")] == list(METHODS)
    assert len(read_csv(out / "bars_points.csv")) == 8 * (10 * 2 + 4)
    plotted = {row["curve"] for row in read_csv(out / "learning_curves.csv")}
    assert plotted == set(METHODS) | {"source_ppo", "source_ppo_final"}
    assert list(read_csv(out / "tasks.csv")[0]) == ["task", "student", "teacher", "none"]


def test_every_seed_s_values_stand_in_a_file_and_make_up_the_row(report):
    rows, out, _ = report
    student = next(row for row in rows if row.label == "student")
    seeds = [line for line in read_csv(out / "by_seed.csv") if line["method"] == "student"]
    assert [line["training_seed"] for line in seeds] == ["0", "1"]
    for column in ("mean", "tasks_solved", "border_loss"):
        assert np.mean([float(line[column]) for line in seeds]) == pytest.approx(student[column])
    random = next(line for line in read_csv(out / "by_seed.csv") if line["method"] == "random")
    assert (random["gap_recovered"], random["episodes_to_0.9"]) == ("", "")


def test_border_figure_marks_the_episodes_that_follow_a_border(methods, tmp_path):
    assert border_figure.draw_borders(methods, tmp_path)
    lines = read_csv(tmp_path / "borders.csv")
    assert {line["method"] for line in lines} == set(LEARNERS)
    student = [line for line in lines if line["method"] == "student"]
    marked = [int(line["episode"]) for line in student if float(line["share_after_border"]) > 0.5]
    assert marked == [5, 9, 13, 17]  # four episodes to a region
    positions = read_csv(tmp_path / "borders_positions.csv")
    places = [line["episode_of_region"] for line in positions if line["method"] == "none"]
    assert places == ["1", "2", "3", "4"] * 2


def test_border_figure_needs_a_border(tmp_path):
    write_method(tmp_path, "student", 0, n_episodes=4)
    assert border_figure.draw_borders(stack_methods(load_results([tmp_path])), tmp_path) == []
    assert not (tmp_path / "borders.csv").exists()


def test_profile_is_the_share_that_reaches_each_return(methods, tmp_path):
    profiles.draw_profiles(methods, tmp_path)
    rows = read_csv(tmp_path / "profiles.csv")
    assert {row["method"] for row in rows} == set(LEARNERS)
    student = [row for row in rows if row["method"] == "student"]
    assert [float(row["threshold"]) for row in student] == [i / 100 for i in range(101)]
    scores = methods[0].scores
    for row in student:
        reached = [score >= float(row["threshold"]) for seed in scores for score in seed]
        assert float(row["share"]) == pytest.approx(sum(reached) / len(reached))
        assert float(row["band_low"]) <= float(row["share"]) <= float(row["band_high"])
    solved = (scores >= 0.8).mean()
    assert float(student[80]["share"]) == solved


def test_profile_needs_normalised_returns_and_a_method(tmp_path):
    entries = [entry | {"optimal_return": None} for entry in task_entries(4)]
    write_method(tmp_path / "a", "student", 0, tasks=entries, n_episodes=6)
    write_method(tmp_path / "b", "random", 0, n_episodes=6)
    for name in ("a", "b"):
        found = stack_methods(load_results([tmp_path / name]))
        assert profiles.draw_profiles(found, tmp_path) == []
    assert not (tmp_path / "profiles.csv").exists()


def test_gap_figure_holds_methods_and_controls_between_its_lines(methods, tmp_path):
    assert gap.draw_gap(methods, tmp_path)
    means = {method.label: method.scores.mean() for method in methods}
    rows = read_csv(tmp_path / "gap.csv")
    shown = [label for label in LEARNERS if label not in ("teacher", "none")]
    assert [row["method"] for row in rows] == shown
    for row in rows:
        share = (means[row["method"]] - means["none"]) / (means["teacher"] - means["none"])
        assert float(row["gap_recovered"]) == pytest.approx(share)
    points = read_csv(tmp_path / "gap_points.csv")
    assert [row["training_seed"] for row in points if row["method"] == "student"] == ["0", "1"]


@pytest.mark.parametrize("lacking", ["teacher", "none"])
def test_gap_figure_needs_both_of_its_lines(methods, tmp_path, lacking):
    rest = [method for method in methods if method.label != lacking]
    assert gap.draw_gap(rest, tmp_path) == []
    assert not (tmp_path / "gap.csv").exists()


COST = """method,history_regions,context_bytes,ms_per_action,ms_per_region,n_streams
teacher,50,2048,1.5,3,16
student,1,1024,1,2,16
student,50,1024,1,2,16
teacher,1,2048,1.5,3,16
"""


def test_cost_is_drawn_where_it_was_measured(stacked, tmp_path):
    assert cost.load_cost([tmp_path]) == []
    path = tmp_path / "run" / "cost" / "cost.csv"
    path.parent.mkdir(parents=True)
    path.write_text(COST)
    rows = cost.load_cost([tmp_path, tmp_path / "run"])
    records = {name: stacked[name].record for name in ("student", "teacher")}
    assert cost.draw_cost(rows, records, tmp_path)
    drawn = read_csv(tmp_path / "cost.csv")
    order = [(row["method"], row["history_regions"]) for row in drawn]
    assert order == [("student", "1"), ("student", "50"), ("teacher", "1"), ("teacher", "50")]
    assert drawn[2] == dict(zip(cost.COLUMNS, ("teacher", "1", "2048.0", "1.5", "16"), strict=True))
    path.write_text(COST.replace("n_streams", "streams"))
    with pytest.raises(ResultsError, match=r"cost.csv cannot be read .*run pipelines.cost again"):
        cost.load_cost([tmp_path / "run"])


def test_differences_name_the_reference_and_say_where_there_is_no_interval(tmp_path):
    run = write_run(tmp_path / "run", methods=("student", "teacher"), n_episodes=10, source=False)
    write_method(run, "pca", 1, n_episodes=10)
    write_comparison([run], tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "Every trained method minus the student, paired by training seed and task" in text
    lines = {line["method"]: line for line in read_csv(tmp_path / "differences.csv")}
    assert list(lines) == ["teacher", "pca"]
    difference = float(lines["teacher"]["mean_difference"])
    assert f"| teacher | 3 | {difference:.3f} |" in text.replace("−", "-")
    assert (lines["teacher"]["interval_kind"], lines["pca"]["interval_kind"]) == ("t", "")
    assert "no interval: PCA." in text
    assert "minus the student" in (tmp_path / "table.tex").read_text()

    methods = stack_methods(load_results([run], seeds=[1]))
    alone = differences.difference_rows(methods, methods[0])
    assert "One common training seed: no interval" in difference_notes(alone, methods[0])[1]
    assert difference_notes([], methods[0]) == []


def test_equal_results_give_equal_files(tmp_path):
    run = write_run(tmp_path / "run", methods=("student", "pca"), n_tasks=3, n_episodes=10)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        methods = stack_methods(load_results([run]))
        curves.draw_learning_curves(methods, tmp_path / name)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_many_tasks_become_a_map(tmp_path):
    run = write_run(
        tmp_path, methods=("student", "none"), seeds=(0,), n_tasks=130, n_episodes=3, source=False
    )
    paths = figures.draw_tasks(stack_methods(load_results([run])), tmp_path)
    assert [path.suffix for path in paths] == [".pdf", ".png"]
    assert len(read_csv(tmp_path / "tasks.csv")) == 130


def test_results_that_cannot_be_normalised_are_still_drawn(tmp_path):
    entries = [entry | {"optimal_return": None} for entry in task_entries(4)]
    for method in ("student", "random"):
        write_method(tmp_path, method, 0, tasks=entries, n_episodes=6)
    methods = stack_methods(load_results([tmp_path]))
    assert figures.draw_bars(methods, tmp_path)
    rows = method_rows(methods)
    lines = notes(methods)
    assert "nothing is normalised" in lines[0]
    assert f"{rows[0]['raw_return']:.2f}" in printed(rows, lines)


def test_nothing_is_written_without_results(tmp_path):
    with pytest.raises(ResultsError):
        write_comparison([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
