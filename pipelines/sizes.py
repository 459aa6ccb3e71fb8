"""What a run would need of memory at the very least, told before it takes hours to fail.

Lower bounds only: what is refused here cannot work, what passes still may not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from histories.schema import field_dtypes, field_shapes
from pipelines.config import RunConfig
from pipelines.methods import METHODS
from pipelines.stage import StageError
from pipelines.stages import STAGES, own_config

if TYPE_CHECKING:
    from pipelines.common import Run

WEIGHT_BYTES = 16
"""Of a parameter in training: itself, its gradient, two moments, in 32 bits."""


LARGE_MODEL = 10**8
"""Parameters from which a model is first built without memory."""


def least_parameters(config: RunConfig) -> int:
    """Fewer than any model of this configuration's method has, without building it."""
    own = own_config(config)
    width, region_len = own.model.d_model, own.region_len
    if "train_teacher" in METHODS[config.method].stages:
        tokens = region_len * own.teacher.n_context_regions
        window = own.teacher.kwargs.get("window")
        tokens = window if isinstance(window, int) else tokens
        return own.teacher.n_layers * 4 * width**2 + tokens * width
    layers = own.decoder.n_layers + own.reconstruction.n_layers
    return layers * 4 * width**2 + region_len * width


def check_sizes(run: Run, models: dict[str, Any]) -> None:
    """Refuse what needs more memory than this machine has.

    Args:
        run: Its configuration.
        models: Its methods' models by name; may be without memory.

    Raises:
        StageError: Naming the keys and the estimate.
    """
    limit = memory_bytes()
    for keys, needed in (*_data(run), *_training(run, models), *_evaluation(run)):
        if needed > limit:
            raise StageError(
                f"{keys} would need at least {_told(needed)} of memory, but this machine has "
                f"{_told(limit)}; take smaller ones."
            )


def memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _transition_bytes(run: Run) -> int:
    spaces = run.family.observation_space, run.family.action_space
    dtypes, shapes = field_dtypes(*spaces), field_shapes(*spaces)
    return sum(dtypes[name].itemsize * math.prod(shapes[name]) for name in dtypes)


def _data(run: Run) -> Iterator[tuple[str, int]]:
    config, each = run.config, _transition_bytes(run)
    for style in [] if config.histories else config.collect.styles:
        n_streams = config.collect.streams.get(style, config.collect.n_streams)
        n_regions = config.collect.regions.get(style, config.collect.n_regions)
        keys = f"{n_streams} streams of {n_regions} regions (collect) of region_len"
        yield f"{keys} {config.region_len}", n_streams * n_regions * config.region_len * each


def _training(run: Run, models: dict[str, Any]) -> Iterator[tuple[str, int]]:
    config, each = run.config, _transition_bytes(run)
    for name, model in models.items():
        own = own_config(run.of(name).config)
        raw = "train_teacher" in METHODS[name].stages
        seen = "teacher.n_context_regions" if raw else "memory.n_regions"
        of_rows = f"{_row_keys(own)}, {seen} {model.n_context_regions}"
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        layers = "teacher.n_layers" if raw else "decoder.n_layers, compressor, reconstruction"
        keys = f"{n_parameters} parameters of method {name} {of_rows} (model, {layers})"
        yield keys, n_parameters * WEIGHT_BYTES
        tokens = config.region_len * (1 + model.n_context_regions)
        row = tokens * each + config.region_len * own.model.d_model * 4
        for stage in METHODS[name].stages:
            optim = STAGES[stage].settings(own).optim
            rows = optim.batch_size // optim.accumulation_steps
            keys = f"{STAGES[stage].section}.optim.batch_size {optim.batch_size}"
            yield f"{keys} {of_rows}", rows * row
        rows = config.evaluate.n_offline
        yield f"evaluate.n_offline {rows} {of_rows}", rows * row


def _evaluation(run: Run) -> Iterator[tuple[str, int]]:
    for name, settings, tasks in (
        ("evaluate", run.config.evaluate, getattr(run.split, run.config.evaluate.part)),
        ("validation", run.config.validation, run.split.validation),
    ):
        streams, held = settings.n_seeds * len(tasks), run.config.model.d_model * 4
        keys = f"{name}.n_seeds {settings.n_seeds} x n_episodes {settings.n_episodes}"
        yield (
            f"{keys} {_row_keys(run.config)}",
            streams * (settings.n_episodes * 16 + run.config.region_len * held),
        )


def _row_keys(config: RunConfig) -> str:
    return f"of region_len {config.region_len}, model.d_model {config.model.d_model}"


def _told(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.3g} PiB"
