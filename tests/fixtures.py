"""Tiny fields, regions, tables and models for the tests of models and training.

Top level and without pytest, so that other processes can import it too.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from ad.decoder import DecoderConfig, Reads
from ad.model import ModelConfig, Triple
from ad.student import CADStudent
from ad.student_config import StudentConfig, StudentParts
from base.hashes import to_plain
from compression.compressor import Compressor, CompressorConfig
from compression.latents import Latents
from compression.memory import MemoryConfig
from compression.reconstruction import ReconstructionConfig
from nets.embeddings import Sees
from nets.regions import Regions
from nets.spaces import FieldSpec
from nets.tokens import Tokenisation
from teacher.apart import RegionsApart
from teacher.model import TeacherConfig, TeacherModel, TeacherModelConfig
from teacher.sliding_window import SlidingWindow

REGION_LEN = 6
WIDTH, HEADS = 16, 2
CELLS = FieldSpec("classes", (2,), (3, 3))
CHOICE = FieldSpec("classes", (), (5,))
SWITCHES = FieldSpec("classes", (2,), (2, 2))
NUMBERS = FieldSpec("vector", (3,), (), (-2.0, 0.0, -1.0), (2.0, 10.0, 1.0))
TORQUES = FieldSpec("vector", (2,))
PIXELS = FieldSpec("image", (8, 8, 3))


def make_values(spec: FieldSpec, *size: int) -> Tensor:
    """Random raw values (*size, *shape) of a field, from torch's global generator."""
    shape = (*size, *spec.shape)
    if spec.kind == "classes":
        draws = [torch.randint(n, size) for n in spec.n_classes]
        return torch.stack(draws, -1).view(shape)
    if spec.kind == "image":
        return torch.randint(256, shape, dtype=torch.uint8)
    return torch.rand(shape) * 2 - 1


def make_regions(
    *size: int,
    observation: FieldSpec = CELLS,
    action: FieldSpec = CHOICE,
    lengths: list[int] | None = None,
) -> Regions:
    """Random regions: fields (*size, ...), the last entry of `size` being the steps."""
    mask = torch.ones(size, dtype=torch.bool)
    if lengths is not None:
        mask = torch.arange(size[-1]) < torch.tensor(lengths)[:, None]
    return Regions(
        observations=make_values(observation, *size),
        actions=make_values(action, *size),
        rewards=torch.rand(size),
        next_observations=make_values(observation, *size),
        terminated=torch.rand(size) < 0.1,
        truncated=torch.rand(size) < 0.2,
        mask=mask,
    )


def make_triple(batch: int, n_context: int = 1, region_len: int = REGION_LEN, **fields) -> Triple:
    """A random batch in which every other row has no context."""
    context = make_regions(batch, n_context, region_len, **fields)
    has_context = (torch.arange(batch) % 2 == 0)[:, None].repeat(1, n_context)
    context.mask &= has_context[..., None]  # as batches come: what is absent is masked
    return Triple(context, has_context, make_regions(batch, region_len, **fields))


def select(regions: Regions, *index) -> Regions:
    """Index every field alike."""
    return regions.map(lambda field: field[index])


def make_student(
    kind: str = "query_pooling",
    *,
    observation: FieldSpec = CELLS,
    action: FieldSpec = CHOICE,
    region_len: int = REGION_LEN,
    width: int = WIDTH,
    dropout: float = 0.0,
    seed: int = 0,
    memory: MemoryConfig | None = None,
    model: dict | None = None,
    sees: Sees = "region",
    longest_region: int = 0,
    reads: Reads = "cross",
    **compressor,
) -> CADStudent:
    """A student of one or two layers, in training mode as built."""
    torch.manual_seed(seed)
    settings = {"n_latents": 2, "n_layers": 1, "dropout": dropout, **compressor}
    parts = StudentParts(
        ModelConfig(width, HEADS, **(model or {})),
        CompressorConfig(kind=kind, **settings),
        memory or MemoryConfig(),
        ReconstructionConfig(),
        DecoderConfig(n_layers=2, dropout=dropout, sees=sees, reads=reads),
    )
    fields = observation.to_json(), action.to_json()
    lengths = {"longest_region": longest_region}
    return CADStudent(StudentConfig(*fields, region_len, to_plain(parts), **lengths))


def make_teacher(
    n_context_regions: int = 1,
    *,
    region_len: int = REGION_LEN,
    seed: int = 0,
    model: dict | None = None,
    sees: Sees = "region",
    longest_region: int = 0,
    tokenisation: Tokenisation = "transition",
) -> TeacherModel:
    """A teacher of two layers."""
    torch.manual_seed(seed)
    settings = TeacherConfig(
        n_layers=2, n_context_regions=n_context_regions, sees=sees, tokenisation=tokenisation
    )
    sizes = asdict(ModelConfig(WIDTH, HEADS, **(model or {})))
    config = TeacherModelConfig(
        CELLS.to_json(),
        CHOICE.to_json(),
        region_len,
        sizes,
        asdict(settings),
        longest_region=longest_region,
    )
    return TeacherModel(config)


def make_apart(n_context_regions: int = 1, **settings) -> RegionsApart:
    """A raw-context model of two layers that reads every region by itself."""
    return RegionsApart(make_teacher(n_context_regions, **settings).config)


def make_sliding_window(
    window: int,
    *,
    region_len: int = REGION_LEN,
    seed: int = 0,
    model: dict | None = None,
) -> SlidingWindow:
    """A sliding window of one layer."""
    torch.manual_seed(seed)
    settings = TeacherConfig(n_layers=2, kwargs={"window": window})
    sizes = asdict(ModelConfig(WIDTH, HEADS, **(model or {})))
    return SlidingWindow(
        TeacherModelConfig(CELLS.to_json(), CHOICE.to_json(), region_len, sizes, asdict(settings))
    )


@dataclass
class ArrayTable:
    """Regions in plain arrays, standing in for the memory-mapped table."""

    columns: dict[str, np.ndarray]
    task: np.ndarray
    stream: np.ndarray
    region: np.ndarray


def make_table(
    n_tasks: int = 2, n_streams: int = 3, n_regions: int = 5, region_len: int = REGION_LEN
) -> ArrayTable:
    """A table whose rewards say which (task, stream, region, step) a transition comes from."""
    torch.manual_seed(0)
    n_rows = n_tasks * n_streams * n_regions
    columns = {
        name: field.numpy() for name, field in vars(make_regions(n_rows, region_len)).items()
    }
    task, stream, region = (
        axis.ravel() for axis in np.indices((n_tasks, n_streams, n_regions), dtype=np.int32)
    )
    address = (task * 100 + stream * 10 + region)[:, None] + np.arange(region_len) / 100
    columns["rewards"] = address.astype(np.float32)
    return ArrayTable(columns, task, stream, region)


class FirstTokens(Compressor):
    """A user's own compressor: the first tokens as they are."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Latents:
        return Latents(tokens[:, : self.n_latents])


class NotACompressor:
    """Something else that an import path may lead to."""
