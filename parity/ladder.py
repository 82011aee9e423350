"""The ladder: a table of rungs, run on a bundle that was just written or on a finished one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.files import write_json
from t5edge.bundle.manifest import Manifest, damaged_files
from t5edge.bundle.parity_report import FAIL, CheckResult, ParityReport, at_most, failure, not_run
from t5edge.bundle.precision import Precision
from t5edge.engines.proof import record_run, why_not_run
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.parity import generation, numeric
from t5edge.parity.layout import layout_results
from t5edge.parity.limits import own_dtype
from t5edge.parity.parts import InParts
from t5edge.parity.reference import Reference, measure_reference, passes, threads_for
from t5edge.parity.subject import Subject
from t5edge.parity.workload import build_workload
from t5edge.progress import Progress, Silent
from t5edge.runtime.backend import find_backend

if TYPE_CHECKING:
    from t5edge.kernels.block import Block, BlockKind
    from t5edge.parity.workload import Workload

REPORT = "parity.json"
FILES = "files"


@dataclass(frozen=True)
class Rung:
    """One row of the ladder.

    ``groups`` name the batches that PyTorch must have run (``Workload.groups``); ``run`` yields results under the
    rung's name, each with its measure, limit and verdict. A rung that does not apply yields ``not_run``.
    """

    name: str
    groups: tuple[str, ...]
    run: Callable[[Subject, str], Iterator[CheckResult]]


RUNGS: tuple[Rung, ...] = (
    Rung("1 operators", (), numeric.operators),
    Rung("2 encoder", ("texts",), numeric.encoder),
    Rung("3 logits", ("texts",), numeric.logits),
    Rung("3 range", ("texts", "lengths"), numeric.value_range),
    Rung("4 cache", ("texts",), numeric.cache),
    Rung("5 padding", ("texts",), numeric.padding),
    Rung("6 lengths", ("texts", "lengths", "long"), numeric.lengths),
    Rung("7 generation", ("texts",), generation.generation),
    Rung("8 task", (), generation.task),
)


def verify_bundle(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    target: str = "onnxruntime",
    progress: Progress | None = None,
    blocks: Mapping[BlockKind, Block] | None = None,
    blockwise: bool = False,
    rungs: Sequence[Rung] = RUNGS,
    manifest: Manifest | None = None,
) -> ParityReport:
    """Run the ladder on a bundle of ``checkpoint``; writes ``parity.json`` and the manifest's ``parity`` entry.

    ``blocks``: the fused blocks the bundle was assembled from; None traces them again. ``blockwise``: see ``verify``.
    ``manifest``: the bundle's, where it is not written yet; it is then left to the caller to write.
    """
    progress = progress or Silent()
    opened = manifest or Manifest.read(folder)
    if blockwise:
        report = run_blockwise(folder, opened, checkpoint, target, progress, rungs)
    else:
        report = run_ladder(folder, opened, checkpoint, target, progress, blocks, rungs)
    write_json(folder / REPORT, report.to_dict())
    if manifest is None:
        hashes = {name: digest for name, digest in opened.hashes.items() if name != REPORT}
        replace(opened, parity=report.without_details()).with_files(folder, hashes).write(folder)
    return report


def verify(
    bundle: str | Path,
    checkpoint: str | Path | None = None,
    *,
    target: str = "onnxruntime",
    junit: Path | None = None,
    progress: Progress | None = None,
    blockwise: bool = False,
    rungs: Sequence[Rung] = RUNGS,
) -> ParityReport:
    """Run the ladder on a finished bundle. A damaged file fails the rung ``files``.

    The bundle is not changed, except that what was proved about engines is written into their entry of the manifest.
    Where engines cannot run, every rung says ``not run`` and why, and the report does not pass.

    ``blockwise``: compare layer by layer instead, with one layer in memory at a time; the rungs that need the whole
    model are then ``not run``. The graphs of another layout are compared with ours again.

    The report's fact ``checkpoint_touched`` says whether the checkpoint's files are other ones than at the export.
    ``checkpoint``: what to compare with, as ``--variant`` takes it; None for the one the bundle was exported from.

    Raises:
        UserError: not a bundle, the checkpoint is not there or is another model, or the target is unknown or
            cannot run single blocks.
    """
    if blockwise:
        _check_blockwise(target)
    folder, progress = Path(bundle), progress or Silent()
    manifest = Manifest.read(folder)
    damaged = damaged_files(folder)
    names = f": {', '.join(damaged)}" if damaged else ""
    files = at_most(FILES, f"missing or changed files{names}", len(damaged), 0, files=damaged)
    if damaged:
        skipped = [not_run(rung.name, "files of the bundle are damaged") for rung in rungs]
        report = ParityReport([files, *skipped], _facts(manifest, target))
    elif reason := why_not_run(target):
        report = ParityReport([not_run(rung.name, reason) for rung in rungs], _facts(manifest, target))
    else:
        source = find_checkpoint(folder, manifest, None if checkpoint is None else str(checkpoint))
        if blockwise:
            report = run_blockwise(folder, manifest, source, target, progress, rungs)
        else:
            report = run_ladder(folder, manifest, source, target, progress, None, rungs)
        changed = source.content_key() != manifest.content_key
        results = [files, *report.results, *layout_results(folder, manifest, source.architecture, target, blockwise)]
        report = ParityReport(results, {**report.facts, "checkpoint_touched": changed})
        if find_backend(target).is_engine:
            record_run(folder, target, report, progress)
    if junit is not None:
        try:
            report.write_junit(junit)
        except OSError as error:
            raise UserError(f"'{junit}' cannot be written: {error.strerror}; choose another --junit.") from error
    return report


def find_checkpoint(folder: Path, manifest: Manifest, variant: str | None) -> Checkpoint:
    """The checkpoint of a bundle, or ``variant`` where one is named.

    Raises:
        UserError: it is not there, or its architecture is not the bundle's.
    """
    named = variant is not None
    try:
        checkpoint = open_checkpoint(
            variant if variant is not None else manifest.variant,
            random_weights=None if named else manifest.random_weights,
            revision=None if named else manifest.revision,
        )
    except UserError as error:
        hint = "" if named else f" '{folder}' was exported from it; name another place with --checkpoint."
        raise UserError(f"{error}{hint}") from error
    found, built = checkpoint.architecture.to_dict(), manifest.architecture.to_dict()
    other = [key for key, value in found.items() if built.get(key) != value]
    differences = [f"{key}: bundle {built.get(key)}, checkpoint {found[key]}" for key in other]
    if differences:
        raise UserError(
            f"'{folder}' is not a bundle of '{checkpoint.source}' ({'; '.join(differences)}); "
            "name its own checkpoint with --checkpoint."
        )
    return checkpoint


def _facts(manifest: Manifest, target: str) -> dict[str, Any]:
    return {"variant": manifest.variant, "precision": manifest.precision.name, "target": target}


def run_ladder(
    folder: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    target: str,
    progress: Progress,
    blocks: Mapping[BlockKind, Block] | None,
    rungs: Sequence[Rung],
) -> ParityReport:
    """Prepare the subject once, then climb; what fails is told to ``progress``."""
    begin = time.monotonic()
    results: list[CheckResult] = []
    with threads_for(checkpoint.architecture.parameters):
        subject = open_subject(folder, checkpoint, target, progress, blocks, rungs, manifest)
        with progress.stage("parity", len(rungs), "rungs") as stage:
            for rung in rungs:
                stage.note(rung.name)
                results += _climb(rung, subject)
                stage.advance()
    return _finished(results, _facts(subject.manifest, target), begin, progress)


def run_blockwise(
    folder: Path, manifest: Manifest, checkpoint: Checkpoint, target: str, progress: Progress, rungs: Sequence[Rung]
) -> ParityReport:
    """Compare block by block; every rung of the ladder itself is ``not run``.

    Raises:
        UserError: ``target`` cannot run single blocks.
    """
    from t5edge.parity.blockwise.verify import verify_blockwise

    _check_blockwise(target)
    begin = time.monotonic()
    results = verify_blockwise(folder, checkpoint, progress, manifest)
    results += [not_run(rung.name, "needs the whole model in memory; verified block by block") for rung in rungs]
    facts = {**_facts(manifest, target), "blockwise": True}
    return _finished(results, facts, begin, progress)


def _check_blockwise(target: str) -> None:
    if find_backend(target).needs_gpu:
        raise UserError(f"single blocks run on onnxruntime only, not on {target}; leave out --blockwise or --target.")


def _finished(
    results: Sequence[CheckResult], facts: Mapping[str, Any], begin: float, progress: Progress
) -> ParityReport:
    for result in results:
        if result.verdict == FAIL:
            progress.message(f"failed: {result.describe()}")
    return ParityReport(results, {**facts, "seconds": round(time.monotonic() - begin, 1)})


def _climb(rung: Rung, subject: Subject) -> list[CheckResult]:
    """The results of one rung; NaN logits end it as a failure."""
    begin = time.monotonic()
    results: list[CheckResult] = []
    try:
        results += rung.run(subject, rung.name)
    except FloatingPointError:
        results.append(failure(rung.name, "NaN or infinity in the logits"))
    assert results, f"rung {rung.name} says nothing"
    seconds = round(time.monotonic() - begin, 2)
    return [replace(results[0], details={**results[0].details, "seconds": seconds}), *results[1:]]


def open_subject(
    folder: Path,
    checkpoint: Checkpoint,
    target: str,
    progress: Progress,
    blocks: Mapping[BlockKind, Block] | None,
    rungs: Sequence[Rung],
    manifest: Manifest | None = None,
) -> Subject:
    """Open the bundle, run PyTorch on what the rungs need, and trace the blocks if a rung needs them."""
    from t5edge.runtime.model import open_model

    manifest, backend = manifest or Manifest.read(folder), find_backend(target)
    model = open_model(folder, manifest, target, **({"buffers": False} if backend.writes_cache_in_place else {}))
    largest = backend.max_batch(manifest)
    if largest is not None:  # the workload does not know it
        model.step_model = InParts(model.step_model, largest)
    row = manifest.precision
    workload = build_workload(checkpoint, manifest.limits)
    groups = dict.fromkeys(group for rung in rungs for group in rung.groups)
    reference = _reference(checkpoint, row, workload, tuple(groups), progress)
    if blocks is None:
        blocks = _trace(checkpoint, progress) if any(rung.run is RUNGS[0].run for rung in rungs) else {}
    return Subject(folder, manifest, checkpoint, row, model, target, workload, reference, blocks)


def _reference(
    checkpoint: Checkpoint, row: Precision, workload: Workload, groups: Sequence[str], progress: Progress
) -> Reference:
    batches, narrow = workload.batches(groups), own_dtype(row)
    with progress.stage("PyTorch reference", len(batches) * passes(narrow), "batches") as stage:
        return measure_reference(checkpoint, narrow, batches, stage.advance)


def _trace(checkpoint: Checkpoint, progress: Progress) -> Mapping[BlockKind, Block]:
    from t5edge.exporter.graph.trace import trace_blocks

    return trace_blocks(checkpoint, progress)
