from __future__ import annotations

from support.kernel_facts import FACTS
from support.onnx_graphs import Sketch
from support.projections import project
from t5edge.kernels.projection import pack_projections


def names(count: int) -> list[str]:
    return [f"layer.0.SelfAttention.{letter}.weight" for letter in "qkv"[:count]]


def test_heads_of_another_size_are_left_alone_and_say_why() -> None:
    sketch = Sketch()
    x = sketch.input("x", "batch", "seq", FACTS.d_model)
    block = sketch.block(*(project(sketch, x, name, d_kv=12) for name in names(3)))
    outcome = pack_projections(block, FACTS, 3)
    assert outcome.matched == 0
    assert "reshaped into heads of another size than d_kv = 8" in outcome.refusals[0]


def test_a_transpose_that_moves_no_heads_is_left_alone_and_says_why() -> None:
    sketch = Sketch()
    x = sketch.input("x", "batch", "seq", FACTS.d_model)
    block = sketch.block(*(project(sketch, x, name, perm=(0, 1, 3, 2)) for name in names(3)))
    outcome = pack_projections(block, FACTS, 3)
    assert outcome.matched == 0
    assert "does not move the heads" in outcome.refusals[0]


def test_only_projections_of_one_input_are_packed() -> None:
    sketch = Sketch()
    inputs = [sketch.input(name, "batch", "seq", FACTS.d_model) for name in ("x", "y")]
    block = sketch.block(*(project(sketch, x, name) for x, name in zip(inputs, names(2), strict=True)))
    outcome = pack_projections(block, FACTS, 2)
    assert outcome.matched == 0
    assert outcome.refusals == ["1 projections share an input, 2 were expected"] * 2
    assert pack_projections(block, FACTS, 1).matched == 2


def test_an_output_projection_is_left_alone_and_says_why() -> None:
    sketch = Sketch()
    x = sketch.input("x", "batch", "seq", FACTS.d_model)
    block = sketch.block(project(sketch, x, "layer.0.SelfAttention.o.weight"))
    outcome = pack_projections(block, FACTS, 1)
    assert outcome.matched == 0
    assert outcome.refusals == ["T(layer.0.SelfAttention.o.weight): not a query, key or value projection"]
