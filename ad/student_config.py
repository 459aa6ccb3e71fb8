"""What a student is built from, as a run's configuration has it and as `config.json` keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from ad.decoder import DecoderConfig
from ad.model import InContextConfig, ModelConfig
from base.errors import UserError
from base.hashes import to_plain
from compression.bottleneck import BOTTLENECKS
from compression.compressor import KINDS, CompressorConfig
from compression.memory import MEMORIES, MemoryConfig
from compression.reconstruction import HEADS, ReconstructionConfig
from training.config import config_of


class StudentError(UserError):
    """A saved student that this code cannot build."""


@dataclass(frozen=True)
class StudentParts:
    """Everything a student is built from: the sections of a run's configuration that concern it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


class StudentConfig(InContextConfig):
    """What is stored in a student's `config.json`.

    Args:
        observation: As in `InContextConfig`.
        action: Likewise.
        region_len: Likewise.
        parts: Nested settings, `base.hashes.to_plain(StudentParts)`.
        kwargs: Likewise.
    """

    model_type = "cad-student"

    def __init__(
        self,
        observation: dict[str, Any] | None = None,
        action: dict[str, Any] | None = None,
        region_len: int = 80,
        parts: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.parts = parts or to_plain(StudentParts())
        super().__init__(observation, action, region_len, **kwargs)

    @property
    def student_parts(self) -> StudentParts:
        """The nested settings as dataclasses.

        Raises:
            StudentError: An earlier version of this code saved them.
            ConfigError: One is of another type or out of its range.
        """
        if missing := sorted(vars(StudentParts()).keys() - self.parts.keys()):
            raise StudentError(
                f"this student was saved by an earlier version of this code, without its section "
                f"{missing[0]!r}; use that version, or train it again."
            )
        return config_of(StudentParts, self.parts, "config.json: parts")

    @property
    def foreign_code(self) -> dict[str, str]:
        """Classes of somebody's own that building it imports, by key."""
        shipped = {
            "compressor.kind": KINDS,
            "compressor.bottleneck": BOTTLENECKS,
            "memory.kind": MEMORIES,
            "reconstruction.kind": HEADS,
        }
        parts = self.student_parts
        named = {key: attrgetter(key)(parts) for key in shipped}
        return {k: kind for k, kind in named.items() if kind not in shipped[k]}
