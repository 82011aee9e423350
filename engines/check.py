"""Run freshly built engines on the GPU they were built for and compare them with ONNX Runtime on the CPU.

This is the check a device can do by itself: fused attention is known to have been silently wrong on one GPU generation
(TensorRT issue 4837). The whole ladder, against PyTorch, is ``t5edge verify``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from t5edge.bundle.engine_record import EngineRun
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.parity_report import PASS, ParityReport, at_most
from t5edge.engines.proof import proof
from t5edge.errors import GateError, UserError
from t5edge.runtime.gpu import GpuReport
from t5edge.runtime.tensorrt.flavor import Flavor

LIMITS = {"float": 1e-4, "float16": 2e-2, "bfloat16": 8e-2}
"""Largest relative error of the outputs by compute dtype: two runs that each round, a few ulps of that dtype apart.

With weights alone quantized these hold too: the reference computes in float32 what the graph says (``WIDENED``), where
ONNX Runtime's own kernels round activations by block, up to 0.15 away (t5-demo, int8-weight in float16: 0.009)."""
ROUNDED = 0.4
"""The same with rounded activations: a number near the middle of two int8 steps goes either way, and what follows with
it. Right computations of t5-demo in int8 that round floats differently are up to 0.18 apart."""
RUNG = "engine logits against onnxruntime"
MEASURE = "largest logit difference over the largest logit"
ENCODER_RUNG = "engine encoder output against onnxruntime"
ENCODER_MEASURE = "largest difference of an encoder output over its largest number"
STEPS = 24


def run_state(folder: Path, manifest: Manifest, flavor: Flavor, capability: str, found: GpuReport) -> str | EngineRun:
    """What the manifest says about running an engine: the GPU's name with a verdict, or why it was not run."""
    if not found.gpus:
        return f"not run: {found.reason}"
    gpu = found.gpus[0]
    if gpu.compute_capability != capability:
        return f"not run: no GPU of compute capability {capability} here"
    if importlib.util.find_spec("onnxruntime") is None:
        return f"not run: onnxruntime is not installed to compare with; t5edge verify BUNDLE --target {flavor.target}"
    try:
        error = output_error(folder, manifest, flavor.target)
    except UserError as refused:
        return f"not run: {refused}"
    limit = ROUNDED if manifest.precision.activations else LIMITS[manifest.precision.compute]
    names = (ENCODER_RUNG, ENCODER_MEASURE) if manifest.architecture.encoder_alone else (RUNG, MEASURE)
    return proof(gpu, ParityReport([at_most(*names, error, limit)]))


def require_right(run: str | EngineRun, flavor: Flavor, no_fuse: bool) -> None:
    """Stop when the engines ran and are wrong.

    Raises:
        GateError: with the error, the limit, and what to try.
    """
    if isinstance(run, str) or run.verdict == PASS:
        return
    (rung,) = run.rungs
    assert rung.value is not None
    advice = "use --target onnxruntime-cuda" if no_fuse else "build with --no-fuse"
    raise GateError(
        f"the {flavor.target} engines run on {run.gpu} and are wrong: their outputs differ from ONNX Runtime's by "
        f"{rung.value:.1e}, at most {rung.limit:.0e} was expected; {advice}."
    )


def output_error(folder: Path, manifest: Manifest, target: str) -> float:
    """Largest logit difference over the largest logit, teacher-forced, two sentences of which one is padded.

    Of an encoder alone the same of the worst of its outputs, padding left out.

    Raises:
        UserError: one of the two cannot run the bundle here.
    """
    from t5edge.runtime.model import open_model
    from t5edge.runtime.onnxruntime.kernels import WIDENED

    exact: dict[str, Any] = (
        {"kernels": dict.fromkeys(("encoder", "decoder"), WIDENED)} if manifest.precision.quantized else {}
    )
    engines, reference = open_model(folder, manifest, target), open_model(folder, manifest, **exact)
    limits, random = manifest.limits, np.random.default_rng(0)
    rows, source = min(2, limits.max_batch), min(24, limits.max_source_length)
    ids = random.integers(3, engines.vocab_size, (rows, source))
    mask = np.ones_like(ids)
    mask[-1, (source + 1) // 2 :] = 0
    if manifest.architecture.encoder_alone:
        outputs = [dict(model.step_model.hidden_and_cross(ids, mask)) for model in (engines, reference)]
        return max(_error(*(_seen(values[name], mask) for values in outputs)) for name in outputs[1])
    targets = random.integers(3, engines.vocab_size, (rows, min(STEPS, limits.max_target_length)))
    found, expected = (model.logits(ids, mask, targets) for model in (engines, reference))
    return _error(found, expected)


def _seen(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An output of an encoder without padded tokens; vectors of whole texts as they are. Float32."""
    wide = values.astype(np.float32)
    return wide[mask.astype(bool)] if values.ndim == 3 else wide


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())
