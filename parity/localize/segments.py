"""Cut a bundle's graphs at the residual stream and run one piece with that piece's weights only.

    hidden_0 -> + self-attention -> + (cross-attention) -> + feed-forward -> hidden_1 -> ...

Every addition to the residual stream ends a sublayer. A piece between two of them is extracted and run by ONNX Runtime;
its weights stay in ``weights.safetensors``, from which ONNX Runtime maps what the piece names and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from t5edge.bundle.architecture import Stack
from t5edge.bundle.dtype import NARROW
from t5edge.kernels.roles import attentions, norms
from t5edge.runtime.onnxruntime.arithmetic import open_exact
from t5edge.runtime.onnxruntime.emulation import ROUNDING_REMOVERS, emulate
from t5edge.runtime.onnxruntime.sessions import CONFIGURATION, Entries, session_in_memory, session_options


@dataclass(frozen=True)
class Sublayer:
    """``out = hidden + added``, all [batch, length, d_model].

    ``bias`` is the attention's additive mask, [batch or 1, heads or 1, queries, keys]; None for the feed-forward.
    """

    hidden: ir.Value
    added: ir.Value
    out: ir.Value
    bias: ir.Value | None


class CutGraph:
    """One graph of a bundle as pieces. ``sublayers[i]`` are the sublayers that were found in layer i."""

    def __init__(self, folder: Path, stack: Stack, compute: str, k: int) -> None:
        """``compute``: ONNX's lower-case name of the compute dtype; ``k``: the residual stream is divided by 2^k."""
        self.folder = folder.resolve()
        self.compute = compute
        self.scale = float(2.0**k)
        self._model = ir.load(folder / f"{stack}.onnx")
        self._graph = self._model.graph
        self.values = ir.convenience.create_value_mapping(self._graph, include_subgraphs=False)
        self.sublayers = self._cut(f"{stack}.block.")

    def _cut(self, prefix: str) -> dict[int, list[Sublayer]]:
        blocks: dict[int, list[ir.Node]] = {}
        for node in self._graph:
            index, _, part = (node.name or "").removeprefix(prefix).partition(".")
            if (node.name or "").startswith(prefix) and part.startswith("block"):
                blocks.setdefault(int(index), []).append(node)
        hidden = next(norms(blocks[0])).x
        found: dict[int, list[Sublayer]] = {}
        for layer, nodes in sorted(blocks.items()):
            found[layer] = _sublayers(nodes, hidden)
            hidden = found[layer][-1].out if found[layer] else hidden
        return found

    @property
    def first_hidden(self) -> ir.Value:
        """The embedded tokens, [batch, length, d_model]."""
        return self.sublayers[0][0].hidden

    @property
    def last_hidden(self) -> ir.Value:
        """The residual stream before the final norm, [batch, length, d_model]."""
        return self.sublayers[max(self.sublayers)][-1].out

    def run(self, feeds: Mapping[ir.Value, np.ndarray], outputs: Sequence[ir.Value]) -> list[np.ndarray]:
        """Values of ``outputs`` when the values in ``feeds`` are given. Floats are float32 here on both sides.

        16-bit pieces run as hardware does: inputs are rounded to the compute dtype, and so is every result.
        """
        session = self._session(list(feeds), outputs)
        arrays = {value.name: self._rounded(array) for value, array in feeds.items()}
        found: list[np.ndarray] = session.run([value.name for value in outputs], arrays)
        return found

    def _session(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> Any:
        graph = ir.convenience.extract(self._graph, inputs, outputs)
        self._set_types(graph)
        model = ir.Model(graph, ir_version=self._model.ir_version)
        removed = None
        if self.compute in NARROW:
            model, removed = emulate(model, self.compute), ROUNDING_REMOVERS
        data = ir.to_proto(model).SerializeToString()

        def start(entries: Entries) -> Any:
            return session_in_memory(data, self.folder, session_options(entries=entries), removed)

        rounds_inputs = self.compute == "float" and any(node.op_type == "QuantizeLinear" for node in graph)
        entries = CONFIGURATION["encoder"]
        return open_exact(entries, start)[0] if rounds_inputs else start(entries)

    def _set_types(self, graph: ir.Graph) -> None:
        """Ports that were inner values get the compute dtype; inner values that were ports forget theirs."""
        for port in (*graph.inputs, *graph.outputs):
            if port.dtype is None:
                port.type = ir.TensorType(ir.DataType[self.compute.upper()])
        for value in (output for node in graph for output in node.outputs):
            if not value.is_graph_output():
                value.type = value.shape = None

    def _rounded(self, array: np.ndarray) -> np.ndarray:
        if array.dtype != np.float32 or self.compute not in NARROW:
            return array
        import torch

        narrow: np.ndarray = torch.from_numpy(array).to(getattr(torch, self.compute)).float().numpy()
        return narrow


def _sublayers(nodes: Sequence[ir.Node], hidden: ir.Value) -> list[Sublayer]:
    """The additions to the residual stream that begins with ``hidden``, in order."""
    biases = [attention.mask for attention in attentions(nodes)]
    found: list[Sublayer] = []
    for node in nodes:
        if node.op_type != "Add" or hidden not in node.inputs:
            continue
        added = next(value for value in node.inputs if value is not hidden)
        assert added is not None
        bias = biases[len(found)] if len(found) < len(biases) else None
        found.append(Sublayer(hidden, added, node.outputs[0], bias))
        hidden = node.outputs[0]
    return found
