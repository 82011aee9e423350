"""Trace each kind of T5 block once, on the meta device, from transformers' own modules.

    encoder block   hidden [batch, source, d_model], bias [batch, heads, source, source]           -> hidden
    decoder block   hidden [batch, target, d_model], bias [1, heads, target, past + target],
                    cross_bias [batch, 1, 1, source], past and cross keys and values               -> hidden, key, value
    cross_kv        hidden [batch, source, d_model]                         -> key, value [batch, heads, source, d_kv]

The position bias goes in from outside, so UMT5's blocks (a bias in every layer) are the same graphs.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from t5edge.bundle.architecture import Architecture
from t5edge.exporter.checkpoint.open import Checkpoint
from t5edge.exporter.graph.generic import AXES, generic, open_axes, resize
from t5edge.exporter.graph.trace_cache import cached_trace
from t5edge.exporter.reference.cache import cache_keyword, new_cache
from t5edge.kernels.block import OPSET, Block, BlockKind
from t5edge.kernels.fuse import fuse
from t5edge.kernels.values import scalar
from t5edge.kernels.weights import StackedWeight, expression_of, planned_value, stack_of
from t5edge.progress import Progress


def trace_block(architecture: Architecture, kind: BlockKind) -> Block:
    """Trace one block with ``torch.onnx.export(dynamo=True)`` and bring it into the form the fusions expect.

    No weight is ever allocated: modules and inputs live on the meta device. A trace holds for every size, see
    ``generic``, and is kept, see ``trace_cache``.
    """
    sizeless = generic(architecture)
    model = cached_trace(sizeless, kind, lambda: _traced(sizeless, kind))
    resize(model, architecture)
    _plan_weights(model.graph)
    simplify(model)
    return Block(kind, model, model.clone())


def _traced(architecture: Architecture, kind: BlockKind) -> ir.Model:
    import torch

    with torch.device("meta"), _quiet():
        module, inputs = MODULES[kind](architecture)
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    open_axes(program.model)
    return program.model


def simplify(model: ir.Model) -> None:
    """Remove what says nothing: identities, multiplications by one, casts to the same type, transposes of weights."""
    common_passes.IdentityEliminationPass()(model)
    for node in list(model.graph):
        _drop_unit_factor(node)
        _fold_weight_transpose(model.graph, node)
    common_passes.RemoveUnusedNodesPass()(model)


def _plan_weights(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        relative = name.partition("block.")[2]
        assert relative, f"unexpected initializer {name} in a traced block"
        assert value.shape is not None
        shape = tuple(int(size) for size in value.shape.numpy())
        planned = planned_value(stack_of(relative, shape), ir.DataType.FLOAT, name)
        graph.initializers.pop(name)
        ir.convenience.replace_all_uses_with(value, planned)
        graph.register_initializer(planned)


def _drop_unit_factor(node: ir.Node) -> None:
    if node.op_type != "Mul":
        return
    left, right = node.inputs
    for factor, other in ((left, right), (right, left)):
        if other is not None and scalar(factor) == 1.0:
            ir.convenience.replace_all_uses_with(node.outputs[0], other, replace_graph_outputs=True)
            return


def _fold_weight_transpose(graph: ir.Graph, node: ir.Node) -> None:
    expression = expression_of(node.inputs[0]) if node.op_type == "Transpose" else None
    if not isinstance(expression, StackedWeight):
        return
    weight = node.inputs[0]
    assert weight is not None
    assert list(node.attributes["perm"].as_ints()) == [1, 0]
    name = f"{weight.name}.T"
    planned = planned_value(expression.transpose(), ir.DataType.FLOAT, name)
    if name in graph.initializers:
        planned = graph.initializers[name]
    else:
        graph.register_initializer(planned)
    ir.convenience.replace_all_uses_with(node.outputs[0], planned)


def _config(architecture: Architecture, is_decoder: bool) -> Any:
    from transformers import T5Config

    spelled = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu"}.get(architecture.activation, architecture.activation)
    config = T5Config(
        vocab_size=architecture.vocab_size,
        d_model=architecture.d_model,
        d_kv=architecture.d_kv,
        d_ff=architecture.d_ff,
        num_heads=architecture.num_heads,
        num_layers=1,
        layer_norm_epsilon=architecture.norm_epsilon,
        feed_forward_proj=f"gated-{spelled}" if architecture.gated else spelled,
        is_decoder=is_decoder,
        dropout_rate=0.0,
    )
    config.dense_act_fn = spelled
    config._attn_implementation = "eager"  # sdpa does not export: facts of transformers 5
    return config


def block_module(architecture: Architecture, is_decoder: bool) -> Any:
    """Transformers' own T5Block on the meta device, without a position bias of its own."""
    import torch
    from transformers.models.t5.modeling_t5 import T5Block

    with torch.device("meta"):
        return T5Block(_config(architecture, is_decoder), has_relative_attention_bias=False, layer_idx=0)


Traced = tuple[Any, tuple[Any, ...]]
"""A module to trace, and meta inputs."""


def _encoder(architecture: Architecture) -> Traced:
    import torch

    class EncoderBlock(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block_module(architecture, is_decoder=False)

        def forward(self, hidden: Any, bias: Any) -> Any:
            return self.block(hidden, None, bias)[0]

    b, s = AXES["batch"], AXES["source"]
    return EncoderBlock(), (torch.empty(b, s, architecture.d_model), torch.empty(b, architecture.num_heads, s, s))


def _decoder(architecture: Architecture) -> Traced:
    import torch

    class DecoderBlock(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block_module(architecture, is_decoder=True)
            self.cache_keyword = cache_keyword(self.block.forward)

        def forward(self, hidden: Any, bias: Any, cross_bias: Any, *kv: Any) -> Any:
            past_key, past_value, cross_key, cross_value = kv
            cache = new_cache([(past_key, past_value)], [(cross_key, cross_value)])
            cache.is_updated[0] = True
            unused = hidden.new_zeros(cross_key.shape[0], cross_key.shape[2], architecture.d_model)
            out = self.block(hidden, None, bias, unused, None, cross_bias, **{self.cache_keyword: cache})[0]
            present = cache.self_attention_cache.layers[0]
            return out, present.keys, present.values

    heads, d_kv = architecture.num_heads, architecture.d_kv
    b, s, t, p = AXES.values()
    inputs = (
        torch.empty(b, t, architecture.d_model),
        torch.empty(b, heads, t, p + t),
        torch.empty(b, heads, t, s),
        *(torch.empty(b, heads, length, d_kv) for length in (p, p, s, s)),
    )
    return DecoderBlock(), inputs


def _cross_kv(architecture: Architecture) -> Traced:
    import torch

    class CrossKeysValues(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block_module(architecture, is_decoder=True)

        def forward(self, hidden: Any) -> Any:
            attention = self.block.layer[1].EncDecAttention
            heads = (*hidden.shape[:-1], -1, architecture.d_kv)
            key, value = attention.k(hidden), attention.v(hidden)
            return key.view(heads).transpose(1, 2), value.view(heads).transpose(1, 2)

    return CrossKeysValues(), (torch.empty(AXES["batch"], AXES["source"], architecture.d_model),)


MODULES = {"encoder": _encoder, "decoder": _decoder, "cross_kv": _cross_kv}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tracer's chatter (optional packages, deprecated internals); errors still rise.

    The garbage collector rests: tracing makes millions of small objects that all live to its end (0.7 s of 4).
    """
    names = ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript", "torch.export")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if collecting:
            gc.enable()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


BLOCK_KINDS: tuple[BlockKind, ...] = ("encoder", "decoder", "cross_kv")


def trace_blocks(checkpoint: Checkpoint, progress: Progress) -> dict[BlockKind, Block]:
    """Each kind of block that the model has, traced once and fused, whatever the depth."""
    blocks: dict[BlockKind, Block] = {}
    architecture = checkpoint.architecture
    kinds = BLOCK_KINDS[:1] if architecture.encoder_alone and not architecture.head_layers else BLOCK_KINDS
    with progress.stage("trace and fuse", len(kinds), "blocks") as stage:
        for kind in kinds:
            block = trace_block(checkpoint.architecture, kind)
            fuse(block, checkpoint.architecture)
            blocks[kind] = block
            stage.advance()
    return blocks
