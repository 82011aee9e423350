"""The backends: what can run a bundle, and what each of them is able to do.

Code asks for a capability, never for a name. A backend's module is imported when a bundle is opened on it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError


@dataclass(frozen=True)
class Backend:
    """One row.

    Attributes:
        name: what ``--target`` calls it.
        module: has ``open(folder, manifest, target, **settings)``, which returns a ``StepModel``.
        is_engine: it runs engines that are built for one kind of GPU, with fixed largest sizes; otherwise the graphs.
        needs_gpu: it runs on an NVIDIA GPU only.
        takes_threads: ``open`` takes ``threads``.
        emulates: compute dtypes (ONNX's lower-case names) that it has no kernels for and computes in float32, rounded.
        writes_cache_in_place: it runs the decoder that writes its cache in place, where the bundle has one; ``open``
            takes ``buffers``, False for the one whose cache grows.
    """

    name: str
    module: str
    is_engine: bool = False
    needs_gpu: bool = True
    takes_threads: bool = False
    emulates: tuple[str, ...] = ()
    writes_cache_in_place: bool = False

    def max_batch(self, manifest: Manifest) -> int | None:
        """The most rows of a batch; None where only memory limits them."""
        return manifest.limits.max_batch if self.is_engine else None

    def open(self, folder: Path, manifest: Manifest, **settings: Any) -> Any:
        """The bundle's ``StepModel`` on this backend.

        Raises:
            UserError: the backend cannot run the bundle here.
        """
        return importlib.import_module(self.module).open(folder, manifest, self.name, **settings)


BACKENDS = {
    row.name: row
    for row in (
        Backend(
            "onnxruntime",
            "t5edge.runtime.onnxruntime.cpu",
            needs_gpu=False,
            takes_threads=True,
            emulates=("bfloat16",),
            writes_cache_in_place=True,
        ),
        Backend("onnxruntime-cuda", "t5edge.runtime.onnxruntime.cuda", writes_cache_in_place=True),
        Backend("onnxruntime-rtx", "t5edge.runtime.onnxruntime.rtx"),
        Backend("tensorrt", "t5edge.runtime.tensorrt.open", is_engine=True),
        Backend("tensorrt-rtx", "t5edge.runtime.tensorrt.open", is_engine=True),
    )
}


def find_backend(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        UserError: there is none.
    """
    if name not in BACKENDS:
        raise UserError(f"target '{name}' is unknown; choose one of {', '.join(BACKENDS)}.")
    return BACKENDS[name]
