"""TensorRT, and what TensorRT-RTX shares with it: build a bundle's engines, and prove them where they can run.

``build_engines`` runs where the bundle was exported or on the device, from the bundle alone: it needs numpy, onnx,
polygraphy, and tensorrt or tensorrt-rtx; neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5edge.bundle.engine_record import EngineEntry, EngineRecord
from t5edge.bundle.files import write_json
from t5edge.bundle.manifest import Manifest
from t5edge.engines.attention import attention_form
from t5edge.engines.builder import BuiltEngine, EngineSpec, build_engine, check_attention, engine_profiles
from t5edge.engines.check import require_right, run_state
from t5edge.engines.guards import (
    check_dtypes,
    check_form,
    check_locations,
    check_sources,
    choose_capabilities,
    dtypes_of,
)
from t5edge.engines.polygraphy_backend import load_builder
from t5edge.engines.proof import kept_run
from t5edge.engines.weights import separable_weights
from t5edge.errors import GateError
from t5edge.progress import Progress, Silent
from t5edge.runtime.gpu import GpuReport, find_gpus
from t5edge.runtime.tensorrt.flavor import Flavor, TensorRT, flavor_of
from t5edge.runtime.tensorrt.records import (
    engine_path,
    graphs_of,
    read_record,
    record_path,
    timing_cache,
    write_plan,
)

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class BuildSettings:
    """How engines are built. ``separate_weights``: see ``engines.weights``; ``force``: also those that fit already."""

    compute_capabilities: tuple[str, ...] = ()
    no_fuse: bool = False
    separate_weights: bool = False
    force: bool = False


@dataclass(frozen=True)
class Job:
    """One bundle and what is asked of it. ``sources``: sha256 of the files that engines are built from."""

    folder: Path
    manifest: Manifest
    sources: Mapping[str, str]
    settings: BuildSettings


def check_buildable(
    target: str, compute_capabilities: Sequence[str], *dtypes: str, portable: bool = False
) -> tuple[str, ...]:
    """Refuse early what ``build_engines`` would refuse later; returns the compute capabilities it would build for.

    ``dtypes`` are the graphs' compute dtype (float, float16, bfloat16) and their weights', where it is another;
    ``portable``: they have no fused operators.

    Raises:
        UserError: as ``build_engines``, as far as it can be known without the graphs.
    """
    flavor = flavor_of(target)
    capabilities = choose_capabilities(flavor, compute_capabilities, find_gpus())
    check_dtypes(flavor, capabilities, set(dtypes))
    check_form(load_builder(target), portable)
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
) -> dict[str, EngineEntry]:
    """Build every graph of a finished bundle for each compute capability and record it in the manifest.

    An engine that fits already is kept unless ``force``. Returns the manifest's entries by compute capability.

    Raises:
        UserError: the bundle is damaged, the combination cannot be built, or the builder refuses a graph.
        GateError: an attention that must be fused is not, or the engines ran on this machine's GPU and are wrong.
    """
    folder = Path(bundle_folder)
    manifest, built = Manifest.read(folder), dict[str, EngineEntry]()
    settings = BuildSettings(tuple(compute_capabilities), no_fuse, separate_weights, force)
    for capability, entry in engines_for(folder, manifest, target, settings, progress or Silent()):
        built[capability] = entry
        manifest = manifest.with_engines(target, capability, entry)
        kept = {name: digest for name, digest in manifest.hashes.items() if not name.endswith(".engine.json")}
        manifest = manifest.with_files(folder, kept)
        manifest.write(folder)
    return built


def add_engines(
    folder: Path, manifest: Manifest, targets: Sequence[str], settings: BuildSettings, progress: Progress
) -> tuple[Manifest, list[str]]:
    """``manifest`` with engines of each target, not written; and why they must not be used, if so.

    Raises:
        UserError: as ``build_engines``.
    """
    try:
        for target in targets:
            for capability, entry in engines_for(folder, manifest, target, settings, progress):
                manifest = manifest.with_engines(target, capability, entry)
    except GateError as error:
        return manifest, [str(error)]
    return manifest, []


def engines_for(
    folder: Path, manifest: Manifest, target: str, settings: BuildSettings, progress: Progress
) -> Iterator[tuple[str, EngineEntry]]:
    """Build the engines of a bundle; yields compute capability and entry when they are built, and again when they ran.

    Raises:
        UserError, GateError: as ``build_engines``; what was yielded before stands.
    """
    found = find_gpus()
    flavor, capabilities, job = _job(folder, manifest, target, settings, found, progress)
    tool = load_builder(target)
    if told := check_form(tool, manifest.portable):
        progress.message(told)
    for capability in capabilities:
        graphs = {graph: _engine(job, tool, capability, graph, progress) for graph in graphs_of(manifest)}
        before = manifest.engines.get(target, {}).get(capability)
        yield capability, EngineEntry(graphs, kept_run(before, graphs, "not run: being built"))
        run = run_state(folder, manifest, flavor, capability, found)
        yield capability, EngineEntry(graphs, kept_run(before, graphs, run))
        require_right(run, flavor, settings.no_fuse)


def _job(
    folder: Path, manifest: Manifest, target: str, settings: BuildSettings, found: GpuReport, progress: Progress
) -> tuple[Flavor, tuple[str, ...], Job]:
    """What is to be built, for which compute capabilities; raises as ``build_engines`` for a bundle that cannot be."""
    flavor = flavor_of(target)
    capabilities = choose_capabilities(flavor, settings.compute_capabilities, found)
    files = [f"{graph}.onnx" for graph in graphs_of(manifest)]
    with progress.stage("check the bundle", len(files) + 1, "files") as stage:
        sources = check_sources(folder, manifest, [*files, WEIGHTS], stage.advance)
    check_locations((folder / name for name in files), sources)
    check_dtypes(flavor, capabilities, dtypes_of(manifest, [folder / name for name in files]))
    return flavor, capabilities, Job(folder, manifest, sources, settings)


@dataclass(frozen=True)
class EnginePlan:
    """One engine that ``build_engines`` would build, or keep; ``replaces``: bytes of the one that is there."""

    target: str
    compute_capability: str
    graph: str
    file: str
    kept: bool
    replaces: int | None


def plan_engines(folder: Path, target: str, settings: BuildSettings, progress: Progress) -> list[EnginePlan]:
    """What ``build_engines`` would do; builds and writes nothing.

    Raises:
        UserError: as ``build_engines``, as far as it can be known without building.
    """
    manifest = Manifest.read(folder)
    _, capabilities, job = _job(folder, manifest, target, settings, find_gpus(), progress)
    tool, plans = load_builder(target), []
    for capability in capabilities:
        for graph in graphs_of(manifest):
            path = engine_path(folder, target, capability, graph)
            size = path.stat().st_size if path.is_file() else None
            kept = _kept(job, path, _identity(job, tool, capability, graph)) is not None
            plans.append(EnginePlan(target, capability, graph, path.relative_to(folder).as_posix(), kept, size))
    return plans


def _kept(job: Job, path: Path, wanted: Mapping[str, Any]) -> EngineRecord | None:
    """The record of an engine that fits already; None where it is to be built."""
    record = read_record(path)
    fits = record is not None and not job.settings.force and all(getattr(record, key) == wanted[key] for key in wanted)
    return record if fits else None


def _engine(job: Job, tool: TensorRT, capability: str, graph: str, progress: Progress) -> EngineRecord:
    """Build one engine, or keep the one that fits; returns its record."""
    path = engine_path(job.folder, tool.flavor.target, capability, graph)
    wanted = _identity(job, tool, capability, graph)
    kept = _kept(job, path, wanted)
    if kept is not None:
        progress.message(f"{graph} for {tool.flavor.target} {capability} is up to date")
        return kept
    places = separable_weights(job.folder / f"{graph}.onnx") if job.settings.separate_weights else {}
    spec = _spec(job, capability, graph, tuple(places))
    built = build_engine(tool, spec, progress, timing_cache(tool, capability))
    check_attention(spec, built)
    if spec.form == "fused" and built.attention.fused is None:
        progress.message(
            f"{graph} for {tool.flavor.target} {capability}: the plan names no kernels, so whether its "
            f"attentions are fused is not shown"
        )
    record = EngineRecord(**wanted, **_facts(job.folder, path, spec, built), weights=places)
    write_plan(path, built.plan)
    write_json(record_path(path), record.to_dict())
    return record


def _identity(job: Job, tool: TensorRT, capability: str, graph: str) -> dict[str, Any]:
    """What an engine depends on: when one of these differs it is another engine."""
    return {
        "target": tool.flavor.target,
        "version": tool.version,
        "compute_capability": capability,
        "graph": graph,
        "sources": {name: job.sources[name] for name in (f"{graph}.onnx", WEIGHTS)},
        "no_fuse": job.settings.no_fuse,
        "separate_weights": job.settings.separate_weights,
        "limits": job.manifest.limits,
    }


def _spec(job: Job, capability: str, graph: str, separate: tuple[str, ...]) -> EngineSpec:
    manifest, facts = job.manifest, job.manifest.architecture
    compute = manifest.precision.compute
    form = attention_form(compute, facts.d_kv, job.settings.no_fuse)
    return EngineSpec(
        onnx=job.folder / f"{graph}.onnx",
        ports=manifest.ports[graph],
        profiles=engine_profiles(manifest.limits, graph, form, facts.num_heads),
        form=form,
        compute_capability=capability,
        exact_float32=compute == "float" or manifest.sentence is not None,  # pooling is float32 in any bundle
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
        "attention": built.attention,
        "profiles": tuple({axis: profile[axis] for axis in axes} for profile in spec.profiles),
    }
