"""What each target can do on this machine, and why not. A package is imported only when it is installed."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from typing import Any

from t5edge.engines.guards import choose_capabilities
from t5edge.errors import UserError
from t5edge.runtime.backend import find_backend
from t5edge.runtime.gpu import GpuReport, find_gpus
from t5edge.runtime.tensorrt.flavor import FLAVORS, Flavor, load_tensorrt

Row = dict[str, Any]


def targets_report() -> list[Row]:
    """One row per target: ``target``, ``installed``, ``version``, ``can_build``, ``can_run``, ``reason``.

    ``reason`` says why it cannot build or run here; it is empty when it can do both. A target without
    engines "builds" wherever it is installed.
    """
    found = find_gpus()
    rows = [_onnxruntime(), _onnxruntime_cuda(found), _onnxruntime_rtx(found)]
    return [*rows, *(_engines(flavor, found) for flavor in FLAVORS.values())]


def engine_targets() -> tuple[str, ...]:
    """Engine targets that build and run here: what an export builds when no target is named."""
    return tuple(row["target"] for row in targets_report() if find_backend(row["target"]).is_engine and row["can_run"])


def _row(target: str, version: str | None, can_build: bool, can_run: bool, reason: str) -> Row:
    return {
        "target": target,
        "installed": version is not None,
        "version": version,
        "can_build": can_build,
        "can_run": can_run,
        "reason": reason,
    }


def _version(*packages: str) -> str | None:
    """The first installed package's version."""
    for package in packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def _onnxruntime() -> Row:
    version = _version("onnxruntime", "onnxruntime-gpu")
    if version is None:
        return _row("onnxruntime", None, False, False, "onnxruntime is not installed; pip install onnxruntime")
    return _row("onnxruntime", version, True, True, "")


def _onnxruntime_cuda(found: GpuReport) -> Row:
    version = _version("onnxruntime-gpu")
    if version is None:
        missing = "onnxruntime-gpu is not installed; pip install onnxruntime-gpu (in place of onnxruntime)"
        return _row("onnxruntime-cuda", None, False, False, missing)
    return _row("onnxruntime-cuda", version, True, bool(found.gpus), found.reason)


def _onnxruntime_rtx(found: GpuReport) -> Row:
    version = _version("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12")
    if version is None:
        missing = "its provider is not installed; pip install onnxruntime-ep-nv-tensorrt-rtx"
        return _row("onnxruntime-rtx", None, False, False, missing)
    return _row("onnxruntime-rtx", version, True, bool(found.gpus), found.reason)


def _engines(flavor: Flavor, found: GpuReport) -> Row:
    """TensorRT builds for the GPU in the machine, TensorRT-RTX for any of its targets."""
    try:
        tool = load_tensorrt(flavor.target) if importlib.util.find_spec(flavor.module) else None
    except UserError as error:
        return _row(flavor.target, None, False, False, str(error))
    if tool is None:
        missing = f"{flavor.module} is not installed; pip install {flavor.install}"
        return _row(flavor.target, None, False, False, missing)
    reason = _why_not_run(flavor, found)
    builds = bool(flavor.compute_capabilities or found.gpus)
    if reason and flavor.compute_capabilities:
        reason += f"; builds for {', '.join(flavor.compute_capabilities)}"
    return _row(flavor.target, tool.version, builds, not reason, reason)


def _why_not_run(flavor: Flavor, found: GpuReport) -> str:
    """Empty when this machine's GPUs run the flavor's engines."""
    if not found.gpus:
        return found.reason
    try:
        choose_capabilities(flavor, (), found)
    except UserError as error:
        return str(error).rstrip(".")
    return ""
