"""t5edge: any T5-family checkpoint to a bundle for edge devices, proven against PyTorch.

    import exporter
    bundle = exporter.export(variant="t5-demo", precision="fp16", out="build/demo")
    model = exporter.load("build/demo")
    model.generate_text(["spell 1984"])

Importing this package loads neither torch nor transformers nor onnx; ``load`` never does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.errors import GateError, UserError

if TYPE_CHECKING:
    from exporter.api import Bundle, export
    from exporter.parity.ladder import verify
    from exporter.runtime.model import BundleModel, load

__all__ = ["Bundle", "BundleModel", "GateError", "UserError", "export", "load", "verify"]
__version__ = "0.1.0"

_HOMES = {
    "Bundle": "exporter.api",
    "export": "exporter.api",
    "verify": "exporter.parity.ladder",
    "BundleModel": "exporter.runtime.model",
    "load": "exporter.runtime.model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'exporter' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
