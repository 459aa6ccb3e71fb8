"""A store of past regions: their latents, or the codes of these, with exact nearest neighbours.

Kept on disk as one safetensors file, without pickle. Plain latents take 4 M D bytes a region, codes
⌈M G ⌈log2 C⌉ / 8⌉. Shapes: B regions, M latents, D width, G codes of a latent, C codes there are.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from base.errors import UserError
from base.files import atomic_file
from compression.latents import Latents
from compression.neighbours import nearest

FORMAT_VERSION = 1
META = "store"
SEARCHED = 64
"""Entries faiss keeps in view while it searches; of random latents its own 16 find four fifths."""
MANY = 100_000
"""Entries beyond which an approximate index is worth its extra."""


class StoreError(UserError):
    """A store that cannot be read, or latents that do not belong into it."""


@dataclass(frozen=True)
class StoreLayout:
    """What a region is kept as.

    Attributes:
        n_latents: M.
        width: D of plain latents, G of codes.
        n_codes: C, codes there are; 0 for plain latents.
    """

    n_latents: int
    width: int
    n_codes: int = 0

    @property
    def bits_per_code(self) -> int:
        """⌈log2 C⌉."""
        return max(1, (self.n_codes - 1).bit_length())

    @property
    def bytes_per_region(self) -> int:
        """Bytes of a region on disk, its label not counted."""
        numbers = self.n_latents * self.width
        return -(-numbers * self.bits_per_code // 8) if self.n_codes else 4 * numbers

    @classmethod
    def of(cls, latents: Latents, n_codes: int = 0) -> StoreLayout:
        """Return that of these latents: their codes where a bottleneck has `n_codes` of them."""
        kept = _kept(latents, n_codes)
        return cls(kept.shape[1], kept.shape[2], n_codes)


class LatentStore:
    """Regions in the order in which they were appended, each with a label.

    Args:
        layout: What a region is kept as.
    """

    def __init__(self, layout: StoreLayout) -> None:
        self.layout = layout
        kind = torch.int32 if layout.n_codes else torch.float32
        self._parts = [torch.zeros(0, layout.n_latents, layout.width, dtype=kind)]
        self._labels = [np.zeros(0, np.int64)]
        self._index: Any = None

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    @property
    def entries(self) -> Tensor:
        """Latents (N, M, D) float32, or codes (N, M, G) int32."""
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0]

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, as they were appended."""
        self._labels = [np.concatenate(self._labels)]
        return self._labels[0]

    def append(self, latents: Latents, labels: np.ndarray | None = None) -> None:
        """Keep the latents (B, M, D) of regions, or their codes; hidden ones as zeros.

        Args:
            latents: Of completed regions.
            labels: (B,) whole numbers, such as the regions' tasks; running numbers if not given.

        Raises:
            StoreError: They are not of the store's layout.
        """
        rows = self._rows(latents)
        if labels is None:
            labels = np.arange(len(self), len(self) + len(rows))
        if len(labels) != len(rows):
            raise StoreError(f"{len(labels)} labels for {len(rows)} regions; give one for each.")
        self._parts.append(rows)
        self._labels.append(np.asarray(labels, np.int64))
        self._index = None

    def nearest(
        self, latents: Latents, k: int, *, approximate: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the k nearest entries of each region, nearest first.

        Args:
            latents: Of B regions, as for `append`.
            k: 1 ... the entries there are.
            approximate: Ask an HNSW index of faiss instead of comparing with every entry; for plain
                latents, beyond `MANY` entries. Needs the extra `search`.

        Returns:
            Indices (B, k), and distances (B, k): Euclidean between plain latents; between codes,
            how many differ.

        Raises:
            StoreError: There are fewer entries, or no index for these.
        """
        if not 1 <= k <= len(self):
            raise StoreError(f"the {k} nearest of {len(self)} regions; ask for 1 ... {len(self)}.")
        queries, entries = self._rows(latents).flatten(1), self.entries.flatten(1)
        if not approximate:
            return nearest(queries, entries, k)
        far, found = self._approximate_index(entries).search(queries.numpy(), k)
        return torch.from_numpy(found), torch.from_numpy(far).clamp_min(0).sqrt()

    def save(self, path: str | Path) -> None:
        """Write the store, whole or not at all.

        Raises:
            FileError: There is no room for it.
        """
        layout, entries = self.layout, self.entries.numpy()
        kept = _packed(entries, layout.bits_per_code) if layout.n_codes else entries
        meta = {"format_version": FORMAT_VERSION, **vars(layout)}
        with atomic_file(path) as temporary:
            tensors = {"entries": np.ascontiguousarray(kept), "labels": self.labels}
            save_file(tensors, temporary, metadata={META: json.dumps(meta)})

    @classmethod
    def load(cls, path: str | Path) -> LatentStore:
        """Read what `save` wrote.

        Raises:
            StoreError: It is no such file, damaged, or of another version.
        """
        try:
            with safe_open(str(path), framework="numpy") as file:
                meta: Mapping[str, Any] = json.loads((file.metadata() or {})[META])
                entries, labels = file.get_tensor("entries"), file.get_tensor("labels")
            version = meta["format_version"]
            layout = StoreLayout(*(int(meta[n]) for n in ("n_latents", "width", "n_codes")))
            store = cls(layout)
            shape = (len(labels), layout.n_latents, layout.width)
            if layout.n_codes:
                entries = _unpacked(entries, layout.bits_per_code, shape)
            store._parts = [torch.from_numpy(entries.reshape(shape))]
            store._labels = [labels]
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise StoreError(
                f"{path} is no store of latents, or damaged ({error}); give a file that "
                "LatentStore.save wrote."
            ) from error
        if version != FORMAT_VERSION:
            raise StoreError(
                f"{path} has format version {version}, this code reads {FORMAT_VERSION}; make it "
                "anew."
            )
        return store

    def _rows(self, latents: Latents) -> Tensor:
        """Return latents (B, M, D) float32 or codes (B, M, G) int32 as they are kept."""
        kept = _kept(latents, self.layout.n_codes)
        layout = (self.layout.n_latents, self.layout.width)
        if kept.shape[1:] != layout:
            raise StoreError(
                f"latents of shape {tuple(kept.shape[1:])} a region, but this store keeps "
                f"{layout}; append those of one student."
            )
        if kept.shape[1] == latents.values.shape[1]:  # codes of several at once: none is hidden
            kept = kept * latents.shown[..., None].to(kept)
        return kept.detach().to(torch.int32 if self.layout.n_codes else torch.float32).cpu()

    def _approximate_index(self, entries: Tensor) -> Any:
        if self.layout.n_codes:
            raise StoreError("codes are compared exactly; leave approximate out.")
        if self._index is None:
            try:
                faiss = importlib.import_module("faiss")
            except ImportError as error:
                raise StoreError(
                    "approximate neighbours need faiss; install the extra: pip install "
                    "'.[search]', or leave approximate out."
                ) from error
            self._index = faiss.IndexHNSWFlat(entries.shape[1], 32)
            self._index.hnsw.efSearch = SEARCHED
            self._index.add(entries.numpy())
        return self._index


def _kept(latents: Latents, n_codes: int) -> Tensor:
    """Return the values of latents, or, where there are codes, those."""
    if not n_codes:
        return latents.values
    if latents.codes is None:
        raise StoreError(
            f"a store of {n_codes} codes was asked for, but these latents have none; take a "
            "student with compressor.bottleneck=fsq or vq, or n_codes=0."
        )
    return latents.codes


def _packed(codes: np.ndarray, n_bits: int) -> np.ndarray:
    """Return codes (N, M, G) as bytes (N, ⌈M G n_bits / 8⌉), lowest bit first."""
    bits = codes.reshape(len(codes), -1, 1) >> np.arange(n_bits) & 1
    return np.packbits(bits.reshape(len(codes), -1).astype(np.uint8), axis=1)


def _unpacked(packed: np.ndarray, n_bits: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Undo `_packed`."""
    n_numbers = shape[1] * shape[2]
    bits = np.unpackbits(packed, axis=1, count=n_numbers * n_bits).astype(np.int32)
    powers = 1 << np.arange(n_bits, dtype=np.int32)
    return (bits.reshape(len(packed), n_numbers, n_bits) @ powers).reshape(shape).astype(np.int32)
