"""Refuse an engine that does not fit this machine or this bundle, before it is loaded."""

from __future__ import annotations

from pathlib import Path

from t5edge.bundle.engine_record import EngineRecord
from t5edge.bundle.files import sha256_of
from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.runtime.gpu import GpuReport
from t5edge.runtime.tensorrt.flavor import TensorRT


def check_engine(folder: Path, record: EngineRecord, manifest: Manifest, tool: TensorRT, found: GpuReport) -> None:
    """Refuse to load an engine of another version, another GPU, or of ONNX files that have changed since.

    Raises:
        UserError: naming what differs and the command that builds the engine anew.
    """
    here = [gpu.compute_capability for gpu in found.gpus]
    capability = record.compute_capability
    problems = []
    if record.version != tool.version:
        problems.append(f"was built by {record.target} {record.version}, here is {tool.version}")
    if capability not in here:
        gpu = f"{found.gpus[0].name} with {here[0]}" if here else found.reason
        problems.append(f"is for compute capability {capability}, here is {gpu}")
    for name, digest in record.sources.items():
        if current_hash(folder, manifest, name) != digest:
            problems.append(f"was built from another {name} than the bundle holds now")
    if problems:
        target = record.target
        raise UserError(
            f"the {record.graph} engine in '{folder}' {'; it '.join(problems)}. "
            f"Build it here: t5edge build '{folder}' --target {target}"
        )


def current_hash(folder: Path, manifest: Manifest, name: str) -> str | None:
    """The hash of a source now: of the small ONNX files themselves, of the weights as the manifest records it."""
    if not name.endswith(".onnx"):
        return manifest.hashes.get(name)
    path = folder / name
    return sha256_of(path) if path.is_file() else None
