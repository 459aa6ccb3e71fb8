"""What the figure of bits is made from: the bits a decoder reads, what it gets for them, the bound.

How it is drawn stands in `reports.bits_figure`. A bound is `bound` of a metrics.json, as evaluation
writes it where the family knows one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports import measures
from reports.records import CONTROL
from reports.result_files import EvaluationResult, ResultsError, load_run
from reports.results import check_comparable
from reports.scores import MethodScores, stack_methods
from reports.style import Look
from reports.style import looks as looks_of

Floats = NDArray[np.float64]

BITS, REGIONS = "latent_bits", "memory_regions"
SEES, STEP = "sees", "step"
"""What a decoder sees of the current region; the current step alone, if that is what it says."""
AT_TEST: dict[str, Any] = {"dashes": (0, (1, 1)), "marker": "d", "width": 1.2}


@dataclass(frozen=True)
class Bound:
    """No agent whose news of the task are so many bits gets more, on average over the family.

    Attributes:
        bits: `(P,)`, ascending.
        levels: `(P,)` by what is bounded, "return" (normalised), "accuracy" or "told" (bits).
        own_episode: whether agents may also see their own steps of the episode that is judged.
    """

    bits: Floats
    levels: Mapping[str, Floats]
    own_episode: bool


def find_bound(methods: Sequence[MethodScores]) -> Bound | None:
    """The bound that a result holds, None where none does.

    Raises:
        ResultsError: it is damaged.
    """
    for result in (result for method in methods for result in method.results):
        entry = result.metrics.get("bound")
        if entry is not None:
            try:
                return _parse(entry)
            except (KeyError, TypeError, ValueError) as error:
                raise ResultsError(
                    f"the bound in metrics.json of {result.method} in {result.run_dir} is damaged "
                    f"({error!r}): evaluate again"
                ) from error
    return None


def _parse(entry: Mapping[str, Any]) -> Bound:
    bits = np.array(entry["bits"], dtype=np.float64)
    levels = {
        key: np.array(entry[key], dtype=np.float64)
        for key in ("return", "accuracy", "told")
        if entry.get(key) is not None
    }
    for values in (bits, *levels.values()):
        if values.shape != bits.shape or not values.size or not np.isfinite(values).all():
            raise ValueError("arrays of one length with finite numbers are expected")
    return Bound(bits, levels, bool(entry["own_episode"]))


def context_bits(method: MethodScores) -> float | None:
    """Bits an action can read: those of a region, of as many regions as the memory shows."""
    bits = method.number(BITS)
    return None if not bits else float(bits) * float(method.number(REGIONS) or 1)


def sees_step(method: MethodScores) -> bool:
    """Whether the decoder sees nothing of the current region but the current step."""
    return all(result.metrics.get(SEES) == STEP for result in method.results)


def begins_at_border(method: MethodScores) -> bool:
    """Whether no step of a region precedes the first episode that begins in it."""
    known = method.has_reference if method.has_reference.any() else slice(None)
    starts = np.stack([result.starts[known] % result.region_len for result in method.results])
    return not starts[method.is_border].any()


@dataclass(frozen=True)
class Measure:
    """What a panel shows.

    Attributes:
        name: of its columns in CSV files.
        title: of its axis.
        by_seed: its value for each training seed, empty where it is not known.
        bounded: which levels of a bound it is held against.
        holds: whether a bound holds for this method.
        is_share: whether it lies between 0 and 1.
    """

    name: str
    title: str
    by_seed: Callable[[MethodScores], dict[int, float]]
    bounded: str
    holds: Callable[[MethodScores, Bound], bool]
    is_share: bool = True


def _after_border(method: MethodScores) -> dict[int, float]:
    found = measures.border(method)
    return {} if found is None else dict(zip(method.seeds, found.after.tolist(), strict=True))


def _holds_for_episode(method: MethodScores, bound: Bound) -> bool:
    return sees_step(method) or bound.own_episode


MEASURES = (
    Measure(
        "return",
        "normalised return,\nlast episodes",
        lambda method: method.by_seed,
        "return",
        lambda method, bound: sees_step(method),
    ),
    Measure(
        "after_border",
        "normalised return,\nfirst episode of a region",
        _after_border,
        "return",
        lambda method, bound: _holds_for_episode(method, bound) and begins_at_border(method),
    ),
    Measure(
        "recall_return",
        "normalised return,\ncontext frozen",
        lambda method: method.number_by_seed("recall_return"),
        "return",
        _holds_for_episode,
    ),
    Measure(
        "recall_accuracy",
        "accuracy of actions,\ncontext frozen",
        lambda method: method.number_by_seed("recall_accuracy"),
        "accuracy",
        _holds_for_episode,
    ),
    Measure(
        "recall_bits",
        "bits of the task told,\ncontext frozen",
        lambda method: method.number_by_seed("recall_bits"),
        "told",
        _holds_for_episode,
        is_share=False,
    ),
)


@dataclass(frozen=True)
class Series:
    """Points of the figure that belong together.

    Attributes:
        title: in the legend.
        methods: its points.
        look: of all of them.
        joined: whether a line from point to point means anything.
    """

    title: str
    methods: Sequence[MethodScores]
    look: Look
    joined: bool = True


def known_bits(methods: Sequence[MethodScores]) -> list[MethodScores]:
    """Those of which the bits are known, fewest first; controls read nothing and are left out."""
    known = [m for m in methods if m.record.group != CONTROL and context_bits(m) is not None]
    return sorted(known, key=lambda method: context_bits(method) or 0.0)


def method_series(
    methods: Sequence[MethodScores], others: Sequence[MethodScores] = ()
) -> list[Series]:
    """A line for every method, through the runs that hold it.

    Args:
        methods: of a comparison.
        others: the same models evaluated in other ways (`other_evaluations`): a line of its own
            for each method.
    """
    looks = looks_of({method.method: method.record for method in methods})
    found = []
    for given, remark, changed in ((methods, "", {}), (others, ", cut down at test", AT_TEST)):
        by_name: dict[str, list[MethodScores]] = {}
        for method in known_bits(given):
            by_name.setdefault(method.method, []).append(method)
        for name, line in sorted(by_name.items(), key=lambda item: item[1][0].record.rank):
            look = replace(looks[name], **changed)
            found.append(Series(line[0].record.title + remark, line, look))
    return found


def other_evaluations(
    methods: Sequence[MethodScores], run_dirs: Sequence[Path], folder: str
) -> list[MethodScores]:
    """The compared models once more, where they were evaluated at other bits.

    Of the other folders `evaluate_<name>` of the runs those results are taken that are of the same
    tasks, evaluated alike, and whose bits are not those of the comparison.

    Args:
        methods: of the comparison.
        run_dirs: its runs.
        folder: the one it was read from.
    """
    compared = {
        (result.run_dir, result.training_seed, result.method): result
        for method in methods
        for result in method.results
    }
    found: list[EvaluationResult] = []
    for run_dir in run_dirs:
        names = {path.name for path in run_dir.glob("seed_*/evaluate_*") if path.is_dir()}
        for name in sorted(names - {folder}):
            for result in _loaded(run_dir, name):
                main = compared.get((run_dir, result.training_seed, result.method))
                if main and result.number(BITS) != main.number(BITS) and _alike(main, result):
                    label = f"{main.label} ({name.removeprefix('evaluate_')})"
                    found.append(replace(result, label=label))
    return stack_methods(found)


def _loaded(run_dir: Path, folder: str) -> list[EvaluationResult]:
    """What can be read of a folder; what cannot is not what the comparison is about."""
    try:
        return load_run(run_dir, None, folder, unfinished=True)
    except ResultsError:
        return []


def _alike(one: EvaluationResult, other: EvaluationResult) -> bool:
    try:
        check_comparable([one, other])
    except ResultsError:
        return False
    return one.metrics.get("temperature") == other.metrics.get("temperature")
