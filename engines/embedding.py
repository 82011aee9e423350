"""Quantized embeddings in the order TensorRT takes: dequantize the table, then gather.

    before : Gather(table int8, ids) -> DequantizeLinear    fast on ONNX Runtime: it touches the gathered rows only
    after  : DequantizeLinear(table) -> Gather              TensorRT allows an int8 constant in front of no other layer

The scale is one number, so the two are equal; the builder fuses them and keeps the table in int8. The parsed network is
changed, not the file: the file stays as ONNX Runtime wants it, and the device needs no ONNX editor.
"""

from __future__ import annotations

from typing import Any

from t5edge.runtime.tensorrt.flavor import TensorRT

Layer = Any


def lift_dequantize(tool: TensorRT, network: Any) -> int:
    """Swap every such pair in ``network``, in place; returns how many there were."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    kinds, trt = tool.trt.LayerType, tool.trt
    gathers = {
        layer.get_output(0).name: layer
        for layer in layers
        if layer.type == kinds.GATHER and layer.get_input(0).dtype == trt.int8
    }
    swapped = 0
    for layer in layers:
        gather = gathers.get(layer.get_input(0).name) if layer.type == kinds.DEQUANTIZE else None
        if gather is not None:
            _swap(layers, gather, layer)
            swapped += 1
    return swapped


def _swap(layers: list[Layer], gather: Layer, dequantize: Layer) -> None:
    """Hand the table to ``dequantize``, its result to ``gather``, and what read that result to ``gather``'s."""
    result = dequantize.get_output(0)
    users = [
        (layer, index)
        for layer in layers
        for index in range(layer.num_inputs)
        if (tensor := layer.get_input(index)) is not None and tensor.name == result.name
    ]
    dequantize.set_input(0, gather.get_input(0))
    gather.set_input(0, result)
    for layer, index in users:
        layer.set_input(index, gather.get_output(0))
