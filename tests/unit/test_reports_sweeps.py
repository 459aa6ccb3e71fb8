"""Sweeps: what is read, how points are named, which numbers tables and figures hold."""

import csv
import io
import json
import math
import shutil

import numpy as np
import pytest
from reports_data import task_entries, write_method, write_run, write_sweep
from rich.console import Console
from scipy import stats
from test_reports_page import LOG, read_page, write_log

from reports import sweep_axes, sweep_figures
from reports.comparison import ReportOptions
from reports.result_files import ResultsError
from reports.rows import method_rows
from reports.scores import POINT_CONTROL_SECTION, stack_methods
from reports.sweep_files import load_sweep, load_sweep_results, place_points, shortest_stem
from reports.sweeps import write_sweep_comparison, write_sweep_csv

LATENTS, GAMMA = "compressor.n_latents", "finetune.loss.gamma"
SMALL = {"n_tasks": 4, "n_evaluation_seeds": 2, "n_episodes": 10}


def by_latents(values):
    m = values[LATENTS]
    return {
        "level": 1 - 0.5 / m,
        "n_latents": m,
        "latent_bits": 2048 * m,
        "task_bits": math.log2(81),
        "reconstruction_accuracy": 1 - 0.25 / m,
    }


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def report(sweep_dir):
    """Rows by label, the directory of the report, and what was printed."""
    out = sweep_dir / "report"
    console = Console(file=io.StringIO(), width=80, color_system=None)
    rows = write_sweep_comparison(sweep_dir, out, ReportOptions(console=console))
    return {row.label: row for row in rows}, out, console.file.getvalue()


def rows_of(sweep_dir):
    results, _ = load_sweep_results(load_sweep(sweep_dir))
    return {row.label: row for row in method_rows(stack_methods(results))}


def drawn(sweep_dir):
    """The directory of the sweep's own figures."""
    sweep = load_sweep(sweep_dir)
    methods = stack_methods(load_sweep_results(sweep)[0])
    placed = place_points(sweep, methods)
    sweep_figures.draw_sweep(list(sweep.axes.values()), placed, methods, sweep_dir)
    return sweep_dir


def write_latents(sweep_dir, **changed):
    return write_sweep(sweep_dir, {LATENTS: [1, 2, 4]}, level=by_latents, **SMALL, **changed)


def write_grid(sweep_dir):
    axes = {GAMMA: [0, 0.1], LATENTS: [1, 2, 4]}
    return write_sweep(sweep_dir, axes, level=by_latents, absent=(4,), **SMALL)


@pytest.fixture
def latents(tmp_path):
    return write_latents(tmp_path / "sweep")


@pytest.fixture
def grid(tmp_path):
    return write_grid(tmp_path / "sweep")


@pytest.fixture(scope="module")
def grid_report(tmp_path_factory):
    """What `report` gives for the grid, for tests that only look at it."""
    sweep = write_grid(tmp_path_factory.mktemp("grid") / "sweep")
    write_log(sweep / "cells" / "gamma=0-n_latents=1", 0, "student/distill", LOG)
    return report(sweep)


# --- reading and naming ---


def test_results_are_named_by_setting_and_stand_after_what_they_share(latents):
    results, missing = load_sweep_results(load_sweep(latents))
    points = [f"student@m = {m}" for m in (1, 2, 4)]
    controls = [f"student_{c}@m = {m}" for c in ("zeroed", "shuffled") for m in (1, 2, 4)]
    labels = list(dict.fromkeys(result.label for result in results))
    assert labels == ["teacher", "none", *points, *controls, "random", "optimal"]
    assert missing == []
    methods = {method.label: method for method in stack_methods(results)}
    sections = [method.section for method in methods.values()]
    assert sections == sorted(sections)
    assert len(set(sections)) == 5
    assert methods["student_zeroed@m = 4"].section == POINT_CONTROL_SECTION
    assert methods["student@m = 4"].title == "m = 4"
    assert methods["student_zeroed@m = 4"].title == "zeroed latents, m = 4"
    rival = type(methods["teacher"])("teacher@darkroom", methods["teacher"].results)
    assert rival.title == "teacher@darkroom"


def test_a_key_is_called_by_as_little_as_tells_it_apart():
    keys = ["finetune.loss.gamma", "distill.loss.gamma", "compressor.n_latents", "seed"]
    stems = [shortest_stem(key, keys) for key in keys]
    assert stems == ["finetune.loss.gamma", "distill.loss.gamma", "n_latents", "seed"]


def test_values_are_shown_as_written():
    shown = [sweep_axes.show(v) for v in (None, True, 8, 0.1, 1e-3, 0.123456789, "vq")]
    assert shown == ["null", "true", "8", "0.1", "0.001", "0.123456789", "vq"]
    axis = sweep_axes.Axis("a.b", "b", "b", (1, True, None, "1"))
    assert [axis.position(value) for value in (True, "1", None, 1, 1.0)] == [1, 3, 2, 0, 0]
    assert not axis.is_ordered


def test_missing_points_and_seeds_are_named(grid):
    shutil.rmtree(grid / "cells" / "gamma=0-n_latents=4" / "seed_1" / "evaluate" / "student")
    unfinished = grid / "cells" / "gamma=0-n_latents=2" / "seed_0" / "evaluate" / "student"
    (unfinished / "metrics.json").unlink()
    sweep = load_sweep(grid)
    results, missing = load_sweep_results(sweep)
    assert missing == [
        "Not evaluated (failed or unfinished): gamma = 0.1, m = 2.",
        "Evaluated without some training seeds: gamma = 0, m = 2 (seed 0); "
        "gamma = 0, m = 4 (seed 1).",
    ]
    placed = place_points(sweep, stack_methods(results))
    assert [len(point.by_seed) for point in placed] == [2, 1, 1, 2, 0, 2]


def test_a_missing_point_is_named_and_leaves_its_row_empty(grid_report):
    rows, out, printed = grid_report
    assert "Not evaluated (failed or unfinished): gamma = 0.1, m = 2." in printed
    assert "Not evaluated" in read_page(out / "report.html")[0]
    assert "student@gamma = 0.1, m = 2" not in rows
    row = next(r for r in read_csv(out / "sweep.csv") if (r[GAMMA], r[LATENTS]) == ("0.1", "2"))
    assert row.pop("seeds") == "0"
    assert set(list(row.values())[2:]) == {""}


def test_nothing_evaluated_is_an_error_and_writes_nothing(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", {LATENTS: [1, 2]}, absent=(0, 1), **SMALL)
    with pytest.raises(ResultsError, match="no point of the sweep made_up"):
        write_sweep_comparison(sweep, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content.update(format_version=2), "format version 2, this code reads 1"),
        (lambda content: content.pop("seeds"), "damaged .*seeds"),
        (lambda content: content["points"][0]["values"].clear(), "damaged .*n_latents"),
        (lambda content: content["points"][0]["values"].update({LATENTS: 7}), "7 is none of"),
    ],
)
def test_a_spoilt_description_is_told(latents, spoil, message):
    content = json.loads((latents / "sweep.json").read_text())
    spoil(content)
    (latents / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(ResultsError, match=message):
        load_sweep(latents)
    (latents / "sweep.json").unlink()
    with pytest.raises(ResultsError, match=r"sweep.json is missing"):
        load_sweep(latents)


def test_other_seeds_are_left_out(latents):
    write_method(latents / "cells" / "n_latents=2", "student", 9, **SMALL)
    write_method(latents / "cells" / "base", "teacher", 9, **SMALL)
    results, missing = load_sweep_results(load_sweep(latents))
    assert {result.training_seed for result in results} == {0, 1}
    assert missing == []


def test_random_and_optimal_are_one_though_every_point_holds_them(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", {LATENTS: [1, 2]}, base=False, **SMALL)
    for m in (1, 2):
        write_run(sweep / "cells" / f"n_latents={m}", methods=("random",), source=False, **SMALL)
    results, _ = load_sweep_results(load_sweep(sweep))
    assert [r.training_seed for r in results if r.method == "random"] == [0]
    assert {r.label for r in results if r.method == "random"} == {"random"}


def test_points_that_are_methods_keep_their_names_and_win_over_the_base(tmp_path):
    methods = ["student", "mean_pooling", "none"]
    sweep = write_sweep(tmp_path / "sweep", {"method": methods}, **SMALL)
    # What else lies in a directory of mean_pooling is not what the point is there for.
    write_method(sweep / "cells" / "method=mean_pooling", "mean_pooling_encoded", 0, **SMALL)
    loaded = load_sweep(sweep)
    results, _ = load_sweep_results(loaded)
    labels = list(dict.fromkeys(result.label for result in results))
    shared = ["teacher", "mean_pooling", "none", "student_zeroed", "student_shuffled"]
    assert labels == ["student", *shared, "random", "optimal"]
    assert {r.run_dir.name for r in results if r.label == "none"} == {"method=none"}
    placed = place_points(loaded, stack_methods(results))
    assert [point.scores.label for point in placed] == methods
    assert [row["method"] for row in read_csv(drawn(sweep) / "sweep_method.csv")] == methods


def test_gap_is_recovered_between_the_shared_methods(latents):
    rows = rows_of(latents)
    floor, ceiling = (rows[name]["mean"] for name in ("none", "teacher"))
    for m in (1, 2, 4):
        expected = (1 - 0.5 / m - floor) / (ceiling - floor)
        assert rows[f"student@m = {m}"]["gap_recovered"] == pytest.approx(expected, abs=1e-4)


def test_a_point_with_a_teacher_of_its_own_is_set_against_it(latents):
    entries = task_entries(4)
    low, high = (
        np.array([entry[f"{kind}_return"] for entry in entries])[:, None, None]
        for kind in ("random", "optimal")
    )
    for seed in (0, 1):
        for method, level in {"teacher": 0.9, "none": 0.1}.items():
            returns = np.broadcast_to(low + level * (high - low), (4, 2, 10)).astype(np.float32)
            write_method(
                latents / "cells" / "n_latents=1", method, seed, returns=returns, tasks=entries
            )
    rows = rows_of(latents)
    assert rows["student@m = 1"]["gap_recovered"] == pytest.approx(0.5, abs=1e-4)
    shared = rows["teacher"]["mean"] - rows["none"]["mean"]
    expected = (0.75 - rows["none"]["mean"]) / shared
    assert rows["student@m = 2"]["gap_recovered"] == pytest.approx(expected, abs=1e-4)


# --- tables ---


def test_sweep_csv_holds_a_row_per_point(latents):
    rows, sweep = rows_of(latents), load_sweep(latents)
    placed = place_points(sweep, stack_methods(load_sweep_results(sweep)[0]))
    write_sweep_csv(sweep, placed, list(rows.values()), latents / "sweep.csv")
    table = read_csv(latents / "sweep.csv")
    assert next(iter(table[0])) == LATENTS
    for m, line in zip((1, 2, 4), table, strict=True):
        # Seeds stand 0.02 apart around the level, and each scores alike on all tasks.
        for column in ("mean", "iqm", "worst_task"):
            assert float(line[column]) == pytest.approx(1 - 0.5 / m, abs=1e-4)
        half = 0.01 * stats.t.ppf(0.975, 1)  # of two seeds, each 0.01 from their mean
        assert float(line["interval_low"]) == pytest.approx(1 - 0.5 / m - half, abs=1e-4)
        assert float(line["interval_high"]) == pytest.approx(1 - 0.5 / m + half, abs=1e-4)
        assert float(line["tasks_solved"]) == (1 - 0.5 / m >= 0.8)
        assert float(line["reconstruction_accuracy"]) == 1 - 0.25 / m
        assert (line[LATENTS], line["latent_bits"], line["seeds"]) == (str(m), str(2048 * m), "2")
        assert rows[f"student@m = {m}"]["latent_bits"] == 2048 * m


def test_terminal_table_fits_80_columns_without_controls_of_points(grid_report):
    _, _, printed = grid_report
    assert max(map(len, printed.splitlines())) <= 80
    assert "gamma = 0.1, m = 4" in printed
    assert "zeroed" not in printed


def test_one_seed_has_no_intervals(tmp_path):
    sweep = write_latents(tmp_path / "sweep", seeds=(3,))
    assert {row["interval_low"] for row in rows_of(sweep).values()} == {None}
    out = drawn(sweep)
    for name in ("sweep_n_latents", "bits"):
        assert {row["interval_low"] for row in read_csv(out / f"{name}.csv")} == {""}


# --- figures ---


def test_figures_hold_the_numbers_of_the_results(grid_report):
    _, out, _ = grid_report
    names = {path.stem for path in out.glob("*.pdf")}
    assert {"sweep_gamma", "sweep_n_latents", "bits", "heatmap", "gap", "profiles"} <= names
    for figure in ("sweep_gamma", "sweep_n_latents"):
        rows = {(row[GAMMA], row[LATENTS]): row for row in read_csv(out / f"{figure}.csv")}
        assert len(rows) == 6
        assert rows["0.1", "2"]["mean"] == ""
        points = read_csv(out / f"{figure}_points.csv")
        assert len(points) == 5 * 2
        for point in points:
            level = 1 - 0.5 / int(point[LATENTS]) + 0.02 * (int(point["training_seed"]) - 0.5)
            assert float(point["mean"]) == pytest.approx(level, abs=1e-4)
    cells = {(r[GAMMA], r[LATENTS]): r["mean"] for r in read_csv(out / "heatmap.csv")}
    assert list(cells) == [(gamma, m) for gamma in ("0", "0.1") for m in ("1", "2", "4")]
    assert cells["0.1", "2"] == ""
    assert float(cells["0", "4"]) == pytest.approx(0.875, abs=1e-4)
    bits = read_csv(out / "bits.csv")
    assert [row["latent_bits"] for row in bits] == [
        "2048.0",
        "4096.0",
        "8192.0",
        "2048.0",
        "8192.0",
    ]


def test_points_that_differ_in_other_settings_are_other_lines(grid):
    sweep = load_sweep(grid)
    axes = list(sweep.axes.values())
    placed = place_points(sweep, stack_methods(load_sweep_results(sweep)[0]))
    lines = sweep_axes.lines(axes[0], axes, placed)
    assert list(lines) == ["m = 1", "m = 2", "m = 4"]
    assert [[point.values[GAMMA] for point in line] for line in lines.values()] == [[0, 0.1]] * 3
    assert np.isnan(lines["m = 2"][1].center)
    assert sweep_figures.bits_axis(axes, placed) is axes[1]


def test_what_older_results_do_not_know_is_left_out(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", {"compressor.kind": ["pca", None]}, **SMALL)
    assert {path.name for path in drawn(sweep).glob("*.png")} == {"sweep_kind.png"}
    row = read_csv(sweep / "sweep_kind.csv")[1]
    assert (row["compressor.kind"], row["reconstruction_accuracy"]) == ("null", "")


def test_returns_that_cannot_be_normalised_are_drawn_as_they_are(tmp_path):
    entries = [entry | {"optimal_return": None} for entry in task_entries(4)]
    sweep = write_sweep(tmp_path / "sweep", {LATENTS: [1, 2]}, tasks=entries, **SMALL)
    assert float(read_csv(drawn(sweep) / "sweep_n_latents.csv")[0]["mean"]) > 1
    assert rows_of(sweep)["student@m = 1"]["mean"] is None


def test_page_shows_the_sweep_first(grid_report):
    _, out, _ = grid_report
    text, images = read_page(out / "report.html")
    order = ["Sweep made_up", "Return against finetune.loss.gamma", "Both settings at once"]
    order += ["Results", "Performance profiles", "Differences", "Training loss"]
    places = [text.index(heading) for heading in order]
    assert places == sorted(places)
    assert "Every trained method minus the teacher, paired" in text
    assert len(images) == len(list(out.glob("*.png")))
    assert {row["method"] for row in read_csv(out / "training.csv")} == {"student@gamma = 0, m = 1"}
    labels = [row["method"] for row in read_csv(out / "table.csv")]
    assert labels.count("student_zeroed@gamma = 0, m = 1") == 1
