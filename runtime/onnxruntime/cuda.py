"""ONNX Runtime's CUDA provider (package onnxruntime-gpu)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.runtime.onnxruntime.cpu import session_options
from t5edge.runtime.onnxruntime.gpu import DeviceModel, open_on_gpu, require_gpu

NAME = "onnxruntime-cuda"
PROVIDER = "CUDAExecutionProvider"


def open(folder: Path, manifest: Manifest, target: str = NAME) -> DeviceModel:
    """Open a bundle on the first CUDA device.

    Raises:
        UserError: no GPU, no onnxruntime-gpu, or its CUDA provider does not start.
    """
    require_gpu(target)
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("onnxruntime-gpu is not installed; pip install onnxruntime-gpu") from error
    if PROVIDER not in onnxruntime.get_available_providers():
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} has no CUDA provider; "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        )

    def start(path: Path) -> Any:
        return onnxruntime.InferenceSession(str(path), session_options(), providers=[PROVIDER, "CPUExecutionProvider"])

    return open_on_gpu(folder, manifest, PROVIDER, start)
