"""ONNX Runtime's CUDA provider (package onnxruntime-gpu)."""

from __future__ import annotations

import contextlib
import io
from importlib import metadata
from pathlib import Path
from typing import Any

from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError, install
from t5edge.runtime.gpu import require_gpu
from t5edge.runtime.onnxruntime.cpu import is_recent
from t5edge.runtime.onnxruntime.gpu import has_buffers, open_on_gpu
from t5edge.runtime.onnxruntime.model import OnnxRuntimeEncoder
from t5edge.runtime.onnxruntime.sessions import session_options

NAME = "onnxruntime-cuda"
PROVIDER = "CUDAExecutionProvider"
NOT_RECORDABLE = "cannot use the graph capture feature"
"""What ONNX Runtime says of a graph with an operator that the provider does not have."""


def providers(record: bool) -> list[Any]:
    """The provider and its settings; ``record``: sessions whose runs can be CUDA graphs.

    Float32 products stay float32, which the provider would round to TF32's 10 bits from Ampere on.
    """
    return [(PROVIDER, {"use_tf32": "0", "enable_cuda_graph": str(int(record))}), "CPUExecutionProvider"]


def open(
    folder: Path, manifest: Manifest, target: str = NAME, *, buffers: bool = True, cuda_graphs: bool = True
) -> OnnxRuntimeEncoder:
    """Open a bundle on the first CUDA device; its decoder writes its cache in place where it can.

    ``buffers`` False: always ``decoder.onnx``. ``cuda_graphs`` False: every step's kernels are launched one by one.

    Raises:
        UserError: no GPU, no onnxruntime-gpu, or its CUDA provider does not start.
    """
    require_gpu(target)
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"onnxruntime-gpu is not installed; {install('onnxruntime-gpu')}") from error
    if PROVIDER not in onnxruntime.get_available_providers():
        raise UserError(no_provider(onnxruntime.__version__))
    _load_cuda(onnxruntime)

    def start(path: Path) -> Any:
        return onnxruntime.InferenceSession(str(path), session_options(entries={}), providers=providers(record))

    buffers = buffers and has_buffers(manifest) and is_recent(onnxruntime.__version__)
    record = buffers and cuda_graphs
    try:
        return open_on_gpu(folder, manifest, PROVIDER, start, buffers=buffers, record=record)
    except UserError as error:
        if NOT_RECORDABLE not in str(error):
            raise
    record = False
    return open_on_gpu(folder, manifest, PROVIDER, start, buffers=buffers)


def _load_cuda(onnxruntime: Any) -> None:
    """Load CUDA and cuDNN from the packages that the extra brings, which no search path names.

    What it prints of libraries that are not there is left out: the session that does not start says it.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


PACKAGES = ("onnxruntime", "onnxruntime-gpu")
"""Packages that own one import name."""


def no_provider(version: str) -> str:
    """Why the onnxruntime that is imported has no CUDA provider, and what to do."""
    packages = list(filter(_is_installed, PACKAGES))
    if len(packages) > 1:
        problem = "onnxruntime and onnxruntime-gpu, both installed, overwrite each other: no CUDA provider is left"
    else:
        problem = f"onnxruntime {version} has no CUDA provider"
    return f"{problem}; {reinstall('onnxruntime-gpu')}"


def reinstall(extra: str) -> str:
    """How to get from any of the packages that own ``import onnxruntime``, or both, to one of them."""
    return f"pip uninstall onnxruntime onnxruntime-gpu, then {install(extra)}"


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
