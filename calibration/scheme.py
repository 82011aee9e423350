"""How a matrix is rounded to integers: bits, blocks, scales, and the arithmetic, in torch.

x86 without VNNI multiplies uint8 by int8 in pairs of neighbours, whose sum must fit into 16 bits: 255 (a + b) does
where |a + b| <= 128. Weights that meet rounded inputs hold that, so the fast kernel is exact on every CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from t5edge.bundle.precision import Precision
from t5edge.errors import UserError

if TYPE_CHECKING:
    import torch

QUANTIZED_AT_ONCE = 1 << 22
"""Numbers, about: what is between a matrix and its integers never lies in memory whole."""


@dataclass(frozen=True)
class Scheme:
    """How one matrix [in, out] is quantized: ``bits`` 8 or 4; ``block`` rows share a scale, 0 is a whole column.

    ``scales`` is their dtype, the graph's compute dtype. In float16 they are rounded up, and the integers follow the
    rounded scale: nothing is clipped, no scale becomes 0, and a subnormal one costs no more than float16 weights would.
    ``pairs``: the sum of rows 2i and 2i + 1 stays within -128..128.
    """

    bits: int
    block: int = 0
    scales: str = "float"
    pairs: bool = False

    @property
    def largest(self) -> int:
        """Symmetric range: -127..127 or -7..7; the lowest code is unused, so the zero point is exactly 0."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def dtype(self) -> ir.DataType:
        return ir.DataType.INT8 if self.bits == 8 else ir.DataType.INT4


def row_scales(rows: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Scales of [out, in], float32: [out], or [out, in / block]. All-zero rows get 1.

    Raises:
        UserError: a value is NaN or infinite.
    """
    import torch

    if scheme.block:
        rows = rows.reshape(rows.shape[0], -1, scheme.block)
    lowest, highest = torch.aminmax(rows, dim=-1)
    largest = torch.maximum(-lowest.float(), highest.float())
    if scheme.pairs:
        largest = torch.maximum(largest, _largest_sum(rows))
    scales = largest / scheme.largest
    if not bool(torch.isfinite(scales).all()):
        raise UserError("a weight matrix holds NaN or infinity and cannot be quantized; fix the checkpoint.")
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    return scales if scheme.scales == "float" else torch.from_numpy(round_up(scales.numpy(), np.float16))


def _largest_sum(rows: torch.Tensor) -> torch.Tensor:
    """Largest |rows[:, 2i] + rows[:, 2i + 1]| of [out, in], float32 [out]; two numbers round up by half a step each."""
    import torch

    pairs, found = rows.shape[1] // 2, []
    for part in rows.split(_rows_at_once(rows)):
        lowest, highest = torch.aminmax(part[:, 0 : 2 * pairs : 2].float() + part[:, 1::2], dim=-1)
        found.append(torch.maximum(-lowest, highest))
    return torch.cat(found)


def round_up(values: np.ndarray, dtype: type[np.floating[Any]]) -> np.ndarray:
    """Positive float32 ``values`` as the next number of ``dtype`` that is not smaller, float32."""
    narrow = values.astype(dtype)
    raised = np.where(narrow.astype(np.float32) < values, np.nextafter(narrow, dtype(np.inf)), narrow)
    return raised.astype(np.float32)


def quantize_rows(rows: torch.Tensor, scales: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """round(rows / scale), clipped to the symmetric range, int8 [out, in]; a slice of rows after the other."""
    import torch

    found = torch.empty(rows.shape, dtype=torch.int8)
    size = _rows_at_once(rows)
    for part, scale, values in zip(rows.split(size), scales.split(size), found.split(size), strict=True):
        wide = part.reshape(len(part), -1, scheme.block) if scheme.block else part
        exact = torch.div(wide, scale[..., None]).round_().clamp_(-scheme.largest, scheme.largest)
        values.copy_(exact.reshape(part.shape))
    return found


def _rows_at_once(rows: torch.Tensor) -> int:
    return max(1, QUANTIZED_AT_ONCE * len(rows) // max(1, rows.numel()))


def pack_int4(values: torch.Tensor) -> torch.Tensor:
    """int8 codes in -7..7, row-major, two to a byte with the first in the low half: flat uint8."""
    import torch

    flat = values.reshape(-1).view(torch.uint8) & 0x0F
    return flat[0::2] | (flat[1::2] << 4)


def round_columns(matrix: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """A matrix [in, out] as it is after quantizing and back, float32."""
    rows = matrix.T.contiguous()
    scales = row_scales(rows, scheme)
    wide = quantize_rows(rows, scales, scheme).reshape(*scales.shape, -1) * scales[..., None]
    return wide.reshape(rows.shape).T


def scheme_for(precision: Precision, rows: int, columns: int, *, rounded: bool = False) -> Scheme | None:
    """The scheme of a matrix [rows, columns]; None leaves it in full precision (odd sizes cannot be packed).

    ``rounded``: its inputs are integers too. In float16, which is for GPUs, their products have room.
    """
    if precision.weight_bits == 8:
        return replace(table_scheme(precision), pairs=rounded and precision.compute == "float")
    if rows * columns % 2:
        return None
    block = next((size for size in (precision.block_size, 16) if size and rows % size == 0), 0)
    return Scheme(4, block, precision.compute) if block else table_scheme(precision)


def table_scheme(precision: Precision) -> Scheme:
    """The scheme of the token table: eight bits whatever the bits of the rest."""
    return Scheme(8, scales=precision.compute)
