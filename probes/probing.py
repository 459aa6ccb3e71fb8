"""Linear probes: what can be read out of the latents by a linear map, and what of controls.

A probe is fitted on regions of training tasks, its regularisation chosen on validation tasks, and
it is tested twice: on other streams of the training tasks, and on the test tasks, which neither the
student nor the probe has seen. A held-out goal is no class of the fit; its coordinates are.

Features compared: `latents`; `untrained`, those of the same student before any training; `raw`, the
region's raw features, flat; `raw_pooled`, their mean over steps beside their reward-weighted mean,
which ties places to rewards as no linear map of `raw` can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch

from ad.batches import TripleSource
from ad.student import CADStudent
from base.ranges import AtLeast
from nets.regions import Regions
from nets.spaces import FieldSpec
from probes.latents import chunked, latents_of
from probes.traces import cells_of
from tasks.family import Task

FEATURES = ("untrained", "latents", "raw", "raw_pooled")
STRENGTHS = (1e-3, 1e-2, 1e-1)  # C of logistic regressions
ALPHAS = (1.0, 1e1, 1e2, 1e3, 1e4, 1e5)  # of ridge regressions
MAX_CLASSES = 64
MAX_CELLS = 1024
FEW_REWARDS = 0.1  # share of a region's steps: its agent has found the goal, and does not yet stay
MIN_CASES = 5  # of each kind, for the curve of a cell to mean something
HELD_OUT_STREAMS = 4  # every so many-th stream of the training tasks is tested on

Key = tuple[str, str]
Sets = dict[Key, tuple[str, np.ndarray]]
FIT, CHOOSE = ("fit", ""), ("choose", "")
REGIONS = ("all", "with reward", "few rewards")


@dataclass(frozen=True)
class ProbeConfig:
    """How deep `pipelines.probe` looks.

    Attributes:
        n_regions: Recorded regions per part of the split, for probes, ranks and attention.
        n_pairs: Pairs of test tasks whose latents are exchanged.
        n_seeds: Streams per task of a pair.
        swap_after: Regions before the exchange.
        n_regions_after: Regions acted on from there.
        n_episodes: Episodes of the strip, which shows 1, 5, 20 and the last.
        temperature: Of the sampled actions.
        seed: Of everything drawn.
    """

    n_regions: Annotated[int, AtLeast(8)] = 2000
    n_pairs: Annotated[int, AtLeast(1)] = 12
    n_seeds: Annotated[int, AtLeast(1)] = 8
    swap_after: Annotated[int, AtLeast(1)] = 10
    n_regions_after: Annotated[int, AtLeast(1)] = 4
    n_episodes: Annotated[int, AtLeast(1)] = 80
    temperature: Annotated[float, AtLeast(0)] = 1.0
    seed: Annotated[int, AtLeast(0)] = 0


@dataclass
class Sample:
    """Recorded regions of one part of the split.

    Attributes:
        regions: Fields (N, L, ...).
        task: (N,) index of the task.
        stream: (N,) unique within a task.
    """

    regions: Regions
    task: np.ndarray
    stream: np.ndarray

    @property
    def rewards(self) -> np.ndarray:
        """(N, L), 0 where there is no transition."""
        return (self.regions.rewards * self.regions.mask).cpu().numpy()

    @property
    def rewarded(self) -> np.ndarray:
        """(N,) whether the region has any reward."""
        return (self.rewards != 0).any(1)


def draw_sample(source: TripleSource, n: int, seed: int) -> Sample:
    """Draw up to `n` regions, each at most once."""
    rows = np.random.default_rng(seed).permutation(source.rows)[:n]
    regions = source.gather(rows, np.ones(len(rows), dtype=np.int64)).query
    return Sample(regions, source.table.task[rows], source.table.stream[rows])


def features_of(student: CADStudent, regions: Regions, seed: int) -> dict[str, np.ndarray]:
    """Return each kind of `FEATURES` (N, F) of regions.

    Args:
        student: Trained.
        regions: Fields (N, L, ...).
        seed: Of the untrained student's weights.
    """
    fresh = untrained(student, seed)

    def raw_features(part: Regions) -> torch.Tensor:
        return student.raw_features(student.scaling.regions(part))

    def pooled(part: Regions) -> torch.Tensor:
        raw = (
            student.raw_features(student.scaling.regions(part)) * part.mask[..., None]
        )  # (B, L, F)
        return torch.cat([raw.mean(1), (raw * part.rewards[..., None]).mean(1)], dim=-1)

    return {
        "untrained": latents_of(fresh, regions).reshape(len(regions.mask), -1),
        "latents": latents_of(student, regions).reshape(len(regions.mask), -1),
        "raw": chunked(lambda part: raw_features(part).flatten(1), regions),
        "raw_pooled": chunked(pooled, regions),
    }


def untrained(student: CADStudent, seed: int) -> CADStudent:
    """Return a student of the same shape with the weights it might have begun with."""
    device = next(student.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config: Any = student.config
        fresh: Any = CADStudent(config)
    fresh.scaling.load_state_dict(student.scaling.state_dict())
    return fresh.eval().to(device)


@dataclass
class Target:
    """What a probe is asked for.

    Attributes:
        name: In tables.
        kind: `classes`, values (N, A) of A axes decoded one by one; `number` (N, A); `cells` (N, C)
            of 0 and 1.
        values: In the order of the regions.
        rewarded_too: Ask again on regions with reward alone.
    """

    name: str
    kind: str
    values: np.ndarray
    rewarded_too: bool = False

    @property
    def questions(self) -> list[tuple[str, slice]]:
        """What is scored, and which columns of the values count: each axis of classes, then all."""
        n_axes = self.values.shape[1]
        if self.kind != "classes" or n_axes == 1:
            return [(self.name, slice(None))]
        axes = [(f"{self.name}[{i}]", slice(i, i + 1)) for i in range(n_axes)]
        return [*axes, (f"{self.name}, all axes", slice(None))]


SCORES = {"classes": "accuracy", "number": "R2", "cells": "AUC"}


def targets_of(
    sample: Sample, tasks: Sequence[Task], observation: FieldSpec, action: FieldSpec
) -> list[Target]:
    """Return what can be asked of a sample: task parameters, cells, last action, return.

    Args:
        sample: Regions.
        tasks: All of the family, by index.
        observation: The observation field; cells are asked for where it is of classes.
        action: The action field; the last one is asked for where it is of classes.
    """
    found = _parameter_targets(sample, tasks)
    regions = sample.regions
    mask = regions.mask.cpu().numpy()
    cells = cells_of(regions.observations.cpu().numpy(), observation)
    if cells is not None and (n_cells := int(np.prod(observation.n_classes))) <= MAX_CELLS:
        after = cells_of(regions.next_observations.cpu().numpy(), observation)
        visited = np.zeros((len(mask), n_cells + 1))  # the last column takes the padding
        for seen in (cells, after):
            assert seen is not None
            np.put_along_axis(visited, np.where(mask, seen, n_cells), 1.0, axis=1)
        found.append(Target("visited cells", "cells", visited[:, :-1]))
    if action.kind == "classes":
        last = mask.sum(1) - 1
        actions = regions.actions.cpu().numpy()[np.arange(len(mask)), last]
        found.append(Target("last action", "classes", actions.reshape(len(mask), -1)))
    found.append(Target("region return", "number", sample.rewards.sum(1, keepdims=True)))
    return found


def _parameter_targets(sample: Sample, tasks: Sequence[Task]) -> list[Target]:
    """Ask for every parameter that differs between tasks, as classes, as numbers, or as both."""
    found = []
    for name, table in varied_parameters(tasks).items():
        values = table[sample.task]
        if table.dtype.kind != "f":
            found.append(Target(name, "classes", values, rewarded_too=True))
        if table.dtype.kind in "if":
            numbers = values.astype(np.float64)
            found.append(Target(f"{name} as numbers", "number", numbers, rewarded_too=True))
    return found


def varied_parameters(tasks: Sequence[Task]) -> dict[str, np.ndarray]:
    """Return the parameters that differ between tasks, each (tasks, axes): classes or floats.

    Lists of one length for all tasks count as axes; anything nested or longer is left out.
    """
    found = {}
    for name in tasks[0].params:
        rows = [task.params.get(name) for task in tasks]
        rows = [row if isinstance(row, list) else [row] for row in rows]
        flat = [value for row in rows for value in row]
        if len({len(row) for row in rows}) > 1 or len({str(row) for row in rows}) == 1:
            continue
        if all(type(value) in (int, float) for value in flat) and any(
            type(value) is float for value in flat
        ):
            found[name] = np.array(rows, dtype=np.float64)
        elif all(type(value) in (int, bool, str) for value in flat) and len({*flat}) <= MAX_CLASSES:
            numbers = all(type(value) is int for value in flat)
            found[name] = np.array(rows, dtype=np.int64 if numbers else str)
    return found


def run_probes(
    student: CADStudent,
    samples: Mapping[str, Sample],
    tasks: Sequence[Task],
    observation: FieldSpec,
    action: FieldSpec,
    seed: int,
) -> list[dict[str, Any]]:
    """Fit and test every probe.

    Args:
        student: Trained.
        samples: `train`, `validation` and `test` regions.
        tasks: All of the family.
        observation: The observation field.
        action: The action field.
        seed: Of the untrained control.

    Returns:
        Rows: target, score, regions (`all`, `with reward`, or of the same fit those with `few
        rewards`), tested_on (`other streams` or `held-out tasks`), n_fit, n_test, chance, and one
        column per kind of `FEATURES`. Scores are None where there is nothing to fit or test on.
    """
    features = {part: features_of(student, s.regions, seed) for part, s in samples.items()}
    targets = {part: targets_of(s, tasks, observation, action) for part, s in samples.items()}
    every, rewarded = _sets(samples)
    rows = []
    for i, target in enumerate(targets["train"]):
        for sets in (every, rewarded) if target.rewarded_too else (every,):
            y = {key: targets[part][i].values[keep] for key, (part, keep) in sets.items()}
            predicted = {}
            for kind in FEATURES:
                x = {key: features[part][kind][keep] for key, (part, keep) in sets.items()}
                predicted[kind] = probe(target.kind, x, y)
            asked = [
                row
                for name, columns in target.questions
                for row in _rows(name, target.kind, columns, y, predicted)
            ]
            rows += sorted(asked, key=lambda row: REGIONS.index(row["regions"]))
    return rows


def _rows(
    name: str,
    kind: str,
    columns: slice,
    y: Mapping[Key, np.ndarray],
    predicted: Mapping[str, Mapping[Key, np.ndarray] | None],
) -> list[dict[str, Any]]:
    """One row per set that is tested on."""
    truth = {key: values[:, columns] for key, values in y.items()}
    floor = chance(kind, truth)
    return [
        {
            "target": name,
            "score": SCORES[kind],
            "regions": key[0],
            "tested_on": key[1],
            "n_fit": len(y[FIT]),
            "n_test": len(y[key]),
            "chance": floor[key],
            **{
                features: None if found is None else score(kind, truth[key], found[key][:, columns])
                for features, found in predicted.items()
            },
        }
        for key in y
        if key not in (FIT, CHOOSE)
    ]


def _sets(samples: Mapping[str, Sample]) -> tuple[Sets, Sets]:
    """Name the regions that probes are fitted and tested on: all, and those with reward."""
    other = samples["train"].stream % HELD_OUT_STREAMS == HELD_OUT_STREAMS - 1
    whole = {part: np.ones(len(sample.task), bool) for part, sample in samples.items()}
    tests = {"other streams": ("train", other), "held-out tasks": ("test", whole["test"])}
    fits = {FIT: ("train", ~other), CHOOSE: ("validation", whole["validation"])}
    every = {**fits, **{(REGIONS[0], name): rows for name, rows in tests.items()}}
    paid = {part: (sample.rewards != 0).mean(1) for part, sample in samples.items()}
    rewarded = {key: (part, keep & (paid[part] > 0)) for key, (part, keep) in fits.items()}
    for regions, most in zip(REGIONS[1:], (1.0, FEW_REWARDS), strict=True):
        for name, (part, keep) in tests.items():
            subset = keep & (paid[part] > 0) & (paid[part] <= most)
            rewarded[regions, name] = (part, subset)
    return every, rewarded


def probe(
    kind: str, x: Mapping[Key, np.ndarray], y: Mapping[Key, np.ndarray]
) -> dict[Key, np.ndarray] | None:
    """Fit one probe on `FIT`, its regularisation on `CHOOSE`.

    Args:
        kind: As in `Target`.
        x: Features (N, F) by set.
        y: Values (N, A) by set.

    Returns:
        Predictions (N, A) by set; None where there are too few regions to fit on.
    """
    if min(len(y[FIT]), len(y[CHOOSE])) < MIN_CASES:
        return None
    from sklearn.preprocessing import StandardScaler  # late: it takes seconds

    scaler = StandardScaler().fit(x[FIT].astype(np.float64))
    scaled = {name: np.asarray(scaler.transform(v)) if len(v) else v for name, v in x.items()}
    if kind != "classes":
        return _numbers(scaled, y)
    axes = [_classes(scaled, {k: v[:, a] for k, v in y.items()}) for a in range(y[FIT].shape[1])]
    return {name: np.stack([axis[name] for axis in axes], 1) for name in y}


def _classes(x: Mapping[Key, np.ndarray], y: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
    """Predict one axis (N,) of classes in every set by logistic regression."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(y[FIT])) == 1:
        return {name: np.full(len(values), y[FIT][0]) for name, values in y.items()}
    models = [
        LogisticRegression(C=c, tol=1e-3, max_iter=200).fit(x[FIT], y[FIT]) for c in STRENGTHS
    ]
    best = max(models, key=lambda model: model.score(x[CHOOSE], y[CHOOSE]))
    return {name: best.predict(v) if len(v) else y[name] for name, v in x.items()}


def _numbers(x: Mapping[Key, np.ndarray], y: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
    """Predict numbers (N, A) in every set by ridge regression."""
    from sklearn.linear_model import Ridge

    models = [Ridge(alpha=alpha).fit(x[FIT], y[FIT]) for alpha in ALPHAS]

    def error(model: Ridge) -> float:
        return float(((model.predict(x[CHOOSE]).reshape(y[CHOOSE].shape) - y[CHOOSE]) ** 2).mean())

    best = min(models, key=error)
    return {
        name: best.predict(v).reshape(y[name].shape) if len(v) else y[name] for name, v in x.items()
    }


def score(kind: str, truth: np.ndarray, predicted: np.ndarray) -> float | None:
    """Score predictions (N, A): share with all axes right, R² over axes, or mean AUC over cells.

    Cells count where at least `MIN_CASES` regions visited them and as many did not.
    """
    from sklearn.metrics import r2_score, roc_auc_score

    if len(truth) < 2:
        return None
    if kind == "classes":
        return float((truth == predicted).all(1).mean())
    if kind == "number":
        return float(r2_score(truth, predicted)) if (truth.std(0) > 0).all() else None
    visits = truth.sum(0)
    known = (visits >= MIN_CASES) & (len(truth) - visits >= MIN_CASES)
    if not known.any():
        return None
    return float(
        np.mean([roc_auc_score(truth[:, c], predicted[:, c]) for c in np.flatnonzero(known)])
    )


def chance(kind: str, y: Mapping[Key, np.ndarray]) -> dict[Key, float | None]:
    """Return what knowing nothing of a region scores.

    For classes the better of two guesses: the commonest of the fit, or any, as often as in the fit.
    """
    if kind != "classes":
        return dict.fromkeys(y, 0.0 if kind == "number" else 0.5)
    if not len(y[FIT]):
        return dict.fromkeys(y)
    found = {}
    for name, values in y.items():
        often, commonest = np.ones(len(values)), np.ones(len(values), bool)
        for axis, truth in zip(y[FIT].T, values.T, strict=True):
            classes, counts = np.unique(axis, return_counts=True)
            often *= (truth[:, None] == classes) @ (counts / len(axis))
            commonest &= truth == classes[counts.argmax()]
        found[name] = float(max(often.mean(), commonest.mean())) if len(values) > 1 else None
    return found
