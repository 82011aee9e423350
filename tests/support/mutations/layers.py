"""Norms, activations, residuals and the scale of logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from support.mutations.attention import edit
from support.mutations.draft import DECODERS, GRAPHS, Draft
from support.mutations.edit import after_output, bypass, input_of, insert, node_of, nodes
from support.mutations.mutation import Mutation, require

OVERFLOW = 2.0**12


def epsilon(value: float, graph: ir.Graph) -> None:
    for node in nodes(graph, "RMSNormalization"):
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", value)


def mean_subtracted(graph: ir.Graph) -> None:
    """The second norm of the graph as LayerNorm."""
    node = nodes(graph, "RMSNormalization")[1]
    x = input_of(node, 0)
    mean = insert(node, "ReduceMean", x, np.array([-1], np.int64), keepdims=1)
    node.replace_input_with(0, insert(node, "Sub", x, mean))


def final_norm_skipped(stack: str, graph: ir.Graph) -> None:
    bypass(nodes(graph, "RMSNormalization", f"{stack}/head")[0])


def norm_dropped(name: str, draft: Draft) -> None:
    """Ones in place of a norm's weight."""
    for array in draft.norm(name):
        array[:] = 1


def norms_swapped(draft: Draft) -> None:
    """The norms before attention and before the feed-forward of encoder layer 0 change places."""
    first, second = (draft.norm(f"encoder.block.0.layer.{place}.layer_norm.weight") for place in (0, 1))
    for left, right in zip(first, second, strict=True):
        left[:], right[:] = right.copy(), left.copy()


def gelu_erf(graph: ir.Graph) -> None:
    found = nodes(graph, "Gelu")
    require(bool(found))
    for node in found:
        node.attributes["approximate"] = ir.AttrString("approximate", "none")


def other_activation(graph: ir.Graph) -> None:
    """Relu in place of Gelu, or Gelu in place of Relu."""
    found = [*nodes(graph, "Gelu"), *nodes(graph, "Relu")]
    require(bool(found))
    for node in found:
        other = ("Gelu", {"approximate": "tanh"}) if node.op_type == "Relu" else ("Relu", {})
        value = insert(node, other[0], input_of(node, 0), **other[1])
        ir.convenience.replace_all_uses_with(node.outputs[0], value)
        assert node.graph is not None
        node.graph.remove(node, safe=True)


def gate_swapped(graph: ir.Graph) -> None:
    """In one layer the activation is on the other half."""
    found = nodes(graph, "Gelu")
    require(bool(found))
    split = node_of(input_of(found[0], 0))
    (product,) = [use.node for use in split.outputs[1].uses()]
    found[0].replace_input_with(0, split.outputs[1])
    product.replace_input_with(list(product.inputs).index(split.outputs[1]), split.outputs[0])


def residual_dropped(graph: ir.Graph) -> None:
    """The last layer's feed-forward replaces the stream instead of adding to it."""
    node = [node for node in nodes(graph, "Add") if "block" in (node.name or "")][-1]
    node.replace_input_with(0, input_of(node, 1))
    node.replace_input_with(1, insert(node, "Sub", input_of(node, 1), input_of(node, 1)))


def stream_rounded(to: ir.DataType, graph: ir.Graph) -> None:
    """The residual stream goes through a narrower dtype once, in the middle of the graph."""
    found = [node for node in nodes(graph, "Add") if "block" in (node.name or "")]
    node = found[len(found) // 2]
    x = input_of(node, 0)
    back = ir.DataType.FLOAT16 if to == ir.DataType.BFLOAT16 else ir.DataType.FLOAT
    node.replace_input_with(0, insert(node, "Cast", insert(node, "Cast", x, to=int(to)), to=int(back)))


def logits_times(factor: float | None, graphs: tuple[str, ...], draft: Draft) -> None:
    """Logits times ``factor``; None: a d_model**-0.5 too few or too many."""
    tied = -1.0 if draft.architecture.scale_logits else 1.0
    value = draft.architecture.d_model ** (-0.5 * tied) if factor is None else factor
    for graph in graphs:
        if draft.has(graph) or len(graphs) == 1:
            edit(graph, lambda opened: after_output(opened, "logits", "Mul", np.array(value, np.float32)), draft)


def logits_biased(draft: Draft) -> None:
    """Half a nat more for one token."""
    bias = np.zeros(draft.architecture.vocab_size, np.float32)
    bias[30] = 0.5
    for graph in filter(draft.has, DECODERS):
        edit(graph, lambda opened: after_output(opened, "logits", "Add", bias), draft)


def hidden_times(draft: Draft) -> None:
    """The encoder's output, as it is returned, 1 % larger; cross keys and values are right."""
    value = np.array(1.01, np.float16 if draft.manifest.precision.compute == "float16" else np.float32)
    edit("encoder", lambda graph: after_output(graph, "last_hidden_state", "Mul", value), draft)


def embedding_scaled(draft: Draft) -> None:
    """Embeddings times sqrt(d_model), as other architectures have them."""
    with draft.embedding() as (values, scales):
        target = values if scales is None else scales
        target[:] = target * target.dtype.type(draft.architecture.d_model**0.5)


def out_of_range(draft: Draft) -> None:
    """A rescale the wrong way: equal in exact arithmetic, and the residual stream overflows float16."""
    writers = ("shared.weight", ".o.weight", ".wo.weight")
    for name in draft.header:
        if any(writer in name for writer in writers) and not (name.startswith("shared") and draft.architecture.tied):
            array = draft.stored(name)
            array[:] = np.clip(array.astype(np.float32) * OVERFLOW, -65504, 65504)
    for graph in ("encoder", *filter(draft.has, DECODERS)):
        edit(graph, partial(epsilon, 1e-6 * OVERFLOW**2), draft)


def _norm(name: str, how: Callable[[ir.Graph], None], *graphs: str) -> list[Mutation]:
    return [Mutation(f"{name}, {graph}", "norms", "graphs", partial(edit, graph, how)) for graph in graphs]


MUTATIONS = (
    *_norm("RMSNorm epsilon 1e-3", partial(epsilon, 1e-3), *GRAPHS),
    *_norm("RMSNorm epsilon 1e-5", partial(epsilon, 1e-5), "encoder"),
    *_norm("mean subtracted in one norm", mean_subtracted, *GRAPHS),
    *_norm("final norm skipped", partial(final_norm_skipped, "encoder"), "encoder"),
    *_norm("final norm skipped", partial(final_norm_skipped, "decoder"), *DECODERS),
    Mutation(
        "a norm's weight dropped, encoder layer 1",
        "norms",
        "weights",
        partial(norm_dropped, "encoder.block.1.layer.0.layer_norm.weight"),
    ),
    Mutation(
        "the decoder's final norm weight dropped",
        "norms",
        "weights",
        partial(norm_dropped, "decoder.final_layer_norm.weight"),
    ),
    Mutation("two norms of encoder layer 0 swapped", "norms", "weights", norms_swapped),
    *(
        Mutation(f"erf GELU for tanh GELU, {graph}", "scales", "graphs", partial(edit, graph, gelu_erf))
        for graph in GRAPHS
    ),
    *(
        Mutation(f"ReLU and GELU exchanged, {graph}", "scales", "graphs", partial(edit, graph, other_activation))
        for graph in GRAPHS
    ),
    *(
        Mutation(
            f"activation on the wrong half in one layer, {graph}",
            "scales",
            "graphs",
            partial(edit, graph, gate_swapped),
        )
        for graph in GRAPHS
    ),
    Mutation(
        "one residual connection dropped, encoder", "scales", "graphs", partial(edit, "encoder", residual_dropped)
    ),
    *(
        Mutation(
            f"residual stream rounded to {to.name.lower()}, {graph}",
            "precision",
            "graphs",
            partial(edit, graph, partial(stream_rounded, to)),
            precisions,
        )
        for graph in GRAPHS
        for to, precisions in (
            (ir.DataType.FLOAT16, ("fp32", "int8", "int8-weight", "int4-weight")),
            (ir.DataType.BFLOAT16, ("fp16",)),
        )
    ),
    Mutation("logits times 1.2", "scales", "graphs", partial(logits_times, 1.2, DECODERS)),
    Mutation("logits times 1.02", "scales", "graphs", partial(logits_times, 1.02, DECODERS)),
    *(
        Mutation(f"logits times 1.2, {graph} alone", "scales", "graphs", partial(logits_times, 1.2, (graph,)))
        for graph in DECODERS
    ),
    Mutation(
        "logits scaled by d_model**-0.5 too rarely or too often",
        "scales",
        "graphs",
        partial(logits_times, None, DECODERS),
    ),
    Mutation("one token's logit 0.5 higher", "scales", "graphs", logits_biased),
    Mutation("encoder output 1 % larger", "scales", "graphs", hidden_times),
    Mutation("embeddings times sqrt(d_model)", "scales", "weights", embedding_scaled),
    Mutation("residual stream beyond float16 (rescale the wrong way)", "scales", "range", out_of_range, ("fp16",)),
)
