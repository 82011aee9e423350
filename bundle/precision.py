"""The precisions as rows: what dtype the graph computes in, what is quantized, and what parity must hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from t5edge.bundle.dtype import COMPUTE_DTYPES, DTYPES
from t5edge.bundle.schema import Count, OneOf
from t5edge.errors import UserError


@dataclass(frozen=True)
class QuantizedLimits:
    """What else a quantized row must hold, on any model: each in its own unit, none derived from the bundle's errors.

    Attributes:
        tie: nats by which the reference may prefer its own best token to the one chosen, and both count as right.
        hidden: relative L2 error of the encoder's output and of cross keys and values.
        logits: the same of the logits on odd lengths and long targets; ``position``: of the worst position.
        repeated: the same of the bundle against itself: cached against uncached, a row alone or among others.
        score_lost: nats per token by which hypotheses of beam search may be worse than the reference's, on average.
    """

    tie: float
    hidden: float
    logits: float
    position: float
    repeated: float
    score_lost: float

    @property
    def token(self) -> float:
        """Of an encoder alone: distance of one token's hidden state, the worst, scaled to length 1."""
        return 2 * self.hidden


@dataclass(frozen=True)
class Precision:
    """One row.

    Attributes:
        compute: dtype of activations and unquantized weights, ONNX's lower-case name. Quantized rows compute in float
            as they stand here, and in float16 on request (``computing``).
        weight_bits: 0 when weights keep the compute dtype, else 8 or 4.
        block_size: rows of a weight that share a scale; 0 means one scale per output channel.
        activations: graphs whose MatMul inputs are int8 too. The encoder is compute bound and gains; a decoder step is
            memory bound, gains nothing, and stays weight-only.
        rescale: whether the exact power-of-two rescale keeps the residual stream in range.
        max_error_ratio: logit error allowed, in units of PyTorch's own error at the compute dtype (fp32: absolute
            relative error is bounded by ``max_relative_error`` instead).
        max_relative_error: bound on the relative logit error against fp32 PyTorch, or None.
        max_kl: mean KL divergence of next-token distributions against fp32 PyTorch (nats), or None. With
            ``max_error_ratio`` the divergence that PyTorch's own error causes, times the ratio squared, is allowed too.
        min_top1: share of positions whose arg-max agrees, or None; ties by margin are left out.
        quality: further limits of a quantized row.
        count_ties: ties are no excuse; quantized rows only.
    """

    name: str
    compute: Annotated[str, OneOf(COMPUTE_DTYPES)]
    weight_bits: Count = 0
    block_size: Count = 0
    activations: tuple[str, ...] = ()
    rescale: bool = False
    max_error_ratio: float | None = None
    max_relative_error: float | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    count_ties: bool = False
    quality: QuantizedLimits | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "activations", tuple(self.activations))  # JSON knows lists only

    def to_dict(self) -> dict[str, Any]:
        """As the manifest says it, which does not state the further limits."""
        stated = {name: value for name, value in asdict(self).items() if name != "quality"}
        return {**stated, "activations": list(self.activations)}

    @property
    def title(self) -> str:
        """``name``, with the compute dtype where the name leaves it open."""
        return f"{self.name} computed in {self.compute}" if self.quantized and self.compute != "float" else self.name

    @property
    def quantized(self) -> bool:
        return self.weight_bits > 0

    @property
    def quantize_activations(self) -> bool:
        return bool(self.activations)

    def computing(self, compute: str) -> Precision:
        """The same row in another compute dtype. 16 bits of float16 range need the rescale."""
        return self if compute == self.compute else replace(self, compute=compute, rescale=compute == "float16")

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of one MatMul weight, scales left out."""
        return (self.weight_bits or DTYPES[self.compute].bits) / 8


INT8 = QuantizedLimits(tie=0.25, hidden=0.2, logits=0.2, position=0.6, repeated=0.03, score_lost=0.1)
INT8_WEIGHT = QuantizedLimits(tie=0.15, hidden=0.1, logits=0.1, position=0.4, repeated=0.03, score_lost=0.1)
INT4_WEIGHT = QuantizedLimits(tie=0.45, hidden=0.3, logits=0.4, position=1.0, repeated=0.03, score_lost=0.2)
"""Measured on t5-demo and tiny models, with headroom: the table in ``docs/parity.md``."""


PRECISIONS: tuple[Precision, ...] = (
    Precision("fp32", "float", max_relative_error=1e-5, max_kl=1e-8, min_top1=1.0),
    Precision("fp16", "float16", rescale=True, max_error_ratio=2.0, max_kl=1e-3, min_top1=0.995),
    Precision(
        "int8",
        "float",
        weight_bits=8,
        activations=("encoder",),
        max_kl=0.05,
        min_top1=0.97,
        quality=INT8,
    ),
    Precision(
        "int8-weight",
        "float",
        weight_bits=8,
        max_kl=0.01,
        min_top1=0.99,
        quality=INT8_WEIGHT,
    ),
    Precision(
        "int4-weight",
        "float",
        weight_bits=4,
        block_size=32,
        max_kl=0.2,
        min_top1=0.9,
        quality=INT4_WEIGHT,
    ),
    Precision("bf16", "bfloat16", max_error_ratio=2.0, max_kl=1e-2, min_top1=0.97),
)


def own_row(stated: Precision) -> Precision:
    """The row of that name in this program, with what a manifest may choose: a compute dtype if quantized, ties.

    Raises:
        UserError: there is no such precision.
    """
    row = precision(stated.name)
    return replace(row.computing(stated.compute), count_ties=stated.count_ties) if row.quantized else row


def precision(name: str) -> Precision:
    """The row called ``name``.

    Raises:
        UserError: there is no such precision.
    """
    for row in PRECISIONS:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in PRECISIONS)
    raise UserError(f"precision '{name}' is unknown; choose one of {known}.")
