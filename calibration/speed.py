"""Whether a quantized bundle is faster than float32 here: both timed on this machine's CPU, from the same files.

The float32 side is the bundle itself with its rounding undone: Q/DQ pairs of inputs are bridged, and ONNX Runtime folds
the dequantized weights at session load. So no second bundle is needed, only the memory for its weights.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import psutil

from t5edge.bundle.manifest import Manifest
from t5edge.bundle.records import Speed, Times
from t5edge.runtime.onnxruntime.cpu import open_graph
from t5edge.runtime.onnxruntime.model import OnnxRuntimeEncoder, OnnxRuntimeModel
from t5edge.runtime.onnxruntime.sessions import session_entries, session_in_memory, session_options

SOURCE, STEPS = 64, 16
"""What is timed: encoding so many tokens, then so many decoder steps where there is a decoder, one text."""
ROUNDS = 5
MEMORY_SHARE = 0.5
"""Of the machine's memory, for the float32 weights; a model that needs more is not timed."""


def measure_speed(folder: Path, manifest: Manifest) -> Speed | None:
    """Milliseconds of encoder and decoder step, quantized and float32; None where float32 does not fit in memory.

    None too where the bundle computes in 16 bits, for which this machine's CPU has no kernels.

    The best of ``ROUNDS`` runs counts, the two sides in turn.
    """
    if manifest.precision.compute != "float":
        return None
    if 4 * manifest.architecture.parameters > MEMORY_SHARE * _memory():
        return None
    sides = {
        side: _opened(partial(session, folder, manifest), manifest)
        for side, session in (("quantized", _quantized), ("fp32", _float32))
    }
    best: dict[str, dict[str, float]] = {side: {} for side in sides}
    for _ in range(ROUNDS):
        for side, model in sides.items():
            for part, milliseconds in _timed(model, manifest.architecture.vocab_size).items():
                best[side][part] = min(milliseconds, best[side].get(part, float("inf")))
    quantized, exact = Times(**best["quantized"]), Times(**best["fp32"])
    steps = 0 if manifest.architecture.encoder_alone else STEPS
    return Speed(
        source_tokens=SOURCE,
        steps=steps,
        threads=os.cpu_count(),
        quantized=quantized,
        fp32=exact,
        encoder_speedup=exact.encoder_ms / quantized.encoder_ms,
        step_speedup=_ratio(exact.step_ms, quantized.step_ms),
        speedup=_total(exact, steps) / _total(quantized, steps),
    )


def _ratio(exact: float | None, own: float | None) -> float | None:
    return None if exact is None or own is None else exact / own


def _total(times: Times, steps: int) -> float:
    """Milliseconds of encoding and ``steps``."""
    return times.encoder_ms + steps * (times.step_ms or 0.0)


def _opened(session: Callable[[str], Any], manifest: Manifest) -> OnnxRuntimeEncoder:
    """``session`` of each graph, by its name, as what runs them."""
    if manifest.architecture.encoder_alone:
        return OnnxRuntimeEncoder(session("encoder"))
    return OnnxRuntimeModel(session("encoder"), session("decoder"), manifest.ports["decoder"])


def _memory() -> int:
    return int(psutil.virtual_memory().total)


def _timed(model: OnnxRuntimeEncoder, vocab_size: int) -> dict[str, float]:
    ids = np.arange(SOURCE, dtype=np.int64)[None] % vocab_size
    begin = time.perf_counter()
    if not isinstance(model, OnnxRuntimeModel):
        model.hidden_and_cross(ids, np.ones_like(ids))
        return {"encoder_ms": (time.perf_counter() - begin) * 1e3}
    state = model.encode(ids, np.ones_like(ids))
    encoded = time.perf_counter()
    for step in range(STEPS):
        model.step(state, np.array([[step % vocab_size]], dtype=np.int64))
    end = time.perf_counter()
    return {"encoder_ms": (encoded - begin) * 1e3, "step_ms": (end - encoded) * 1e3 / STEPS}


def _quantized(folder: Path, manifest: Manifest, graph: str) -> Any:
    return open_graph(folder / f"{graph}.onnx", manifest, graph)[0]


def _float32(folder: Path, manifest: Manifest, graph: str) -> Any:
    options = session_options(entries={**session_entries(manifest, graph), "session.disable_quant_qdq": "1"})
    model = ir.load(folder / f"{graph}.onnx")
    bridge_inputs(model)
    return session_in_memory(ir.to_proto(model).SerializeToString(), folder, options)


def bridge_inputs(model: ir.Model) -> int:
    """Let readers of a QuantizeLinear, DequantizeLinear pair read what goes in; returns how many pairs there were."""
    pairs = [node for node in model.graph if node.op_type == "DequantizeLinear" and _rounded(node) is not None]
    for node in pairs:
        source = _rounded(node)
        assert source is not None
        quantize = node.inputs[0].producer()  # type: ignore[union-attr]
        ir.convenience.replace_all_uses_with(node.outputs[0], source)
        model.graph.remove([node, *([quantize] if quantize is not None else [])], safe=True)
    return len(pairs)


def _rounded(dequantize: ir.Node) -> ir.Value | None:
    value = dequantize.inputs[0]
    source = None if value is None else value.producer()
    return source.inputs[0] if source is not None and source.op_type == "QuantizeLinear" else None


def verdict(speed: Speed | None) -> str | None:
    """A sentence for the user when the bundle, or one of its graphs, is slower than float32 here, else None."""
    if speed is None:
        return None
    times = {name: f"{name} {own:.1f} ms against {exact:.1f} ms" for name, (own, exact) in speed.parts.items()}
    here = "slower than float32 on this machine's CPU"
    if speed.speedup < 1:
        return f"{here} ({', '.join(times.values())}); fp32 or another quantized precision serves it better."
    slower = [times[name] for name in speed.slower_parts]
    if not slower:
        return None
    whole = f"{SOURCE} source tokens and {STEPS} steps together are {speed.speedup:.1f}x faster"
    return f"in part {here} ({', '.join(slower)}; {whole})."


def too_slow(speed: Speed | None) -> str | None:
    """Why the bundle is not known to be faster than float32 here; None where it is."""
    if speed is not None and speed.speedup >= 1:
        return None
    return verdict(speed) or "it could not be timed against float32."
