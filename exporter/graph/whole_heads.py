"""Self-attention of the encoder without moving heads: it takes and gives rows of all heads, as products do.

    before : q, k, v = split(transpose(reshape(x)))  [batch, heads, source, d_kv]
             reshape(transpose(Attention(q, k, v, mask)))
    after  : q, k, v = split(x)                      [batch, source, heads * d_kv]
             Attention(q, k, v, mask, q_num_heads=heads, kv_num_heads=heads)

A pass over the finished graph, rescaled and quantized; of the decoder below a head too. ONNX Runtime gives the same
bits and TensorRT fuses it alike. The decoder's caches, and the cross keys and values, have their heads apart, and an
attention takes one rank alone.
"""

from __future__ import annotations

import onnx_ir as ir

from t5edge.bundle.architecture import Architecture
from t5edge.kernels.fusion import FusionError


def keep_heads_together(encoder: ir.Model, architecture: Architecture) -> None:
    """Rewrite every self-attention of the encoder's graph in place.

    Raises:
        FusionError: the wrong number of them was found.
    """
    found = [node for node in encoder.graph if node.op_type == "Attention" and _is_packed(node)]
    for attention in found:
        _merge(encoder.graph, attention, architecture.num_heads)
    expected = architecture.encoder_layers + architecture.head_layers
    if len(found) != expected:
        raise FusionError(f"encoder: {len(found)} attentions read one split product, not {expected}")


def _is_packed(attention: ir.Node) -> bool:
    """Whether q, k and v are one split, in this order, of heads that a transpose has moved."""
    split = _producer(attention.inputs[0])
    if split is None or split.op_type != "Split" or list(split.outputs) != list(attention.inputs[:3]):
        return False
    moved = _producer(split.inputs[0])
    return moved is not None and moved.op_type == "Transpose"


def _merge(graph: ir.Graph, attention: ir.Node, heads: int) -> None:
    split = _producer(attention.inputs[0])
    assert split is not None
    moved = _producer(split.inputs[0])
    assert moved is not None
    apart = _producer(moved.inputs[0])
    assert apart is not None
    assert apart.op_type == "Reshape"
    back = _only_user(attention)
    together = _only_user(back)
    assert (back.op_type, together.op_type) == ("Transpose", "Reshape")
    split.replace_input_with(0, apart.inputs[0])
    split.attributes["axis"] = ir.AttrInt64("axis", -1)
    for name in ("q_num_heads", "kv_num_heads"):
        attention.attributes[name] = ir.AttrInt64(name, heads)
    together.outputs[0].replace_all_uses_with(attention.outputs[0])
    graph.remove([together, back, moved, apart], safe=True)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _only_user(node: ir.Node) -> ir.Node:
    (user,) = {use.node for use in node.outputs[0].uses()}
    return user
