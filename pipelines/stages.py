"""Every stage, once: where its result lies, what it depends on, which stages come before it.

The plan of a run, the inputs hash that a stage's script looks for, the directories it reads and
those it writes are all taken from these records, so that they cannot disagree. A record says
nothing of how the stage runs: that is `main` of the module of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from base.hashes import config_hash, content_hash
from compression.bottleneck import before_fit
from compression.compressor import compressor_class
from pipelines.config import RunConfig
from pipelines.methods import METHODS, TRAINED, UNTRAINED, controls_of
from pipelines.stage import Folders, Parents, Sections, Stage, StageError
from tasks.splits import Split

HISTORY_REGIONS = (1, 2, 5, 10, 20, 35, 50)
"""Lengths of the history at which `pipelines.cost` measures, as far as `MOST_TRANSITIONS`."""
MOST_TRANSITIONS = 4000
"""Of a history there: what keeps all of it raw takes time with their square."""
N_STREAMS = 16
"""Streams that act at once there."""


class Inputs:
    """Inputs hashes of the stages of ONE configuration, whatever its method and training seed.

    They are known before anything has run, for they depend on configuration and parents alone.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self.known: dict[tuple[str, ...], str] = {}

    def of(self, stage: Stage, config: RunConfig) -> str:
        """Hash of everything a stage's result depends on: its sections and its parents' inputs.

        Raises:
            StageError: Existing histories are no file.
        """
        where = stage.folders(config)
        if where not in self.known:
            parents = {
                parent.job(own): self.of(parent, own) for parent, own in before(stage, config)
            }
            sections = stage.sections(config, self.split)
            self.known[where] = config_hash(
                {"stage": stage.name, "sections": sections, "parents": parents}
            )
        return self.known[where]


def before(stage: Stage, config: RunConfig) -> list[tuple[Stage, RunConfig]]:
    """Return a stage's parents, each with the configuration it has."""
    return [
        (STAGES[name], replace(config, method=method)) for name, method in stage.parents(config)
    ]


def own_config(config: RunConfig, stage: str = "") -> RunConfig:
    """Return the configuration as `config.method`, and a stage of its training, change it."""
    own = METHODS[config.method].configure(config)
    if stage in ("pretrain_compressor", "distill"):
        return replace(own, compressor=before_fit(own.compressor))
    return own


def chain(config: RunConfig) -> tuple[str, ...]:
    """Return the training stages that `config.method` really goes through, in their order."""
    return tuple(name for name in METHODS[config.method].stages if STAGES[name].wanted(config))


def stage_before(config: RunConfig, stage: str) -> str:
    """Return the training stage that comes before another in the chain of `config.method`."""
    stages = METHODS[config.method].stages
    return [s for s in stages[: stages.index(stage)] if STAGES[s].wanted(config)][-1]


def has_teacher(config: RunConfig) -> bool:
    """Whether there is a teacher, which evaluations measure the divergence from."""
    methods = (config.method, *config.methods)
    students = (name for name in methods if "distill" in METHODS[name].stages)
    stages = {name for student in students for name in chain(replace(config, method=student))}
    return "teacher" in methods or any(STAGES[s].target(config) == "teacher" for s in stages)


def results_name(config: RunConfig, kind: str = "evaluate") -> str:
    """Name of the folder of evaluations (or of `references`, which have no training seed)."""
    return f"{kind}_{config.evaluate.name}" if config.evaluate.name else kind


def evaluated(method: str) -> tuple[str, ...]:
    """Names of what is rolled out for a method: itself, and the controls with its model."""
    return (method, *(control.name for control in controls_of(method)))


def _histories(config: RunConfig) -> str:
    """Content of existing histories, empty where they are collected."""
    if config.histories and not Path(config.histories).is_file():
        raise StageError(
            f"histories={config.histories} is no file; give a path to a histories.h5, or make it "
            "with pipelines.import_histories."
        )
    return content_hash(config.histories) if config.histories else ""


def _collect_sections(config: RunConfig, split: Split) -> dict[str, Any]:
    return {
        "family": config.family,
        "split": split.identity,
        "region_len": config.region_len,
        "collect": replace(config.collect, n_workers=0),  # how many work at it changes nothing
        "source": config.source,
        "noise": config.noise,
        "posterior": config.posterior,
    }


def _triples_sections(config: RunConfig, split: Split) -> dict[str, Any]:
    return {
        "family": config.family,
        "split": split.identity,
        "region_len": config.region_len,
        "histories": _histories(config),
    }


def _triples_parents(config: RunConfig) -> tuple[tuple[str, str], ...]:
    return () if config.histories else (("collect", config.method),)


def _training_folder(name: str = "") -> Folders:
    return lambda config: ("/".join(filter(None, (f"seed_{config.seed}", config.method, name))),)


def _training_parents(stage: str) -> Parents:
    """Tables, the teacher where the loss has one, and the stage before in the method's chain."""

    def parents(config: RunConfig) -> tuple[tuple[str, str], ...]:
        asked = STAGES[stage].target(config) == "teacher"
        teacher = [("train_teacher", "teacher")] if asked else []
        stages = METHODS[config.method].stages
        earlier = [s for s in stages[: stages.index(stage)] if STAGES[s].wanted(config)]
        last = [(name, config.method) for name in earlier[-1:]]
        return (("build_triples", config.method), *teacher, *last)

    return parents


_TARGETS = {"bayes": ("posterior",), "monte_carlo": ("monte_carlo",)}
"""Sections by which targets are made."""


def _sections(
    of_run: tuple[str, ...],
    stage: str,
    more: Callable[[RunConfig], Mapping[str, Any]] = lambda config: {},
) -> Sections:
    """Seed, method, what a method makes of these sections, and the stage's own settings."""

    def sections(config: RunConfig, split: Split) -> dict[str, Any]:
        own = own_config(config, stage)
        return {
            "seed": config.seed,
            "method": config.method,
            "stage": STAGES[stage].settings(own),
            **{name: getattr(own, name) for name in of_run},
            **{name: getattr(own, name) for name in _TARGETS.get(STAGES[stage].target(own), ())},
            **more(own),
        }

    return sections


_COMPRESSOR = ("model", "compressor", "reconstruction")
_ACTION = (*_COMPRESSOR, "memory", "decoder", "sampling", "validation")


def _pretraining_draws(config: RunConfig) -> dict[str, Any]:
    """All of `sampling` that pretraining draws by: no pairs where nothing is predicted."""
    sampling = config.sampling
    stride = {"history_stride": sampling.history_stride} if config.pretrain.loss.predicts else {}
    return {"max_region": sampling.max_region, **stride, **_jitter(config)}


def _jitter(config: RunConfig) -> dict[str, Any]:
    """The jitter of region lengths, by which models are built; nothing where there is none."""
    return {"jitter": config.sampling.jitter} if config.sampling.jitter else {}


def _is_pretrained(config: RunConfig) -> bool:
    kind = own_config(config).compressor.kind
    return config.pretrain.enabled and compressor_class(kind).learns


def _evaluate_folders(config: RunConfig) -> tuple[str, ...]:
    if config.method in UNTRAINED:
        return (f"{results_name(config, 'references')}/{config.method}",)
    folder = f"seed_{config.seed}/{results_name(config)}"
    return tuple(f"{folder}/{name}" for name in evaluated(config.method))


def _evaluate_sections(config: RunConfig, split: Split) -> dict[str, Any]:
    return {
        "family": config.family,
        "split": split.identity,
        "region_len": config.region_len,
        "methods": evaluated(config.method),
        "evaluate": config.evaluate,
    }


def _evaluate_parents(config: RunConfig) -> tuple[tuple[str, str], ...]:
    if config.method in UNTRAINED:
        by_source = config.evaluate.normalise == "source"
        return (("build_triples", config.method),) if by_source else ()
    trained = [(name, config.method) for name in reversed(chain(config))]  # the last is asked first
    teacher = [("train_teacher", "teacher")] if has_teacher(config) else []
    return tuple(dict.fromkeys([*trained, *teacher]))


def history_regions(config: RunConfig) -> tuple[int, ...]:
    """Return the lengths of the history, in regions, at which the cost of acting is measured."""
    most = max(1, MOST_TRANSITIONS // config.region_len)
    return tuple(n for n in HISTORY_REGIONS if n <= most)


def _cost_sections(config: RunConfig, split: Split) -> dict[str, Any]:
    return {
        "family": config.family,
        "region_len": config.region_len,
        "model": config.model,
        "compressor": config.compressor,
        "memory": config.memory,
        "decoder": config.decoder,
        "teacher": config.teacher,
        "long_context": config.long_context,
        "history_regions": history_regions(config),
        "n_streams": N_STREAMS,
        **_jitter(config),
    }


_ALL = (
    Stage(
        "collect",
        lambda config: ("collect",),
        _collect_sections,
        shared=True,
        results=("histories.h5",),
    ),
    Stage(
        "build_triples",
        lambda config: ("triples",),
        _triples_sections,
        _triples_parents,
        shared=True,
        results=("*/regions.arrow", "*/meta.json"),
    ),
    Stage(
        "train_teacher",
        _training_folder(),
        _sections(("model", "teacher", "sampling", "validation"), "train_teacher"),
        _training_parents("train_teacher"),
        section="train_teacher",
        batches="actions",
        stacks=True,
    ),
    Stage(
        "pretrain_compressor",
        _training_folder("pretrain"),
        _sections(
            _COMPRESSOR,
            "pretrain_compressor",
            _pretraining_draws,
        ),
        _training_parents("pretrain_compressor"),
        wanted=_is_pretrained,
        section="pretrain",
        batches="regions",
        stacks=True,
    ),
    Stage(
        "distill",
        _training_folder("distill"),
        _sections(_ACTION, "distill"),
        _training_parents("distill"),
        section="distill",
        batches="actions",
        stacks=True,
    ),
    Stage(
        "finetune",
        _training_folder("finetune"),
        _sections(_ACTION, "finetune"),
        _training_parents("finetune"),
        wanted=lambda config: config.finetune.enabled,
        section="finetune",
        batches="actions again",  # not those of distill once more
        stacks=True,
    ),
    Stage(
        "policy_gradient",
        _training_folder("policy_gradient"),
        _sections((*_COMPRESSOR, "memory", "decoder", "validation"), "policy_gradient"),
        _training_parents("policy_gradient"),
        wanted=lambda config: config.policy_gradient.enabled,
        section="policy_gradient",
        batches="rollouts",
    ),
    Stage(
        "on_policy",
        _training_folder("on_policy"),
        _sections((*_COMPRESSOR, "memory", "decoder", "validation"), "on_policy"),
        _training_parents("on_policy"),
        wanted=lambda config: config.on_policy.enabled,
        section="on_policy",
        batches="rollouts",
    ),
    Stage(
        "evaluate",
        _evaluate_folders,
        _evaluate_sections,
        _evaluate_parents,
        results=("*.npy", "metrics.json"),
    ),
    Stage(
        "cost",
        lambda config: ("cost",),
        _cost_sections,
        shared=True,
        results=("cost.csv",),
    ),
)

STAGES = {stage.name: stage for stage in _ALL}
"""All stages by name, in the order in which a student goes through them."""
DATA_STAGES = ("collect", "build_triples")
"""Those that use all processes themselves, and that no training seed takes part in."""


def check_method(config: RunConfig, stage: str, allowed: tuple[str, ...] = TRAINED) -> None:
    """Refuse a method that a stage is not for.

    Raises:
        StageError: Naming the methods it is for.
    """
    if config.method not in allowed:
        raise StageError(
            f"pipelines.{stage} is not for method={config.method}, but for {', '.join(allowed)}."
        )


def check_enabled(config: RunConfig, stage: str) -> None:
    """Refuse to run a training stage that the configuration leaves out.

    Raises:
        StageError: Naming the key that turns it on.
    """
    if not STAGES[stage].wanted(config):
        raise StageError(
            f"pipelines.{stage} is left out of this run by {STAGES[stage].section}.enabled=false; "
            "set it to true, in the other stages of the run too."
        )
