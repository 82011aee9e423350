"""Costs of a graph small enough to count by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from t5edge.exporter.graph.costs import graph_costs

SIZES = {"batch": 2, "source": 5, "target": 1, "past": 3}


def save(folder: Path, nodes: list[onnx.NodeProto], **weights: np.ndarray) -> Path:
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "source"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [ids], [out], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), folder / "g.onnx")
    return folder / "g.onnx"


def test_a_lookup_reads_its_rows_and_a_product_its_matrix(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w"], ["out"]),
    ]
    path = save(tmp_path, nodes, table=np.zeros((1000, 8), np.float32), w=np.zeros((8, 6), np.float32))
    costs = graph_costs(ir.load(path)).at(SIZES)
    assert costs["operators"] == {"Gather": 1, "MatMul": 1}
    assert costs["flops"] == 2 * (2 * 5) * 8 * 6
    assert costs["weight_bytes"] == (2 * 5) * 8 * 4 + 8 * 6 * 4


def test_a_quantized_matrix_counts_its_bytes_and_all_its_operations(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["hidden"]),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["dense"], axis=1),
        helper.make_node("MatMul", ["hidden", "dense"], ["out"]),
    ]
    weights = {"table": np.zeros((4, 8), np.float32), "w": np.zeros((8, 6), np.int8), "scale": np.ones(6, np.float32)}
    costs = graph_costs(ir.load(save(tmp_path, nodes, **weights))).at(SIZES)
    assert costs["flops"] == 2 * (2 * 5) * 8 * 6
    assert costs["weight_bytes"] == 4 * 8 * 4 + 8 * 6 + 6 * 4
