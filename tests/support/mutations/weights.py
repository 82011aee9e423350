"""Stored weights that are another's, misplaced, damaged or out of date."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from support.mutations.draft import GRAPHS, WEIGHTS, Draft
from support.mutations.mutation import FLOAT, QUANTIZED, Mutation, require


def swap_heads(stack: str, part: str, draft: Draft) -> None:
    """Heads 0 and 1 of one projection change places."""
    require(draft.architecture.num_heads > 1)
    d_kv = draft.architecture.d_kv
    with draft.matrix(draft.path(stack, 0, part)) as matrix:
        order = np.arange(matrix.values.shape[0 if part.endswith(".o") else 1])
        first = 0 if part.endswith(".o") else matrix.columns.start
        order[first : first + 2 * d_kv] = np.roll(order[first : first + 2 * d_kv], d_kv)
        if part.endswith(".o"):
            matrix.values[:] = matrix.values[order]
        else:
            matrix.take_columns(order)


def swap_parts(stack: str, first: str, second: str, draft: Draft) -> None:
    """Two tensors of one stack are stored in the other order."""
    require(draft.architecture.gated or "wi" not in first)
    with draft.matrix(draft.path(stack, 0, first)) as matrix:
        left = matrix.columns
    with draft.matrix(draft.path(stack, 0, second)) as matrix:
        order = np.arange(matrix.values.shape[1])
        order[left], order[matrix.columns] = order[matrix.columns].copy(), order[left].copy()
        matrix.take_columns(order)


def swap_layers(stack: str, part: str, draft: Draft) -> None:
    """Layers 0 and 1 have each other's matrix."""
    exchange(draft, draft.path(stack, 0, part), draft.path(stack, 1, part))


def exchange(draft: Draft, first: str, second: str) -> None:
    require(bool(draft.find(first)) and bool(draft.find(second)))
    with draft.matrix(first) as left, draft.matrix(second) as right:
        require(left.values.shape == right.values.shape)
        left.values[:], right.values[:] = right.values.copy(), left.values.copy()
        if left.scales is not None and right.scales is not None:
            left.scales[:], right.scales[:] = right.scales.copy(), left.scales.copy()


def swap_stacks(draft: Draft) -> None:
    exchange(draft, draft.path("encoder", 0, "SelfAttention.q"), draft.path("decoder", 0, "SelfAttention.q"))


def untransposed(draft: Draft) -> None:
    """The bytes of [out, in] under the shape [in, out]."""
    with draft.matrix(draft.path("encoder", 0, "DenseReluDense.wo")) as matrix:
        matrix.values[:] = np.ascontiguousarray(matrix.values.T).reshape(matrix.values.shape)


def zero_row(draft: Draft) -> None:
    with draft.matrix(draft.path("decoder", 0, "DenseReluDense.wo")) as matrix:
        matrix.values[3] = 0


def zero_column(draft: Draft) -> None:
    with draft.matrix(draft.path("encoder", 1, "SelfAttention.o")) as matrix:
        matrix.values[:, 5] = 0


def page(place: float, copy: bool, draft: Draft) -> None:
    """4096 bytes of the file, at a share of its length, are zero or those of the page before."""
    data = np.memmap(draft.folder / WEIGHTS, np.uint8, "r+")
    begin = max(draft._start, int(len(data) * place)) // 4096 * 4096 + 4096
    data[begin : begin + 4096] = data[begin - 4096 : begin] if copy else 0


def negate(draft: Draft) -> None:
    with draft.matrix(draft.path("decoder", 0, "EncDecAttention.q")) as matrix:
        matrix.values[:] = -matrix.values


def one_percent(draft: Draft) -> None:
    """A single weight, the largest of its matrix, grows by 1 %."""
    with draft.matrix(draft.path("encoder", 0, "DenseReluDense.wo")) as matrix:
        place = np.unravel_index(np.abs(matrix.values).argmax(), matrix.values.shape)
        matrix.values[place] *= matrix.values.dtype.type(1.01)


def noise(draft: Draft) -> None:
    """Another training step: 0.3 % of noise on one matrix."""
    with draft.matrix(draft.path("decoder", 0, "SelfAttention.o")) as matrix:
        rng = np.random.default_rng(0)
        matrix.values[:] *= (1 + 0.003 * rng.standard_normal(matrix.values.shape)).astype(matrix.values.dtype)


def other_step(draft: Draft) -> None:
    """One weight in eight of a matrix is a quantization step off."""
    with draft.matrix(draft.path("decoder", 0, "SelfAttention.o")) as matrix:
        matrix.values[::8] -= np.sign(matrix.values[::8])


def truncated(bits: int, draft: Draft) -> None:
    """Mantissas cut off, not rounded, by ``bits`` bits."""
    for name in draft.find("SelfAttention"):
        array = draft.stored(name)
        integers = array.view(np.uint32 if array.dtype == np.float32 else np.uint16)
        integers[:] = integers & ~integers.dtype.type((1 << bits) - 1)


def scale_part(stack: str, part: str, factor: float, draft: Draft) -> None:
    with draft.matrix(draft.path(stack, 0, part)) as matrix:
        matrix.multiply(factor)


def bit_flip(draft: Draft) -> None:
    """One bit of one weight: float's lowest exponent bit, or the sixth of eight."""
    with draft.matrix(draft.path("decoder", 0, "DenseReluDense.wo")) as matrix:
        if matrix.values.dtype == np.int8:
            matrix.values[7, 7] ^= 2 if draft.manifest.precision.weight_bits == 4 else 32
        else:
            width, shift = (np.uint32, 23) if matrix.values.dtype == np.float32 else (np.uint16, 10)
            matrix.values.view(width)[7, 7] ^= width(1 << shift)


def embedding_row(kind: str, draft: Draft) -> None:
    """Token 40's embedding is zero, doubled, NaN, or exchanged with token 41's."""
    with draft.embedding() as (values, scales):
        if kind == "swapped":
            values[[40, 41]] = values[[41, 40]]
            if scales is not None:
                scales[[40, 41]] = scales[[41, 40]]
        elif kind == "zero":
            values[40] = 0
        else:
            target = values if scales is None else scales
            target[40] = np.nan if kind == "NaN" else target[40] * 2


def head_is_embedding(draft: Draft) -> None:
    """An untied output layer is overwritten with the embedding table."""
    require(bool(draft.find("lm_head.weight")) and draft.manifest.precision.name in FLOAT)
    with draft.matrix("lm_head.weight") as matrix:
        matrix.values[:] = draft.stored("shared.weight").T


def head_row_swap(draft: Draft) -> None:
    """Two tokens' columns of the output layer change places."""
    require(bool(draft.find("lm_head.weight")))
    with draft.matrix("lm_head.weight") as matrix:
        order = np.arange(matrix.values.shape[1])
        order[[30, 31]] = [31, 30]
        matrix.take_columns(order) if draft.manifest.precision.weight_bits else _swap(matrix.values, order)


def _swap(values: np.ndarray, order: np.ndarray) -> None:
    values[:] = values[:, order]


def _external(graph: ir.Graph, fragment: str) -> list[ir.Value]:
    """The graph's weights in ``weights.safetensors`` whose names hold ``fragment``, in order."""
    values = [value for name, value in graph.initializers.items() if fragment in name]
    return [value for value in values if isinstance(value.const_value, ir.ExternalTensor)]


def own_copy(name: str, draft: Draft) -> None:
    """One graph has a copy of a weight of its own, 10 % larger; the file is right."""
    require(draft.has(name))
    with draft.graph(name) as graph:
        floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        value = next(value for value in _external(graph, "SelfAttention.o") if value.dtype in floats)
        assert value.const_value is not None
        array = value.const_value.numpy()
        value.const_value = ir.tensor(array * array.dtype.type(1.1), name=value.name)


def other_place(name: str, draft: Draft) -> None:
    """One graph reads layer 0's matrix for layer 1; the file is right."""
    require(draft.has(name))
    with draft.graph(name) as graph:
        first, second, *_ = (
            value for value in _external(graph, "SelfAttention.o") if ".scales(" not in str(value.name)
        )
        wrong = first.const_value
        assert isinstance(wrong, ir.ExternalTensor)
        place = (wrong.location, wrong.offset, wrong.length, wrong.dtype)
        second.const_value = ir.ExternalTensor(
            *place, shape=ir.Shape(wrong.shape), name=str(second.name), base_dir=wrong.base_dir
        )


def _weights(name: str, apply: partial[None] | object, precisions: tuple[str, ...] = FLOAT + QUANTIZED) -> Mutation:
    return Mutation(name, "weights", "weights", apply, precisions)  # type: ignore[arg-type]


MUTATIONS = (
    _weights("encoder self-attention q, heads 0 and 1 swapped", partial(swap_heads, "encoder", "SelfAttention.q")),
    _weights("decoder self-attention k, heads 0 and 1 swapped", partial(swap_heads, "decoder", "SelfAttention.k")),
    _weights("decoder self-attention v, heads 0 and 1 swapped", partial(swap_heads, "decoder", "SelfAttention.v")),
    _weights("decoder cross-attention o, heads 0 and 1 swapped", partial(swap_heads, "decoder", "EncDecAttention.o")),
    _weights("cross keys, heads 0 and 1 swapped", partial(swap_heads, "decoder", "EncDecAttention.k")),
    _weights("encoder q and k swapped", partial(swap_parts, "encoder", "SelfAttention.q", "SelfAttention.k")),
    _weights("cross k and v swapped", partial(swap_parts, "decoder", "EncDecAttention.k", "EncDecAttention.v")),
    _weights(
        "decoder wi_0 and wi_1 swapped", partial(swap_parts, "decoder", "DenseReluDense.wi_0", "DenseReluDense.wi_1")
    ),
    _weights("encoder layers 0 and 1, wo swapped", partial(swap_layers, "encoder", "DenseReluDense.wo")),
    _weights("decoder layers 0 and 1, qkv swapped", partial(swap_layers, "decoder", "SelfAttention.q")),
    _weights("decoder layers 0 and 1, cross kv swapped", partial(swap_layers, "decoder", "EncDecAttention.k")),
    _weights("encoder and decoder qkv of layer 0 swapped", swap_stacks),
    _weights("encoder wo written untransposed", untransposed),
    _weights("one row of decoder wo zero", zero_row),
    _weights("one column of encoder o zero", zero_column),
    _weights("4096 bytes zero, middle of the file", partial(page, 0.5, False)),
    _weights("4096 bytes zero, last quarter of the file", partial(page, 0.8, False)),
    _weights("a page of the file repeated", partial(page, 0.4, True)),
    _weights("cross q negated", negate),
    _weights("the largest weight of encoder wo 1 % larger", one_percent, FLOAT),
    _weights("0.3 % noise on decoder o (another training step)", noise, FLOAT),
    _weights("every eighth row of decoder o one step off", other_step, QUANTIZED),
    _weights("attention weights cut to bfloat16", partial(truncated, 16), ("fp32",)),
    _weights("attention weights lose two bits", partial(truncated, 2), ("fp16",)),
    _weights("encoder k 5 % larger", partial(scale_part, "encoder", "SelfAttention.k", 1.05)),
    _weights("decoder wo 10 % smaller", partial(scale_part, "decoder", "DenseReluDense.wo", 0.9)),
    _weights("one bit of one weight flipped", bit_flip),
    _weights("a token's embedding zero", partial(embedding_row, "zero")),
    _weights("a token's embedding doubled", partial(embedding_row, "doubled")),
    _weights("a token's embedding NaN", partial(embedding_row, "NaN")),
    _weights("two tokens' embeddings swapped", partial(embedding_row, "swapped")),
    _weights("output layer overwritten with the embedding", head_is_embedding, FLOAT),
    *(_weights(f"{graph} has its own copy of a weight, 10 % larger", partial(own_copy, graph)) for graph in GRAPHS),
    *(_weights(f"{graph} reads layer 0's o for layer 1", partial(other_place, graph)) for graph in GRAPHS),
    _weights("two tokens' columns of the output layer swapped", head_row_swap),
)
