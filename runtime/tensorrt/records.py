"""Where engines, their records and the caches lie, and how they are written.

    engines/<target>/<compute capability>/<graph>.engine        the plan
    engines/<target>/<compute capability>/<graph>.engine.json   its record: what it was built from and for

The manifest repeats the records; caches lie outside the bundle.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from t5edge.bundle.engine_record import EngineEntry, EngineRecord, Engines
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.schema import read_as
from t5edge.errors import UserError
from t5edge.runtime.tensorrt.flavor import TensorRT
from t5edge.runtime.user_cache import cache_folder

DECODERS = {
    "concat": ("decoder",),
    "in-place": ("decoder_in_place",),
    "both": ("decoder", "decoder_in_place"),
}
"""The manifest's ``cache`` -> the decoder graphs that engines are built of."""


def graphs_of(manifest: Manifest) -> tuple[str, ...]:
    """Names of the graphs that engines are built of, each a file ``<name>.onnx``."""
    return ("encoder", *(() if manifest.architecture.encoder_alone else DECODERS[manifest.cache]))


def engine_path(folder: Path, target: str, capability: str, graph: str) -> Path:
    """Where an engine lies in a bundle."""
    return folder / "engines" / target / capability / f"{graph}.engine"


def record_path(engine: Path) -> Path:
    """The record beside an engine."""
    return engine.with_name(engine.name + ".json")


def read_record(engine: Path) -> EngineRecord | None:
    """The record beside an engine; None when the engine or a readable record is missing."""
    problems: list[str] = []
    try:
        data = json.loads(record_path(engine).read_text(encoding="utf-8"))
        record: EngineRecord = read_as(EngineRecord, data, "", problems)
    except (OSError, ValueError, RecursionError):
        return None
    fits = not problems and engine.is_file() and engine.stat().st_size == record.bytes
    return record if fits else None


def engine_lines(engines: Engines) -> list[str]:
    """One line per engine of a manifest's ``engines``, and one per compute capability on whether they ran."""
    lines = []
    for target, capabilities in engines.items():
        for capability, entry in capabilities.items():
            for graph, record in entry.graphs.items():
                attention = record.attention
                lines.append(
                    f"{target} {capability}  {graph}  {record.bytes / 1e6:.1f} MB  {record.seconds:.1f} s  "
                    f"{attention.fused} of {attention.expected} attentions fused"
                )
            lines.append(f"{target} {capability}  {run_words(entry)}")
    return lines


def run_words(entry: EngineEntry) -> str:
    """Where the engines of one compute capability ran, or why they did not."""
    return entry.run if isinstance(entry.run, str) else f"ran on {entry.run.gpu}"


def write_plan(engine: Path, plan: memoryview) -> None:
    """Write beside the engine and rename, so that a killed build leaves no half engine.

    Raises:
        UserError: the disk is full or read-only.
    """
    partial = engine.with_name(engine.name + ".partial")
    try:
        engine.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(plan)
        partial.replace(engine)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise UserError(
            f"writing '{engine}' failed: {error.strerror}; it needs {plan.nbytes / 1e6:.0f} MB. "
            "Free some space or make the bundle writable."
        ) from error


def timing_cache(tool: TensorRT, capability: str) -> Path | None:
    """The timing cache of this version and GPU; None for a flavor that has none."""
    if tool.flavor.jit:
        return None
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"timing-{tool.flavor.target}-{tool.version}-{capability}.cache"


def runtime_cache(tool: TensorRT, record: EngineRecord) -> Path | None:
    """The cache of kernels finished on the device for one engine; None for a flavor that finishes them at build."""
    if not tool.flavor.jit:
        return None
    return cache_folder() / f"runtime-{tool.version}-{record.sha256[:16]}.cache"
