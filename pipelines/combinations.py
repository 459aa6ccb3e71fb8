"""Combinations of settings that make no sense, refused when a configuration is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compression.bottleneck import BOTTLENECKS, before_fit, bottleneck_class
from compression.memory import MEMORIES, memory_class
from pipelines.methods import METHODS

if TYPE_CHECKING:
    from pipelines.config import RunConfig


def check_combinations(config: RunConfig) -> None:
    """Refuse what parts make no sense together.

    Raises:
        ValueError: Naming the keys, and what to set them to.
    """
    _check_lengths(config)
    _check_positions(config)
    _check_online(config)
    _check_own_target(config)
    _check_windows(config)
    _check_capacity(config)
    _check_cut_down(config)
    if config.memory.kind in MEMORIES:  # a user's own is imported where it is built
        memory_class(config.memory.kind).check(config.memory)
    _check_losses(config)
    _check_rollouts(config)
    kind = config.compressor.bottleneck  # a user's own is imported where it is built
    fitted = kind in BOTTLENECKS and before_fit(config.compressor) != config.compressor
    if fitted and not config.finetune.enabled:
        raise ValueError(
            f"compressor.bottleneck={kind} is fitted to a distilled "
            "student, but finetune, which begins with the fit, is not enabled: nothing would ever "
            "be coded; set finetune.enabled=true"
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


def _check_windows(config: RunConfig) -> None:
    """Batches are whole windows."""
    window = config.sampling.window
    for name in ("train_teacher", "distill", "finetune"):
        optim = getattr(config, name).optim
        if optim.batch_size % (window * optim.accumulation_steps):
            raise ValueError(
                f"{name}.optim.batch_size is {optim.batch_size}, but sampling.window={window} "
                f"with {name}.optim.accumulation_steps={optim.accumulation_steps} needs a "
                f"multiple of {window * optim.accumulation_steps}"
            )


def _check_capacity(config: RunConfig) -> None:
    """A capacity weight has something to act on."""
    weights = {
        "pretrain.lambda_cap": config.pretrain.lambda_cap,
        "distill.loss.lambda_cap": config.distill.loss.lambda_cap,
        "finetune.loss.lambda_cap": config.finetune.loss.lambda_cap,
        "on_policy.loss.lambda_cap": config.on_policy.loss.lambda_cap,
    }
    kind = config.compressor.bottleneck
    for key, weight in weights.items():
        if weight > 0 and not bottleneck_class(kind).has_capacity:
            limited = [n for n, b in BOTTLENECKS.items() if bottleneck_class(b).has_capacity]
            raise ValueError(
                f"{key} is {weight}, but compressor.bottleneck={kind} has no capacity for it "
                f"to act on; set it to 0, or take one that has ({', '.join(limited)})"
            )


def _check_losses(config: RunConfig) -> None:
    """What losses ask of the models is what the models are, where a student is trained."""
    if config.method in METHODS and "distill" not in METHODS[config.method].stages:
        return
    frozen = config.distill.freeze_compressor and config.pretrain.enabled
    stages = {"distill": config.distill} | (
        {"finetune": config.finetune} if config.finetune.enabled else {}
    )
    stages |= {"on_policy": config.on_policy} if config.on_policy.enabled else {}
    for name, stage in stages.items():
        if stage.loss.queries == "all":
            for key, sees in (("decoder", config.decoder.sees), ("teacher", config.teacher.sees)):
                if sees != "step":
                    raise ValueError(
                        f"{name}.loss.queries is all, but {key}.sees={sees}: an observation "
                        "that was not visited has no steps before it to be seen; set "
                        f"{key}.sees to step, or queries to visited"
                    )
        if stage.loss.attention > 0 and config.decoder.reads == "prefix":
            raise ValueError(
                f"{name}.loss.attention is {stage.loss.attention}, but decoder.reads=prefix "
                "has no cross-attention whose outputs could be compared; set it to 0, or reads "
                "to cross"
            )
        if stage.loss.ahead > 0 and stage.loss.n_ahead > config.region_len:
            raise ValueError(
                f"{name}.loss.n_ahead is {stage.loss.n_ahead}, but region_len is "
                f"{config.region_len}: no step has so many after it; give at most that"
            )
        if stage.loss.attention > 0 and config.memory.kind != "one_shot":
            raise ValueError(
                f"{name}.loss.attention is {stage.loss.attention}, but "
                f"memory.kind={config.memory.kind} shows the decoder other vectors than a "
                "region's latents; set it to 0, or memory.kind to one_shot"
            )
    if config.distill.loss.attention > 0 and frozen:
        raise ValueError(
            f"distill.loss.attention is {config.distill.loss.attention}, but the compressor, "
            "which alone it trains, is frozen; set distill.freeze_compressor to false, or "
            "attention to 0"
        )


def _check_rollouts(config: RunConfig) -> None:
    """What has acted in a rollout is what is trained on it."""
    memory = config.memory
    for name in ("policy_gradient", "on_policy"):
        stage = getattr(config, name)
        n_regions = stage.rollouts.n_regions
        if memory.kind not in MEMORIES or not stage.enabled:
            continue
        kept = memory_class(memory.kind).regions_kept(memory)
        more = kept is None or kept > memory.n_regions
        if more and n_regions > memory.n_regions + 1:
            raise ValueError(
                f"{name}.rollouts.n_regions is {n_regions}, but memory.kind={memory.kind} is "
                f"led over {memory.n_regions} regions in training: what acted in later regions "
                f"had seen more; give at most {memory.n_regions + 1}, or raise memory.n_regions"
            )
    shipped = memory.kind in MEMORIES
    if config.policy_gradient.enabled and shipped and memory_class(memory.kind).draws(memory):
        raise ValueError(
            "policy_gradient is enabled, but memory.kwargs.pick=random draws anew which "
            "regions are read: the latents that were acted with cannot be computed again; set "
            "policy_gradient.enabled to false, or pick to similar"
        )
    kind = config.compressor.bottleneck
    if config.policy_gradient.enabled and bottleneck_class(kind).has_capacity:
        raise ValueError(
            f"policy_gradient is enabled, but compressor.bottleneck={kind} sends noise that is "
            "drawn anew: the latents that were acted with cannot be computed again; set "
            "policy_gradient.enabled to false, or take another bottleneck"
        )


def _check_cut_down(config: RunConfig) -> None:
    """Latents are such that they can be cut down at test as asked."""
    shown, number = config.evaluate.n_shown, config.evaluate.number
    kind, m = config.compressor.bottleneck, config.compressor.n_latents
    if number and kind in BOTTLENECKS and kind != "continuous":
        raise ValueError(
            f"evaluate.number is {number}, but compressor.bottleneck={kind} counts bits of its "
            "own; round plain latents only, of compressor.bottleneck=continuous"
        )
    if shown > m:
        raise ValueError(f"evaluate.n_shown is {shown}, expected at most {m}, the n_latents")
    if 0 < shown < m and not config.compressor.nested:
        raise ValueError(
            f"evaluate.n_shown is {shown} of {m}, but only nested latents work in part; train "
            "with compressor.nested=true"
        )
    if shown and config.memory.kind not in MEMORIES:
        raise ValueError(
            f"evaluate.n_shown is {shown}, but memory.kind={config.memory.kind} need not show "
            "latents as it was given them; leave n_shown at 0"
        )
