"""Graph inputs and outputs, described once: axes, dtypes, and min/opt/max shapes for engines.

Names follow optimum's, so that existing clients read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from t5edge.bundle.dtype import DTYPES
from t5edge.bundle.schema import Count, OneOf, Size

GraphName = Literal["encoder", "decoder", "decoder_in_place", "decoder_buffered"]
DtypeName = Annotated[str, OneOf(tuple(DTYPES))]


@dataclass(frozen=True)
class Port:
    """One graph input or output. ``axes`` are axis names or fixed sizes; ``dtype`` is ONNX's lower-case name."""

    name: str
    dtype: DtypeName
    axes: tuple[str | Count, ...]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Concrete shape for the given axis sizes; ``past + target`` is computed."""
        return tuple(axis if isinstance(axis, int) else size_of_axis(axis, sizes) for axis in self.axes)


def size_of_axis(axis: str, sizes: Mapping[str, int]) -> int:
    """Size of a named axis; ``past + target`` is computed."""
    return sum(sizes[part.strip()] for part in axis.split("+"))


@dataclass(frozen=True)
class GraphPorts:
    """All inputs and outputs of one graph, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def axis_names(self) -> tuple[str, ...]:
        """Names of the axes that vary among the inputs, in order."""
        names = (axis for port in self.inputs for axis in port.axes if isinstance(axis, str))
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Limits:
    """The largest sizes a bundle is built and checked for (engines cannot exceed them; ONNX Runtime can)."""

    max_batch: Size = 8
    max_source_length: Size = 512
    max_target_length: Size = 256

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def profile(self, port: Port) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(min, opt, max) shapes of a port for an engine's optimization profile. ``past`` starts at 0."""
        return port.shape(self.minimum), port.shape(self.optimum), port.shape(self.maximum)

    @property
    def minimum(self) -> dict[str, int]:
        return {"batch": 1, "source": 1, "target": 1, "past": 0}

    @property
    def optimum(self) -> dict[str, int]:
        return {
            "batch": 1,
            "source": min(64, self.max_source_length),
            "target": 1,
            "past": min(32, self.max_target_length),
        }

    @property
    def maximum(self) -> dict[str, int]:
        return {
            "batch": self.max_batch,
            "source": self.max_source_length,
            "target": self.max_target_length,
            "past": self.max_target_length,
        }


LABEL_LOGITS = "logits"
"""The output of a head that classifies tokens or whole texts."""
SPAN_LOGITS = ("start_logits", "end_logits")
"""The outputs of a head that finds a span."""
EMBEDDING = "sentence_embedding"
"""The output of a sentence encoder that has one vector for each text."""


def encoder_ports(
    decoder_layers: int, num_heads: int, d_kv: int, d_model: int, dtype: str, embedding: int | None = None
) -> GraphPorts:
    """Ports of the encoder graph; ``dtype`` is the compute dtype (float, float16, bfloat16).

    ``embedding``: size of the sentence embeddings, where it makes them; they are float32.
    """
    hidden = Port("last_hidden_state", dtype, ("batch", "source", d_model))
    cross = tuple(
        Port(f"present.{layer}.encoder.{half}", dtype, ("batch", num_heads, "source", d_kv))
        for layer in range(decoder_layers)
        for half in ("key", "value")
    )
    return GraphPorts(
        (
            Port("input_ids", "int64", ("batch", "source")),
            Port("attention_mask", "int64", ("batch", "source")),
        ),
        (hidden, *cross, *([] if embedding is None else [Port(EMBEDDING, "float", ("batch", embedding))])),
    )


def decoder_ports(decoder_layers: int, num_heads: int, d_kv: int, vocab_size: int, dtype: str) -> GraphPorts:
    """Ports of the decoder-with-past graph; ``past`` may be 0, so it serves the first step too."""
    inputs = [
        Port("input_ids", "int64", ("batch", "target")),
        Port("encoder_attention_mask", "int64", ("batch", "source")),
    ]
    outputs = [Port("logits", "float", ("batch", "target", vocab_size))]
    for layer in range(decoder_layers):
        for origin, axis in (("decoder", "past"), ("encoder", "source")):
            for half in ("key", "value"):
                name = f"past_key_values.{layer}.{origin}.{half}"
                inputs.append(Port(name, dtype, ("batch", num_heads, axis, d_kv)))
        for half in ("key", "value"):
            axes = ("batch", num_heads, "past + target", d_kv)
            outputs.append(Port(f"present.{layer}.decoder.{half}", dtype, axes))
    return GraphPorts(tuple(inputs), tuple(outputs))


def head_ports(encoder: GraphPorts, head: str, labels: int) -> GraphPorts:
    """Ports of an encoder below a head, whose outputs are float32: see ``Architecture.head``."""
    if head == "span":
        ports = [Port(name, "float", ("batch", "source")) for name in SPAN_LOGITS]
    else:
        ports = [Port(LABEL_LOGITS, "float", ("batch", "source", labels) if head == "tokens" else ("batch", labels))]
    return GraphPorts(encoder.inputs, (*encoder.outputs, *ports))


def prefix_ports(encoder: GraphPorts, decoder: GraphPorts, length: int) -> tuple[GraphPorts, GraphPorts]:
    """Ports of both graphs with learnt prefixes of at most ``length`` positions.

    The encoder gives what a decoder's cache begins with, and ``cache_start`` int64 [batch]: how many of its positions
    are no part of a row's own prefix, which the decoder hides.
    """
    start = Port("cache_start", "int64", ("batch",))
    own = [port for port in decoder.outputs if port.name.endswith(("decoder.key", "decoder.value"))]
    first = (Port(port.name, port.dtype, (*port.axes[:2], length, port.axes[3])) for port in own)
    ids, mask, *caches = decoder.inputs
    return (
        GraphPorts(encoder.inputs, (*encoder.outputs, *first, start)),
        GraphPorts((ids, mask, start, *caches), decoder.outputs),
    )


def in_place_ports(ports: GraphPorts, capacity: int | str) -> GraphPorts:
    """Ports of the decoder whose cache is written in place: ``ports`` of the concatenating one, with buffers as caches.

    Caches are [batch, heads, capacity, d_kv] in and out, meant to share memory; ``past_length`` int64 says how many
    positions are filled, and ``past_length + target`` must not exceed ``capacity``: a size, and then ``past_length`` is
    [1], or the name of a free axis, and then it is [batch] (bundles written before 0.3: [1]).
    """

    def fixed(port: Port) -> Port:
        own = port.name.endswith(("decoder.key", "decoder.value"))
        return Port(port.name, port.dtype, (*port.axes[:2], capacity, port.axes[3])) if own else port

    ids, mask, *rest = (fixed(port) for port in ports.inputs)
    length = Port("past_length", "int64", (1,) if isinstance(capacity, int) else ("batch",))
    return GraphPorts((ids, mask, length, *rest), tuple(fixed(port) for port in ports.outputs))
