"""Any causal decoder of `transformers` as a raw-context model: Llama, Mamba, GPT-2, ...

It is fed with the embeddings of `teacher.model`, markers and all, in place of words, and its last
hidden states are read by the same heads. `teacher.kwargs.config` names its `model_type` and what
else its configuration is to hold; width, heads and depth follow from the sections `model` and
`teacher`. It brings its own notion of positions. Shapes as in `teacher.model`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from ad.model import Triple, seeded_part
from nets.regions import Regions, Steps
from teacher.model import START, TeacherError, TeacherModel, TeacherModelConfig

CACHES = ("past_key_values", "cache_params")
"""What decoders call what they keep of earlier tokens."""
TRIED = 6
"""Tokens by which a decoder shows that it is causal."""


@dataclass
class DecoderState:
    """What the model keeps while acting.

    Attributes:
        regions: The last R completed regions, the newest last.
        cache: The decoder's own; None before anything was read.
        length: Tokens in it.
        full: Most tokens it holds.
    """

    regions: list[Regions]
    cache: Any
    length: int
    full: int

    @property
    def n_bytes(self) -> int:
        """Bytes of the cache; of parts that grow with every token, at full length."""
        total = 0.0
        for tensor in _tensors(self.cache, set()):
            grows = tensor.ndim == 4 and tensor.shape[2] == self.length
            share = self.full / self.length if grows else 1.0
            total += tensor.numel() * tensor.element_size() * share
        return round(total)


class CausalDecoder(TeacherModel):
    """As `TeacherModel`, with the blocks of a decoder of `transformers`."""

    def build_layers(self, config: TeacherModelConfig) -> nn.Module:
        """Build the decoder that `teacher.kwargs.config` describes.

        Raises:
            TeacherError: There is no such decoder, it cannot be fed with embeddings, or sees ahead.
        """
        settings = config.settings
        wanted = settings.kwargs.get("config")
        if set(settings.kwargs) != {"config"} or not isinstance(wanted, dict):
            raise TeacherError(
                "teacher.kwargs of a causal decoder: expected config, a mapping with model_type, "
                f"and nothing else, got {settings.kwargs}."
            )
        for key, value, expected in (
            ("sees", settings.sees, "region"),
            ("dropout", settings.dropout, 0.0),
        ):
            if value != expected:
                raise TeacherError(
                    f"teacher.{key} is {value!r}, but a causal decoder reads its steps in one row "
                    f"and has dropouts of its own (in teacher.kwargs.config); set it to {expected}."
                )
        with seeded_part("layers"):
            layers = _built(config, dict(wanted), self.sequence_len)
        known = inspect.signature(layers.forward).parameters
        self.cache_name = next((name for name in CACHES if name in known), "")
        kind = wanted["model_type"]
        if "inputs_embeds" not in known or not self.cache_name:
            raise TeacherError(
                f"teacher.kwargs.config.model_type {kind!r} is no decoder that takes embeddings "
                f"and keeps earlier tokens; take one that has inputs_embeds and {CACHES[0]}."
            )
        if not _is_causal(layers, config.sizes.d_model):
            raise TeacherError(
                f"teacher.kwargs.config.model_type {kind!r} sees tokens that come later; take a "
                "causal decoder, such as llama or mamba."
            )
        return layers

    def build_positions(self) -> None:
        """None: the decoder has its own."""
        return

    def _init_weights(self, module: nn.Module) -> None:
        """Let the decoder restore what its weights do not hold, such as rotary frequencies."""
        layers: Any = self.layers
        if any(module is own for own in layers.modules()):
            layers._init_weights(module)

    @property
    def idle_modules(self) -> list[nn.Module]:
        """The token-type head, and the decoder's embedding of words."""
        return [self.token_type_head, self.layers.get_input_embeddings()]

    def hidden(self, batch: Triple) -> Tensor:
        """Return hidden states (B, R (L + 2) + 1 + L, D) of a batch with at least R regions."""
        before = self.tokens_before(*batch.nearest(self.n_context_regions))
        x = torch.cat([before, self._step_tokens(Steps.of(batch.query))], dim=1)
        return self.layers(inputs_embeds=x, use_cache=False).last_hidden_state

    def start(self, n: int) -> Any:
        """Return n streams without a region."""
        absent = self.no_context.expand(n, self.n_context_regions * (self.region_tokens + 2), -1)
        marker = self.token_types.weight[START].expand(n, 1, -1)
        state = DecoderState([], None, 0, self.sequence_len)
        return self._begin(torch.cat([absent, marker], dim=1), state)

    def take(self, region: Regions, state: Any) -> Any:
        """Keep a completed region (n, L, ...) raw; what was read of it is read anew."""
        regions = [*state.regions, region][-self.n_context_regions :]
        return DecoderState(regions, None, 0, self.sequence_len)

    def step(self, steps: Steps, state: Any) -> Tensor:
        """Return action parameters (n, P) for the next step."""
        return self.action_head(self._read(self._step_tokens(steps), state)[:, -1])

    def _begin(self, before: Tensor, state: Any) -> Any:
        self._read(before, state)
        return state

    def _read(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Read further tokens (n, T, D) into a state; return their hidden states."""
        kept = {} if state.cache is None else {self.cache_name: state.cache}
        found = self.layers(inputs_embeds=tokens, use_cache=True, **kept)
        state.cache = getattr(found, self.cache_name)
        state.length += tokens.shape[1]
        return found.last_hidden_state


def _built(config: TeacherModelConfig, wanted: dict[str, Any], length: int) -> Any:
    """Build a decoder of `transformers`; what it does not know of our sizes is left out."""
    kind = wanted.pop("model_type", None)
    sizes, width = config.sizes, config.sizes.d_model
    ours = {
        "vocab_size": 1,  # nobody reads words
        "hidden_size": width,
        "num_hidden_layers": config.settings.n_layers,
        "num_attention_heads": sizes.n_heads,
        "num_key_value_heads": sizes.n_heads,
        "max_position_embeddings": length,
    }
    try:
        plain = AutoConfig.for_model(kind)
        known = {name: value for name, value in ours.items() if hasattr(plain, name)}
        if "num_attention_heads" in known and hasattr(plain, "intermediate_size"):
            known["intermediate_size"] = 4 * width
        if strange := [name for name in wanted if not hasattr(plain, name)]:
            raise ValueError(f"its configuration has no {strange[0]!r}")
        # Words of its own, such as an end of text, would lie outside a vocabulary of one.
        tokens = {f"{name}_token_id": None for name in ("pad", "bos", "eos")}
        return AutoModel.from_config(AutoConfig.for_model(kind, **{**tokens, **known, **wanted}))
    except Exception as error:  # whatever a library of many models raises
        raise TeacherError(
            f"teacher.kwargs.config describes no decoder of transformers that can be built "
            f"(model_type {kind!r}: {type(error).__name__}: {error})."
        ) from error


@torch.no_grad()
def _is_causal(layers: nn.Module, width: int) -> bool:
    """Whether a token changes nothing before it; on the meta device it is believed."""
    device = next(layers.parameters()).device
    if device.type == "meta":
        return True
    with torch.random.fork_rng(devices=[]):
        x = torch.randn(1, TRIED, width, device=device)
        changed = x.clone()
        changed[:, -1] = torch.randn(width, device=device)
        was_training = layers.training
        layers.eval()
        states = [layers(inputs_embeds=e, use_cache=False).last_hidden_state for e in (x, changed)]
        layers.train(was_training)
    return torch.allclose(states[0][:, :-1], states[1][:, :-1], atol=1e-5)


def _tensors(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors within whatever a decoder keeps, each once."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from _tensors(value, seen)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from _tensors(value, seen)
    elif hasattr(thing, "__dict__") and not isinstance(thing, type | nn.Module):
        yield from _tensors(vars(thing), seen)
