"""The figure of bits: its points are those of result files, the bound stands where it holds."""

import csv
import json

import numpy as np
import pytest
from matplotlib.axes import Axes
from reports_data import task_entries, write_method

from reports import bits_figure
from reports.bits import (
    begins_at_border,
    context_bits,
    find_bound,
    method_series,
    other_evaluations,
)
from reports.result_files import ResultsError
from reports.results import load_results
from reports.scores import stack_methods
from tasks.bandits import KeyedBanditFamily
from tasks.return_bounds import return_bound

HORIZON = 16
BOUND = return_bound(KeyedBanditFamily(16, 4, n_tasks=5)).entry()
SHAPE = (3, 2, 20)


def write(run_dir, method, seed, level, bits=None, *, sees="region", **changed):
    entries = task_entries(SHAPE[0])
    low, high = (
        np.array([entry[f"{kind}_return"] for entry in entries])[:, None, None]
        for kind in ("random", "optimal")
    )
    returns = np.broadcast_to(low + level * (high - low), SHAPE).astype(np.float32)
    starts = np.broadcast_to(np.arange(SHAPE[2]) * HORIZON, SHAPE)
    told = {"task_bits": 32.0, "memory_regions": 2, "latent_bits": bits, "sees": sees}
    given = {"returns": returns, "starts": starts, "tasks": entries} | told | changed
    return write_method(run_dir, method, seed, **given)


def write_runs(root, sees="region", **changed):
    """Students of four rates in runs of their own; baseline, teacher and bound in the first."""
    runs = [root / f"bits_{bits}" for bits in (8, 2, 4, 16)]
    for run, bits, level in zip(runs, (8, 2, 4, 16), (0.6, 0.2, 0.4, 0.9), strict=True):
        for seed in (0, 1):
            write(run, "student", seed, level + 0.02 * seed, bits, sees=sees, **changed)
    write(runs[0], "mean_pooling", 0, 0.3, 16384, sees=sees)
    write(runs[0], "teacher", 0, 0.95)
    write(runs[0], "none", 0, 0.1, 0.0, sees=sees)
    write(runs[0], "student_zeroed", 0, 0.1, 8, sees=sees)
    write(runs[0], "optimal", 0, 1.0, bound=BOUND)
    return runs


def compared(runs):
    return stack_methods(load_results(runs))


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def curves(monkeypatch):
    """Panels that show a bound, by the name of their axis."""
    found = {}
    draw = Axes.plot

    def plot(self, *args, **kwargs):
        if kwargs.get("label") == "bound":
            found[self] = args
        return draw(self, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", plot)
    return lambda: {axes.get_ylabel().replace("\n", " "): xy for axes, xy in found.items()}


def test_points_are_those_of_the_files_at_the_bits_an_action_can_read(tmp_path):
    methods = compared(write_runs(tmp_path, recall_accuracy=0.5, recall_return=0.25))
    bits_figure.draw_bits(method_series(methods), methods, tmp_path)
    rows = read_csv(tmp_path / "bits.csv")
    students = [row for row in rows if row["series"] == "student"]
    assert [float(row["context_bits"]) for row in students] == [4, 8, 16, 32]  # of two regions
    assert [float(row["latent_bits"]) for row in students] == [2, 4, 8, 16]
    means = [float(row["mean"]) for row in students]
    assert means == pytest.approx([0.21, 0.41, 0.61, 0.91], abs=1e-4)
    assert {row["method"] for row in rows} == {"mean_pooling"} | {
        f"student@bits_{n}" for n in (2, 4, 8, 16)
    }  # neither what reads nothing nor a control
    assert {row["recall_accuracy"] for row in students} == {"0.5"}
    points = read_csv(tmp_path / "bits_points.csv")
    seeds = {row["training_seed"]: row["return"] for row in points if row["context_bits"] == "8.0"}
    assert {k: float(v) for k, v in seeds.items()} == pytest.approx({"0": 0.4, "1": 0.42}, abs=1e-4)
    bound = read_csv(tmp_path / "bits_bound.csv")
    assert [float(row["accuracy"]) for row in bound] == BOUND["accuracy"]


def test_the_drawn_bound_is_the_published_one(tmp_path, curves):
    methods = compared(write_runs(tmp_path, recall_accuracy=0.5))
    bits_figure.draw_bits(method_series(methods), methods, tmp_path)
    bits, heights = curves()["accuracy of actions, context frozen"]
    found = np.interp([4, 8, 16, 24, 60], bits, heights)
    assert found == pytest.approx([0.526, 0.646, 0.811, 0.926, 1], abs=3e-3)


def test_told_bits_stand_beside_the_bits_of_the_latents_in_bits(tmp_path, curves, monkeypatch):
    heights = []
    unit = bits_figure.show_unit
    monkeypatch.setattr(
        bits_figure, "show_unit", lambda panel: heights.append(panel.get_ylim()) or unit(panel)
    )
    runs = write_runs(tmp_path, "step", recall_bits=7.5)
    path = runs[0] / "seed_0" / "evaluate" / "optimal" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["bound"]["told"] = [min(bits, 32.0) for bits in metrics["bound"]["bits"]]
    path.write_text(json.dumps(metrics))
    methods = compared(runs)
    bits_figure.draw_bits(method_series(methods), methods, tmp_path)
    bits, told = curves()["bits of the task told, context frozen"]
    assert np.interp([8, 16, 60], bits, told) == pytest.approx([8, 16, 32], rel=0.05)
    assert len(heights) == 1  # the returns alone lie between 0 and 1
    assert {row["recall_bits"] for row in read_csv(tmp_path / "bits.csv")} >= {"7.5"}


FROZEN, LAST, FIRST = (
    "accuracy of actions, context frozen",
    "normalised return, last episodes",
    "normalised return, first episode of a region",
)


@pytest.mark.parametrize(
    ("sees", "changed", "expected"),
    [
        ("region", {}, {FIRST}),
        ("region", {"recall_accuracy": 0.5}, {FIRST, FROZEN}),
        ("step", {"recall_accuracy": 0.5}, {LAST, FROZEN}),
        # Regions of 72 steps: some of a region precede the first episode to begin in it.
        ("region", {"region_len": 72}, set()),
    ],
)
def test_a_bound_stands_only_where_nothing_else_tells_the_task(
    tmp_path, curves, sees, changed, expected
):
    methods = compared(write_runs(tmp_path, sees, **changed))
    bits_figure.draw_bits(method_series(methods), methods, tmp_path)
    assert set(curves()) == expected


def test_a_bound_for_states_alone_is_not_one_for_who_sees_its_own_steps(tmp_path, curves):
    runs = write_runs(tmp_path, recall_return=0.5)
    path = runs[0] / "seed_0" / "evaluate" / "optimal" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["bound"] |= {"accuracy": None, "own_episode": False}
    path.write_text(json.dumps(metrics))
    methods = compared(runs)
    bits_figure.draw_bits(method_series(methods), methods, tmp_path)
    assert not curves()
    assert "accuracy" not in read_csv(tmp_path / "bits_bound.csv")[0]


def test_one_decoder_that_sees_more_takes_the_bound_away(tmp_path, curves):
    runs = write_runs(tmp_path, "step")
    write(tmp_path / "wider", "student", 0, 0.99, 6, sees="region")
    methods = compared([*runs, tmp_path / "wider"])
    bits_figure.draw_bits(method_series(methods), methods, tmp_path)
    assert LAST not in curves()


def test_models_cut_down_at_test_are_a_line_of_their_own(tmp_path):
    runs = write_runs(tmp_path)
    for name, bits, more in (
        ("int8", 4, {}),
        ("again", 8, {}),  # at the bits of the comparison
        ("validation", 4, {"part": "validation"}),
        ("argmax", 4, {"temperature": 0.0}),
    ):
        written = write(tmp_path / name, "student", 1, 0.5, bits, **more)
        folder = runs[0] / "seed_1" / f"evaluate_{name}"
        folder.mkdir()
        written.rename(folder / "student")
    damaged = runs[0] / "seed_1" / "evaluate_damaged" / "student"
    damaged.mkdir(parents=True)
    (damaged / "metrics.json").write_text("{")
    methods = compared(runs)
    others = other_evaluations(methods, runs, "evaluate")
    assert [other.label for other in others] == ["student@bits_8 (int8)"]
    lines = {line.title: line.methods for line in method_series(methods, others)}
    assert list(lines) == ["student", "mean pooling, raw", "student, cut down at test"]
    assert [context_bits(m) for m in lines["student, cut down at test"]] == [8]


def test_nothing_is_drawn_of_equal_bits_without_a_bound(tmp_path):
    write(tmp_path, "student", 0, 0.5, 8)
    methods = compared([tmp_path])
    assert bits_figure.draw_bits(method_series(methods), methods, tmp_path) == []
    assert not list(tmp_path.glob("bits*"))
    assert find_bound(methods) is None


def test_a_damaged_bound_is_told(tmp_path):
    write(tmp_path, "optimal", 0, 1.0, bound=BOUND | {"return": [0.5]})
    with pytest.raises(ResultsError, match=r"bound in metrics.json of optimal .* damaged"):
        find_bound(compared([tmp_path]))


def test_whether_a_region_begins_with_its_first_episode_is_read_from_the_steps(tmp_path):
    write(tmp_path / "even", "student", 0, 0.5, 8)
    write(tmp_path / "odd", "student", 0, 0.5, 8, region_len=72)
    even, odd = (compared([tmp_path / name])[0] for name in ("even", "odd"))
    assert begins_at_border(even)
    assert not begins_at_border(odd)
