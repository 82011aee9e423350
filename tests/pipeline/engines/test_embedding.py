from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t5edge.engines.embedding import lift_dequantize
from t5edge.runtime.tensorrt.flavor import TensorRT
from t5edge.runtime.tensorrt.log import make_log


def graph_of(dtype: Any, folder: Path) -> Path:
    """ids [n] -> rows of a table [7, 16]; an int8 table is dequantized after the Gather."""
    table = np.arange(7 * 16).reshape(7, 16).astype(dtype)
    nodes = [helper.make_node("Gather", ["table", "ids"], ["rows"], name="encoder/stem/Gather_0")]
    weights = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.float32(0.5), "scale")]
    if dtype == np.int8:
        nodes.append(helper.make_node("DequantizeLinear", ["rows", "scale"], ["floats"], name="dequantize"))
    nodes.append(helper.make_node("Mul", [nodes[-1].output[0], "scale"], ["out"], name="mul"))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [4, 16])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [ids], [out], weights), opset_imports=[helper.make_opsetid("", 23)], ir_version=10
    )
    onnx.save(model, folder / "graph.onnx")
    return folder / "graph.onnx"


pytestmark = pytest.mark.usefixtures("no_collector")


def parse(rtx: TensorRT, path: Path, log: Any) -> tuple[Any, Any]:
    trt = rtx.trt
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(path))
    return builder, network


def build(rtx: TensorRT, builder: Any, network: Any) -> Any:
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(rtx.trt.ComputeCapability.SM86, 0)
    return builder.build_serialized_network(network, config)


def test_a_gather_of_int8_is_refused_as_it_is_and_built_when_lifted(rtx: TensorRT, tmp_path: Path) -> None:
    path = graph_of(np.int8, tmp_path)
    log = make_log(rtx)
    assert build(rtx, *parse(rtx, path, log)) is None
    assert "only allowed before DQ" in log.errors[0]
    builder, network = parse(rtx, path, make_log(rtx))
    assert lift_dequantize(rtx, network) == 1
    assert network.get_output(0).dtype == rtx.trt.float32
    assert build(rtx, builder, network) is not None


@pytest.mark.parametrize("dtype", [np.float32])
def test_other_gathers_are_left_alone(rtx: TensorRT, tmp_path: Path, dtype: Any) -> None:
    builder, network = parse(rtx, graph_of(dtype, tmp_path), make_log(rtx))
    layers = network.num_layers
    assert lift_dequantize(rtx, network) == 0
    assert network.num_layers == layers
    assert build(rtx, builder, network) is not None
