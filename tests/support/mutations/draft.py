"""A copy of a bundle to change: its stored tensors by the checkpoint's names, its graphs, its JSON files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from support.exports import fix_hashes
from t5edge.bundle.manifest import Manifest
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint

WEIGHTS = "weights.safetensors"
DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8}
MEMBER = re.compile(r"[A-Za-z_][\w.]*\.weight")
DECODERS = ("decoder", "decoder_buffered")
GRAPHS = ("encoder", *DECODERS)
SUBLAYERS = {"SelfAttention": 0, "EncDecAttention": 1}


@dataclass
class Matrix:
    """One stored matrix ``[in, out]``, to be changed in place.

    Attributes:
        values: float32 or float16; int8 where quantized, four bits unpacked.
        scales: ``[out]`` or ``[blocks, out]`` float32, None where not quantized.
        columns: those of the tensor that was asked for, in a stack of several.
    """

    values: np.ndarray
    scales: np.ndarray | None
    columns: slice

    def take_columns(self, order: np.ndarray) -> None:
        """Reorder the output channels, with their scales."""
        self.values[:] = self.values[:, order]
        if self.scales is not None:
            self.scales[:] = self.scales[..., order]

    def multiply(self, factor: float) -> None:
        """Multiply the columns by a factor."""
        array = self.values if self.scales is None else self.scales
        array[..., self.columns] *= array.dtype.type(factor)


class Draft:
    """A bundle's copy in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest.read(folder)
        self.architecture = self.manifest.architecture
        with (folder / WEIGHTS).open("rb") as file:
            self._start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(self._start - 8))
        header.pop("__metadata__", None)
        self.header: dict[str, dict[str, Any]] = header

    @cached_property
    def checkpoint(self) -> Checkpoint:
        found = self.manifest
        return open_checkpoint(found.variant, random_weights=found.random_weights, revision=found.revision)

    def finish(self) -> None:
        """Correct the manifest's hashes."""
        fix_hashes(self.folder)

    def stored(self, name: str) -> np.ndarray:
        """The tensor called exactly so, mapped for writing in place."""
        entry = self.header[name]
        offset = self._start + entry["data_offsets"][0]
        return np.memmap(self.folder / WEIGHTS, DTYPES[entry["dtype"]], "r+", offset, tuple(entry["shape"]))

    def find(self, fragment: str) -> list[str]:
        """Names of stored tensors that hold ``fragment``, scales and bias tables left out."""
        names = [name for name in self.header if fragment in name]
        return [name for name in names if ".scales(" not in name and "distance(" not in name]

    def path(self, stack: str, layer: int, part: str) -> str:
        """The checkpoint's name of a weight: ``part`` is SelfAttention.q, DenseReluDense.wo, ..."""
        place = SUBLAYERS.get(part.split(".")[0], 2 if stack == "decoder" else 1)
        return f"{stack}.block.{layer}.layer.{place}.{part}.weight"

    @contextmanager
    def matrix(self, member: str) -> Iterator[Matrix]:
        """The stored matrix that holds the checkpoint's ``member``; what is changed is written back."""
        name = self.find(member)[-1]
        members = MEMBER.findall(name)
        array = self.stored(name)
        scales = self.stored(name.replace(".values(", ".scales(", 1)) if ".values(" in name else None
        values: np.ndarray = array
        if array.dtype == np.uint8:
            assert scales is not None
            values = unpacked(array).reshape(-1, scales.shape[-1])
        width = values.shape[1] // len(members)
        place = members.index(member)
        yield Matrix(values, scales, slice(place * width, (place + 1) * width))
        if array.dtype == np.uint8:
            array[:] = packed(values)

    @contextmanager
    def embedding(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Token embeddings [vocab, d_model], and their scales [vocab] where quantized; written back."""
        if "shared.weight" in self.header:
            yield self.stored("shared.weight"), None
        else:
            name = next(key for key in self.header if re.match(r"int8\S*\.values\((T\()?shared\.weight", key))
            table = self.stored(name)
            yield table.T if "T(" in name else table, self.stored(name.replace(".values(", ".scales("))

    def tables(self, stack: str) -> list[np.ndarray]:
        """The position bias tables [heads, distances] of a stack, in the order of its layers."""
        return [self.stored(name) for name in self.header if name.startswith(f"distance({stack}.")]

    def norm(self, name: str) -> list[np.ndarray]:
        """Every stored copy of a norm's weight [d_model]."""
        return [self.stored(found) for found in self.find(name)]

    def has(self, graph: str) -> bool:
        return (self.folder / f"{graph}.onnx").is_file()

    @contextmanager
    def graph(self, name: str) -> Iterator[ir.Graph]:
        """The graph of one file; what is changed is written back."""
        path = self.folder / f"{name}.onnx"
        model = ir.load(path)
        yield model.graph
        ir.save(model, path)

    @contextmanager
    def json(self, name: str) -> Iterator[dict[str, Any]]:
        """The content of a JSON file; what is changed is written back."""
        path = self.folder / name
        data = json.loads(path.read_text(encoding="utf-8"))
        yield data
        path.write_text(json.dumps(data), encoding="utf-8")


def unpacked(array: np.ndarray) -> np.ndarray:
    """int8 values of packed four-bit pairs, low half first."""
    nibbles = np.stack([array & 15, array >> 4], axis=-1).reshape(-1).astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8)


def packed(values: np.ndarray) -> np.ndarray:
    """The inverse of ``unpacked``."""
    nibbles = values.reshape(-1).astype(np.uint8) & 15
    return nibbles[0::2] | (nibbles[1::2] << 4)
