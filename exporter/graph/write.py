"""Stream the weights, once, into ``weights.safetensors``, which is also the external data of both graphs.

Each expression is followed once: read, convert, write, forget; a slice of rows at a time where nothing is transposed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import onnx_ir as ir

from t5edge.bundle.dtype import DTYPES
from t5edge.errors import UserError
from t5edge.exporter.graph.weight_expressions import (
    Exponents,
    Read,
    Rows,
    Smoothed,
    cast,
    evaluate,
    stacked_rows,
)
from t5edge.kernels.weights import PlannedTensor, StackedWeight

if TYPE_CHECKING:
    import torch

FILE_NAME = "weights.safetensors"
SLICE_BYTES = 1 << 24
"""Of a tensor that are converted at a time, about."""
Progress = Callable[[int], None]
"""Called with the number of bytes just written."""


@dataclass(frozen=True)
class Placed:
    """One tensor's place in the file: ``offset`` and ``length`` in bytes from the file's start."""

    tensor: PlannedTensor
    name: str
    offset: int
    length: int


@dataclass(frozen=True)
class WeightFile:
    """The plan of the file: its header, and where each tensor goes. Nothing is read to make it."""

    header: bytes
    tensors: tuple[Placed, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(placed.length for placed in self.tensors)


def plan_weights(models: Iterable[ir.Model]) -> WeightFile:
    """Lay out every distinct planned tensor of the models; equal expressions at equal dtype are stored once."""
    distinct: dict[str, PlannedTensor] = {}
    for model in models:
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, PlannedTensor):
                for tensor in (value.const_value, *_exponents(value.const_value)):
                    distinct.setdefault(_stored_name(tensor), tensor)
    ordered = sorted(distinct.items(), key=lambda item: -item[1].dtype.bitwidth)  # wide first keeps all aligned
    header: dict[str, object] = {"__metadata__": {"format": "t5edge"}}
    offset, spans = 0, []
    for name, tensor in ordered:
        length = tensor.nbytes
        shape = list(tensor.shape.numpy()) if tensor.dtype != ir.DataType.INT4 else [length]
        entry = {
            "dtype": DTYPES[tensor.dtype.name.lower()].safetensors,
            "shape": shape,
            "data_offsets": [offset, offset + length],
        }
        header[name] = entry
        spans.append((tensor, name, offset, length))
        offset += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    prefix = len(text).to_bytes(8, "little") + text
    return WeightFile(prefix, tuple(Placed(t, n, o + len(prefix), size) for t, n, o, size in spans))


def _exponents(tensor: PlannedTensor) -> list[PlannedTensor]:
    """The factors that a smoothed weight's channels are multiplied by, as tensors of their own."""
    base = getattr(tensor.expression, "base", tensor.expression)
    smoothed = base if isinstance(base, Smoothed) else tensor.expression
    if not isinstance(smoothed, Smoothed):
        return []
    expressions = [Exponents(factors) for factors in (smoothed.rows, smoothed.columns) if factors is not None]
    return [PlannedTensor(expression, ir.DataType.INT8, expression.key) for expression in expressions]


def _stored_name(tensor: PlannedTensor) -> str:
    return tensor.expression.key


def write_weights(
    plan: WeightFile, read: Read, folder: Path, progress: Progress | None = None, rows: Rows | None = None
) -> str:
    """Write the file into ``folder``; returns its sha256 in hex. ``rows``: reads in slices what ``read`` reads whole.

    One thread converts a slice while two others hash and write the one before.

    Raises:
        UserError: not enough room on the disk, or a tensor has values its dtype cannot hold.
    """
    check_room(folder, plan.size)
    digest, rows = hashlib.sha256(plan.header), rows or (lambda name: slices(read(name)))

    def store(file: BinaryIO, data: np.ndarray) -> None:
        _write(file, data)
        if progress is not None:
            progress(data.nbytes)

    try:
        with (
            (folder / FILE_NAME).open("wb") as file,
            ThreadPoolExecutor(1) as writer,
            ThreadPoolExecutor(1) as hasher,
        ):
            file.write(plan.header)
            previous: tuple[Future[None], ...] = ()
            for placed in plan.tensors:
                length = 0
                for data in chunks(placed.tensor, read, rows):
                    length += data.nbytes
                    _finish(previous)
                    previous = writer.submit(store, file, data), hasher.submit(digest.update, data.data)
                assert length == placed.length, f"{placed.name}: {length} bytes, planned {placed.length}"
            _finish(previous)
    except OSError as error:
        raise UserError(
            f"writing {FILE_NAME} failed: {error.strerror}; it needs {plan.size / 1e6:.0f} MB. "
            "Free some space or choose another --out."
        ) from error
    return digest.hexdigest()


def _finish(work: tuple[Future[None], ...]) -> None:
    for part in work:
        part.result()


def check_room(folder: Path, size: int) -> None:
    """Refuse early when the disk cannot hold ``size`` bytes.

    Raises:
        UserError: fewer bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"the disk is full: the weights need {size / 1e6:.0f} MB, {free / 1e6:.0f} MB are free. "
            "Free some space or choose another --out."
        )


def _write(file: BinaryIO, data: np.ndarray) -> None:
    view = data.data
    while view:
        view = view[file.write(view) :]


def slices(tensor: torch.Tensor) -> Iterable[torch.Tensor]:
    """Views of a tensor's rows, of about ``SLICE_BYTES`` each."""
    rows = max(1, SLICE_BYTES * len(tensor) // max(1, tensor.nbytes))
    return tensor.split(rows)


def chunks(tensor: PlannedTensor, read: Read, rows: Rows) -> Iterator[np.ndarray]:
    """Follow one expression: the tensor's bytes, row-major in its dtype, as uint8 arrays one after the other.

    Raises:
        UserError: a value is NaN, infinite, or beyond the range of the dtype.
    """
    import torch

    target = {
        ir.DataType.FLOAT: torch.float32,
        ir.DataType.FLOAT16: torch.float16,
        ir.DataType.BFLOAT16: torch.bfloat16,
    }.get(tensor.dtype)
    expression = tensor.expression
    if target is None:
        parts = slices(evaluate(expression, read))
    elif not isinstance(expression, StackedWeight):
        parts = slices(cast(evaluate(expression, read), target, expression.key))
    elif expression.transposed:
        parts = slices(_joined(stacked_rows(expression, rows, target), expression).T)
    else:
        parts = stacked_rows(expression, rows, target)
    for part in parts:
        yield part.contiguous().reshape(-1).view(torch.uint8).numpy()


def _joined(parts: Iterator[torch.Tensor], expression: StackedWeight) -> torch.Tensor:
    """All rows of a stack, [sum(out), in]."""
    first = next(parts)
    if len(first) == sum(expression.rows):
        return first
    joined = first.new_empty((sum(expression.rows), *first.shape[1:]))
    begin = 0
    for part in itertools.chain([first], parts):
        joined[begin : begin + len(part)] = part
        begin += len(part)
    return joined


def attach(model: ir.Model, plan: WeightFile, folder: Path) -> None:
    """Point the model's planned tensors into the file. The model then runs from the folder."""
    places = {placed.name: placed for placed in plan.tensors}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, PlannedTensor):
            placed = places[_stored_name(tensor)]
            value.const_value = ir.ExternalTensor(
                FILE_NAME,
                placed.offset,
                placed.length,
                tensor.dtype,
                shape=tensor.shape,
                name=value.name or placed.name,
                base_dir=os.fspath(folder),
            )
