"""ONNX Runtime on an NVIDIA GPU: the bundle's graphs as they are, keys and values on the device between steps.

Two ways: the CUDA provider of onnxruntime-gpu, and the TensorRT-RTX provider that plugs into plain onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.manifest import Manifest
from t5edge.bundle.ports import GraphPorts
from t5edge.errors import UserError
from t5edge.runtime.onnxruntime.buffered import GRAPH
from t5edge.runtime.onnxruntime.captured import CapturedModel
from t5edge.runtime.onnxruntime.model import OnnxRuntimeEncoder, OnnxRuntimeModel, positions_of
from t5edge.runtime.onnxruntime.rows import Rows

if TYPE_CHECKING:
    from t5edge.runtime.generation.step import Tokens
    from t5edge.runtime.onnxruntime.model import State

Start = Callable[[Path], Any]
"""Makes a session of an ONNX file."""


class DeviceModel(OnnxRuntimeModel):
    """As on the CPU, with outputs left on the device; only logits come to the host."""

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        ports: GraphPorts,
        device: str,
        start: Start,
        *,
        rows_share_cross: bool = False,
    ) -> None:
        """``device``: ONNX Runtime's name of where outputs stay, ``cuda`` (tests: ``cpu``); ``start``: as there."""
        super().__init__(encoder, decoder, ports, rows_share_cross=rows_share_cross)
        self._device = device
        self._rows = Rows(self._own_dtype, start, device)

    def reorder(self, state: State, rows: Tokens) -> None:
        """Row ``r`` continues the cache of the old row ``rows[r]``."""
        for name in self._present.values():
            cache = state.feeds[name]
            state.feeds[name] = self._rows.take(cache, rows, positions_of(cache))

    def execute(self, session: Any, names: Sequence[str], feeds: dict[str, Any]) -> Sequence[Any]:
        """Run with bound outputs; see ``OnnxRuntimeModel.execute``."""
        binding = session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, "cpu" if name == "logits" else self._device)
        session.run_with_iobinding(binding)
        outputs: Sequence[Any] = binding.get_outputs()
        return outputs

    def _shortened(self, cache: Any, length: int) -> Any:
        return self._rows.take(cache, np.arange(cache.shape()[0]), length)

    def _repeated(self, value: Any, copies: int) -> Any:
        if copies == 1 or len(value.shape()) != 4:  # where the cache starts is one number per sentence, of the host
            return super()._repeated(value, copies)
        return self._rows.take(value, np.repeat(np.arange(value.shape()[0]), copies), positions_of(value))


def has_buffers(manifest: Manifest) -> bool:
    """Whether ``CapturedModel`` runs the bundle."""
    return GRAPH in manifest.ports and manifest.rows_share_cross and not manifest.architecture.prefix_lengths


def open_on_gpu(
    folder: Path, manifest: Manifest, provider: str, start: Start, *, buffers: bool = False, record: bool = False
) -> OnnxRuntimeEncoder:
    """Open every graph and make sure that ``provider`` took them: ONNX Runtime falls back to the CPU without a word.

    ``buffers``: the decoder that writes its cache in place (only if ``has_buffers``). ``record``: ``start`` makes
    sessions that record every run as a CUDA graph unless told otherwise, which that decoder alone can be run by.

    Raises:
        UserError: a graph cannot be loaded, or the provider did not start.
    """
    files = {"decoder": GRAPH if buffers else "decoder"}
    sessions = [
        _started(folder / f"{files.get(name, name)}.onnx", provider, start) for name in manifest.architecture.stacks
    ]
    if manifest.architecture.encoder_alone:
        return OnnxRuntimeEncoder(sessions[0])  # its outputs come to the host
    ports = manifest.ports["decoder"]
    if buffers:
        return CapturedModel(sessions[0], sessions[1], ports, "cuda", start, record=record)
    return DeviceModel(sessions[0], sessions[1], ports, "cuda", start, rows_share_cross=manifest.rows_share_cross)


def _started(path: Path, provider: str, start: Start) -> Any:
    try:
        session = start(path)
    except Exception as error:  # onnxruntime raises its own classes, all below Exception
        raise UserError(f"onnxruntime's {provider} cannot load '{path}': {' '.join(str(error).split())}") from error
    if provider not in session.get_providers():
        raise UserError(
            f"onnxruntime's {provider} did not start and the CPU would run instead; check the CUDA and cuDNN "
            "libraries, or use --target onnxruntime."
        )
    return session
