"""How a parsed network computes attention: one fused kernel, whatever the builder finds, or plain matrix products.

    fused        must come out as one fused kernel; the plan is read to prove it (16-bit types)
    decomposable may be split: no float32 flash kernel exists, nor one for odd head sizes
    split        rewritten here as float32 MatMul, Add, Softmax, MatMul: nothing fused whatever the builder finds

Every attention is marked decomposable, the fused ones too: at one query row, with head sizes 16 and 256 or with two or
three heads, the builder looks for its one-row kernel, has none and gives up, unless it may decompose; then it finds the
flash kernel after all. The mark does not keep it from fusing, so ``split`` is the way around a defective fused kernel.

Portable graphs have no such operator: their attention is written out, and the builder finds the same kernels by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from t5edge.engines.heads import has_one_head, swap_batch_and_heads
from t5edge.runtime.tensorrt.flavor import TensorRT

Form = Literal["fused", "decomposable", "split"]

FUSED_SIZES = range(16, 257, 8)
"""Head sizes with fused 16-bit kernels on every target (8, 12 and 512 have none), found with TensorRT-RTX 1.7."""


def attention_form(compute: str, d_kv: int, no_fuse: bool) -> Form:
    """The form for graphs that compute in ``compute`` with heads of ``d_kv``."""
    if no_fuse:
        return "split"
    has_kernel = compute in ("float16", "bfloat16") and d_kv in FUSED_SIZES
    return "fused" if has_kernel else "decomposable"


@dataclass(frozen=True)
class Attention:
    """One attention in a parsed network.

    Attributes:
        name: of the ONNX node by which plans show it: ``Attention``, or the ``Softmax`` where it is written out.
        places: layer and input of q, k, v and mask.
        exit: the layer that gives the result.
        entry: the input boundary layer of ONNX' operator; None where it is written out, with k transposed already.
    """

    name: str
    places: tuple[tuple[Any, int], ...]
    exit: Any
    entry: Any = None

    def given(self) -> list[Any]:
        """The tensors q, k, v and mask."""
        return [layer.get_input(index) for layer, index in self.places]

    def feed(self, tensors: Iterable[Any]) -> None:
        """Others in their places."""
        for (layer, index), tensor in zip(self.places, tensors, strict=True):
            layer.set_input(index, tensor)


def find_attentions(tool: TensorRT, network: Any) -> list[Attention]:
    """The attentions of a network in order, fused ones or written-out ones."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    fused_kind = getattr(tool.trt.LayerType, "ATTENTION_INPUT", None)  # before 10.14 there is none
    if fused_kind is None or all(layer.type != fused_kind for layer in layers):
        return _written_out(tool, layers)
    entries = [layer for layer in layers if layer.type == fused_kind]
    exits = [layer for layer in layers if layer.type == tool.trt.LayerType.ATTENTION_OUTPUT]
    found = []
    for entry, out in zip(entries, exits, strict=True):
        entry.__class__ = tool.trt.IAttentionInputLayer  # the bindings return the base class
        places = tuple((entry, index) for index in range(entry.num_inputs))
        found.append(Attention(entry.name.removesuffix("_AttentionInput"), places, out, entry))
    return found


def _written_out(tool: TensorRT, layers: list[Any]) -> list[Attention]:
    """One for every softmax, by the names of ``kernels.primitives``: its products and the addition of its mask."""
    kinds = tool.trt.LayerType
    wanted = (kinds.MATRIX_MULTIPLY, kinds.ELEMENTWISE)
    found = []
    for softmax in (layer for layer in layers if layer.type == kinds.SOFTMAX):
        prefix = softmax.name.removesuffix("Softmax")
        parts = [layer for layer in layers if layer.name.startswith(prefix) and layer.type in wanted]
        assert len(parts) == 3, f"{softmax.name} is not that of an attention"
        scores, masked, product = parts
        found.append(Attention(softmax.name, ((scores, 0), (scores, 1), (product, 1), (masked, 1)), product))
    return found


def shape_attentions(tool: TensorRT, network: Any, attentions: list[Attention], form: Form) -> None:
    """Bring every attention of ``network`` into ``form``, in place."""
    users = _users(network)
    for attention in attentions:
        if attention.entry is not None:
            attention.entry.attention.decomposable = True
        if form == "split":
            result = _split(tool, network, attention)
        elif form == "fused" and has_one_head(attention.given()):
            attention.feed(swap_batch_and_heads(tool, network, attention.name, attention.given()))
            (result,) = swap_batch_and_heads(tool, network, f"{attention.name}/back", [attention.exit.get_output(0)])
        else:
            continue
        for layer, index in users[attention.exit.get_output(0).name]:
            layer.set_input(index, result)


def _users(network: Any) -> dict[str, list[tuple[Any, int]]]:
    """Which layers read a tensor, and at which input."""
    users: dict[str, list[tuple[Any, int]]] = {}
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        for index in range(layer.num_inputs):
            tensor = layer.get_input(index)
            if tensor is not None:
                users.setdefault(tensor.name, []).append((layer, index))
    return users


def _split(tool: TensorRT, network: Any, attention: Attention) -> Any:
    """softmax(q k^T + mask) v in float32; returns [batch, heads, target, d_kv] in the type of q."""
    trt, inputs = tool.trt, attention.given()
    plain, flipped = trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE
    turned = plain if attention.entry is None else flipped

    def named(layer: Any, role: str) -> Any:
        layer.name = f"{attention.name}/{role}"
        return layer.get_output(0)

    q, k, v, mask = (
        named(network.add_cast(tensor, trt.float32), f"float_{role}")
        for tensor, role in zip(inputs, ("q", "k", "v", "mask"), strict=True)
    )
    scores = named(network.add_matrix_multiply(q, plain, k, turned), "scores")
    scores = named(network.add_elementwise(scores, mask, trt.ElementWiseOperation.SUM), "masked")
    softmax = network.add_softmax(scores)
    softmax.axes = 1 << 3
    context = named(network.add_matrix_multiply(named(softmax, "weights"), plain, v, plain), "context")
    return named(network.add_cast(context, inputs[0].dtype), "rounded")
