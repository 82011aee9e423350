from __future__ import annotations

from support.onnx_graphs import Sketch


def test_operators_are_counted_by_type() -> None:
    sketch = Sketch("decoder")
    x = sketch.input("x", "batch", 4)
    block = sketch.block(sketch.op("Relu", sketch.op("Add", sketch.op("Relu", x), x)))
    assert block.operator_counts() == {"Add": 1, "Relu": 2}
    assert block.kind == "decoder"
