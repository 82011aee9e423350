"""``weights.safetensors`` read back into the checkpoint's tensors, with the bound that its format sets to each number.

    stored int8 | int4 | float16 | ... -> times its scale -> powers of two taken back -> split, unscaled -> [out, in]

    bound   half a step where integers are stored, half a unit in the last place of the stored dtype elsewhere

One matrix is in memory at a time. Nothing here is shared with the code that wrote the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.architecture import Architecture
from t5edge.exporter.graph.position_buckets import bucket_table
from t5edge.exporter.graph.write import FILE_NAME
from t5edge.parity.exact.keys import EXPONENTS, DistanceKey, StackKey, StoredKey, read_key

if TYPE_CHECKING:
    import torch

    from t5edge.exporter.checkpoint.open import Checkpoint

MANTISSA = {"float32": 23, "float16": 10, "bfloat16": 7}
"""Stored bits behind the leading one."""
SMALLEST = {"float32": -149, "float16": -24, "bfloat16": -133}
"""Exponent of the smallest subnormal number."""
LARGEST_EXPONENT = 12
"""Smoothing multiplies a channel by 2 to a power within plus and minus this."""
POLISHED, ROUNDS = 64, 3
"""Numbers of a channel whose ratios are compared, and how often."""


@dataclass(frozen=True)
class Recovered:
    """One tensor of the checkpoint, ``name``, as ``stored`` holds it: float32 or float64, [out, in] or [size].

    ``half_step``, of a shape that broadcasts to it: how far rounding to the stored format may move a number.
    """

    name: str
    stored: str
    values: torch.Tensor
    half_step: torch.Tensor


@dataclass
class StoredWeights:
    """A bundle's weights file. ``problems`` collects what is wrong with the file as such while it is read."""

    folder: Path
    checkpoint: Checkpoint
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        from safetensors import safe_open

        self._file: Any = safe_open(self.folder / FILE_NAME, framework="pt")
        self.names: tuple[str, ...] = tuple(self._file.keys())

    @property
    def architecture(self) -> Architecture:
        return self.checkpoint.architecture

    def matrices(self) -> Iterator[tuple[str, StoredKey]]:
        """Everything that is stored, by the name of its values; scales go with them."""
        for name in self.names:
            if name.startswith(EXPONENTS):
                continue
            key = read_key(name)
            if key is None or self._unknown(key):
                self.problems.append(f"'{name}' is made of no tensor of the checkpoint")
            elif key.part == "scales":
                if key.matrix not in self.names:
                    self.problems.append(f"'{name}' has no values")
            elif key.part == "values" and self._scales_of(name) not in self.names:
                self.problems.append(f"'{name}' has no scales")
            else:
                yield name, key

    def _unknown(self, key: StoredKey) -> bool:
        known = set(self.checkpoint.weight_names())
        base = key.base
        return not {base.source if isinstance(base, DistanceKey) else name for name, _ in _sources(base)} <= known

    @staticmethod
    def _scales_of(name: str) -> str:
        return name.replace(".values(", ".scales(", 1)

    def recover(self, name: str, key: StoredKey) -> Iterator[Recovered]:
        """The checkpoint tensors that one stored matrix holds."""
        if isinstance(key.base, DistanceKey):
            yield self._recover_bias(name, key.base)
            return
        shapes = [self.checkpoint.shape(source) for source, _ in key.base.sources]
        values, half = self._decode(name, key, _stacked_shape(shapes, key.base.transposed))
        if key.base.smoothed:
            factors = self._factors(key.base, values)
            values, half = values / factors, half / factors
        if key.base.transposed:
            values, half = values.T, half.T
        start = 0
        for (source, factor), shape in zip(key.base.sources, shapes, strict=True):
            rows = slice(start, start + shape[0])
            own = half if half.shape[0] == 1 else half[rows]
            yield _unscaled(source, name, values[rows], own, factor)
            start += shape[0]

    def _decode(self, name: str, key: StoredKey, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Stored numbers as float32 of ``shape``, and half a step of each (broadcastable)."""
        tensor = self._file.get_tensor(name)
        if not key.part:
            return tensor.reshape(shape).float(), half_ulp(tensor.reshape(shape))
        scales = self._file.get_tensor(self._scales_of(name)).float()
        codes = tensor if key.bits == 8 else unpack_int4(tensor)
        codes = codes.reshape(shape).float()
        if _in_rows(key):
            return codes * scales[:, None], scales[:, None] / 2
        step = scales.repeat_interleave(key.block, dim=0) if key.block else scales[None]
        return codes * step, step / 2

    def steps(self, name: str, key: StoredKey) -> tuple[torch.Tensor, torch.Tensor]:
        """The scales [blocks or 1, out] of integers, and the largest magnitude of the codes under each."""
        shapes = [self.checkpoint.shape(source) for source, _ in _sources(key.base)]
        rows, columns = _stacked_shape(shapes, isinstance(key.base, StackKey) and key.base.transposed)
        tensor, scales = self._file.get_tensor(name), self._file.get_tensor(self._scales_of(name)).float()
        if _in_rows(key):
            return scales[None], tensor.reshape(rows, columns).short().abs().amax(dim=1)[None]
        codes = (tensor if key.bits == 8 else unpack_int4(tensor)).reshape(-1, key.block or rows, columns)
        return scales.reshape(-1, columns), codes.short().abs().amax(dim=1)

    def sums(self, name: str, key: StoredKey) -> torch.Tensor:
        """The largest magnitude of codes 2i plus 2i + 1 in each column of an int8 matrix, int16 [1, out]."""
        shapes = [self.checkpoint.shape(source) for source, _ in _sources(key.base)]
        codes = self._file.get_tensor(name).reshape(_stacked_shape(shapes, transposed=True)).short()
        pairs = codes.shape[0] // 2
        return (codes[0 : 2 * pairs : 2] + codes[1::2]).abs().amax(dim=0)[None]

    def _factors(self, key: StackKey, values: torch.Tensor) -> torch.Tensor:
        """Powers of two, broadcastable to ``values``, that a smoothed stack's channels were multiplied by.

        Older bundles do not store them; there they are found by comparison with the checkpoint. Whether they cancel is
        for the graphs to show.
        """
        if all(name in self.names for name in (key.rows, key.columns) if name):
            return self._stored_factors(key, values.ndim)
        parts = [self.checkpoint.read(name).float() * factor for name, factor in key.sources]
        return channel_factors(values, _stack(parts, key.transposed))

    def _stored_factors(self, key: StackKey, axes: int) -> torch.Tensor:
        import torch

        factors = torch.ones([1] * axes)
        for axis, name in enumerate((key.rows, key.columns)):
            if name:
                shape = [-1 if place == axis else 1 for place in range(axes)]
                factors = factors * torch.exp2(self._file.get_tensor(name).float()).reshape(shape)
        return factors

    def _recover_bias(self, name: str, key: DistanceKey) -> Recovered:
        """[buckets, heads]: each bucket's value wherever it occurs; buckets that no distance falls into as they are."""
        import torch

        a = self.architecture
        decoder = key.source.startswith("decoder.")
        buckets = torch.tensor(bucket_table(a.num_buckets, a.max_distance, bidirectional=not decoder))
        tensor = self._file.get_tensor(name)
        table = tensor[:, : len(buckets)].float().T
        values = self.checkpoint.read(key.source).float().clone()
        values[buckets] = table
        if len(buckets) != key.count or not torch.equal(values[buckets], table):
            self.problems.append(f"'{name}' has several values for one bucket")
        return Recovered(key.source, name, values, half_ulp(values.to(tensor.dtype)))


def _unscaled(name: str, stored: str, values: torch.Tensor, half: torch.Tensor, factor: float) -> Recovered:
    """Divided by ``factor``: where that is no power of two, the exporter rounds it to float32, and float64 divides."""
    if math.frexp(abs(factor))[0] == 0.5:
        return Recovered(name, stored, values / factor, half / abs(factor))
    exact = values.double() / factor
    return Recovered(name, stored, exact, half / abs(factor) + exact.abs() * 2.0**-24)


def _sources(key: StackKey | DistanceKey) -> tuple[tuple[str, float], ...]:
    return ((key.source, 1.0),) if isinstance(key, DistanceKey) else key.sources


def _in_rows(key: StoredKey) -> bool:
    """Whether integers lie as the checkpoint's rows, a scale each: a token table that nothing multiplies by."""
    return bool(key.part) and isinstance(key.base, StackKey) and not key.base.transposed


def _stacked_shape(shapes: list[tuple[int, ...]], transposed: bool) -> tuple[int, ...]:
    stacked = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    return stacked[::-1] if transposed else stacked


def _stack(parts: list[torch.Tensor], transposed: bool) -> torch.Tensor:
    import torch

    stacked = torch.cat(parts) if len(parts) > 1 else parts[0]
    return stacked.T if transposed else stacked


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """Flat int8 codes in -8..7 of bytes that hold two each, the first in the low half."""
    import torch

    halves = torch.stack([packed & 0x0F, packed >> 4], dim=-1).reshape(-1).to(torch.int8)
    return torch.where(halves > 7, halves - 16, halves)


def half_ulp(tensor: torch.Tensor) -> torch.Tensor:
    """Half a unit in the last place of each number of a float tensor, float32, the larger side at powers of two."""
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    _, exponent = torch.frexp(tensor.float().abs())
    return torch.exp2((exponent - 1 - MANTISSA[dtype]).clamp(min=SMALLEST[dtype]).float()) / 2


def channel_factors(values: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Powers of two with ``values`` = ``base`` x rows x columns, as nearly as rounding lets see; shape of ``values``.

    Tukey's median polish of the ratios' logarithms, over the largest numbers of each row and of each column: rounding
    spoils those least. A row that was rounded away as a whole counts as multiplied by the least factor.
    """
    import torch

    if values.ndim == 1:
        return torch.exp2(_log_ratio(values, base).round().clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT))
    rows, columns = torch.zeros(values.shape[0]), torch.zeros(values.shape[1])
    by_row = values.abs().topk(min(POLISHED, values.shape[1]), dim=1).indices
    by_column = values.abs().topk(min(POLISHED, values.shape[0]), dim=0).indices
    of_row = _log_ratio(values.gather(1, by_row), base.gather(1, by_row))
    of_column = _log_ratio(values.gather(0, by_column), base.gather(0, by_column))
    for _ in range(ROUNDS):
        rows = (of_row - columns[by_row]).nanmedian(dim=1).values.nan_to_num(-LARGEST_EXPONENT)
        columns = (of_column - rows[by_column]).nanmedian(dim=0).values.nan_to_num(0.0)
    exponents = (rows[:, None] + columns).round()
    return torch.exp2(exponents.clamp(-2 * LARGEST_EXPONENT, 2 * LARGEST_EXPONENT))


def _log_ratio(values: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """log2 of the ratio of magnitudes, NaN where either is 0."""
    import torch

    ratio = torch.log2(values.abs()) - torch.log2(base.abs())
    return torch.where(torch.isfinite(ratio), ratio, torch.full_like(ratio, float("nan")))
