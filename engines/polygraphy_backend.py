"""Polygraphy, which drives the builders: asked for and pointed at one of them only where engines are built."""

from __future__ import annotations

import importlib.util
import sys

from t5edge.errors import UserError
from t5edge.runtime.tensorrt.flavor import Flavor, TensorRT, load_tensorrt


def load_builder(target: str) -> TensorRT:
    """``load_tensorrt`` where it can also build.

    Raises:
        UserError: it or polygraphy is not installed, or it is too old.
    """
    tool = load_tensorrt(target)
    if importlib.util.find_spec("polygraphy") is None:
        raise UserError(f"polygraphy is not installed, building engines of {target} needs it; pip install polygraphy")
    return tool


def point_polygraphy(flavor: Flavor) -> None:
    """Polygraphy serves one of the two modules per process, chosen before its TensorRT backend is imported.

    Raises:
        UserError: it already serves the other module.
    """
    import polygraphy.config

    rtx = flavor.module == "tensorrt_rtx"
    if "polygraphy.backend.trt" in sys.modules and rtx != polygraphy.config.USE_TENSORRT_RTX:
        raise UserError(
            "one process serves either tensorrt or tensorrt-rtx, and this one has loaded the other; "
            f"run 't5edge build BUNDLE --target {flavor.target}' by itself."
        )
    polygraphy.config.USE_TENSORRT_RTX = rtx
