"""``export()``: trace, fuse, rescale, stamp, stream, build, verify. A newcomer reads this file and knows the system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporter import bundle as bundles
from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.errors import GateError, UserError
from exporter.options import ExportOptions
from exporter.precision import Precision, precision
from exporter.progress import Progress, Silent
from exporter.rescale import Rescale, measure_rescale
from exporter.stamp import Graphs, stamp
from exporter.texts import Encoder, bundled_examples, read_examples
from exporter.tokenizer_files import tokenizer_json
from exporter.trace import Block, BlockKind, trace_block
from exporter.versions import tool_versions
from exporter.weights import attach, plan_weights, write_weights
from kernels.table import fuse

BLOCK_KINDS: tuple[BlockKind, ...] = ("encoder", "decoder", "cross_kv")
RANGE_TEXTS = 16


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
        GateError: parity failed; the bundle is kept as ``<out>.failed``.
    """
    watch: Progress = progress or Silent()
    row = precision(options.precision)
    out = Path(options.out or options.folder_name)
    bundles.check_target_folder(out, options.force)
    checkpoint = open_checkpoint(options.variant, random_weights=options.random_weights, revision=options.revision)
    for difference in checkpoint.differences:
        watch.message(difference)
    with bundles.writing(out, options.force) as folder:
        blocks = trace_blocks(checkpoint, watch)
        rescale = choose_rescale(checkpoint, row, options, watch)
        graphs = stamp(checkpoint.architecture, blocks, row.compute, rescale)
        digest = save_graphs(graphs, checkpoint, folder, watch)
        copy_small_files(checkpoint, folder)
        manifest = describe(checkpoint, options, row, rescale, graphs)
        bundles.write_manifest(folder, manifest, {"weights.safetensors": digest})
        passed = check(folder, checkpoint, options, watch)
    if passed is False:
        failed = bundles.keep_failed(out)
        raise GateError(f"parity failed; the bundle is kept for study as '{failed}' (see parity.json there).")
    return Bundle(out, bundles.read_manifest(out), passed)


def trace_blocks(checkpoint: Checkpoint, watch: Progress) -> dict[BlockKind, Block]:
    """Each kind of block traced once and fused, whatever the depth."""
    blocks: dict[BlockKind, Block] = {}
    with watch.stage("trace and fuse", len(BLOCK_KINDS), "blocks") as stage:
        for kind in BLOCK_KINDS:
            block = trace_block(checkpoint.architecture, kind)
            fuse(block, checkpoint.architecture)
            blocks[kind] = block
            stage.advance()
    return blocks


def choose_rescale(checkpoint: Checkpoint, row: Precision, options: ExportOptions, watch: Progress) -> Rescale:
    """The fp16 rescale from activations on real texts; none for the other precisions."""
    if not row.rescale or options.no_rescale:
        return Rescale()
    if options.calibration:
        examples = read_examples(options.calibration)
    else:
        examples = bundled_examples(demo=checkpoint.source == "t5-demo")
    encoder = Encoder(checkpoint.architecture, tokenizer_json(checkpoint))
    batch = encoder.batch(examples[:RANGE_TEXTS])
    with watch.stage("activation ranges", sum(_depths(checkpoint)), "layers") as stage:
        return measure_rescale(checkpoint, [batch], on_layer=stage.advance)


def save_graphs(graphs: Graphs, checkpoint: Checkpoint, folder: Path, watch: Progress) -> str:
    """Write both graphs and their one weights file; returns the weights' sha256."""
    plan = plan_weights(model for _, model in graphs.items())
    with watch.stage("weights", plan.size, "bytes") as stage:
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
        bundles.write_json(folder / name, data)
    tokenizer = tokenizer_json(checkpoint)
    if tokenizer is not None:
        (folder / "tokenizer.json").write_bytes(tokenizer)


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
        "limits": options.limits.to_dict(),
        "ports": {"encoder": graphs.encoder_ports.to_dict(), "decoder": graphs.decoder_ports.to_dict()},
        "engines": {},
        "tools": tool_versions(),
        "parity": None,
    }


def check(folder: Path, checkpoint: Checkpoint, options: ExportOptions, watch: Progress) -> bool | None:
    """Run the parity ladder on the written bundle; None when it was switched off."""
    if options.no_verify:
        return None
    from exporter.parity.ladder import verify_bundle

    return verify_bundle(folder, checkpoint, progress=watch).passed


def _depths(checkpoint: Checkpoint) -> tuple[int, int]:
    return checkpoint.architecture.encoder_layers, checkpoint.architecture.decoder_layers


def export(variant: str, precision: str = "fp32", progress: Progress | None = None, **options: Any) -> Bundle:
    """Export ``variant`` in ``precision``; keywords are the fields of ``ExportOptions``.

    ``targets=("onnxruntime",)`` is accepted for ``target``. Raises as ``export_bundle``.
    """
    if "targets" in options:
        options["target"] = tuple(options.pop("targets"))
    for name in ("variant", "out", "calibration"):
        if isinstance(options.get(name), Path):
            options[name] = str(options[name])
    try:
        chosen = ExportOptions(variant=str(variant), precision=precision, **options)
    except TypeError as error:
        raise UserError(f"export: {error}; see exporter.options.ExportOptions") from error
    return export_bundle(chosen, progress)
