"""Whether the graphs read each weight from where the weights file keeps the tensor of that name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from t5edge.bundle.dtype import DTYPES
from t5edge.exporter.graph.write import FILE_NAME

SECOND_NAME = "embedding."
"""Prefix of a second name for the same bytes: ONNX Runtime fuses only where one node reads a constant."""


def misplaced(folder: Path, graphs: Iterable[str]) -> list[str]:
    """Initializers of the graphs (by file name without suffix) whose place, shape or dtype is not their tensor's."""
    places = _places(folder / FILE_NAME)
    return [name for graph in graphs for name in _misplaced(folder / f"{graph}.onnx", places)]


def _places(path: Path) -> dict[str, tuple[int, int, str]]:
    """Offset from the file's start, bytes and dtype of each tensor, as the header says."""
    import json

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        name: (8 + size + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0], entry["dtype"])
        for name, entry in header.items()
    }


def _misplaced(path: Path, places: dict[str, tuple[int, int, str]]) -> Iterator[str]:
    for name, value in ir.load(path).graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        dtype = DTYPES[tensor.dtype.name.lower()].safetensors
        found = (tensor.offset or 0, tensor.length, dtype)
        if tensor.location != FILE_NAME or places.get(name.removeprefix(SECOND_NAME)) != found:
            yield f"{path.stem}: {name}"
