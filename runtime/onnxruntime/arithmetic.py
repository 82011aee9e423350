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
from packaging.version import Version

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
        return f"{'exact' if self.exact else 'saturating'} ({self.name})"


SIGNED = Arithmetic("signed weights", True, {})
UNSIGNED = Arithmetic(
    "weights made unsigned, since sums of signed ones saturate here", True, {"session.x64quantprecision": "1"}
)
FLOAT = Arithmetic("in float32, since sums of int8 saturate here", True, {"session.disable_quant_qdq": "1"})
SATURATING = Arithmetic("sums of int8 products overflow 16 bits, and this onnxruntime has no other way", False, {})
FITTING = Arithmetic("signed weights whose sums fit", True, {})
WAYS = (SIGNED, UNSIGNED, FLOAT)
"""Fastest first."""


UNSIGNED_SINCE = (1, 30)
"""Found by running them: onnxruntime 1.27, 1.28 and 1.29 end the process when they make weights unsigned."""


def exact_ways() -> tuple[Arithmetic, ...]:
    """The ways that are exact on this CPU, fastest first; onnxruntime is asked once per process (2 ms)."""
    import onnxruntime

    recent = Version(onnxruntime.__version__).release >= UNSIGNED_SINCE
    return tuple(way for way in WAYS if (recent or way is not UNSIGNED) and is_exact(way.entries))


def open_exact(
    entries: Mapping[str, str], start: Callable[[Mapping[str, str]], Any], sums_fit: bool = False
) -> tuple[Any, Arithmetic]:
    """A session of a graph with int8 activations, made by ``start`` from its configuration, and how it multiplies.

    ``sums_fit``: its weights are such that no sum saturates, and the fastest way is exact on every CPU.

    Where a MatMul with scales per channel stays in float32, as one whose input is not quantized does, ONNX Runtime
    spoils its zero points in making weights unsigned, and fails when it loads or runs. Float32 serves those graphs.
    """
    if sums_fit:
        return start(entries), FITTING
    way, *slower = exact_ways() or (SATURATING,)
    if not way.exact:
        warnings.warn(f"int8 is not exact on this CPU: {way.name}; use fp32 or int8-weight here.", stacklevel=2)
    try:
        session = start({**entries, **way.entries})
        if way is UNSIGNED:
            _try_out(session)
    except Exception:
        if way is not UNSIGNED:
            raise
        way = slower[0]
        session = start({**entries, **way.entries})
    return session, way


def _try_out(session: Any) -> None:
    """Run a session once on ones, every open axis 1 long."""
    feeds = {}
    for port in session.get_inputs():
        shape = [axis if isinstance(axis, int) else 1 for axis in port.shape]
        feeds[port.name] = np.ones(shape, np.int64 if port.type == "tensor(int64)" else np.float32)
    session.run(None, feeds)


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
