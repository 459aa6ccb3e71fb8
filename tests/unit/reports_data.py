"""Result directories as evaluation writes them, filled with plausible made-up returns."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np

HORIZON = 20
REGION_LEN = 80

# method: (final level, episodes until a goal is found, latents, context tokens)
METHODS = {
    "student": (0.84, 9, 8, 88),
    "teacher": (0.88, 8, None, 160),
    "long_context": (0.9, 7, None, 320),
    "truncation": (0.52, 11, 8, 88),
    "mean_pooling": (0.40, 13, 8, 88),
    "mean_pooling_encoded": (0.62, 12, 8, 88),
    "pca": (0.33, 14, 8, 88),
    "none": (0.07, 1, None, 80),
    "student_zeroed": (0.08, 1, 8, 88),
    "student_shuffled": (0.05, 1, 8, 88),
    "random": (0.0, 1, None, None),
    "optimal": (1.0, 0, None, None),
    "posterior_sampling": (0.99, 3, None, None),
    "coverage": (0.99, 2, None, None),
}


# method: (title, group, order)
RECORDS = {
    "student": ("student", "student", 0),
    "teacher": ("teacher", "teacher", 1),
    "long_context": ("long context", "raw_context", 2),
    "truncation": ("truncation", "baseline", 3),
    "mean_pooling": ("mean pooling, raw", "baseline", 4),
    "mean_pooling_encoded": ("mean pooling, encoded", "baseline", 5),
    "pca": ("PCA", "baseline", 6),
    "none": ("no context", "baseline", 7),
    "student_zeroed": ("zeroed latents", "control", 8),
    "student_shuffled": ("shuffled latents", "control", 9),
    "random": ("random", "reference", 10),
    "optimal": ("optimal", "reference", 11),
    "posterior_sampling": ("posterior sampling", "search", 12),
    "coverage": ("coverage sweep", "search", 13),
}
ROLLOUTS = ("random", "optimal", "posterior_sampling", "coverage")


def record_entry(method):
    """What evaluation writes of a method; of one it does not know, a baseline."""
    title, group, order = RECORDS.get(method, (method, "baseline", 20))
    return {"name": method, "title": title, "group": group, "order": order}


def episode_starts(shape, horizon=HORIZON):
    """Starts of episodes that all take as long."""
    return np.broadcast_to(np.arange(shape[-1]) * horizon, shape).astype(np.int64)


def task_entries(n_tasks):
    generator = np.random.default_rng(n_tasks)
    entries = []
    for index in range(n_tasks):
        x, y = generator.integers(0, 9, size=2)
        entries.append(
            {
                "index": 3 * index + 1,
                "name": f"goal=({x},{y})" if n_tasks < 30 else f"goal={index}",
                "params": {"goal": [int(x), int(y)]},
                "random_return": 0.25,
                "optimal_return": float(21 - abs(x - 4) - abs(y - 4)),
            }
        )
    return entries


def made_up_returns(method, seed, entries, n_evaluation_seeds, n_episodes):
    """Every stream finds its goal at some episode, far goals later or never, and stays there."""
    level, delay, _, _ = METHODS.get(method, (0.3, 10, 8, 88))
    generator = np.random.default_rng([seed, len(method), sum(map(ord, method))])
    low = np.array([entry["random_return"] for entry in entries])[:, None, None]
    high = np.array([entry["optimal_return"] or 17.0 for entry in entries])[:, None, None]
    distance = (21 - high) / 8
    n_tasks = len(entries)
    shape = (n_tasks, n_evaluation_seeds, 1)
    if method == "optimal":
        return np.broadcast_to(high, (n_tasks, n_evaluation_seeds, n_episodes)).astype(np.float32)
    task_level = level + (0.05 + 0.1 * distance) * generator.normal(size=(n_tasks, 1, 1))
    found_at = generator.exponential(delay * (0.4 + distance), size=shape)
    never = generator.random(shape) > 1.05 - 0.25 * distance
    episode = np.arange(n_episodes)
    rise = 1 / (1 + np.exp(-(episode - found_at) / 1.5))
    score = np.where(never & (level < 1), 0.0, np.clip(task_level, 0, 0.99) * rise)
    noise = 0.06 * generator.normal(size=(n_tasks, n_evaluation_seeds, n_episodes))
    returns = low + np.clip(score + noise, -0.02, 1) * (high - low)
    return returns.astype(np.float32)


def write_method(
    run_dir, method, seed, *, n_tasks=8, n_evaluation_seeds=6, n_episodes=40, **changed
):
    """One evaluated method; `changed` replaces entries of metrics.json, else an array.

    `returns` and `starts` replace the arrays; `visited` adds that of cells visited.
    """
    entries = changed.pop("tasks", task_entries(n_tasks))
    returns = changed.pop(
        "returns", made_up_returns(method, seed, entries, n_evaluation_seeds, n_episodes)
    )
    _, _, n_latents, context_tokens = METHODS.get(method, (0.3, 10, 8, 88))
    starts = changed.pop("starts", episode_starts(returns.shape))
    visited = changed.pop("visited", None)
    trained = method not in ROLLOUTS
    metrics = {
        "format_version": 1,
        "method": method,
        "method_record": record_entry(method),
        "region_len": REGION_LEN,
        "training_seed": seed,
        "split_identity": "5f2c",
        "split_name": "seed_0",
        "part": "test",
        "family": "darkroom",
        "horizon": HORIZON,
        "sampled": method != "optimal",
        "temperature": 1.0 if trained else None,
        "tasks": entries,
        "n_evaluation_seeds": returns.shape[1],
        "n_episodes": returns.shape[2],
        "final_episodes": min(10, returns.shape[2]),
        "n_latents": n_latents,
        "context_tokens": context_tokens,
        "compression_ratio": None if n_latents is None else REGION_LEN / n_latents,
        "context_bytes": None if context_tokens is None else context_tokens * 2048,
        "ms_per_action": 1.25 + 0.01 * (context_tokens or 0) if trained else None,
        "train_updates": 1600 if trained else None,
        "train_seconds": 431.5 + seed if trained else None,
        "train_targets_per_s": 13250.0 + seed if trained else None,
        "train_peak_mb": 612.0 if trained else None,
        "n_parameters": 1234567 if trained else None,
        "n_parameters_acting": 765432 if trained else None,
        "memory_regions": 1 if trained else None,
        "latent_bits": n_latents and 2048 * n_latents,
        "action_accuracy_recorded": 0.512 if trained else None,
        "action_accuracy_optimal": 0.701 if trained else None,
        "teacher_kl": 0.031 if method == "student" else None,
        "config_hash": "c0ffee",
        "git_sha": "abc1234",
        "created": "2025-01-01T00:00:00Z",
    }
    path = Path(run_dir) / f"seed_{seed}" / "evaluate" / method
    path.mkdir(parents=True)
    np.save(path / "eval_result.npy", returns)
    np.save(path / "episode_starts.npy", starts)
    if visited is not None:
        np.save(path / "cells_visited.npy", visited)
    (path / "metrics.json").write_text(json.dumps(metrics | changed))
    return path


def write_run(run_dir, *, methods=tuple(METHODS), seeds=(0, 1, 2), source=True, **changed):
    """A run directory with every method at every training seed; what is rolled out at one."""
    for method in methods:
        for seed in seeds if method not in ROLLOUTS else seeds[:1]:
            write_method(run_dir, method, seed, **changed)
    if source:
        write_source_curves(run_dir, task_entries(changed.get("n_tasks", 8)))
    return Path(run_dir)


def write_source_curves(run_dir, entries, n_regions=20):
    path = Path(run_dir) / "collect" / "learning_curves.csv"
    path.parent.mkdir(parents=True)
    generator = np.random.default_rng(7)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "split", "style", "source_seed", "region", "mean_return"])
        for entry in entries:
            for source_seed in range(2):
                for region in range(n_regions):
                    learned = 1 / (1 + np.exp(-(region - 8) / 2))
                    value = 0.2 + 0.95 * entry["optimal_return"] * learned
                    value += 0.2 * generator.normal()
                    writer.writerow(
                        [entry["index"], "test", "ppo", source_seed, region, f"{value:.4f}"]
                    )
        # Rows that belong to other splits and styles are not the curve.
        writer.writerow([entries[0]["index"], "train", "ppo", 0, 0, 99])
        writer.writerow([entries[0]["index"], "test", "random", 0, 0, 99])


def write_sweep(sweep_dir, axes, *, seeds=(0, 1), base=True, level=None, absent=(), **changed):
    """A sweep whose points hold the student and its controls, its base what all points share.

    Args:
        sweep_dir: where sweep.json goes.
        axes: values by key.
        seeds: training seeds.
        base: whether there is one.
        level: function of a point's values to entries of metrics.json that differ; "level" among
            them is the share of the way from random to optimal of every episode.
        absent: positions of points that were not evaluated.
        changed: as in `write_run`.
    """
    sweep_dir = Path(sweep_dir)
    points = []
    for position, combination in enumerate(itertools.product(*axes.values())):
        values = dict(zip(axes, combination, strict=True))
        name = "-".join(f"{key.split('.')[-1]}={value}" for key, value in values.items())
        points.append({"dir": f"cells/{name}", "values": values})
        if position not in absent:
            entries = level(values) if level else {}
            write_point(sweep_dir / "cells" / name, values, seeds, entries, **changed)
    if base:
        shared = ("teacher", "none", "random", "optimal")
        write_run(sweep_dir / "cells" / "base", methods=shared, seeds=seeds, **changed)
    content = {
        "format_version": 1,
        "name": "made_up",
        "axes": {key: list(values) for key, values in axes.items()},
        "seeds": list(seeds),
        "base": "cells/base" if base else None,
        "points": points,
    }
    sweep_dir.mkdir(parents=True, exist_ok=True)
    (sweep_dir / "sweep.json").write_text(json.dumps(content))
    return sweep_dir


def write_point(run_dir, values, seeds, entries, **changed):
    """One point: its method, and the controls of a student."""
    method = values.get("method", "student")
    share = entries.pop("level", None)
    controls = ("student_zeroed", "student_shuffled") if method == "student" else ()
    for seed in seeds:
        more = {}
        if share is not None:
            tasks = task_entries(changed.get("n_tasks", 8))
            n_seeds, n_episodes = (
                changed.get(key, n) for key, n in (("n_evaluation_seeds", 6), ("n_episodes", 40))
            )
            shape = (len(tasks), n_seeds, n_episodes)
            low, high = (
                np.array([task[f"{kind}_return"] for task in tasks])[:, None, None]
                for kind in ("random", "optimal")
            )
            at = share + 0.02 * (seed - np.mean(seeds))
            more["returns"] = np.broadcast_to(low + at * (high - low), shape).astype(np.float32)
        write_method(run_dir, method, seed, **changed, **entries, **more)
        for control in controls:
            write_method(run_dir, control, seed, **changed)
