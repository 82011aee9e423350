"""Integers and scales read or written wrongly; tolerances that a bundle brings along."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import ml_dtypes
import numpy as np
import onnx_ir as ir

from support.mutations.draft import Draft
from support.mutations.edit import constant, nodes
from support.mutations.layers import logits_times
from support.mutations.mutation import QUANTIZED, Mutation, require

WI, WO, QKV = "DenseReluDense.wi", "DenseReluDense.wo", "SelfAttention.q"


def scales_of(draft: Draft, fragment: str) -> np.ndarray:
    """The scales of one matrix [out] or [blocks, out]."""
    return next(draft.stored(name) for name in draft.header if ".scales(" in name and fragment in name)


def four_bits(draft: Draft) -> np.ndarray:
    """The first matrix that is stored in four bits (a sensitive one may have eight), two values a byte."""
    found = [name for name in draft.header if name.startswith("int4") and ".values(" in name]
    require(bool(found))
    return draft.stored(found[0])


def activation_scale(factor: float, draft: Draft) -> None:
    """One MatMul of the encoder quantizes its input by another step."""
    with draft.graph("encoder") as graph:
        (name, *_) = [name for name in graph.initializers if name.endswith("input_scale") and "MatMul" in name]
        value = graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=name)


def scale_times(factor: float, one: bool, draft: Draft) -> None:
    scales = scales_of(draft, f"encoder.block.0.layer.1.{WO}")
    scales[..., : 1 if one else None] *= np.float32(factor)


def scales_rolled(draft: Draft) -> None:
    scales = scales_of(draft, f"decoder.block.0.layer.0.{QKV}")
    scales[:] = np.roll(scales, 1, axis=-1)


def scales_swapped(draft: Draft) -> None:
    first, second = (scales_of(draft, f"encoder.block.{layer}.layer.1.{WO}") for layer in (0, 1))
    first[:], second[:] = second.copy(), first.copy()


def blocks_misread(draft: Draft) -> None:
    """Scales as for blocks twice as long: each pair has the first's."""
    scales = scales_of(draft, f"encoder.block.0.layer.0.{QKV}")
    require(scales.ndim == 2 and len(scales) > 1)
    pairs = len(scales) // 2
    scales[1 : 2 * pairs : 2] = scales[0 : 2 * pairs : 2]


def embedding_scale(draft: Draft) -> None:
    """Every embedding has the scale of the token before."""
    with draft.embedding() as (_, scales):
        assert scales is not None
        scales[:] = np.roll(scales, 1)


def activation_zero_point(draft: Draft) -> None:
    """One activation is dequantized with another zero point than it was quantized with."""
    with draft.graph("encoder") as graph:
        chosen = next(node for node in graph if (node.name or "").endswith("input_DequantizeLinear"))
        chosen.replace_input_with(2, constant(chosen, np.array(2, np.int8)))


def other_step(draft: Draft) -> None:
    """One activation is dequantized with a step 10 % larger than it was quantized with."""
    with draft.graph("encoder") as graph:
        chosen = next(node for node in graph if (node.name or "").endswith("input_DequantizeLinear"))
        scale = chosen.inputs[1]
        assert scale is not None
        assert scale.const_value is not None
        chosen.replace_input_with(1, constant(chosen, scale.const_value.numpy() * np.float32(1.1)))


def weight_zero_point(draft: Draft) -> None:
    """One weight is dequantized with a zero point of 1."""
    with draft.graph("encoder") as graph:
        node = next(
            found
            for found in nodes(graph, "DequantizeLinear")
            if "values" in str(found.inputs[0].name) and "block.0" in str(found.inputs[0].name)
        )
        scales = node.inputs[1]
        assert scales is not None
        dtype = ml_dtypes.int4 if draft.manifest.precision.weight_bits == 4 else np.int8
        zero = constant(node, np.ones(tuple(scales.shape), dtype))  # type: ignore[arg-type]
        node.resize_inputs(3)
        node.replace_input_with(2, zero)


def nibbles_swapped(draft: Draft) -> None:
    values = four_bits(draft)
    values[:] = (values << 4) | (values >> 4)


def read_unsigned(draft: Draft) -> None:
    """Four bits written with an offset of 8, read as signed."""
    values = four_bits(draft)
    values[:] = values ^ 0x88


def clipped(draft: Draft) -> None:
    """Seven of eight bits, or three of four."""
    four = draft.manifest.precision.weight_bits == 4
    with draft.matrix(f"encoder.block.0.layer.1.{WO}.weight") as matrix:
        matrix.values[:] = np.clip(matrix.values, -4 if four else -64, 3 if four else 63)


def toward_zero(draft: Draft) -> None:
    """One value in two is cut, not rounded: its magnitude is a step smaller."""
    with draft.matrix(f"decoder.block.0.layer.0.{QKV}.weight") as matrix:
        chosen = np.random.default_rng(0).random(matrix.values.shape) < 0.5
        matrix.values[:] -= np.sign(matrix.values) * chosen.astype(np.int8)


def smoothing_lost(draft: Draft) -> None:
    """A norm's weight is doubled in every other channel, as if its factors had not been divided out."""
    names = [name for name in draft.find("layer_norm.weight") if "~" in name]
    require(bool(names))
    draft.stored(names[0])[::2] *= 2


def loosened(limits: dict[str, object], draft: Draft) -> None:
    """The manifest's row of precision brings tolerances of its own, and logits are scaled by 1.2."""
    logits_times(1.2, ("decoder", "decoder_buffered"), draft)
    with draft.json("bundle.json") as data:
        data["precision"] |= limits


def relabelled(draft: Draft) -> None:
    """A float bundle that calls itself the coarsest precision; logits times 1.2."""
    loosened(
        {
            "name": "int4-weight",
            "weight_bits": 4,
            "block_size": 32,
            "max_kl": 0.2,
            "min_top1": 0.9,
            "max_relative_error": None,
            "max_error_ratio": None,
        },
        draft,
    )


def short_limits(draft: Draft) -> None:
    """Limits so small that no long text is judged, and a bias that is NaN beyond them."""
    for table in draft.tables("encoder"):
        table[:, : table.shape[1] // 2 - 90] = np.nan
    with draft.json("bundle.json") as data:
        data["limits"] |= {"max_source_length": 80, "max_target_length": 80}


def _quantized(name: str, expected: str, apply: Callable[[Draft], None], *precisions: str) -> Mutation:
    return Mutation(name, "precision", expected, apply, precisions or QUANTIZED)


ANYTHING = {"max_relative_error": 1.0, "max_kl": 10.0, "min_top1": 0.0}
NOTHING = {"max_relative_error": None, "max_error_ratio": 1e6, "max_kl": None, "min_top1": None}
MUTATIONS = (
    _quantized("one activation scale doubled", "arithmetic", partial(activation_scale, 2.0), "int8"),
    _quantized("one activation scale halved", "arithmetic", partial(activation_scale, 0.5), "int8"),
    _quantized("one activation scale times 16", "arithmetic", partial(activation_scale, 16.0), "int8"),
    _quantized("one activation's zero point differs", "arithmetic", activation_zero_point, "int8"),
    _quantized("one activation dequantized with another step", "arithmetic", other_step, "int8"),
    _quantized("one weight's zero point is 1", "graphs", weight_zero_point),
    _quantized("one weight's scales 10 % larger", "weights", partial(scale_times, 1.1, False)),
    _quantized("one channel's scale doubled", "weights", partial(scale_times, 2.0, True)),
    _quantized("scales of one weight shifted by a channel", "weights", scales_rolled),
    _quantized("scales of two layers swapped", "weights", scales_swapped),
    _quantized("block size misread", "weights", blocks_misread, "int4-weight"),
    _quantized("scales of the embedding shifted by a token", "weights", embedding_scale),
    _quantized("four-bit halves swapped", "weights", nibbles_swapped, "int4-weight"),
    _quantized("four bits read unsigned", "weights", read_unsigned, "int4-weight"),
    _quantized("smoothing of one norm wrong in half its channels", "graphs", smoothing_lost),
    _quantized("integers clipped by one bit", "weights", clipped),
    _quantized("integers cut instead of rounded", "weights", toward_zero),
    Mutation("manifest allows any error, logits times 1.2", "manifest", "graphs", partial(loosened, ANYTHING)),
    Mutation("manifest has no bounds, logits times 1.2", "manifest", "graphs", partial(loosened, NOTHING)),
    Mutation(
        "float bundle calls itself int4-weight, logits times 1.2", "manifest", "weights", relabelled, ("fp32", "fp16")
    ),
    Mutation("limits shrunk to 80, NaN beyond 90", "manifest", "weights", short_limits),
)
