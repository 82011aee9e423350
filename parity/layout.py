"""optimum's graphs against ours on ONNX Runtime: the same logits at the first and later steps, or the export fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t5edge.bundle.architecture import Architecture
from t5edge.bundle.dtype import DTYPES
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.parity_report import CheckResult, at_most, not_applicable, not_run
from t5edge.bundle.records import LayoutParity
from t5edge.exporter.layouts.files import ALONE, JS_FOLDER, MERGED
from t5edge.exporter.layouts.optimum import ENCODER, FIRST_STEP, LATER_STEPS
from t5edge.parity.measures import relative_error
from t5edge.runtime.backend import find_backend

LIMITS = {"float": 1e-5, "float16": 2e-3}
"""Compute dtype -> largest relative error of a step's logits. float16: two roundings of the logits."""
FORMS = {"two files": (FIRST_STEP, LATER_STEPS), "merged": (MERGED, MERGED)}
"""Name -> graphs of the first step and of the later ones."""
FIRST_TOKENS = 3
"""Target tokens of the first step; the later ones have one each."""


@dataclass(frozen=True)
class Case:
    """A padded batch: ``input_ids``, ``attention_mask`` int64 [rows, source]; ``steps`` int64 [rows, target] each."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    steps: tuple[np.ndarray, ...]


def check_optimum(folder: Path, architecture: Architecture, compute: str) -> LayoutParity:
    """Relative error of the logits by form, the worst step each; the limit; whether all hold it."""
    case = make_case(architecture.vocab_size)
    if architecture.encoder_alone:
        return _check_encoder(folder, case, LIMITS[compute])
    guess = architecture.d_model // architecture.num_heads
    reference = run_steps(folder, "encoder", "decoder", "decoder", case, guess)
    errors = {}
    for form, (first, later) in FORMS.items():
        logits = run_steps(folder, ENCODER, first, later, case, guess)
        errors[form] = max(map(relative_error, logits, reference))
    limit = LIMITS[compute]
    return LayoutParity(errors, limit, all(error <= limit for error in errors.values()))


def _check_encoder(folder: Path, case: Case, limit: float) -> LayoutParity:
    """The same of an encoder alone: of its hidden states."""
    source = {"input_ids": case.input_ids, "attention_mask": case.attention_mask}
    names = (f"{JS_FOLDER}/{ALONE}", "encoder")
    found, expected = (_run(_open(folder, name), source)["last_hidden_state"] for name in names)
    error = relative_error(found, expected)
    return LayoutParity({"encoder": error}, limit, error <= limit)


def layout_results(
    folder: Path, manifest: Manifest, architecture: Architecture, target: str, blockwise: bool
) -> list[CheckResult]:
    """The comparison again, on a finished bundle, as results of a check; none where the bundle has only our layout."""
    if manifest.layout is None:
        return []
    name = f"layout {manifest.layout.name}"
    if find_backend(target).needs_gpu:
        return [not_applicable(name, "its graphs run on ONNX Runtime only")]
    if blockwise:
        return [not_run(name, "it needs the whole model in memory")]
    found = check_optimum(folder, architecture, manifest.precision.compute)
    errors = found.errors.items()
    what = "hidden states" if architecture.encoder_alone else "logits"
    return [at_most(name, f"relative error, {what}, {form}", error, found.limit) for form, error in errors]


def make_case(vocab_size: int) -> Case:
    """Two rows of random ids, the second padded; a first step and two later ones."""
    random = np.random.default_rng(0)
    ids = random.integers(2, vocab_size, (2, 9))
    mask = np.ones_like(ids)
    mask[1, 5:] = ids[1, 5:] = 0
    tokens = random.integers(2, vocab_size, (2, FIRST_TOKENS + 2))
    steps = tokens[:, :FIRST_TOKENS], *(tokens[:, [column]] for column in range(FIRST_TOKENS, tokens.shape[1]))
    return Case(ids, mask, steps)


def run_steps(folder: Path, encoder: str, first: str, later: str, case: Case, guessed_d_kv: int) -> list[np.ndarray]:
    """Logits of each step, float32 [rows, target, vocab], by the graphs of these names, fed as their clients feed them.

    ``guessed_d_kv``: the size that optimum's client gives to an open last axis of the empty cache.
    """
    source = {"input_ids": case.input_ids, "attention_mask": case.attention_mask}
    encoded = _run(_open(folder, encoder), source)
    shared = {"encoder_attention_mask": case.attention_mask, "encoder_hidden_states": encoded["last_hidden_state"]}
    session = _open(folder, first)
    cache = {**_empty_cache(session, len(case.input_ids), guessed_d_kv), **_present(encoded)}
    logits = []
    for number, tokens in enumerate(case.steps):
        if number == 1 and later != first:
            session = _open(folder, later)
        switch = {"use_cache_branch": np.array([number > 0])}
        outputs = _run(session, {**shared, **switch, **cache, "input_ids": tokens})
        cache |= _present(outputs)
        logits.append(outputs["logits"])
    return logits


def _open(folder: Path, name: str) -> Any:
    """A session as a client opens it: default options."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])


def _run(session: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output by name; feeds that the graph does not take are left out."""
    wanted = {port.name for port in session.get_inputs()}
    outputs = session.run(None, {name: array for name, array in feeds.items() if name in wanted})
    return dict(zip([port.name for port in session.get_outputs()], outputs, strict=True))


def _present(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keys and values under the names that the next step reads them by; those without elements are left out."""
    kept = {name: array for name, array in outputs.items() if name.startswith("present.") and array.size}
    return {name.replace("present", "past_key_values"): array for name, array in kept.items()}


def _empty_cache(session: Any, rows: int, guessed_d_kv: int) -> dict[str, np.ndarray]:
    """[rows, heads, 0, d_kv] for every past input."""
    past = [port for port in session.get_inputs() if port.name.startswith("past_key_values.")]
    return {
        port.name: np.zeros(
            (rows, port.shape[1], 0, port.shape[3] if isinstance(port.shape[3], int) else guessed_d_kv),
            DTYPES[port.type.removeprefix("tensor(").removesuffix(")")].array,
        )
        for port in past
    }
