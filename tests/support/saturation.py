"""MatMuls of int8 by int8 whose sums do not fit into 16 bits, as our graphs spell them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from t5edge.kernels.values import constant_value
from t5edge.runtime.onnxruntime.sessions import session_options

QEMU = shutil.which("qemu-x86_64")
needs_qemu = pytest.mark.skipif(
    QEMU is None or "MASK_CPU_LEAF7" in os.environ,
    reason="needs qemu-user (apt install qemu-user), and a CPU that is not masked already (hardware/mask_cpu)",
)


def extreme_weight(rows: int, columns: int) -> np.ndarray:
    """int8 [rows, columns]: columns of 127 and of -127 in turn."""
    weight = np.full((rows, columns), 127, np.int8)
    weight[:, 1::2] = -127
    return weight


def rounded_matmul(weight: np.ndarray, weight_only: bool = False) -> ir.Model:
    """y = x @ weight, x float32 [rows, k] rounded to int8, scales 1; ``weight_only``: z the same unrounded."""
    k, n = weight.shape
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", k]))
    one, zero = constant_value(np.ones((), np.float32), "one"), constant_value(np.zeros((), np.int8), "zero")
    values, scales = constant_value(weight, "weight"), constant_value(np.ones(n, np.float32), "scales")
    tape = ir.tape.Tape()
    rounded = tape.op("DequantizeLinear", [tape.op("QuantizeLinear", [x, one, zero]), one, zero])
    outputs = [tape.op("MatMul", [rounded, tape.op("DequantizeLinear", [values, scales], {"axis": 1})])]
    constants = [one, zero, values, scales]
    if weight_only:
        again = constant_value(weight, "again")
        outputs.append(tape.op("MatMul", [x, tape.op("DequantizeLinear", [again, scales], {"axis": 1})]))
        constants.append(again)
    for name, output in zip("yz", outputs, strict=False):
        output.name, output.type, output.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(["rows", n])
    graph = ir.Graph(
        [x], outputs, nodes=list(tape.nodes), initializers=constants, opset_imports={"": 21}, name="saturation"
    )
    return ir.Model(graph, ir_version=10)


def start(model: ir.Model, entries: Mapping[str, str]) -> Any:
    """A session of ``model``, one thread."""
    options = session_options(1, entries)
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def saturating_sums(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What vpmaddubsw makes of int8 x [rows, k] and weight [k, n]: pairs of uint8 by int8 products clip at 16 bits."""
    unsigned = x.astype(np.int64) + 128
    products = unsigned[:, :, None] * weight.astype(np.int64)
    pairs = np.clip(products[:, 0::2] + products[:, 1::2], -(2**15), 2**15 - 1)
    sums: np.ndarray = pairs.sum(axis=1) - 128 * weight.astype(np.int64).sum(axis=0)
    return sums
