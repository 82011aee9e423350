"""``export()``: trace, fuse, rescale, assemble, quantize, stream, prove, build. Read this file to know the system.

Every stage returns its part; the manifest is written once, at the end. Engines are built of proven graphs only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t5edge.bundle.folder import check_target_folder, writing
from t5edge.bundle.manifest import PORTABLE_OPSET, STANDARD_OPSET, Manifest
from t5edge.bundle.parity_report import ParityReport
from t5edge.bundle.precision import Precision
from t5edge.bundle.records import Layout, Speed
from t5edge.bundle.versions import tool_versions
from t5edge.calibration.plan import QuantizationPlan, Settings, apply_plan, make_plan
from t5edge.calibration.ranges import choose_rescale
from t5edge.calibration.speed import measure_speed, too_slow, verdict
from t5edge.calibration.texts import CalibrationTexts, read_texts
from t5edge.engines.build import BuildSettings, add_engines
from t5edge.engines.targets import choose_targets, portable_only
from t5edge.errors import GateError, UserError
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.checkpoint.prompts import require_room
from t5edge.exporter.family.config import label_names
from t5edge.exporter.form import check_portable
from t5edge.exporter.graph.assemble import Graphs
from t5edge.exporter.graph.rescale import Rescale
from t5edge.exporter.graph.trace import trace_blocks
from t5edge.exporter.graph.write import FILE_NAME as WEIGHTS
from t5edge.exporter.graphs import SavedGraphs, assemble_graphs, copy_small_files, finish_graphs, save_graphs
from t5edge.exporter.layouts.files import check_layout, write_layout
from t5edge.kernels.block import Block, BlockKind
from t5edge.options import ExportOptions, checkpoint_options, export_options, recorded_options, wanted_row
from t5edge.parity.judged_texts import Judging, check_disjoint
from t5edge.parity.ladder import verify_bundle
from t5edge.parity.layout import check_optimum
from t5edge.parity.memory import verification_fits
from t5edge.progress import Progress, Silent
from t5edge.runtime.backend import find_backend
from t5edge.runtime.onnxruntime.sessions import CONFIGURATION


@dataclass(frozen=True)
class Bundle:
    """A finished bundle: its folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def passed(self) -> bool | None:
        """Whether every check of parity was run and passed; None when verification was switched off."""
        return self.manifest.passed


@dataclass(frozen=True)
class Prepared:
    """What an export begins with, once nothing can be refused early any more.

    Attributes:
        row: the precision; ``out``: where the bundle goes; ``targets``: the engines to build; ``checkpoint``: of what.
        options: as given, with what they left to this machine.
    """

    row: Precision
    out: Path
    targets: tuple[str, ...]
    checkpoint: Checkpoint
    options: ExportOptions


@dataclass(frozen=True)
class Parts:
    """What a bundle is made of: a checkpoint, its fused blocks, and the graphs assembled from them."""

    checkpoint: Checkpoint
    blocks: Mapping[BlockKind, Block]
    rescale: Rescale
    graphs: Graphs
    plan: QuantizationPlan | None


def export_bundle(options: ExportOptions, progress: Progress | None = None) -> Bundle:
    """Export one variant in one precision.

    Raises:
        UserError: bad input or environment; nothing is left behind.
        GateError: parity or an engine's check failed; the bundle is kept as ``<out>.failed``.
    """
    progress = progress or Silent()
    ready = prepare(options, progress)
    row, out, targets, checkpoint, options = ready.row, ready.out, ready.targets, ready.checkpoint, ready.options
    with writing(out, options.force) as folder:
        parts = make_parts(checkpoint, row, options, progress)
        saved = save_parts(parts, row, options, folder, progress)
        manifest = describe(parts, row, options, saved).with_files(folder, {WEIGHTS: saved.weights_sha256})
        manifest = replace(
            manifest,
            parity=check_parity(folder, manifest, parts, options, progress),
            layout=compare_layout(folder, manifest, options, progress),
            speed=time_bundle(folder, manifest, options, progress),
        )
        failures = failed_gates(manifest, options)
        if not failures:
            settings = BuildSettings(options.compute_capability, options.no_fuse, options.separate_weights)
            manifest, failures = add_engines(folder, manifest, targets, settings, progress)
        manifest = manifest.with_files(folder, manifest.hashes)
        manifest.write(folder)
        if failures:
            raise GateError(" ".join(failures))
    return Bundle(out, manifest)


def prepare(options: ExportOptions, progress: Progress) -> Prepared:
    """Open the checkpoint, and refuse what the export would refuse later.

    Raises:
        UserError: bad input or environment.
    """
    row = wanted_row(options)
    out = Path(options.out or options.folder_name)
    check_target_folder(out, options.force)
    check_layout(options.layout, row)
    options = choose_opset(options, row, progress)
    integers = [f"int{row.weight_bits}"] if row.quantized else []
    dtypes = [row.compute, *integers]
    targets = choose_targets(options.target, options.compute_capability, *dtypes, portable=options.form.portable)
    checkpoint = open_checkpoint(options.variant, **checkpoint_options(options))
    check_task(checkpoint, options)
    require_room(checkpoint.prompts, options.limits)
    for difference in checkpoint.differences:
        progress.message(difference)
    return Prepared(row, out, targets, checkpoint, options)


def choose_opset(options: ExportOptions, row: Precision, progress: Progress) -> ExportOptions:
    """``options`` with the graphs' opset: what they say, else the portable one where TensorRT here reads no other.

    Raises:
        UserError: a target that was asked for reads portable graphs only, which these cannot be.
    """
    tool = portable_only(options.target) if options.opset is None else None
    if tool is None:
        return replace(options, opset=options.form.opset)
    portable = replace(options, opset=PORTABLE_OPSET)
    try:
        check_portable(portable.form, row)
    except UserError as error:
        if options.target:
            raise UserError(f"{tool.title} reads portable graphs only; {error}") from error
        return replace(options, opset=STANDARD_OPSET)
    progress.message(f"{tool.title} reads portable graphs only, so these are: --opset {PORTABLE_OPSET}")
    return portable


def check_task(checkpoint: Checkpoint, options: ExportOptions) -> None:
    """Refuse what an encoder alone cannot have.

    Raises:
        UserError: best tokens.
    """
    if not checkpoint.architecture.encoder_alone:
        return
    name = f"'{checkpoint.source}' is exported as an encoder alone"
    if options.count_ties:
        raise UserError(f"{name}, and --count-ties is about tokens, which it has none of; leave it out.")
    if checkpoint.architecture.head_layers:
        check_deep_head(checkpoint.source, options)


def check_deep_head(source: str, options: ExportOptions) -> None:
    """Raises: UserError for what a head on a decoder does not have: engines."""
    engines = [target for target in options.target if find_backend(target).is_engine]
    if engines:
        raise UserError(
            f"'{source}' has its head on a decoder, which is not built for {engines[0]}; leave out --target."
        )


def choose_texts(
    checkpoint: Checkpoint, row: Precision, options: ExportOptions, progress: Progress
) -> CalibrationTexts | None:
    """The texts to calibrate on; None where nothing is quantized.

    Raises:
        UserError: they, or those that the bundle is judged on, cannot be read, or a text is among both.
    """
    texts = read_texts(checkpoint, options.calibration, options.limits, progress) if row.quantized else None
    if not options.no_verify:
        check_disjoint(checkpoint, options.texts, () if texts is None else texts.keys)
    return texts


def make_parts(checkpoint: Checkpoint, row: Precision, options: ExportOptions, progress: Progress) -> Parts:
    """Trace and fuse one block of each kind, assemble the graphs from them, quantize as far as the texts allow."""
    texts = choose_texts(checkpoint, row, options, progress)
    blocks, rescale, plan = trace_blocks(checkpoint, progress), Rescale(), None
    if row.rescale and not options.no_rescale:
        rescale = choose_rescale(checkpoint, options.calibration, progress)
    graphs = assemble_graphs(checkpoint, blocks, row, rescale, options.form)
    if texts is not None:
        settings = Settings() if options.observer is None else Settings(options.observer)
        plan = make_plan(checkpoint, graphs, row, texts, progress, settings)
        apply_plan(plan, graphs)
    finish_graphs(graphs, checkpoint, options.form)
    return Parts(checkpoint, blocks, rescale, graphs, plan)


def save_parts(parts: Parts, row: Precision, options: ExportOptions, folder: Path, progress: Progress) -> SavedGraphs:
    """Every file but the manifest, parity.json and engines."""
    saved = save_graphs(parts.graphs, parts.checkpoint, folder, progress)
    copy_small_files(parts.checkpoint, folder)
    write_layout(options.layout, folder, parts.graphs, parts.checkpoint, row, progress)
    return saved


def describe(parts: Parts, row: Precision, options: ExportOptions, saved: SavedGraphs) -> Manifest:
    """The manifest as far as it is known before anything is run, files left out."""
    checkpoint = parts.checkpoint
    return Manifest(
        task="encode" if checkpoint.architecture.encoder_alone else "generate",
        variant=checkpoint.source,
        revision=checkpoint.revision,
        subfolder=options.subfolder,
        random_weights=options.random_weights,
        content_key=checkpoint.content_key(),
        adapters=checkpoint.adapters or None,
        prompts=checkpoint.prompts or None,
        vocabulary=None if checkpoint.vocabulary is None else checkpoint.vocabulary.facts,
        sentence=None if checkpoint.sentence is None else checkpoint.sentence.facts,
        labels=label_names(checkpoint.config) if checkpoint.architecture.head in ("tokens", "text") else None,
        architecture=checkpoint.architecture,
        precision=row,
        rescale=parts.rescale.facts(),
        generation=checkpoint.generation_config,
        options=recorded_options(options),
        limits=options.limits,
        cache=options.cache,
        opset=options.form.opset,
        session=CONFIGURATION,
        rows_share_cross=True,
        ports=parts.graphs.ports(),
        tools=tool_versions(),
        quantization=None if parts.plan is None else parts.plan.to_dict(),
        costs=saved.costs,
        files={},
    )


def check_parity(
    folder: Path, manifest: Manifest, parts: Parts, options: ExportOptions, progress: Progress
) -> ParityReport | None:
    """The parity ladder on the written graphs, whose parity.json it writes; None when it was switched off."""
    if options.no_verify:
        return None
    fits = verification_fits(parts.checkpoint.architecture)
    if not fits and not options.blockwise:
        progress.message("the whole model does not fit in the free memory: verifying block by block")
    blockwise = options.blockwise or not fits
    judging = Judging(options.texts, options.time_budget)
    report = verify_bundle(
        folder,
        parts.checkpoint,
        blocks=parts.blocks,
        blockwise=blockwise,
        progress=progress,
        manifest=manifest,
        judging=judging,
    )
    return report.without_details()


def compare_layout(folder: Path, manifest: Manifest, options: ExportOptions, progress: Progress) -> Layout | None:
    """Another layout's graphs against ours; None where there is only our own."""
    if options.layout == "t5edge":
        return None
    if options.no_verify:
        return Layout(options.layout)
    with progress.stage(f"layout {options.layout}"):
        return Layout(options.layout, check_optimum(folder, manifest.architecture, manifest.precision.compute))


def time_bundle(folder: Path, manifest: Manifest, options: ExportOptions, progress: Progress) -> Speed | None:
    """Quantized against float32 on this machine, with a warning where it is slower; None where that says nothing."""
    if manifest.quantization is None or (options.no_verify and not options.require_speedup):
        return None
    with progress.stage("speed against float32"):
        speed = measure_speed(folder, manifest)
    if slower := verdict(speed):
        progress.message(f"warning: {slower}")
    return speed


def failed_gates(manifest: Manifest, options: ExportOptions) -> list[str]:
    """Why the bundle must not be used: parity, another layout's logits, speed where it was required."""
    wrong = manifest.parity is not None and manifest.parity.failed
    failures = ["parity failed; parity.json says where." if wrong else None]
    failures += [None if manifest.layout is None else manifest.layout.problem()]
    if options.require_speedup and manifest.quantization is not None:
        failures += [too_slow(manifest.speed)]
    return [failure for failure in failures if failure]


def export(variant: str, precision: str = "fp32", progress: Progress | None = None, **options: Any) -> Bundle:
    """Export ``variant`` in ``precision``; see ``export_options`` for the keywords, and ``export_bundle``."""
    return export_bundle(export_options(variant, precision, **options), progress)
