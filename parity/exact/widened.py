"""A bundle's graphs in float32 with nothing rounded on the way: what is left of a graph is its structure.

    float16, bfloat16   ports and weights are widened; the weights keep the values that are stored
    int8, int4          weights are dequantized as the graph says; pairs that round an activation are bypassed

Every form of the decoder runs so on ONNX Runtime, also those that only engines run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from t5edge.bundle.dtype import NARROW
from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.runtime.model import BundleModel
from t5edge.runtime.onnxruntime.buffered import BufferedModel
from t5edge.runtime.onnxruntime.emulation import widen, widened_ports
from t5edge.runtime.onnxruntime.model import OnnxRuntimeEncoder, OnnxRuntimeModel
from t5edge.runtime.onnxruntime.sessions import session_in_memory, session_options

UNFUSED = {"session.disable_quant_qdq": "1"}
"""Keeps ONNX Runtime from multiplying in integers."""
ENCODER = "encoder"


@dataclass(frozen=True)
class WidenedGraphs:
    """The graphs of one bundle, widened. The encoder is opened once, each decoder when its turn comes."""

    folder: Path
    manifest: Manifest

    def forms(self) -> list[str]:
        """The decoder's forms by their files' names."""
        return [name for name in self.manifest.ports if name != ENCODER]

    def models(self) -> Iterator[tuple[str, BundleModel]]:
        """The bundle with each form of its decoder; an encoder alone once, under its own name."""
        encoder = self._session(ENCODER)
        if not self.forms():
            yield ENCODER, BundleModel(self.folder, self.manifest, OnnxRuntimeEncoder(encoder))
        compute = self.manifest.precision.compute
        for name in self.forms():
            ports = self.manifest.ports[name]
            kind = BufferedModel if any(port.name == "past_length" for port in ports.inputs) else OnnxRuntimeModel
            own = widened_ports(ports, compute) if compute in NARROW else ports
            share = self.manifest.rows_share_cross
            step_model = kind(encoder, self._session(name), own, rows_share_cross=share)
            yield name, BundleModel(self.folder, self.manifest, step_model)

    def _session(self, name: str) -> Any:
        model = unrounded(ir.load(self.folder / f"{name}.onnx"), self.manifest.precision.compute)
        data = ir.to_proto(model).SerializeToString()
        try:
            return session_in_memory(data, self.folder, session_options(entries=UNFUSED))
        except Exception as error:  # onnxruntime raises its own classes, all below Exception
            raise UserError(f"'{name}.onnx' is no graph in float32 apart from its weights: {error}") from error


def unrounded(model: ir.Model, compute: str) -> ir.Model:
    """Rewrite a graph of compute dtype ``compute`` in place: float32, activations as they are."""
    for node in list(model.graph):
        exact = node.inputs[0] if node.op_type == "QuantizeLinear" else None
        if exact is not None:
            for use in list(node.outputs[0].uses()):
                ir.convenience.replace_all_uses_with(use.node.outputs[0], exact)
    return widen(model, compute) if compute in NARROW else model
