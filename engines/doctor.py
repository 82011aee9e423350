"""What each target can do on this machine, and why not. A package is imported only when it is installed."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from typing import Any

from t5edge.bundle.manifest import PORTABLE_OPSET
from t5edge.engines.guards import choose_capabilities
from t5edge.errors import UserError, install, missing_package
from t5edge.runtime.gpu import GpuReport, find_gpus
from t5edge.runtime.onnxruntime.cuda import PROVIDER, no_provider, reinstall
from t5edge.runtime.tensorrt.flavor import FLAVORS, Flavor, load_tensorrt

Row = dict[str, Any]


def targets_report() -> list[Row]:
    """One row per target: ``target``, ``installed``, ``version``, ``can_build``, ``can_run``, ``reason``.

    ``reason`` says why it cannot build or run here, or which graphs it cannot read; it is empty when it can do all. A
    target without engines "builds" wherever it is installed.
    """
    found = find_gpus()
    loaded, missing = _load_onnxruntime()
    rows = [_onnxruntime(loaded, missing), _onnxruntime_cuda(loaded, found), _onnxruntime_rtx(found)]
    return [*rows, *(_engines(flavor, found) for flavor in FLAVORS.values())]


def int8_report() -> str | None:
    """How int8 is multiplied by int8 on this CPU, one line; None without onnxruntime."""
    if _load_onnxruntime()[0] is None:
        return None
    from t5edge.runtime.onnxruntime.arithmetic import SATURATING, exact_ways, instruction_sets

    way = next(iter(exact_ways()), SATURATING)
    sets = instruction_sets()
    return f"{way}; the system lists {', '.join(sets)}" if sets else str(way)


def kernels_report() -> str | None:
    """How encoders with int8 or int4 weights alone run on this CPU, one line; None without onnxruntime."""
    if _load_onnxruntime()[0] is None:
        return None
    from t5edge.runtime.onnxruntime.kernels import multiplies_int8

    if multiplies_int8():
        return "as recorded, since this CPU multiplies int8; 't5edge tune BUNDLE' measures"
    return "widened to float32 where they fit, since this CPU does not multiply int8; 't5edge tune BUNDLE' measures"


def threads_report() -> str | None:
    """How many threads a session takes here and why, one line; None without onnxruntime."""
    if _load_onnxruntime()[0] is None:
        return None
    from t5edge.runtime.onnxruntime import threads

    return threads.threads_report()


def engine_targets() -> tuple[str, ...]:
    """Engine targets that build and run here: what an export builds when no target is named."""
    found = find_gpus()
    rows = [_engines(flavor, found) for flavor in FLAVORS.values()]
    return tuple(row["target"] for row in rows if row["can_run"])


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


def _load_onnxruntime() -> tuple[Any, str]:
    """The package, or None and why not. What it says of itself counts: two packages can own its files."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None, str(missing_package("onnxruntime"))
    try:
        loaded = importlib.import_module("onnxruntime")
        loaded.get_available_providers()
    except (ImportError, OSError, AttributeError) as error:
        return None, f"onnxruntime is installed and does not load ({error}); {reinstall('onnxruntime')}"
    return loaded, ""


def _onnxruntime(loaded: Any, missing: str) -> Row:
    if loaded is None:
        return _row("onnxruntime", None, False, False, missing)
    return _row("onnxruntime", loaded.__version__, True, True, "")


def _onnxruntime_cuda(loaded: Any, found: GpuReport) -> Row:
    if loaded is not None and PROVIDER in loaded.get_available_providers():
        return _row("onnxruntime-cuda", loaded.__version__, True, bool(found.gpus), found.reason)
    absent = f"onnxruntime-gpu is not installed; {install('onnxruntime-gpu')}"
    return _row("onnxruntime-cuda", None, False, False, no_provider(loaded.__version__) if loaded else absent)


def _onnxruntime_rtx(found: GpuReport) -> Row:
    version = _version("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12")
    if version is None:
        missing = "its provider is not installed; pip install onnxruntime-ep-nv-tensorrt-rtx beside onnxruntime"
        return _row("onnxruntime-rtx", None, False, False, missing)
    return _row("onnxruntime-rtx", version, True, bool(found.gpus), found.reason)


def _engines(flavor: Flavor, found: GpuReport) -> Row:
    """TensorRT builds for the GPU in the machine, TensorRT-RTX for any of its targets."""
    try:
        tool = load_tensorrt(flavor.target) if importlib.util.find_spec(flavor.module) else None
    except UserError as error:
        return _row(flavor.target, None, False, False, str(error))
    if tool is None:
        return _row(flavor.target, None, False, False, str(missing_package(flavor.module)))
    reason = _why_not_run(flavor, found)
    if _version("polygraphy") is None:
        missing = "polygraphy is not installed, which builds its engines; pip install polygraphy"
        return _row(flavor.target, tool.version, False, not reason, f"{reason}; {missing}" if reason else missing)
    builds = bool(flavor.compute_capabilities or found.gpus)
    if reason and flavor.compute_capabilities:
        reason += f"; builds for {', '.join(flavor.compute_capabilities)}"
    if not tool.has_attention:
        portable = f"reads graphs of 'export --opset {PORTABLE_OPSET}' only"
        reason = f"{reason}; {portable}" if reason else portable
    return _row(flavor.target, tool.version, builds, not reason, reason)


def _why_not_run(flavor: Flavor, found: GpuReport) -> str:
    """Empty when this machine's GPUs run the flavor's engines."""
    if not found.gpus:
        return found.reason
    if _version("cuda-bindings") is None:
        return "cuda-bindings is not installed; pip install cuda-bindings"
    try:
        choose_capabilities(flavor, (), found)
    except UserError as error:
        return str(error).rstrip(".")
    return ""
