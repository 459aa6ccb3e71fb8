"""All sources of histories by style, one record each; others are named by import path."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from base.imports import ImportPathError, import_object
from histories.sources import Source, SourceError


@dataclass(frozen=True)
class SourceRecord:
    """One source.

    Attributes:
        target: Import path `module:function`; imported when used, for some bring heavy libraries.
        section: Of the configuration, handed over as `config`; empty for a source without one.
        streams_per_job: See `histories.sources.Source`.
        uses_split: Likewise.
        quick: Likewise.
    """

    target: str
    section: str = ""
    streams_per_job: int = 1
    uses_split: bool = False
    quick: bool = False


PLAYED = 1024  # streams that cost a numpy step little more than one
LEARNED = 512  # more learners at once are no faster
SB3 = "sb3:"  # what an algorithm of stable-baselines3 or sb3-contrib follows
SOURCES = {
    "ppo": SourceRecord("teacher.ppo:ppo", "source"),
    "ppo_batched": SourceRecord("teacher.ppo_batched:ppo_batched", "source", LEARNED),
    "noise_expert": SourceRecord("teacher.noise_expert:noise_expert", "noise", PLAYED, quick=True),
    "noise_controller": SourceRecord(
        "teacher.noise_expert:noise_controller", "noise", PLAYED, quick=True
    ),
    "random": SourceRecord("teacher.noise_expert:random_play", "", PLAYED, quick=True),
    "posterior_sampling": SourceRecord(
        "teacher.posterior_sampling:posterior_sampling",
        "posterior",
        PLAYED,
        uses_split=True,
        quick=True,
    ),
    "ucb": SourceRecord("teacher.bandit_sources:ucb", "", PLAYED, quick=True),
    "linucb": SourceRecord("teacher.bandit_sources:linucb", "", PLAYED, quick=True),
    "thompson": SourceRecord(
        "teacher.bandit_sources:thompson", "", PLAYED, uses_split=True, quick=True
    ),
    "predictor": SourceRecord("teacher.pair_sources:predictor", "", PLAYED, quick=True),
}


def make_sources(
    styles: Sequence[str], sections: Mapping[str, Any], kwargs: Mapping[str, Mapping[str, Any]]
) -> dict[str, Source]:
    """The sources of `styles`.

    Args:
        styles: Keys of `SOURCES`, `sb3:NAME` of a class of stable-baselines3 or sb3-contrib, or
            import paths `module:function` of a function that takes a `SourceJob` and returns a
            `History` for each of its tasks, of which there will be one.
        sections: Configuration sections by name.
        kwargs: Arguments of sources that have no section, by style.

    Raises:
        SourceError: A style is unknown, cannot be imported, or does not take its arguments.
    """
    unread = sorted(set(kwargs) - set(styles))
    if unread:
        raise SourceError(
            f"collect.kwargs: {unread[0]!r} is no style of this collection; remove "
            "them or add the style"
        )
    sources = {}
    for style in styles:
        record = SOURCES.get(style) or SourceRecord(style, uses_split=True)  # it may
        settings = dict(kwargs.get(style, {}))
        if style.startswith(SB3):
            record = SourceRecord("teacher.sb3:sb3")
            settings["algorithm"] = style.removeprefix(SB3)
        if settings and record.section:
            raise SourceError(
                f"collect.kwargs: style {style!r} takes none; set its section "
                f"{record.section!r} instead"
            )
        if record.section:
            settings["config"] = sections[record.section]
        function = _imported(record.target)
        _check_arguments(style, function, settings)
        sources[style] = Source(
            function, settings, record.streams_per_job, record.uses_split, record.quick
        )
    return sources


def _check_arguments(style: str, function: Any, settings: Mapping[str, Any]) -> None:
    try:
        inspect.signature(function).bind(None, **settings)
    except (TypeError, ValueError) as error:
        raise SourceError(
            f"collect.styles: {style!r} must be a function of a job and of its arguments "
            f"{sorted(settings)}: {error}"
        ) from error


def _imported(target: str) -> Any:
    try:
        return import_object(target)
    except ImportPathError as error:
        raise SourceError(
            f"collect.styles: no source for style {target!r}; known: {', '.join(SOURCES)}, "
            f"sb3:NAME of an algorithm, or an import path: {error}"
        ) from error
