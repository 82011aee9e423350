"""t5edge: any T5-family checkpoint to a bundle for edge devices, proven against PyTorch.

    import t5edge
    bundle = t5edge.export(variant="t5-demo", precision="fp16", out="build/demo")
    model = t5edge.load("build/demo")
    model.generate_text(["spell 1984"])

Importing this package loads neither torch nor transformers nor onnx; ``load`` never does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from t5edge.errors import GateError, UserError

if TYPE_CHECKING:
    from t5edge.parity.ladder import verify
    from t5edge.pipeline import Bundle, export
    from t5edge.runtime.model import BundleModel, load

__all__ = ["Bundle", "BundleModel", "GateError", "UserError", "export", "load", "verify"]
__version__ = "0.1.0"

_HOMES = {
    "Bundle": "t5edge.pipeline",
    "export": "t5edge.pipeline",
    "verify": "t5edge.parity.ladder",
    "BundleModel": "t5edge.runtime.model",
    "load": "t5edge.runtime.model",
}

_EXPORTER = ("Bundle", "export", "verify")
"""What needs the packages of the ``export`` extra: without them, looking it up raises ``UserError``."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 't5edge' has no attribute '{name}'")
    import importlib

    from t5edge.errors import EXPORT, require_extra

    if name in _EXPORTER:
        require_extra(EXPORT)
    return getattr(importlib.import_module(_HOMES[name]), name)
