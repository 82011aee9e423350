"""How ONNX Runtime multiplies int8 by int8 on this CPU, and the session entries that make the products exact.

    x int8 [rows, k] (uint8 inside) @ w int8 [k, n] -> int32, exact by definition

On x86 without VNNI the kernel for signed weights adds pairs of products in 16 bits, and 2 x 255 x 127 does not fit: the
sum saturates. ``saturation.onnx``, an 8 x 8 MatMul of the largest values, shows whether it does; the answer comes
from the kernels that run, while a list of CPU features may belong to another machine (emulators, containers).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

PROBE = Path(__file__).with_name("saturation.onnx")
LARGEST = 127
PROBE_ROWS = (1, 5)
"""One row and several take different kernels."""
CPUINFO = Path("/proc/cpuinfo")
INSTRUCTION_SETS = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512bw"},
    "AVX-VNNI": {"avx_vnni"},
    "AVX-512 VNNI": {"avx512_vnni"},
    "AMX": {"amx_int8"},
    "dot product": {"asimddp"},
    "i8mm": {"i8mm"},
}
"""By the flags of Linux, all of which a CPU must have."""


@dataclass(frozen=True)
class Arithmetic:
    """One way to run MatMuls of int8 by int8. ``entries`` are added to the session's configuration."""

    name: str
    exact: bool
    entries: Mapping[str, str]

    def __str__(self) -> str:
        return f"{'exact' if self.exact else 'saturating'}: {self.name}"


SIGNED = Arithmetic("signed weights", True, {})
UNSIGNED = Arithmetic(
    "weights made unsigned, since sums of signed ones saturate in 16 bits on this CPU",
    True,
    {"session.x64quantprecision": "1"},
)
FLOAT = Arithmetic(
    "in float32, since sums of int8 products saturate in 16 bits on this CPU", True, {"session.disable_quant_qdq": "1"}
)
SATURATING = Arithmetic(
    "sums of int8 products saturate in 16 bits on this CPU and onnxruntime offers no other way", False, {}
)
WAYS = (SIGNED, UNSIGNED, FLOAT)
"""Fastest first."""


def exact_ways() -> tuple[Arithmetic, ...]:
    """The ways that are exact on this CPU, fastest first; onnxruntime is asked once per process (2 ms)."""
    return tuple(way for way in WAYS if is_exact(way.entries))


def open_exact(entries: Mapping[str, str], start: Callable[[Mapping[str, str]], Any]) -> tuple[Any, Arithmetic]:
    """A session of a graph with int8 activations, made by ``start`` from its configuration, and how it multiplies.

    ONNX Runtime refuses to make weights unsigned where one has scales per channel, no zero point, and an input that is
    not quantized; float32 serves those graphs.
    """
    way, *slower = exact_ways() or (SATURATING,)
    if not way.exact:
        warnings.warn(f"int8 is not exact here: {way.name}.", stacklevel=2)
    try:
        return start({**entries, **way.entries}), way
    except Exception:
        if way is not UNSIGNED:
            raise
    return start({**entries, **slower[0].entries}), slower[0]


def instruction_sets(cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """What the operating system says that this CPU has of ``INSTRUCTION_SETS``; nothing outside Linux."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").lower().splitlines()
    except OSError:
        return ()
    flags = next((set(line.split()) for line in lines if line.startswith(("flags", "features"))), set())
    return tuple(name for name, needed in INSTRUCTION_SETS.items() if needed <= flags)


def is_exact(entries: Mapping[str, str]) -> bool:
    """Whether a session with these entries gives the exact sums for ``saturation.onnx`` (float32, scales 1)."""
    return _is_exact(tuple(sorted(entries.items())))


@cache
def _is_exact(entries: tuple[tuple[str, str], ...]) -> bool:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in entries:
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(PROBE), options, providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[1]
    sums = [session.run(None, {"x": np.full((rows, size), LARGEST, np.float32)})[0] for rows in PROBE_ROWS]
    return all(bool((np.abs(found) == size * LARGEST**2).all()) for found in sums)
