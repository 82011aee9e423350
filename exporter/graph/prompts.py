"""Learnt prompts in the graphs: what ids outside the vocabulary mean, and where a row's cache begins.

    virtual tokens   ids from vocab_size on: rows of a table of their own, seen like any token
    prefix n         the id -n in front, masked: keys and values that the decoder's cache begins with

    ids [batch, source] -> where(ids < vocab_size, table[ids], virtual[ids - vocab_size])
    max(-ids, 0) over the source [batch] -> rows of prefix tables [prefixes + 1, heads * longest * d_kv]; row 0 is none

A prefix shorter than the longest is padded on the left, which leaves every distance as it is; ``cache_start`` [batch]
is the first position of the cache that a row sees. Sources: Lester et al. 2021 (arXiv:2104.08691); Li and Liang 2021
(arXiv:2101.00190); peft 0.21, ``peft_model.py`` (``PeftModelForSeq2SeqLM``, ``get_prompt``).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from t5edge.bundle.architecture import VIRTUAL_TOKENS, prefix_name
from t5edge.exporter.graph.assembler import MASKED, Assembler
from t5edge.exporter.graph.weight_expressions import PlainTable
from t5edge.kernels.values import as_int64, constant_value

CACHE_START = "cache_start"


def look_up_source(graph: Assembler, ids: ir.Value) -> ir.Value:
    """Embeddings [batch, source, d_model] of words and virtual tokens; of a prefix's id, which is masked, some row."""
    tape, a = graph.tape, graph.architecture
    last, first = _scalar(a.vocab_size - 1, "last_word"), _scalar(a.vocab_size, "first_virtual")
    zero = _scalar(0, "zero")
    words = tape.op("Gather", [graph.embedding_table(), tape.op("Min", [tape.op("Max", [ids, zero]), last])])
    if not a.virtual_tokens:
        return words
    table = graph.weight(PlainTable(VIRTUAL_TOKENS, a.prompt_shapes()[VIRTUAL_TOKENS]))
    virtual = tape.op("Gather", [table, tape.op("Max", [tape.op("Sub", [ids, first]), zero])])
    is_word = tape.op("Unsqueeze", [tape.op("Less", [ids, first]), constant_value(as_int64(-1), "axis_last")])
    return tape.op("Where", [is_word, words, virtual])


def look_up_prefixes(graph: Assembler) -> dict[str, ir.Value]:
    """Outputs of the encoder graph: every layer's first keys and values [batch, heads, longest, d_kv], ``cache_start``.

    ``cache_start`` is int64 [batch].
    """
    tape, a = graph.tape, graph.architecture
    axis, zero = constant_value(as_int64(1), "axis_1"), _scalar(0, "zero")
    lowest = tape.op("ReduceMin", [graph.inputs["input_ids"], axis], {"keepdims": 0})
    chosen = tape.op("Max", [tape.op("Neg", [lowest]), zero])
    shape = constant_value(as_int64(0, a.num_heads, a.prefix_length, a.d_kv), "prefix_shape")
    found = {}
    for layer in range(a.decoder_layers):
        for half in ("key", "value"):
            name = prefix_name(layer, half)
            row = tape.op("Gather", [graph.weight(PlainTable(name, a.prompt_shapes()[name])), chosen])
            found[f"present.{layer}.decoder.{half}"] = tape.op("Reshape", [row, shape])
    starts = as_int64(a.prefix_length, *(a.prefix_length - length for length in a.prefix_lengths))
    found[CACHE_START] = tape.op("Gather", [constant_value(starts, "cache_starts"), chosen])
    return found


def hide_before_start(graph: Assembler, bias: ir.Value, keys: ir.Value, first: ir.Value) -> ir.Value:
    """``bias`` [1, heads, target, keys] -> [batch, heads, target, keys], where keys before ``cache_start`` are masked.

    ``keys`` is their number; ``first`` int64 [batch] the ``cache_start`` of each row.
    """
    tape = graph.tape
    positions = tape.op("Range", [_scalar(0, "zero"), keys, _scalar(1, "one")])
    column = tape.op("Unsqueeze", [first, constant_value(as_int64(1, 2, 3), "axes_1_2_3")])
    seen = tape.op("GreaterOrEqual", [positions, column])
    return tape.op("Where", [seen, bias, graph.number(MASKED[graph.compute], "masked")])


def _scalar(value: int, name: str) -> ir.Value:
    return constant_value(np.array(value, np.int64), name)
