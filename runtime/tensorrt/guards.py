"""Refuse an engine that does not fit this machine or this bundle, before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5edge.bundle.manifest import sha256_of
from t5edge.errors import UserError
from t5edge.runtime.gpu import GpuReport
from t5edge.runtime.tensorrt.flavor import TensorRT


def check_engine(
    folder: Path, record: Mapping[str, Any], manifest: Mapping[str, Any], tool: TensorRT, found: GpuReport
) -> None:
    """Refuse to load an engine of another version, another GPU, or of ONNX files that have changed since.

    Raises:
        UserError: naming what differs and the command that builds the engine anew.
    """
    here = [gpu.compute_capability for gpu in found.gpus]
    capability = record["compute_capability"]
    problems = []
    if record["version"] != tool.version:
        problems.append(f"was built by {record['target']} {record['version']}, here is {tool.version}")
    if capability not in here:
        gpu = f"{found.gpus[0].name} with {here[0]}" if here else found.reason
        problems.append(f"is for compute capability {capability}, here is {gpu}")
    for name, digest in record["sources"].items():
        if current_hash(folder, manifest, name) != digest:
            problems.append(f"was built from another {name} than the bundle holds now")
    if problems:
        target = record["target"]
        raise UserError(
            f"the {record['graph']} engine in '{folder}' {'; it '.join(problems)}. "
            f"Build it here: t5edge build '{folder}' --target {target}"
        )


def current_hash(folder: Path, manifest: Mapping[str, Any], name: str) -> str | None:
    """The hash of a source now: of the small ONNX files themselves, of the weights as the manifest records it."""
    if not name.endswith(".onnx"):
        return manifest["files"].get(name, {}).get("sha256")
    path = folder / name
    return sha256_of(path) if path.is_file() else None
