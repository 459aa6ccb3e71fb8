"""Tables and figures as files: what they show, what they never invent, what they leave behind."""

import csv
import io
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from reports.aggregate import (
    MethodRow,
    difference_rows,
    method_rows,
    reference_label,
    stack_methods,
)
from reports_data import METHODS, REGION_LEN, task_entries, write_method, write_run
from rich.console import Console

from reports import cost, curves, figures, gap, profiles, style, tables
from reports.comparison import write_comparison
from reports.results import ResultsError, load_results, load_source_curves
from reports.statistics import Bootstrap

QUICK = Bootstrap(n_resamples=200)
ROW = MethodRow(
    method="mean_pooling_encoded",
    n_latents=8,
    seeds=5,
    normalized_return=0.71234,
    ci_low=-0.021,
    ci_high=0.8049,
    gap_recovered=-0.0004,
    tasks_solved=1.0,
    context_tokens=88,
    compression_ratio=10.0,
    context_bytes=180_224,
    ms_per_action=1.2345,
)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def printed(rows, lines=(), width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    tables.print_table(rows, lines, console)
    return console.file.getvalue()


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run", seeds=(0, 1), n_evaluation_seeds=2, n_episodes=20)


@pytest.fixture
def methods(run_dir):
    return stack_methods(load_results([run_dir]))


# --- tables ---


def test_cells():
    assert tables.cell(ROW, "normalized_return") == "0.712"
    assert tables.cell(ROW, "interval") == "[−0.02, 0.80]"
    assert tables.cell(ROW, "gap_recovered") == "0.000"  # no -0.000
    assert tables.cell(ROW, "context_bytes") == "180,224"
    assert tables.cell(ROW, "n_latents") == "8"
    assert tables.cell(ROW, "train_seconds") == "–"
    assert tables.cell(MethodRow("student", ci_low=None), "interval") == "–"


def test_terminal_table_fits_80_columns_and_keeps_names_whole():
    text = printed([MethodRow("student", seeds=5), ROW], ["A note. " * 30])
    assert max(map(len, text.splitlines())) <= 80
    for value in ("mean_pooling_encoded", "0.712", "[−0.02, 0.80]", "1.00", "180k", "1.23", "–"):
        assert value in text


def test_csv_holds_every_column_in_full_and_nothing_invented(tmp_path):
    tables.write_tables([ROW], [], tmp_path)
    (row,) = read_csv(tmp_path / "table.csv")
    assert list(row) == list(vars(ROW))
    assert row["normalized_return"] == "0.71234"
    assert row["teacher_kl"] == ""
    assert b"\r" not in (tmp_path / "table.csv").read_bytes()


def test_markdown_rows_have_as_many_cells_as_the_header(tmp_path):
    tables.write_tables([ROW, MethodRow("odd|name")], ["A note."], tmp_path)
    text = (tmp_path / "table.md").read_text()
    for block in (tables.RESULT_COLUMNS, tables.STATISTIC_COLUMNS, tables.DETAIL_COLUMNS):
        header = "| " + " | ".join(block.values()) + " |"
        start = text.splitlines().index(header)
        for line in text.splitlines()[start : start + 4]:
            assert line.replace("\\|", "").count("|") == len(block) + 1
    assert "A note." in text


def test_latex_is_escaped_and_balanced(tmp_path):
    rows = [MethodRow("student"), ROW, MethodRow("a&b#c$d{e}f~g^h\\i<j")]
    tables.write_tables(rows, ["95 % of x_1."], tmp_path)
    text = (tmp_path / "table.tex").read_text()
    assert r"mean\_pooling\_encoded & 8 & 5 & 0.712 & [$-$0.02, 0.80]" in text
    escaped = r"a\&b\#c\$d\{e\}f\textasciitilde{}g\textasciicircum{}h\textbackslash{}i\textless{}j"
    assert escaped in text
    assert r"95 \% of x\_1." in text
    blocks = (tables.RESULT_COLUMNS, tables.STATISTIC_COLUMNS, tables.DETAIL_COLUMNS)
    found = text.split(r"\begin{tabular}")[1:]
    assert len(found) == text.count(r"\end{tabular}") == len(blocks)
    for table, columns in zip(found, blocks, strict=True):
        body = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert {line.replace(r"\&", "").count("&") for line in body} == {len(columns) - 1}
    assert text.isascii()


def test_notes_say_what_was_averaged_and_when_there_is_no_interval(tmp_path):
    write_run(tmp_path / "run", seeds=(0, 1), source=False, n_episodes=20)
    results = load_results([tmp_path / "run"])
    lines = tables.notes(results, method_rows(results))
    assert "8 test tasks of darkroom; mean of the last 10 of 20 in-context" in lines[0]
    assert "95 % percentile bootstrap" in lines[1]
    assert "no interval" not in lines[1]  # random and optimal are not trained
    assert lines[2] == "Actions: sampled at temperature 1."

    results = load_results([tmp_path / "run"], seeds=[1])
    assert "One seed: no interval" in tables.notes(results, method_rows(results))[1]

    write_method(tmp_path / "run", "extra", 0, n_episodes=20, temperature=0.5)
    results = load_results([tmp_path / "run"])
    lines = tables.notes(results, method_rows(results))
    assert lines[1].endswith("One seed: no interval for extra.")
    assert "not chosen alike" in lines[2]


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


def test_methods_differ_in_more_than_colour():
    labels = [*METHODS, "student@a", "student@b", "other"]
    drawn = [label for label in labels if label not in curves.REFERENCES]
    markers = [look.marker for look in style.looks(drawn).values()]
    assert len(set(markers)) == len(drawn)


def test_arrange_shows_every_curve_once_and_the_student_in_all():
    labels = [label for label in METHODS if label not in curves.REFERENCES]
    labels += [f"other{i}" for i in range(9)]
    panels = curves.arrange(labels)
    assert all(panel.labels[0] == "student" for panel in panels)
    shown = [label for panel in panels for label in panel.labels if label != "student"]
    assert sorted(shown) == sorted(set(labels) - {"student"})
    assert max(len(panel.labels) for panel in panels) <= curves.MAX_CURVES
    assert [panel.labels for panel in curves.arrange(["student", "pca"])] == [("student", "pca")]


def test_arrange_puts_the_points_of_a_sweep_after_what_they_share():
    points = tuple(f"student@m = {m}" for m in range(9))
    panels = curves.arrange(["teacher", "none", *points])
    assert [panel.labels for panel in panels] == [("teacher", "none"), points[:7], points[7:]]
    many = [label for label in METHODS if label not in curves.REFERENCES]
    shown = [label for panel in curves.arrange([*many, *points]) for label in panel.labels]
    assert set(shown) == {*many, *points}


def test_method_curve_is_the_iqm_of_every_episode(methods):
    student = methods[0]
    curve = curves.method_curve(student, QUICK)
    for episode in (0, 7, 19):
        cells = np.sort(student.normalized[:, :, :, episode].mean(axis=2).ravel())
        assert curve.returns[episode] == pytest.approx(cells[4:12].mean())
        assert curve.low[episode] <= curve.returns[episode] <= curve.high[episode]
    assert curve.episodes[0] == 1


def test_source_curve_stands_at_the_middle_of_its_regions(run_dir, methods):
    tasks = methods[0].results[0].tasks
    source = load_source_curves([run_dir], tasks, "test")
    curve, final = curves.source_levels(methods[0], source, REGION_LEN)
    assert curve.episodes[:2] == pytest.approx([2.5, 6.5])  # episodes 1-4, 5-8
    assert final.returns == pytest.approx(np.full(2, curve.returns[-2:].mean()))
    (alone,) = curves.source_levels(methods[0], source, None)
    assert alone.label == "source_ppo_final"
    assert curves.source_levels(methods[0], None, REGION_LEN) == []


def test_write_comparison_writes_everything_and_returns_the_rows(run_dir, tmp_path):
    out = tmp_path / "new" / "comparison"
    before = mpl.rcParams.copy()
    console = Console(file=io.StringIO(), width=80)
    rows = write_comparison([run_dir], out, region_len=REGION_LEN, bootstrap=QUICK, console=console)
    assert [row.method for row in rows] == list(METHODS)
    assert "student" in console.file.getvalue()
    names = {path.name for path in out.iterdir()}
    plots = {
        f"{name}.{suffix}"
        for name in ("learning_curves", "bars", "profiles", "gap", "tasks")
        for suffix in ("pdf", "png", "csv")
    }
    assert names == plots | {"table.csv", "table.md", "table.tex", "differences.csv"} | {
        "bars_points.csv",
        "gap_points.csv",
        "report.html",
    }
    assert (out / "bars.pdf").read_bytes().startswith(b"%PDF")
    assert dict(mpl.rcParams) == dict(before)

    assert [row["method"] for row in read_csv(out / "table.csv")] == list(METHODS)
    assert len(read_csv(out / "bars_points.csv")) == 8 * (10 * 2 + 2)
    plotted = {row["curve"] for row in read_csv(out / "learning_curves.csv")}
    assert plotted == set(METHODS) | {"source_ppo", "source_ppo_final"}
    assert list(read_csv(out / "tasks.csv")[0]) == ["task", "student", "teacher", "none"]


def test_profile_is_the_share_that_reaches_each_return(methods, tmp_path):
    profiles.draw_profiles(methods, tmp_path, bootstrap=QUICK)
    rows = read_csv(tmp_path / "profiles.csv")
    assert {row["method"] for row in rows} == set(METHODS) - {"random", "optimal"}
    student = [row for row in rows if row["method"] == "student"]
    assert [float(row["threshold"]) for row in student] == [i / 100 for i in range(101)]
    scores = methods[0].scores
    for row in student:
        reached = [score >= float(row["threshold"]) for seed in scores for score in seed]
        assert float(row["share"]) == pytest.approx(sum(reached) / len(reached))
        assert float(row["ci_low"]) <= float(row["share"]) <= float(row["ci_high"])
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
    shown = [label for label in METHODS if label not in ("teacher", "none", "random", "optimal")]
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


def test_cost_is_drawn_where_it_was_measured(tmp_path):
    assert cost.load_cost([tmp_path]) == []
    path = tmp_path / "run" / "cost" / "cost.csv"
    path.parent.mkdir(parents=True)
    path.write_text(COST)
    rows = cost.load_cost([tmp_path, tmp_path / "run"])
    order = [(row.method, row.history_regions) for row in rows]
    assert order == [("student", 1), ("student", 50), ("teacher", 1), ("teacher", 50)]
    assert cost.draw_cost(rows, tmp_path)
    drawn = read_csv(tmp_path / "cost.csv")
    assert drawn[2] == dict(zip(cost.COLUMNS, ("teacher", "1", "2048.0", "1.5", "16"), strict=True))
    path.write_text(COST.replace("n_streams", "streams"))
    with pytest.raises(ResultsError, match=r"cost.csv cannot be read .*run pipelines.cost again"):
        cost.load_cost([tmp_path / "run"])


def test_differences_name_the_reference_and_say_where_there_is_no_interval(methods, tmp_path):
    rows = difference_rows(methods, bootstrap=QUICK)
    tables.write_tables([ROW], [], tmp_path, rows)
    text = (tmp_path / "table.md").read_text()
    assert "## Differences" in text
    assert "Every method minus the student, paired by training seed and task" in text
    teacher = next(row for row in rows if row.method == "teacher")
    assert f"| teacher | 2 | {teacher.mean_difference:.3f} |" in text.replace("−", "-")
    assert "no interval: random, optimal." in text  # they have one seed
    alone = [replace(row, seeds=1, ci_low=np.nan, ci_high=np.nan) for row in rows]
    assert "One common training seed: no interval" in " ".join(tables.difference_notes(alone))
    assert tables.cell(alone[0], "interval") == "–"
    assert tables.difference_notes([]) == []
    assert "minus the student" in (tmp_path / "table.tex").read_text()


def test_reference_is_the_student_or_else_the_teacher(methods):
    assert reference_label(methods) == "student"
    assert reference_label(methods[1:]) == "teacher"
    assert reference_label(methods[3:]) == methods[3].label


def test_equal_results_give_equal_files(tmp_path):
    run = write_run(tmp_path / "run", methods=("student", "pca"), n_tasks=3, n_episodes=10)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        methods = stack_methods(load_results([run]))
        curves.draw_learning_curves(methods, tmp_path / name, bootstrap=QUICK)
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
    results = load_results([tmp_path])
    assert figures.draw_bars(stack_methods(results), tmp_path)
    rows = method_rows(results)
    lines = tables.notes(results, rows)
    assert "nothing is normalised" in lines[0]
    assert f"{rows[0].return_mean:.2f}" in printed(rows, lines)


def test_nothing_is_written_without_results(tmp_path):
    with pytest.raises(ResultsError):
        write_comparison([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
