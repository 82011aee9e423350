"""The dtypes of graphs and weights, by ONNX's lower-case names: widths, numpy's counterparts, roundings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Dtype:
    """One dtype.

    Attributes:
        bits: width of one element.
        held_as: numpy's name of what arrays hold: itself, the bits of bfloat16 as uint16, int4 two to a byte.
        safetensors: what a safetensors header calls it, or what it is held as.
        rounding: largest relative error of rounding to it (unit roundoff); None for integers.
    """

    name: str
    bits: int
    held_as: str
    safetensors: str
    rounding: float | None = None

    @property
    def array(self) -> np.dtype[Any]:
        """The numpy dtype of ``held_as``."""
        import numpy as np

        return np.dtype(self.held_as)

    @property
    def bytes(self) -> int:
        """Bytes of one element; of packed dtypes, of the byte that holds it."""
        return max(1, self.bits // 8)

    @property
    def narrow(self) -> bool:
        """Whether it is a floating-point dtype of fewer bits than float32."""
        return self.rounding is not None and self.bits < 32

    def widened(self, array: np.ndarray) -> np.ndarray:
        """bfloat16 held as uint16 as float32 of the same values; every other array as it is."""
        if self.name != "bfloat16":
            return array
        return (array.astype("uint32") << 16).view("float32")


DTYPES = {
    row.name: row
    for row in (
        Dtype("float", 32, "float32", "F32", 2.0**-24),
        Dtype("float16", 16, "float16", "F16", 2.0**-11),
        Dtype("bfloat16", 16, "uint16", "BF16", 2.0**-8),
        Dtype("int64", 64, "int64", "I64"),
        Dtype("int32", 32, "int32", "I32"),
        Dtype("int8", 8, "int8", "I8"),
        Dtype("uint8", 8, "uint8", "U8"),
        Dtype("int4", 4, "uint8", "U8"),
    )
}
COMPUTE_DTYPES = tuple(row.name for row in DTYPES.values() if row.rounding is not None)
"""What graphs compute in."""
NARROW = tuple(row.name for row in DTYPES.values() if row.narrow)
"""Compute dtypes of 16 bits."""
