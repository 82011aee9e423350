"""Rows of a cache taken where the cache is: a beam moves, a sentence gets its beams, drafted positions go.

``rows-*.onnx`` compute ``x[rows][:, :, positions]``, one file for each dtype that keys and values have.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from t5edge.runtime.onnxruntime.memory import Memory, unrecorded
from t5edge.runtime.onnxruntime.values import to_value

FILES = {dtype: Path(__file__).with_name(f"rows-{dtype}.onnx") for dtype in ("float", "float16", "bfloat16")}


class Rows:
    """Takes rows and positions of tensors [batch, heads, length, d_kv] that stay on their device."""

    def __init__(self, dtype: str, start: Callable[[Path], Any], device: str) -> None:
        """``dtype``: of the tensors; ``start``: makes a session of a file; ``device``: ONNX Runtime's name of it."""
        self._session, self._device = start(FILES[dtype]), device

    def take(self, tensor: Any, rows: np.ndarray, length: int) -> Any:
        """``tensor[rows][:, :, :length]`` as an ``OrtValue`` on the device; ``rows`` int64 [taken]."""
        binding = self._bound(rows, np.arange(length))
        binding.bind_ortvalue_input("x", tensor)
        binding.bind_output("y", self._device)
        self._session.run_with_iobinding(binding, unrecorded())
        return binding.get_outputs()[0]

    def into(self, old: Memory, new: Memory, rows: np.ndarray, positions: np.ndarray) -> None:
        """Write ``old[rows][:, :, positions]`` into ``new``, which has that shape."""
        binding = self._bound(rows, positions)
        binding.bind_input("x", *old.whole())
        binding.bind_output("y", *new.whole())
        self._session.run_with_iobinding(binding, unrecorded())

    def _bound(self, rows: np.ndarray, positions: np.ndarray) -> Any:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("rows", to_value(rows.astype(np.int64)))
        binding.bind_ortvalue_input("positions", to_value(positions.astype(np.int64)))
        return binding
