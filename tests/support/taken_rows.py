"""The small graphs that move rows of a cache on its device: see ``t5edge.runtime.onnxruntime.rows``."""

from __future__ import annotations

import onnx_ir as ir

DTYPES = {"float": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


def taken_rows(dtype: str) -> ir.Model:
    """``y = x[rows][:, :, positions]``; x [batch, heads, length, d_kv], rows and positions int64."""
    x = ir.Value(name="x", type=ir.TensorType(DTYPES[dtype]), shape=ir.Shape(["batch", "heads", "length", "d_kv"]))
    rows, positions = (
        ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([size]))
        for name, size in (("rows", "taken"), ("positions", "kept"))
    )
    tape = ir.tape.Tape()
    y = tape.op("Gather", [tape.op("Gather", [x, rows], {"axis": 0}), positions], {"axis": 2})
    y.name, y.type, y.shape = "y", x.type, ir.Shape(["taken", "heads", "kept", "d_kv"])
    graph = ir.Graph([x, rows, positions], [y], nodes=list(tape.nodes), opset_imports={"": 13}, name="rows")
    return ir.Model(graph, ir_version=8)


if __name__ == "__main__":
    from pathlib import Path

    from t5edge.runtime.onnxruntime import rows

    for name in DTYPES:
        Path(rows.FILES[name]).write_bytes(ir.to_proto(taken_rows(name)).SerializeToString())
