"""Learnt prefixes at the beginning of an engine's cache."""

from __future__ import annotations

from t5edge.bundle.dtype import DTYPES
from t5edge.bundle.ports import Port
from t5edge.runtime.tensorrt.device import Buffer, Device

CACHE_START = "cache_start"
"""Output of the encoder and input of the decoder where there are learnt prefixes; see ``bundle.ports``."""
Buffers = dict[str, Buffer]


def start_cache(device: Device, port: Port, past: Buffers, fixed: Buffers, rows: int, capacity: int | None) -> int:
    """Move prefixes [rows, heads, length, d_kv] from ``fixed`` into the cache; returns their length, 0 without any.

    ``port`` is one of the cache's; ``capacity``: positions of a cache of fixed size, None for one that grows.
    """
    first = {name: fixed.pop(name) for name in past if name in fixed}
    if not first:
        return 0
    heads, d_kv = (int(port.axes[axis]) for axis in (1, 3))
    unit = d_kv * DTYPES[port.dtype].bytes
    length = next(iter(first.values())).size // (rows * heads * unit)
    to, size = (capacity or length) * unit, length * unit
    for name, buffer in first.items():
        for place in range(rows * heads):
            device.copy(past[name].address + place * to, buffer.address + place * size, size)
    device.synchronize()  # the prefixes' own buffers are freed on return
    return length
