"""Memory of a device that ONNX Runtime's bindings take by address: of a fixed place, and in parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from t5edge.bundle.dtype import DTYPES
from t5edge.runtime.onnxruntime.values import BFLOAT16


class Memory:
    """A tensor on the device, zeros at first; it and its parts are bound by their addresses."""

    def __init__(self, shape: tuple[int, ...], dtype: str, device: str) -> None:
        from onnxruntime import OrtValue

        held = DTYPES[dtype].array
        zeros = np.zeros(shape, held)
        self.value, self.shape, self._device = OrtValue.ortvalue_from_numpy(zeros, device, 0), shape, device
        self._element, self._item = BFLOAT16 if dtype == "bfloat16" else held.type, held.itemsize
        self._of_the_cpu = zeros if device == "cpu" else None  # there it is the memory itself

    @property
    def bytes(self) -> int:
        """How much it takes."""
        return math.prod(self.shape) * self._item

    def view(self, first: int, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """How a binding takes the elements from ``first`` on as a tensor of ``shape``."""
        return self._device, 0, self._element, shape, self.value.data_ptr() + first * self._item

    def whole(self) -> tuple[Any, ...]:
        """How a binding takes all of it."""
        return self.view(0, self.shape)

    def parts(self, count: int) -> Iterator[tuple[Any, ...]]:
        """How a binding takes each of ``count`` equal parts of its first axis."""
        shape = (self.shape[0] // count, *self.shape[1:])
        return (self.view(place * math.prod(shape), shape) for place in range(count))


def run_options(graph: int) -> Any:
    """Options of a run that is recorded as, or repeats, CUDA graph ``graph``."""
    from onnxruntime import RunOptions

    options = RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def unrecorded() -> Any:
    """Options of a run whose kernels are launched one by one, of a session that would record it otherwise."""
    return run_options(-1)
