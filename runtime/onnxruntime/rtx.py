"""ONNX Runtime with the TensorRT-RTX provider (package onnxruntime-ep-nv-tensorrt-rtx): no engine files needed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.runtime.gpu import require_gpu
from t5edge.runtime.onnxruntime.gpu import open_on_gpu
from t5edge.runtime.onnxruntime.model import OnnxRuntimeEncoder
from t5edge.runtime.onnxruntime.sessions import session_options

NAME = "onnxruntime-rtx"
PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx"


def open(folder: Path, manifest: Manifest, target: str = NAME) -> OnnxRuntimeEncoder:
    """Open a bundle on the first RTX device.

    Raises:
        UserError: no GPU, the provider is not installed, or it finds no device.
    """
    require_gpu(target)
    try:
        import onnxruntime

        provider = importlib.import_module("onnxruntime_ep_nv_tensorrt_rtx")
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install onnxruntime {PACKAGE}") from error
    name = str(provider.get_ep_name())
    devices = _devices(onnxruntime, provider, name)
    if not devices:
        raise UserError(
            f"{PACKAGE} finds no RTX GPU (Ampere or later); use --target onnxruntime-cuda or --target onnxruntime."
        )

    def start(path: Path) -> Any:
        options = session_options()
        options.add_provider_for_devices(devices[:1], {})
        return onnxruntime.InferenceSession(str(path), options)

    return open_on_gpu(folder, manifest, name, start)


def _devices(onnxruntime: Any, provider: Any, name: str) -> list[Any]:
    """The provider's devices; registers its library once per process."""
    if not any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(name, provider.get_library_path())
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
