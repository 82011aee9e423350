"""TensorRT, and what TensorRT-RTX shares with it: build a bundle's engines, open them on a GPU.

``build_engines`` runs where the bundle was exported or on the device, from the bundle alone: it needs numpy, onnx,
polygraphy, and tensorrt or tensorrt-rtx; neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.manifest import read_manifest, write_json, write_manifest
from t5edge.bundle.ports import GraphPorts, Limits
from t5edge.engines.attention import attention_form
from t5edge.engines.builder import BuiltEngine, EngineSpec, build_engine, check_attention, engine_profiles
from t5edge.engines.check import require_right, run_state
from t5edge.engines.guards import check_dtypes, check_sources, choose_capabilities, dtypes_of
from t5edge.engines.polygraphy_backend import load_builder
from t5edge.engines.proof import kept_run
from t5edge.engines.weights import separable_weights
from t5edge.progress import Progress, Silent
from t5edge.runtime.gpu import GpuReport, find_gpus
from t5edge.runtime.tensorrt.flavor import TensorRT, flavor_of
from t5edge.runtime.tensorrt.records import (
    engine_path,
    graphs_of,
    read_record,
    record_path,
    timing_cache,
    write_plan,
)

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Job:
    """One bundle and what is asked of it.

    ``sources``: sha256 of the files that engines are built from. ``separate``: weights stay in their own file.
    """

    folder: Path
    manifest: dict[str, Any]
    sources: Mapping[str, str]
    no_fuse: bool
    separate: bool
    force: bool


def check_buildable(target: str, compute_capabilities: Sequence[str], *dtypes: str) -> tuple[str, ...]:
    """Refuse early what ``build_engines`` would refuse later; returns the compute capabilities it would build for.

    ``dtypes`` are the graphs' compute dtype (float, float16, bfloat16) and their weights', where it is another.

    Raises:
        UserError: as ``build_engines``, as far as it can be known without the graphs.
    """
    flavor = flavor_of(target)
    capabilities = choose_capabilities(flavor, compute_capabilities, find_gpus())
    check_dtypes(flavor, capabilities, set(dtypes))
    load_builder(target)
    return capabilities


def build_engines(
    bundle_folder: str | Path,
    target: str,
    compute_capabilities: Sequence[str] = (),
    *,
    no_fuse: bool = False,
    separate_weights: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Build every graph of a bundle for each compute capability and record it in the manifest.

    An engine that fits already is kept unless ``force``. ``separate_weights``: see ``tensorrt_weights``. Returns the
    manifest's entries by compute capability: a record per graph, and under ``run`` what running them proved
    (``not run: reason`` before anything has).

    Raises:
        UserError: the bundle is damaged, the combination cannot be built, or the builder refuses a graph.
        GateError: an attention that must be fused is not, or the engines ran on this machine's GPU and are wrong.
    """
    folder, progress = Path(bundle_folder), progress or Silent()
    manifest, flavor, found = read_manifest(folder), flavor_of(target), find_gpus()
    capabilities = choose_capabilities(flavor, compute_capabilities, found)
    files = [f"{graph}.onnx" for graph in graphs_of(manifest)]
    with progress.stage("check the bundle", len(files) + 1, "files") as stage:
        sources = check_sources(folder, manifest, [*files, "weights.safetensors"], stage.advance)
    check_dtypes(flavor, capabilities, dtypes_of(manifest, [folder / name for name in files]))
    tool = load_builder(target)
    job = Job(folder, manifest, sources, no_fuse, separate_weights, force)
    return {capability: _build_for(job, tool, capability, found, progress) for capability in capabilities}


def _build_for(job: Job, tool: TensorRT, capability: str, found: GpuReport, progress: Progress) -> dict[str, Any]:
    """Every engine for one compute capability, then the manifest."""
    graphs = graphs_of(job.manifest)
    entry: dict[str, Any] = {graph: _engine(job, tool, capability, graph, progress) for graph in graphs}
    before = job.manifest["engines"].get(tool.flavor.target, {}).get(capability)
    entry["run"] = kept_run(before, entry, "not run: being built")
    _record(job, tool.flavor.target, capability, entry)
    found_here = run_state(job.folder, tool.flavor, capability, found)
    entry["run"] = kept_run(before, entry, found_here)
    _record(job, tool.flavor.target, capability, entry)
    require_right(found_here, tool.flavor, job.no_fuse)
    return entry


def _record(job: Job, target: str, capability: str, entry: dict[str, Any]) -> None:
    """Write the manifest with this entry; other files keep the hashes they were exported with."""
    graphs = graphs_of(job.manifest)
    job.manifest["engines"].setdefault(target, {})[capability] = entry
    known = {name: facts["sha256"] for name, facts in job.manifest["files"].items()}
    for graph in graphs:
        known[entry[graph]["file"]] = entry[graph]["sha256"]
        known.pop(entry[graph]["file"] + ".json", None)
    derived = ("format", "format_version", "files")
    write_manifest(job.folder, {key: value for key, value in job.manifest.items() if key not in derived}, known)
    job.manifest.update(read_manifest(job.folder))


def _engine(job: Job, tool: TensorRT, capability: str, graph: str, progress: Progress) -> dict[str, Any]:
    """Build one engine, or keep the one that fits; returns its record."""
    path = engine_path(job.folder, tool.flavor.target, capability, graph)
    wanted = _identity(job, tool, capability, graph)
    kept = read_record(path)
    if kept is not None and not job.force and all(kept.get(key) == value for key, value in wanted.items()):
        progress.message(f"{graph} for {tool.flavor.target} {capability} is up to date")
        return kept
    places = separable_weights(job.folder / f"{graph}.onnx") if job.separate else {}
    spec = _spec(job, capability, graph, tuple(places))
    built = build_engine(tool, spec, progress, timing_cache(tool, capability))
    check_attention(spec, built)
    record = {**wanted, **_facts(job.folder, path, spec, built), "weights": {k: list(v) for k, v in places.items()}}
    write_plan(path, built.plan)
    write_json(record_path(path), record)
    return record


def _identity(job: Job, tool: TensorRT, capability: str, graph: str) -> dict[str, Any]:
    """What an engine depends on: when one of these differs it is another engine."""
    return {
        "target": tool.flavor.target,
        "version": tool.version,
        "compute_capability": capability,
        "graph": graph,
        "sources": {name: job.sources[name] for name in (f"{graph}.onnx", "weights.safetensors")},
        "no_fuse": job.no_fuse,
        "separate_weights": job.separate,
        "limits": job.manifest["limits"],
    }


def _spec(job: Job, capability: str, graph: str, separate: tuple[str, ...]) -> EngineSpec:
    compute, facts = str(job.manifest["precision"]["compute"]), job.manifest["architecture"]
    form = attention_form(compute, int(facts["d_kv"]), job.no_fuse)
    return EngineSpec(
        onnx=job.folder / f"{graph}.onnx",
        ports=GraphPorts.from_dict(job.manifest["ports"][graph]),
        profiles=engine_profiles(Limits(**job.manifest["limits"]), graph, form, int(facts["num_heads"])),
        form=form,
        compute_capability=capability,
        exact_float32=compute == "float",
        separate=separate,
    )


def _facts(folder: Path, path: Path, spec: EngineSpec, built: BuiltEngine) -> dict[str, Any]:
    """What came out: size, hash, time, fused attentions, and the shapes it takes."""
    axes = spec.ports.axis_names()
    return {
        "file": path.relative_to(folder).as_posix(),
        "bytes": built.plan.nbytes,
        "sha256": hashlib.sha256(built.plan).hexdigest(),
        "seconds": round(built.seconds, 2),
        "attention": {"form": spec.form, **built.attention.to_dict()},
        "profiles": [{axis: list(profile[axis]) for axis in axes} for profile in spec.profiles],
    }
