"""Faults of a graph around attention: caches, positions, masks, beams. Each graph file has its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from support.mutations.draft import DECODERS, Draft
from support.mutations.edit import cross_attention, input_of, insert, long, nodes, self_attention
from support.mutations.mutation import Mutation, require

Change = Callable[[ir.Graph], None]
AFTER = (20, 64, 70, 100, 200, 300)
"""Tokens after which a cache goes wrong: within a text, a buffer's first size, beyond a text, beyond the buckets."""


def edit(graph: str, how: Change, draft: Draft) -> None:
    """Change one graph file."""
    require(draft.has(graph))
    with draft.graph(graph) as opened:
        how(opened)


def _regather(graph: ir.Graph, places: Callable[[ir.Node, ir.Value], ir.Value]) -> None:
    """Self-attention reads its keys and values at other positions: ``places`` int64 of [0, 1, ...]."""
    for node in list(self_attention(graph)):
        for place in (1, 2):
            cache = input_of(node, place)
            length = insert(node, "Squeeze", insert(node, "Shape", cache, start=2, end=3))
            positions = insert(node, "Range", long(0), length, long(1))
            node.replace_input_with(place, insert(node, "Gather", cache, places(node, positions), axis=2))


def cache_full(after: int, graph: ir.Graph) -> None:
    """The cache has no room beyond: later positions read the last one."""
    _regather(graph, lambda node, positions: insert(node, "Min", positions, long(after - 1)))


def slots_shifted(graph: ir.Graph) -> None:
    """Every key and value is one position late."""
    _regather(graph, lambda node, positions: insert(node, "Max", insert(node, "Sub", positions, long(1)), long(0)))


def half_cache(graph: ir.Graph) -> None:
    """Keys and values go through float16."""
    for node in list(self_attention(graph)):
        for place in (1, 2):
            half = insert(node, "Cast", input_of(node, place), to=int(ir.DataType.FLOAT16))
            node.replace_input_with(place, insert(node, "Cast", half, to=int(ir.DataType.FLOAT)))


def layer_of_other(cross: bool, graph: ir.Graph) -> None:
    """Layer 1 attends to layer 0's keys."""
    found = list((cross_attention if cross else self_attention)(graph))
    require(len(found) > 1)
    found[1].replace_input_with(1, input_of(found[0], 1))


def positions_frozen(last: int, graph: ir.Graph) -> None:
    """The position of a query never exceeds ``last``: a bias of the traced length."""
    for node in nodes(graph, "Sub", "decoder/stem"):
        query = input_of(node, 1)
        producer = query.producer()
        lengths = {query.name, input_of(producer, 0).name} if producer is not None else {query.name}
        if "past_length" in lengths or "past_length" not in {value.name for value in graph.inputs}:
            node.replace_input_with(1, insert(node, "Min", query, long(last)))


def past_ignored(graph: ir.Graph) -> None:
    """Bias as if every step were the first."""
    positions_frozen(0, graph)


def clamp(op_type: str, stack: str, value: int, graph: ir.Graph) -> None:
    """Another bound of distances in the lookup of the bias."""
    (node,) = nodes(graph, op_type, f"{stack}/stem")
    node.replace_input_with(1, insert(node, "Identity", long(value)))


def _conditions(graph: ir.Graph, how: Callable[[ir.Node, ir.Value], ir.Value]) -> None:
    """Change the condition (text or padding) of every padding mask."""
    for node in nodes(graph, "Where"):
        node.replace_input_with(0, how(node, input_of(node, 0)))


def padding_ignored(graph: ir.Graph) -> None:
    _conditions(graph, lambda node, text: insert(node, "Or", text, insert(node, "Not", text)))


def padding_leaks(dtype: type[np.floating], graph: ir.Graph) -> None:
    """Padding is masked by -2, not by the least number."""
    for node in nodes(graph, "Where"):
        node.replace_input_with(2, insert(node, "Identity", np.array(-2.0, dtype)))


def _beams(node: ir.Node, graph: ir.Graph) -> ir.Value:
    """bool [1]: there are more rows than sentences."""
    ids, mask = (
        next(value for value in graph.inputs if value.name == name) for name in ("input_ids", "encoder_attention_mask")
    )
    rows, sentences = (insert(node, "Shape", value, start=0, end=1) for value in (ids, mask))
    return insert(node, "Greater", rows, sentences)


def padding_ignored_by_beams(graph: ir.Graph) -> None:
    _conditions(graph, lambda node, text: insert(node, "Or", text, _beams(node, graph)))


def beams_of_neighbour(graph: ir.Graph) -> None:
    """Beams attend to the next sentence's cross keys and values."""
    for node in list(cross_attention(graph)):
        shift = insert(node, "Cast", _beams(node, graph), to=int(ir.DataType.INT64))
        for place in (1, 2):
            cross = input_of(node, place)
            count = insert(node, "Squeeze", insert(node, "Shape", cross, start=0, end=1))
            rows = insert(node, "Add", insert(node, "Range", long(0), count, long(1)), shift)
            node.replace_input_with(place, insert(node, "Gather", cross, insert(node, "Mod", rows, count), axis=0))


def cross_outputs_swapped(graph: ir.Graph) -> None:
    """The encoder names layer 0's cross keys values, and its values keys."""
    places = {value.name: place for place, value in enumerate(graph.outputs)}
    key, value = places["present.0.encoder.key"], places["present.0.encoder.value"]
    graph.outputs[key].name, graph.outputs[value].name = "mutation", graph.outputs[key].name
    graph.outputs[key].name = "present.0.encoder.value"
    graph.outputs[key], graph.outputs[value] = graph.outputs[value], graph.outputs[key]


def scale(node_index: int, factor: float, graph: ir.Graph) -> None:
    """One attention's scores times a factor."""
    node = nodes(graph, "Attention")[node_index]
    node.attributes["scale"] = ir.AttrFloat32("scale", factor)


def dtype_of(draft: Draft) -> type[np.floating]:
    return np.float16 if draft.manifest.precision.compute == "float16" else np.float32


def _in_decoders(name: str, category: str, how: Change) -> list[Mutation]:
    """The same fault in each decoder's file alone."""
    return [Mutation(f"{name}, {graph} alone", category, "graphs", partial(edit, graph, how)) for graph in DECODERS]


def _encoder(name: str, category: str, how: Change) -> Mutation:
    return Mutation(name, category, "graphs", partial(edit, "encoder", how))


MUTATIONS = (
    *(
        m
        for after in AFTER
        for m in _in_decoders(f"cache wrong after {after} tokens", "caches", partial(cache_full, after))
    ),
    *_in_decoders("cache slots shifted by one", "caches", slots_shifted),
    *_in_decoders("layer 1 reads layer 0's cached keys", "caches", partial(layer_of_other, False)),
    *_in_decoders("layer 1 reads layer 0's cross keys", "caches", partial(layer_of_other, True)),
    *(
        Mutation(m.name, m.category, m.expected, m.apply, ("fp32",))
        for m in _in_decoders("cache kept in float16", "caches", half_cache)
    ),
    *_in_decoders("bias frozen at 64 positions", "bias tables", partial(positions_frozen, 63)),
    *_in_decoders("bias ignores the past", "bias tables", past_ignored),
    *_in_decoders("distances clamped at 64", "bias tables", partial(clamp, "Max", "decoder", -64)),
    _encoder("distances clamped at 64, encoder", "bias tables", partial(clamp, "Max", "encoder", -64)),
    *_in_decoders("causal mask lost in the graph", "masks", partial(clamp, "Min", "decoder", 0)),
    _encoder("padding ignored in the encoder", "masks", padding_ignored),
    *_in_decoders("padding ignored in cross-attention", "masks", padding_ignored),
    *_in_decoders("padding ignored by beams", "masks", padding_ignored_by_beams),
    *(
        Mutation(
            f"padding masked by -2, {graph}",
            "masks",
            "graphs",
            lambda d, g=graph: edit(g, partial(padding_leaks, dtype_of(d)), d),
        )
        for graph in ("encoder", *DECODERS)
    ),
    *_in_decoders("beams read the next sentence's cross keys", "caches", beams_of_neighbour),
    _encoder("cross keys and values exchanged, layer 0", "caches", cross_outputs_swapped),
    Mutation(
        "self-attention of encoder layer 0 divided by sqrt(d_kv)",
        "scales",
        "graphs",
        lambda d: edit("encoder", partial(scale, 0, d.architecture.d_kv**-0.5), d),
    ),
    *_in_decoders("cross-attention scores 2 % smaller", "scales", partial(scale, 1, 0.98)),
)
