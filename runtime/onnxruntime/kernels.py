"""Kernels chosen where they run: by what this CPU can do, or by what ``t5edge tune`` has measured on it.

A bundle records the session configuration that its parity was shown with. On another CPU another one may be faster;
only those are looked at that round no more than the recorded one. Only MatMuls with quantized weights and float inputs
have a choice: their inputs are rounded to int8 too, by block ("int8 inside"), or stay float32 ("float inside"), or
the weights are made float32 when the session opens, which takes four times their memory.

Where int8 products have no instruction of their own (AVX2, AVX-512 without VNNI), an encoder's many rows are multiplied
faster in float32, so there weights are widened while they fit.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t5edge.bundle.files import write_json
from t5edge.bundle.manifest import Manifest
from t5edge.runtime.onnxruntime.arithmetic import CPUINFO, SIGNED, instruction_sets, is_exact
from t5edge.runtime.onnxruntime.sessions import ACCURACY, Entries
from t5edge.runtime.onnxruntime.threads import thread_candidates
from t5edge.runtime.user_cache import cache_folder

WIDE = {"session.disable_quant_qdq": "1"}
MEMORY = 0.4
"""Share of the free memory that widened weights may take; while a session opens there are two copies."""
MIXED = ("AVX-VNNI", "AVX-512 VNNI", "AMX", "dot product", "i8mm")
"""Instruction sets that multiply int8 by int8, by the names of ``INSTRUCTION_SETS``."""


@dataclass(frozen=True)
class Kernels:
    """One way to run a graph: ``entries`` replace or add to those of the bundle; ``threads``: None for the usual."""

    name: str
    entries: Entries
    threads: int | None = None


RECORDED = Kernels("as recorded", {})
FLOAT_INSIDE = Kernels("float inside", dict.fromkeys(ACCURACY, "1"))
WIDENED = Kernels("weights widened to float32", WIDE)
KERNELS = {row.name: row for row in (RECORDED, FLOAT_INSIDE, WIDENED)}


def has_choice(manifest: Manifest, graph: str) -> bool:
    """Whether a graph's weights are quantized and its inputs are not, in float32."""
    row = manifest.precision
    return row.quantized and row.compute == "float" and graph not in row.activations


def candidates(manifest: Manifest, graph: str) -> tuple[Kernels, ...]:
    """What may be measured. A decoder's step is bound by the bytes of its weights: those are never widened."""
    if not has_choice(manifest, graph):
        return (RECORDED,)
    wide = (WIDENED,) if graph == "encoder" and _fits(manifest) else ()
    return (RECORDED, FLOAT_INSIDE, *wide)


def choose(manifest: Manifest, graph: str, *, measured: bool = True) -> tuple[Kernels, str]:
    """The kernels of "encoder" or "decoder" on this machine, and why; with threads where ``tune`` has chosen them.

    ``measured``: what ``tune`` has found here comes first.
    """
    kept = _kept(manifest) if measured else {}
    row, why = _choose(manifest, graph, kept.get("kernels", {}).get(graph))
    threads = kept.get("threads", {}).get(graph)
    return (replace(row, threads=threads) if threads else row), why


def _choose(manifest: Manifest, graph: str, found: str | None) -> tuple[Kernels, str]:
    if not has_choice(manifest, graph):
        return RECORDED, "no other"
    if found in KERNELS and (found != WIDENED.name or _fits(manifest)):
        return KERNELS[found], "measured on this CPU"
    if graph != "encoder" or multiplies_int8():
        return RECORDED, "this CPU multiplies int8" if graph == "encoder" else "a step is bound by the weights' bytes"
    if not _fits(manifest):
        return RECORDED, "this CPU does not multiply int8, and float32 weights do not fit in the free memory"
    return WIDENED, "this CPU does not multiply int8"


def multiplies_int8() -> bool:
    """Whether this CPU has instructions for int8 products, by the kernels that run.

    Without them x86's sums of signed weights saturate, so exact sums tell; elsewhere the system's list does.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        return is_exact(SIGNED.entries)
    return any(name in MIXED for name in instruction_sets())


def tuned(manifest: Manifest) -> dict[str, str]:
    """The kernels that ``tune`` has found for this bundle on this machine, by graph; nothing where it was not run."""
    return dict(_kept(manifest).get("kernels", {}))


def _kept(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """What ``keep_tuning`` wrote: kernels, and threads of graphs that other numbers than the usual suit better."""
    with suppress(OSError, ValueError):
        found: dict[str, dict[str, Any]] = json.loads(tuning_file(manifest).read_text("utf-8"))
        return found
    return {}


def keep_tuning(
    manifest: Manifest, kernels: Mapping[str, str], figures: Mapping[str, Any], threads: Mapping[str, int] | None = None
) -> Path:
    """Remember what was found; returns the file."""
    path = tuning_file(manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"kernels": dict(kernels), "threads": dict(threads or {}), "figures": dict(figures), "cpu": cpu_name()}
    write_json(path, kept)
    return path


def tuning_file(manifest: Manifest) -> Path:
    """Its name covers the CPU and our share of it, the version of ONNX Runtime, the bundle's graphs and weights."""
    import onnxruntime

    files = {name: facts.sha256 for name, facts in sorted(manifest.files.items()) if not name.endswith(".json")}
    key = json.dumps([cpu_name(), thread_candidates(), instruction_sets(), onnxruntime.__version__, files])
    return cache_folder() / "tuning" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """The CPU's name as the system has it, and how many there are."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} threads"


def _fits(manifest: Manifest) -> bool:
    import psutil

    return 8 * encoder_parameters(manifest) <= MEMORY * psutil.virtual_memory().available


def encoder_parameters(manifest: Manifest) -> int:
    """Parameters of the encoder's matrices; embeddings are looked up and stay as they are."""
    a = manifest.architecture
    attention, cross = 4 * a.d_model * a.inner_dim, 2 * a.d_model * a.inner_dim
    return a.encoder_layers * (attention + (3 if a.gated else 2) * a.d_model * a.d_ff) + a.decoder_layers * cross
