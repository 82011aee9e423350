"""Engines without weights: matrices become inputs, read from the bundle's one weights file when the engine is opened.

    before : constant [d_model, d_ff] -> MatMul         in every plan that uses it, beside weights.safetensors
    after  : input "weight:<name>"    -> MatMul         in no plan; on the device once for all engines

What is small or quantized stays in the plan, and so does the table of tied embeddings where the output layer wants it
transposed: as an input it would be transposed again at every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from t5edge.runtime.tensorrt.flavor import TensorRT
from t5edge.runtime.tensorrt.weights import PREFIX

SMALLEST = 8192
"""Bytes of the smallest matrix that is worth an input."""
READ_AS_STORED = (("Gather", 0), ("MatMul", 1))
"""Operators, and which of their inputs is read in the order that it is stored in."""
Places = dict[str, tuple[int, int]]
"""Weights by name -> offset and bytes in the weights file."""


def separable_weights(onnx_path: Path) -> Places:
    """The weights of a graph that its engine may read as inputs."""
    import onnx

    graph = onnx.load(onnx_path, load_external_data=False).graph
    readers: dict[str, set[tuple[str, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            readers.setdefault(name, set()).add((node.op_type, index))
    places = {}
    for tensor in graph.initializer:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        size = int(facts.get("length", 0))
        if size >= SMALLEST and readers.get(tensor.name, set()) <= set(READ_AS_STORED):
            places[tensor.name] = (int(facts["offset"]), size)
    return places


def weights_to_inputs(tool: TensorRT, network: Any, names: Iterable[str]) -> None:
    """Make an input of each named constant of ``network``, in place."""
    kind, wanted = tool.trt.LayerType.CONSTANT, set(names)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    constants = {layer.get_output(0).name: layer for layer in layers if layer.type == kind and layer.name in wanted}
    inputs = {}
    for name, layer in constants.items():
        tensor = layer.get_output(0)
        inputs[name] = network.add_input(PREFIX + layer.name, tensor.dtype, tensor.shape)
    for layer in layers:
        for index in range(layer.num_inputs):
            read = layer.get_input(index)
            if read is not None and read.name in inputs:
                layer.set_input(index, inputs[read.name])
