"""``export()``: trace, fuse, rescale, assemble, stream, verify, build. Read this file to know the system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from t5edge.bundle.folder import check_target_folder, writing
from t5edge.bundle.manifest import read_manifest, write_json, write_manifest
from t5edge.bundle.precision import Precision
from t5edge.bundle.versions import tool_versions
from t5edge.calibration.plan import QuantizationPlan, Settings, apply_plan, make_plan
from t5edge.calibration.speed import measure_speed, verdict
from t5edge.calibration.texts import CalibrationTexts, choose_examples, examples_from, read_texts
from t5edge.engines.build import build_engines, check_buildable
from t5edge.engines.doctor import engine_targets
from t5edge.errors import GateError, UserError
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.checkpoint.tokenizer_files import tokenizer_json
from t5edge.exporter.graph.assemble import Graphs, assemble
from t5edge.exporter.graph.in_place import add_in_place
from t5edge.exporter.graph.rescale import Rescale, measure_rescale
from t5edge.exporter.graph.trace import trace_blocks
from t5edge.exporter.graph.write import FILE_NAME as WEIGHTS
from t5edge.exporter.graph.write import attach, plan_weights, write_weights
from t5edge.exporter.layouts.files import JS_FOLDER, js_dtype, write_optimum_files
from t5edge.exporter.layouts.optimum import add_optimum
from t5edge.exporter.reference.texts import Encoder
from t5edge.kernels.block import Block, BlockKind
from t5edge.options import ExportOptions, recorded_options, wanted_row
from t5edge.parity.layout import check_optimum
from t5edge.parity.memory import verification_fits
from t5edge.progress import Progress, Silent
from t5edge.runtime.onnxruntime.cpu import CONFIGURATION
from t5edge.runtime.tensorrt.flavor import FLAVORS

RANGE_TEXTS = 8
"""Bundled sentences the rescale looks at; its headroom covers the others. Of a user's own file, eight times as many."""
RANGE_BATCHES = 4


@dataclass(frozen=True)
class Bundle:
    """A finished bundle: its folder and its manifest. ``passed`` is None when verification was switched off."""

    folder: Path
    manifest: Mapping[str, Any]
    passed: bool | None


def export_bundle(options: ExportOptions, progress: Progress | None = None) -> Bundle:
    """Export one variant in one precision.

    Raises:
        UserError: bad input or environment; nothing is left behind.
        GateError: parity or an engine's check failed; the bundle is kept as ``<out>.failed``.
    """
    progress = progress or Silent()
    row = wanted_row(options)
    out = Path(options.out or options.folder_name)
    check_target_folder(out, options.force)
    targets = choose_targets(options, row)
    check_layout(options, row)
    checkpoint = open_checkpoint(options.variant, random_weights=options.random_weights, revision=options.revision)
    for difference in checkpoint.differences:
        progress.message(difference)
    texts = read_texts(checkpoint, options.calibration, options.limits, progress) if row.quantized else None
    with writing(out, options.force) as folder:
        blocks = trace_blocks(checkpoint, progress)
        rescale = choose_rescale(checkpoint, row, options, progress)
        graphs = assemble_graphs(checkpoint, blocks, row, rescale, options)
        plan = put_precision(graphs, checkpoint, row, texts, options, progress)
        digest = save_graphs(graphs, checkpoint, folder, progress)
        copy_small_files(checkpoint, folder)
        manifest = {**describe(checkpoint, options, row, rescale, graphs), "quantization": plan and plan.to_dict()}
        manifest["layout"] = finish_layout(folder, graphs, checkpoint, row, options, progress)
        manifest["speed"] = time_bundle(folder, manifest, options, progress)
        write_manifest(folder, manifest, {"weights.safetensors": digest})
        build_targets(folder, targets, options, progress)
        passed = check(folder, checkpoint, blocks, options, progress)
        require_layout(folder)
        require_speedup(folder, options)
    return Bundle(out, read_manifest(out), passed)


def choose_rescale(checkpoint: Checkpoint, row: Precision, options: ExportOptions, progress: Progress) -> Rescale:
    """The rescale from activations on real texts where float16 is computed; none elsewhere."""
    if not row.rescale or options.no_rescale:
        return Rescale()
    examples, _ = choose_examples(checkpoint, options.calibration, Silent())
    encoder = Encoder(checkpoint.architecture, tokenizer_json(checkpoint))
    wanted = 8 * RANGE_TEXTS if options.calibration else RANGE_TEXTS
    batches = encoder.batches(examples[:wanted], RANGE_BATCHES)
    with progress.stage("activation ranges", sum(_depths(checkpoint)), "layers") as stage:
        return measure_rescale(checkpoint, batches, on_layer=stage.advance)


def put_precision(
    graphs: Graphs,
    checkpoint: Checkpoint,
    row: Precision,
    texts: CalibrationTexts | None,
    options: ExportOptions,
    progress: Progress,
) -> QuantizationPlan | None:
    """Quantize the graphs as far as the texts allow; None where the precision quantizes nothing."""
    if texts is None:
        return None
    settings = Settings() if options.observer is None else Settings(options.observer)
    plan = make_plan(checkpoint, graphs, row, texts, progress, settings)
    apply_plan(plan, graphs)
    return plan


def time_bundle(
    folder: Path, manifest: Mapping[str, Any], options: ExportOptions, progress: Progress
) -> dict[str, Any] | None:
    """Quantized against float32 on this machine, with a warning where it is slower; None where that says nothing."""
    if manifest["quantization"] is None or (options.no_verify and not options.require_speedup):
        return None
    with progress.stage("speed against float32"):
        speed = measure_speed(folder, manifest)
    slower = verdict(speed)
    if slower:
        progress.message(f"warning: {slower}")
    return speed


def require_speedup(folder: Path, options: ExportOptions) -> None:
    """Under ``--require-speedup``, a quantized bundle that is not faster than float32 fails.

    Raises:
        GateError: it is slower, or could not be timed.
    """
    manifest = read_manifest(folder)
    if not options.require_speedup or manifest["quantization"] is None:
        return
    speed = manifest["speed"]
    if speed is None or speed["speedup"] < 1:
        raise GateError(verdict(speed) or "it could not be timed against float32.")


def assemble_graphs(
    checkpoint: Checkpoint,
    blocks: Mapping[BlockKind, Block],
    row: Precision,
    rescale: Rescale,
    options: ExportOptions,
) -> Graphs:
    """Both graphs, the decoder's in-place forms (for float32 on a CPU, for engines that ask), another layout's."""
    facts = (checkpoint.architecture, blocks, row.compute, rescale)
    graphs = assemble(*facts)
    if row.compute == "float":
        graphs = add_in_place(graphs, *facts)
    if options.cache != "concat":
        graphs = add_in_place(graphs, *facts, options.max_target_length)
    if options.layout == "optimum":
        graphs = add_optimum(graphs, *facts)
    return graphs


def save_graphs(graphs: Graphs, checkpoint: Checkpoint, folder: Path, progress: Progress) -> str:
    """Write both graphs and their one weights file; returns the weights' sha256."""
    plan = plan_weights(model for _, model in graphs.items())
    with progress.stage("weights", plan.size, "bytes") as stage:
        digest = write_weights(plan, checkpoint.read, folder, stage.advance)
    for name, model in graphs.items():
        attach(model, plan, folder)
        ir.save(model, folder / f"{name}.onnx")
    return digest


def copy_small_files(checkpoint: Checkpoint, folder: Path) -> None:
    """config.json as it was, generation_config.json, and tokenizer.json where there is a tokenizer."""
    for name, data in (
        ("config.json", checkpoint.config),
        ("generation_config.json", checkpoint.generation_config),
    ):
        write_json(folder / name, data)
    tokenizer = tokenizer_json(checkpoint)
    if tokenizer is not None:
        (folder / "tokenizer.json").write_bytes(tokenizer)


def check_layout(options: ExportOptions, row: Precision) -> None:
    """Refuse a layout whose clients cannot run this precision, before any work.

    Raises:
        UserError: they cannot.
    """
    if options.layout == "optimum":
        js_dtype(row)


def finish_layout(
    folder: Path, graphs: Graphs, checkpoint: Checkpoint, row: Precision, options: ExportOptions, progress: Progress
) -> dict[str, Any] | None:
    """Write the rest of another layout and compare its graphs with ours; None where there is only our own."""
    if options.layout == "t5edge":
        return None
    write_optimum_files(folder, graphs, checkpoint, row)
    weights = folder / JS_FOLDER / WEIGHTS
    if not weights.is_symlink():
        progress.message(
            f"layout {options.layout}: {weights.stat().st_size / 1e6:.1f} MB of weights are copied, not linked"
        )
    if options.no_verify:
        return {"name": options.layout, "parity": None}
    with progress.stage(f"layout {options.layout}"):
        parity = check_optimum(folder, checkpoint.architecture, row.compute)
    return {"name": options.layout, "parity": parity}


def require_layout(folder: Path) -> None:
    """A bundle whose other layout computes other logits fails.

    Raises:
        GateError: so it does.
    """
    layout = read_manifest(folder)["layout"]
    parity = layout and layout["parity"]
    if parity and not parity["passed"]:
        errors = ", ".join(f"{form}: {error:.2g}" for form, error in parity["errors"].items())
        raise GateError(
            f"the graphs of layout {layout['name']} do not give our logits (relative error {errors}, limit "
            f"{parity['limit']:.2g})."
        )


def describe(
    checkpoint: Checkpoint, options: ExportOptions, row: Precision, rescale: Rescale, graphs: Graphs
) -> dict[str, Any]:
    """The manifest's facts, files' hashes and parity left out."""
    return {
        "variant": checkpoint.source,
        "revision": checkpoint.revision,
        "random_weights": options.random_weights,
        "content_key": checkpoint.content_key(),
        "architecture": {
            **checkpoint.architecture.to_dict(),
            "parameters": checkpoint.architecture.parameters,
        },
        "precision": row.to_dict(),
        "rescale": rescale.to_dict(),
        "generation": checkpoint.generation_config,
        "options": recorded_options(options),
        "limits": options.limits.to_dict(),
        "cache": options.cache,
        "session": {graph: dict(entries) for graph, entries in CONFIGURATION.items()},
        "rows_share_cross": True,
        "ports": {name: ports.to_dict() for name, ports in graphs.ports().items()},
        "engines": {},
        "tools": tool_versions(),
        "parity": None,
    }


def choose_targets(options: ExportOptions, row: Precision) -> tuple[str, ...]:
    """The engine targets to build: those asked for, else those that build and run here. Refused before any work.

    Raises:
        UserError: an unknown target, or one that cannot be built here in this precision.
    """
    known = ("onnxruntime", *FLAVORS)
    unknown = [target for target in options.target if target not in known]
    if unknown:
        raise UserError(f"target '{unknown[0]}' is unknown; choose among {', '.join(known)}.")
    wanted = options.target or engine_targets()
    engines = tuple(target for target in dict.fromkeys(wanted) if target in FLAVORS)
    for target in engines:
        check_buildable(target, options.compute_capability, row.compute, *([f"int{row.weight_bits}"] * row.quantized))
    return engines


def build_targets(folder: Path, targets: Sequence[str], options: ExportOptions, progress: Progress) -> None:
    """Engines of each target; ONNX Runtime runs the graphs as they are."""
    for target in targets:
        build_engines(
            folder,
            target,
            options.compute_capability,
            no_fuse=options.no_fuse,
            separate_weights=options.separate_weights,
            progress=progress,
        )


def check(
    folder: Path,
    checkpoint: Checkpoint,
    blocks: Mapping[BlockKind, Block],
    options: ExportOptions,
    progress: Progress,
) -> bool | None:
    """Run the parity ladder on the written bundle; None when it was switched off.

    Raises:
        GateError: a rung failed.
    """
    if options.no_verify:
        return None
    from t5edge.parity.ladder import verify_bundle

    fits = verification_fits(checkpoint.architecture)
    if not fits and not options.blockwise:
        progress.message("the whole model does not fit in the free memory: verifying block by block")
    blockwise = options.blockwise or not fits
    if not verify_bundle(folder, checkpoint, blocks=blocks, blockwise=blockwise, progress=progress).passed:
        raise GateError("parity failed; parity.json says where.")
    return True


def _depths(checkpoint: Checkpoint) -> tuple[int, int]:
    return checkpoint.architecture.encoder_layers, checkpoint.architecture.decoder_layers


def export(variant: str, precision: str = "fp32", progress: Progress | None = None, **options: Any) -> Bundle:
    """Export ``variant`` in ``precision``; keywords are the fields of ``ExportOptions``.

    ``targets=("onnxruntime",)`` is accepted for ``target``; ``calibration`` may be a file or an iterable of texts, of
    (source, target) pairs or of ``Example``. Raises as ``export_bundle``.
    """
    if "targets" in options:
        options["target"] = tuple(options.pop("targets"))
    for name in ("variant", "out", "calibration"):
        if isinstance(options.get(name), Path):
            options[name] = str(options[name])
    if not isinstance(options.get("calibration"), (str, type(None))):
        options["calibration"] = examples_from(options["calibration"])
    try:
        chosen = ExportOptions(variant=str(variant), precision=precision, **options)
    except TypeError as error:
        raise UserError(f"export: {error}; see t5edge.options.ExportOptions") from error
    return export_bundle(chosen, progress)
