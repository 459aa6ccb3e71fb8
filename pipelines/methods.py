"""Every method, once: name and title, what it is trained by, how it changes a configuration.

What stages, plans and sweeps know of methods they read here, and `pipelines.evaluate` writes a
record's title, group and order into every metrics.json, where the reports read them. A baseline is
one record here, and the compressor it names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ad.controls import Control
from ad.evaluate import has_expert
from ad.policy import OptimalPolicy, Policy, RandomPolicy
from tasks.family import Task, TaskFamily
from tasks.mixture import Member, by_member, members_of
from tasks.search import search_policies
from teacher.model import TeacherConfig

if TYPE_CHECKING:
    from pipelines.config import RunConfig

Group = Literal["student", "teacher", "raw_context", "baseline", "control", "search", "reference"]
Change = Callable[["RunConfig"], "RunConfig"]
STUDENT_STAGES = ("pretrain_compressor", "distill", "finetune", "policy_gradient", "on_policy")
RAW_CONTEXT_STAGES = ("train_teacher",)


def unchanged(config: RunConfig) -> RunConfig:
    """Leave a configuration as it is."""
    return config


def compressor(**settings: Any) -> Change:
    """Return the change to another compressor, or to other settings of it."""
    return lambda config: replace(config, compressor=replace(config.compressor, **settings))


def own_teacher_section(name: str) -> Change:
    """Return the change by which a raw-context model takes its own section as its `teacher`."""
    return lambda config: replace(config, teacher=getattr(config, name))


def raw_model(config: RunConfig, target: str, **settings: Any) -> RunConfig:
    """Change the teacher to a raw-context model that reads a region's transitions, and sees it."""
    model: dict[str, Any] = {"target": target, "kwargs": {}, "sees": "region"}
    model |= {"tokenisation": "transition", **settings}
    return replace(config, teacher=replace(config.teacher, **model))


def sliding_window(config: RunConfig) -> RunConfig:
    """Change the teacher to AD over as many raw steps as the student attends to tokens."""
    online, m = config.compressor.online, config.compressor.n_latents
    latents = config.memory.n_tokens(m) + (m if online else 0)
    window = latents + config.decoder.n_steps(online or config.region_len)
    return raw_model(config, "teacher.sliding_window:SlidingWindow", kwargs={"window": window})


def dpt(config: RunConfig) -> RunConfig:
    """Change the teacher to DPT, which learns the optimal actions of the task."""
    training = replace(config.train_teacher, target="optimal", label_smoothing=0.0)
    return replace(raw_model(config, "teacher.dpt:DPT", sees="step"), train_teacher=training)


def idt(config: RunConfig) -> RunConfig:
    """Change the teacher to the in-context decision transformer, of three layers at least."""
    return raw_model(config, "teacher.idt:IDT", n_layers=max(config.teacher.n_layers, 3))


def raw_regions(n_context_regions: int) -> Change:
    """Return the change to marker-based AD over so many raw regions and the current one."""
    return partial(raw_model, target=TeacherConfig.target, n_context_regions=n_context_regions)


def whole_history(config: RunConfig) -> RunConfig:
    """Change the teacher to AD over all the regions that are ever before one in the histories."""
    collect = config.collect
    longest = max(collect.regions.get(style, collect.n_regions) for style in collect.styles)
    return raw_regions(max(1, longest - 1))(config)


@dataclass(frozen=True)
class Method:
    """What there is to know of a method before it is trained.

    Attributes:
        name: In configurations, of its folders and in result files.
        title: In tables and figures.
        group: What it is beside the others.
        stages: The training stages it goes through, those that a configuration leaves out among
            them (`pipelines.stages.chain`); none for what is not trained.
        configure: Makes its configuration of the run's.
        usual: Whether it is trained where a configuration names no methods; not what asks more
            of a family than others do.
        informed: Whether its latents say anything of a region.
        control_of: The trained method whose model a control acts with.
        control: What a control does to the latents.
        act: Makes the policy of a reference or a search, which knows the family, for the tasks of
            the streams.
        supported: Whether a family offers what `act` needs.
        order: Position in tables; that in `METHODS`.
    """

    name: str
    title: str
    group: Group
    stages: tuple[str, ...] = ()
    configure: Change = unchanged
    usual: bool = True
    informed: bool = True
    control_of: str | None = None
    control: Control | None = None
    act: Callable[[TaskFamily, Sequence[Task]], Policy] | None = None
    supported: Callable[[TaskFamily], bool] = field(default=lambda family: True)
    order: int = 0

    def record(self) -> dict[str, Any]:
        """What result files say of it."""
        return {key: getattr(self, key) for key in ("name", "title", "group", "order")}


def _baseline(name: str, title: str, kwargs: dict[str, Any] | None = None, **more: Any) -> Method:
    """A student whose compressor is the kind of the baseline's name, with settings of its own."""
    change = compressor(kind=name, kwargs=kwargs or {})  # the student's kind has others
    return Method(name, title, "baseline", STUDENT_STAGES, change, **more)


def _control(control: Control, title: str) -> Method:
    return Method(f"student_{control}", title, "control", control_of="student", control=control)


def _search(name: str, title: str) -> Method:
    """A searcher that knows the family's tasks; the same policy, however many training seeds."""
    return Method(
        name,
        title,
        "search",
        act=lambda family, tasks: by_member(family, tasks, partial(_searcher, name)),
        supported=lambda family: all(
            name in search_policies(member.family, member.tasks)
            for member in members_of(family, family.tasks())
        ),
    )


def _searcher(name: str, member: Member) -> Policy:
    """Knows which family of a mixture it acts in, and that family's tasks."""
    return search_policies(member.family, member.family.tasks())[name]()


_RECORDS = (
    Method("student", "student", "student", STUDENT_STAGES),
    Method("teacher", "teacher", "teacher", RAW_CONTEXT_STAGES),
    Method(
        "long_context",
        "long context",
        "raw_context",
        RAW_CONTEXT_STAGES,
        own_teacher_section("long_context"),
    ),
    Method("dpt", "DPT", "raw_context", RAW_CONTEXT_STAGES, dpt, usual=False),
    Method("idt", "IDT", "raw_context", RAW_CONTEXT_STAGES, idt, usual=False),
    Method(
        "previous_region",
        "previous region, raw",
        "raw_context",
        RAW_CONTEXT_STAGES,
        raw_regions(1),
        usual=False,
    ),
    Method(
        "whole_history",
        "whole history, raw",
        "raw_context",
        RAW_CONTEXT_STAGES,
        whole_history,
        usual=False,
    ),
    Method("sliding_window", "sliding window", "baseline", RAW_CONTEXT_STAGES, sliding_window),
    _baseline("truncation", "truncation"),
    _baseline("mean_pooling", "mean pooling, raw"),
    _baseline("mean_pooling_encoded", "mean pooling, encoded"),
    _baseline("pca", "PCA", {"whiten": False}),  # validates better than whitened
    _baseline("none", "no context", informed=False),
    _control("zeroed", "zeroed latents"),
    _control("shuffled", "shuffled latents"),
    _control("no_context", 'learned "no context" latents'),
    _search("posterior_sampling", "posterior sampling"),
    _search("coverage", "coverage sweep"),
    _search("least_squares", "least squares"),
    _search("ridge", "ridge regression"),
    _search("nearest", "nearest neighbours"),
    _search("averaging", "averaging"),
    Method("random", "random", "reference", act=lambda family, tasks: RandomPolicy(family)),
    Method("optimal", "optimal", "reference", act=OptimalPolicy, supported=has_expert),
)

METHODS = {method.name: replace(method, order=i) for i, method in enumerate(_RECORDS)}
"""All methods by name, in the order of tables."""
TRAINED = tuple(name for name, method in METHODS.items() if method.stages)
"""Names of those with training stages of their own."""
UNTRAINED = tuple(name for name, method in METHODS.items() if method.act)
"""Names of those that are rolled out once per run, whatever was trained."""


def through(stage: str) -> tuple[str, ...]:
    """Return the names of the methods that go through a training stage."""
    return tuple(name for name in TRAINED if stage in METHODS[name].stages)


def controls_of(method: str) -> tuple[Method, ...]:
    """Return the controls that act with a method's model."""
    return tuple(control for control in METHODS.values() if control.control_of == method)


def untrained_of(family: TaskFamily) -> tuple[str, ...]:
    """Return the names of the untrained methods that a family supports."""
    return tuple(name for name in UNTRAINED if METHODS[name].supported(family))
