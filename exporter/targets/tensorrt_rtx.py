"""TensorRT-RTX: the code of TensorRT with another module. Builds for any RTX GPU without having it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.targets.tensorrt_run import EngineModel

NAME = "tensorrt-rtx"


def open(folder: Path, manifest: dict[str, Any]) -> EngineModel:
    """Open the bundle's TensorRT-RTX engines on this machine's GPU.

    Raises:
        UserError: no GPU, no engine for it, or an engine that does not fit.
    """
    from exporter.targets.tensorrt_open import open_engines

    return open_engines(folder, manifest, NAME)
