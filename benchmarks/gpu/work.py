"""What each kind of step does; runs in a process of its own, see ``benchmarks.gpu.worker``."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.plan import MODELS, RUN_FORMS, TORCH_DTYPES, Step
from t5edge import pipeline
from t5edge.bundle.manifest import Manifest
from t5edge.engines.build import build_engines
from t5edge.engines.doctor import targets_report
from t5edge.options import ExportOptions
from t5edge.parity.ladder import CHECKS, verify
from t5edge.runtime.gpu import find_gpus
from t5edge.runtime.model import BundleModel, open_model
from t5edge.tools.costs import bundle_costs

SIZES = [(1, 64), (1, 256), (16, 64)]
LIMITS = {"max_batch": 16, "max_source_length": 512, "max_target_length": 320}
LOGITS = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 2e-1, "int8-weight": 5e-1, "int8": 1.0, "int4-weight": 1.0}
"""Largest logit difference from float32 PyTorch over the largest logit; what is far beyond is broken, not rounded.

The ladder judges finely; this finds a kernel that is wrong, in seconds."""
SKIPPED = {"weights", "graphs", "arithmetic", "1 operators"}
"""Checks of the files, which no GPU changes: ``make test`` and every export run them."""
BUDGET = 20.0
"""Seconds for judged texts."""


@dataclass(frozen=True)
class Place:
    """Where steps work. ``device``: torch's name of it; ``capability``: what engines are built for."""

    folder: Path
    device: str
    capability: str

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Batch and source length of the timings; a rehearsal has one."""
        return SIZES if self.device == "cuda" else SIZES[:1]

    def bundle(self, step: Step) -> Path:
        """The bundle of a step; other forms of engines have links to the same files."""
        form = "" if step.form in ("", "default", *RUN_FORMS) else f"-{step.form}"
        return self.folder / "bundles" / f"{step.model.rpartition('/')[2]}-{step.precision}{form}"


class Wrong(Exception):
    """A result that is out of its limit. ``facts``: the figures all the same."""

    def __init__(self, reason: str, facts: dict[str, Any]) -> None:
        super().__init__(reason)
        self.facts = facts


def machine(step: Step, place: Place) -> dict[str, Any]:
    """GPU, versions, what each target says, and the read bandwidth of its memory."""
    import torch

    from benchmarks.gpu.torch_gpu import read_gb_s

    gpus = [asdict(gpu) for gpu in find_gpus().gpus]
    bandwidth = read_gb_s(place.device)
    return {"gpus": gpus, "torch": torch.__version__, "read_gb_s": bandwidth, "targets": targets_report()}


def export(step: Step, place: Place) -> dict[str, Any]:
    """A bundle for GPUs: both caches, float16 around quantized weights."""
    seed, row = MODELS[step.model], {"compute": "fp16"} if step.precision.startswith("int") else {}
    out = place.bundle(step)
    fixed: dict[str, Any] = {"target": ("onnxruntime",), "cache": "both", "no_verify": True, "force": True}
    options = ExportOptions(step.model, step.precision, out=str(out), random_weights=seed, **fixed, **row, **LIMITS)
    pipeline.export_bundle(options)
    return {"bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file())}


def build(step: Step, place: Place) -> dict[str, Any]:
    """Engines of one target; ``build_engines`` compares them with what the graph says on this GPU."""
    folder = place.bundle(step)
    if step.form != "default" and not folder.exists():
        shutil.copytree(place.bundle(Step("", step.model, step.precision)), folder, copy_function=os.link)
        shutil.rmtree(folder / "engines", ignore_errors=True)
    flags = {"no_fuse": step.form == "no-fuse", "separate_weights": step.form == "separate-weights"}
    entries = build_engines(folder, step.target, (place.capability,) if place.capability else (), **flags)
    (entry,) = entries.values()
    graphs = {name: {"seconds": row.seconds, "bytes": row.bytes} for name, row in entry.graphs.items()}
    run = entry.run if isinstance(entry.run, str) else entry.run.to_dict()
    return {"graphs": graphs, "run": run}


def logits(step: Step, place: Place) -> dict[str, Any]:
    """Teacher-forced logits against float32 PyTorch on the same GPU, and PyTorch's own in the compute dtype."""
    from benchmarks.gpu import torch_gpu

    model, seed = _opened(step, place), MODELS[step.model]
    random = np.random.default_rng(1)
    ids, targets = (random.integers(3, model.vocab_size, (4, length)) for length in (96, 48))
    mask = np.ones_like(ids)
    mask[1, 70:], mask[3, 1:] = 0, 0
    expected = torch_gpu.logits(torch_gpu.reference(step.model, seed, "float32", place.device), ids, mask, targets)
    dtype = TORCH_DTYPES.get(step.precision, "float16")
    own = torch_gpu.logits(torch_gpu.reference(step.model, seed, dtype, place.device), ids, mask, targets)
    found = {"steps": model.logits(ids, mask, targets), "one pass": model.logits_uncached(ids, mask, targets)}
    facts = {name: _distance(values, expected) for name, values in found.items()}
    facts[f"torch {dtype}"] = _distance(own, expected)
    worst = max(facts[name]["largest"] for name in found)
    if not worst <= LOGITS[step.precision]:
        raise Wrong(f"logits are {worst:.1e} away, at most {LOGITS[step.precision]:.0e} was expected", facts)
    return facts


def _distance(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Largest difference over the largest logit, and how often the best token is the same."""
    largest = float(np.abs(found - expected).max() / np.abs(expected).max())
    same = float((found.argmax(-1) == expected.argmax(-1)).mean())
    return {"largest": largest if math.isfinite(largest) else math.inf, "top1": same}


def verified(step: Step, place: Place) -> dict[str, Any]:
    """The ladder, without the checks of the files; of engines it writes the manifest's entry."""
    checks = [check for check in CHECKS if check.name not in SKIPPED]
    report = verify(place.bundle(step), target=step.target, checks=checks, time_budget=BUDGET)
    facts = {"checks": report.verdicts()}
    if report.failed:
        raise Wrong("; ".join(result.describe() for result in report.failures)[:2000], facts)
    return facts


def timed(step: Step, place: Place) -> dict[str, Any]:
    """Encoder and step of every size; a step over what reading its weights takes at the GPU's bandwidth."""
    from benchmarks.gpu.torch_gpu import example, median_seconds, per_token_seconds, row

    model = _opened(step, place)
    costs = (bundle_costs(model.folder, model.manifest) or {})["decoder"]
    rows = []
    for batch, source in place.sizes:
        ids = example(batch, source, model.vocab_size)
        mask = np.ones_like(ids)

        def encode(ids: np.ndarray = ids, mask: np.ndarray = mask) -> object:
            return model.step_model.encode(ids, mask)

        def generate(new: int, ids: np.ndarray = ids, mask: np.ndarray = mask) -> object:
            return model.generate(ids, mask, max_new_tokens=new, min_new_tokens=new)

        found = row(batch, source, median_seconds(encode), per_token_seconds(generate))
        rows.append({**found, "weight_bytes": costs.weight_bytes({"batch": batch, "source": source, "target": 1})})
    return {"rows": rows}


def torch_timed(step: Step, place: Place) -> dict[str, Any]:
    """The same of PyTorch, eager or compiled."""
    from benchmarks.gpu.torch_gpu import reference, timings

    model = reference(step.model, MODELS[step.model], TORCH_DTYPES[step.precision], place.device)
    compiled = step.form == "compile"
    return {"rows": timings(model, compiled, place.sizes[:1] if compiled else place.sizes)}


def _opened(step: Step, place: Place) -> BundleModel:
    folder = place.bundle(step)
    return open_model(folder, Manifest.read(folder), step.target, **SETTINGS.get(step.form, {}))


SETTINGS: dict[str, dict[str, Any]] = {"no-cuda-graph": {"cuda_graphs": False}, "growing-cache": {"buffers": False}}


KINDS: dict[str, Callable[[Step, Place], dict[str, Any]]] = {
    "machine": machine,
    "export": export,
    "build": build,
    "logits": logits,
    "verify": verified,
    "time": timed,
    "torch": torch_timed,
}


def run(step: Step, place: Place) -> tuple[dict[str, Any], float]:
    """The facts of a step and its seconds."""
    begin = time.perf_counter()
    facts = KINDS[step.kind](step, place)
    return facts, time.perf_counter() - begin
