"""Combinations of a method's variants that make no sense, refused when a configuration is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compression.bottleneck import BOTTLENECKS, bottleneck_class
from compression.memory import memory_class

if TYPE_CHECKING:
    from pipelines.config import RunConfig


def check_variants(config: RunConfig) -> None:
    """Refuse what parts make no sense together.

    Raises:
        ValueError: Naming the keys, and what to set them to.
    """
    _check_lengths(config)
    _check_positions(config)
    _check_online(config)
    _check_own_target(config)
    if config.compressor.bottleneck_kwargs.get("fitted") and not config.finetune.enabled:
        raise ValueError(
            "compressor.bottleneck_kwargs.fitted is true, but finetune, which begins with the "
            "fit, is not enabled: nothing would ever be coded; set finetune.enabled=true"
        )


def _check_lengths(config: RunConfig) -> None:
    """Regions have lengths that there can be."""
    jitter, length = config.sampling.jitter, config.region_len
    if jitter and not config.sampling.reach(length):
        raise ValueError(
            f"sampling.jitter is {jitter}, but half of that share of region_len={length} is "
            f"less than a step; give {2 / length:.2g} or more, or 0 for none"
        )
    if jitter and config.collect.marker_rule == "episode":
        raise ValueError(
            f"sampling.jitter is {jitter}, but collect.marker_rule=episode makes regions of "
            "many lengths already, at episodes' ends; set it to 0, or take another rule"
        )
    if config.evaluate.region_len > config.longest_region:
        raise ValueError(
            f"evaluate.region_len is {config.evaluate.region_len}, but no model is trained on "
            f"regions of more than {config.longest_region} transitions; give at most as many, "
            "or raise sampling.jitter"
        )


def _check_online(config: RunConfig) -> None:
    """A region that is compressed while it is filled has parts, and somebody to read them."""
    online = config.compressor.online
    if online >= config.region_len:
        raise ValueError(
            f"compressor.online is {online}, but a region of region_len={config.region_len} is "
            "full by then; give fewer steps, or 0 to compress whole regions alone"
        )
    if online and config.decoder.reads == "prefix":
        raise ValueError(
            f"compressor.online is {online}, but with decoder.reads=prefix latents attend to "
            "each other, those of the past to those of a region being filled: every part would "
            "have to be processed with all of them anew; set reads to cross, or online to 0"
        )
    for name in ("distill", "finetune", "on_policy"):
        if online and getattr(config, name).loss.queries == "all":
            raise ValueError(
                f"compressor.online is {online}, but {name}.loss.queries=all asks about "
                "observations that stand nowhere in the region; set queries to visited, or "
                "online to 0"
            )


def _check_own_target(config: RunConfig) -> None:
    """A student that is its own teacher reads raw tokens as it reads latents."""
    for name in ("distill", "finetune", "on_policy"):
        if getattr(config, name).loss.target != "self":
            continue
        told = f"{name}.loss.target is self, but "
        if name == "on_policy":
            raise ValueError(
                f"{told}the full context would be learned from the student's own actions; take "
                "another of the targets"
            )
        if config.compressor.online:
            raise ValueError(
                f"{told}with compressor.online={config.compressor.online} the steps of a region "
                "do not see all of it before them; set online to 0, or take another target"
            )
        if config.compressor.latent_positions == "rotary":
            raise ValueError(
                f"{told}with compressor.latent_positions=rotary what is read has the places of "
                "latents; set it to learned, fixed or none, or take another target"
            )


def _check_positions(config: RunConfig) -> None:
    """Latents can be told apart."""
    kind, positions = config.compressor.bottleneck, config.compressor.latent_positions
    if positions == "none" and kind in BOTTLENECKS and not bottleneck_class(kind).keeps_address:
        raise ValueError(
            f"compressor.latent_positions is none, but a code of compressor.bottleneck={kind} "
            "does not say which latent it is, and nothing else would; set it to learned or "
            "fixed, or take another bottleneck"
        )
    if positions == "rotary":
        _check_rotary(config)


def _check_rotary(config: RunConfig) -> None:
    """Keys of latents can be turned by how far back they lie."""
    instead = "; set it to learned, fixed or none"
    if not memory_class(config.memory.kind).tells_places():
        raise ValueError(
            f"compressor.latent_positions is rotary, but memory.kind={config.memory.kind} does not "
            f"tell how far back what it shows lies{instead}, or kind to accumulate"
        )
    if config.decoder.reads == "prefix":
        raise ValueError(
            "compressor.latent_positions is rotary, but with decoder.reads=prefix latents are "
            f"read by self-attention, which is not turned{instead}, or reads to cross"
        )
    if config.compressor.online:
        raise ValueError(
            "compressor.latent_positions is rotary, but latents of a region being filled "
            f"(compressor.online={config.compressor.online}) have no place yet{instead}, or online "
            "to 0"
        )
    if config.model.d_model // config.model.n_heads % 2:
        raise ValueError(
            "compressor.latent_positions is rotary, which turns pairs, but a head of "
            f"model.d_model={config.model.d_model} and n_heads={config.model.n_heads} has an odd "
            f"width{instead}, or change d_model or n_heads"
        )
    for name in ("distill", "finetune", "on_policy"):
        if getattr(config, name).loss.attention:
            raise ValueError(
                f"compressor.latent_positions is rotary, but {name}.loss.attention compares with "
                f"raw tokens, which have no places{instead}, or attention to 0"
            )
