"""What a variant would cost on a device, before anything is exported: bytes, FLOPs, and the roofline's latency.

    latency = max(bytes / bandwidth, FLOPs / peak)        Williams et al., https://doi.org/10.1145/1498765.1498785

Batch 1. Bytes are weights, and in a decode step the keys and values; activations stay in caches and are left out. A
roofline is a bound from below: measured latencies are higher. Counted as the graphs are built: cross keys and values
are the encoder graph's work, a decode step reads the output layer once and one row of the embedding. A quantized
precision is planned as if its calibration left no matrix in full precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from t5edge.bundle.architecture import Architecture, Stack
from t5edge.bundle.dtype import DTYPES
from t5edge.bundle.precision import Precision
from t5edge.exporter.family.variants import Variant
from t5edge.tools.planning.devices import DeviceSpec

NODE_BYTES = 250
"""Bytes that an assembled node takes in its .onnx file."""
NODES = {"encoder": 21, "decoder": 38}
"""Nodes that a layer takes in both graphs; the decoder's cross keys and values are six in the encoder graph."""
DECODED_TOKENS = 64
"""Tokens of the request that ``request_ms`` stands for."""


@dataclass(frozen=True)
class Lengths:
    """Source tokens of the encoder, and tokens already in the cache at the planned decode step."""

    source: int = 512
    past: int = 64


@dataclass(frozen=True)
class Latency:
    """One graph on one device: milliseconds, and which of the two sets them."""

    ms: float
    bound: str


@dataclass(frozen=True)
class VariantCost:
    """The cost of one variant in one precision on one device."""

    name: str
    parameters: int
    precision: str
    device: str
    bundle_bytes: int
    """Weights and graphs; a tokenizer.json is 1 to 20 MB on top."""
    bytes_per_token: int
    """Weights that one decode step reads; keys and values are in the next two, for each token they belong to."""
    kv_bytes_per_token: int
    cross_kv_bytes_per_source_token: int
    encoder_flops: int
    decode_flops: int
    encoder: Latency
    decode: Latency

    @property
    def request_ms(self) -> float:
        """Encoding one source and decoding ``DECODED_TOKENS`` tokens."""
        return self.encoder.ms + DECODED_TOKENS * self.decode.ms

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "request_ms": self.request_ms}


def plan_variant(
    variant: Variant, precision: Precision, device: DeviceSpec, lengths: Lengths | None = None
) -> VariantCost:
    """Cost of one variant."""
    a, sizes = variant.architecture, lengths or Lengths()
    weights, kv = _Weights(a, precision), kv_bytes(a, precision)
    step_bytes = weights.decode_step + kv * (sizes.past + 1 + sizes.source)
    encoding, decoding = encoder_flops(a, sizes.source), decode_flops(a, sizes)
    return VariantCost(
        name=variant.name,
        parameters=variant.parameters,
        precision=precision.name,
        device=device.name,
        bundle_bytes=weights.total + graph_bytes(a),
        bytes_per_token=weights.decode_step,
        kv_bytes_per_token=kv,
        cross_kv_bytes_per_source_token=kv,
        encoder_flops=encoding,
        decode_flops=decoding,
        encoder=roofline(weights.encoder(sizes.source), encoding, device, _dtype(precision, "encoder")),
        decode=roofline(step_bytes, decoding, device, _dtype(precision, "decoder")),
    )


def bundle_bytes(a: Architecture, precision: Precision) -> int:
    """Bytes of weights and graphs, about."""
    return _Weights(a, precision).total + graph_bytes(a)


def roofline(bytes_read: float, flops: float, device: DeviceSpec, dtype: str) -> Latency:
    """The larger of the time to read and the time to compute."""
    memory, compute = bytes_read / device.bandwidth / 1e6, flops / device.rate(dtype) / 1e9
    return Latency(memory, "memory") if memory >= compute else Latency(compute, "compute")


def _dtype(precision: Precision, stack: Stack) -> str:
    """What the stack's matrices are multiplied in."""
    return "int8" if stack in precision.activations else precision.compute


def graph_bytes(a: Architecture) -> int:
    """Bytes of encoder.onnx and decoder.onnx, about."""
    return NODE_BYTES * (NODES["encoder"] * a.encoder_layers + NODES["decoder"] * a.decoder_layers)


def kv_bytes(a: Architecture, precision: Precision) -> int:
    """Bytes of keys and values of all decoder layers for one position; the same for self- and cross-attention."""
    return 2 * a.decoder_layers * a.inner_dim * DTYPES[precision.compute].bytes


def encoder_flops(a: Architecture, source: int) -> int:
    """FLOPs (two per multiply-add) of the encoder graph on ``source`` tokens, cross keys and values included."""
    block = 4 * a.d_model * a.inner_dim + _ffn_weights(a)
    cross = 2 * a.d_model * a.inner_dim * a.decoder_layers
    attention = 4 * source * source * a.inner_dim * a.encoder_layers
    return 2 * source * (block * a.encoder_layers + cross) + attention


def decode_flops(a: Architecture, lengths: Lengths) -> int:
    """FLOPs of one decode step."""
    block = 6 * a.d_model * a.inner_dim + _ffn_weights(a)
    attention = 4 * (lengths.past + 1 + lengths.source) * a.inner_dim * a.decoder_layers
    return 2 * (block * a.decoder_layers + a.d_model * a.vocab_size) + attention


def _ffn_weights(a: Architecture) -> int:
    return (3 if a.gated else 2) * a.d_model * a.d_ff


class _Weights:
    """Bytes of the parts of ``weights.safetensors``, as the precision stores them."""

    def __init__(self, a: Architecture, precision: Precision) -> None:
        self.a, self.precision = a, precision
        self.wide = DTYPES[precision.compute].bytes

    def matrix(self, rows: int, columns: int) -> int:
        """A MatMul weight [rows, columns] with its scales."""
        from t5edge.calibration.scheme import scheme_for

        scheme = scheme_for(self.precision, rows, columns) if self.precision.quantized else None
        if scheme is None:
            return rows * columns * self.wide
        scales = columns * (rows // scheme.block if scheme.block else 1)
        return rows * columns * scheme.bits // 8 + scales * self.wide

    @property
    def table_row(self) -> int:
        """One row of the token table: 8 bits and a scale wherever anything is quantized."""
        return self.a.d_model + self.wide if self.precision.quantized else self.a.d_model * self.wide

    @property
    def attention(self) -> int:
        """Packed q, k, v and the output projection."""
        a = self.a
        return self.matrix(a.d_model, 3 * a.inner_dim) + self.matrix(a.inner_dim, a.d_model)

    @property
    def cross_attention(self) -> int:
        """The decoder's part: queries and output."""
        a = self.a
        return self.matrix(a.d_model, a.inner_dim) + self.matrix(a.inner_dim, a.d_model)

    @property
    def cross_kv(self) -> int:
        """Packed keys and values of every decoder layer: the encoder graph's part."""
        return self.a.decoder_layers * self.matrix(self.a.d_model, 2 * self.a.inner_dim)

    @property
    def feed_forward(self) -> int:
        a = self.a
        return self.matrix(a.d_model, (2 if a.gated else 1) * a.d_ff) + self.matrix(a.d_ff, a.d_model)

    @property
    def output_layer(self) -> int:
        """The output layer; tied, it is the token table."""
        a = self.a
        return a.vocab_size * self.table_row if a.tied else self.matrix(a.d_model, a.vocab_size)

    def stack(self, stack: Stack) -> int:
        """All blocks of a stack with norms, bias tables and the final norm; cross keys and values left out."""
        a = self.a
        layers, decoder = a.layers(stack), stack == "decoder"
        block = self.attention + self.feed_forward + (self.cross_attention if decoder else 0)
        norms = (layers * (3 if decoder else 2) + 1) * a.d_model * self.wide
        columns = a.max_distance + 2 if decoder else 2 * a.max_distance + 1
        tables = (layers if a.per_layer_bias else 1) * a.num_heads * columns * self.wide
        return layers * block + norms + tables

    def encoder(self, source: int) -> int:
        """What one run of the encoder graph reads."""
        return self.stack("encoder") + self.cross_kv + min(source, self.a.vocab_size) * self.table_row

    @property
    def decode_step(self) -> int:
        """What one decode step reads, keys and values left out."""
        return self.stack("decoder") + self.output_layer + self.table_row

    @property
    def total(self) -> int:
        """The weights file: every tensor once."""
        table = 0 if self.a.tied else self.a.vocab_size * self.table_row
        return self.stack("encoder") + self.stack("decoder") + self.cross_kv + self.output_layer + table


def frontier(costs: Iterable[VariantCost]) -> list[VariantCost]:
    """The variants that no other beats: none has as many parameters in less time for a request.

    Parameters stand for capacity here. Accuracy on a task is not known here.
    """
    best: list[VariantCost] = []
    for cost in sorted(costs, key=lambda cost: (-cost.parameters, cost.request_ms)):
        if not best or cost.request_ms < best[-1].request_ms:
            best.append(cost)
    return best[::-1]
