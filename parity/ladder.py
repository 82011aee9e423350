"""The ladder: a table of checks, run on a bundle that was just written or on a finished one."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.files import VOCABULARY, write_json
from t5edge.bundle.manifest import Manifest, damaged_files
from t5edge.bundle.parity_report import FAIL, CheckResult, ParityReport, at_most, failure, not_applicable, not_run
from t5edge.bundle.schema import plain
from t5edge.engines.proof import record_run, why_not_run
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.adapter_settings import is_prompt
from t5edge.exporter.checkpoint.open import Checkpoint, names_adapter, open_checkpoint
from t5edge.exporter.reference.streamed import StreamedReference
from t5edge.exporter.reference.whole import WholeReference
from t5edge.parity import generation, judged, numeric
from t5edge.parity.exact.graphs import graphs
from t5edge.parity.exact.integers import arithmetic
from t5edge.parity.exact.weights import weights
from t5edge.parity.judged_texts import Judging, check_disjoint
from t5edge.parity.layout import layout_results
from t5edge.parity.limits import own_dtype
from t5edge.parity.localize import locate
from t5edge.parity.memory import bundle_fits
from t5edge.parity.reference import measure_reference, passes, threads_for
from t5edge.parity.subject import Opener, Subject
from t5edge.parity.tokenizer import text
from t5edge.parity.workload import build_workload
from t5edge.progress import Progress, Silent
from t5edge.runtime.backend import find_backend
from t5edge.runtime.onnxruntime.kernels import cpu_name

if TYPE_CHECKING:
    from t5edge.kernels.block import Block, BlockKind

    Blocks = Mapping[BlockKind, Block]

REPORT = "parity.json"
FILES = "files"
MOST_NAMED = 12
"""Wrong parts that are named when a check fails."""


@dataclass(frozen=True)
class Check:
    """One row of the ladder.

    ``groups`` name the batches that PyTorch must have run (``Workload.groups``); ``run`` yields results under the
    check's name, each with its measure, limit and verdict. A check that cannot be run yields ``not_run``; one
    with nothing to judge in this bundle ``not_applicable``. ``of_decoder``: it does not apply to an encoder alone.
    """

    name: str
    groups: tuple[str, ...]
    run: Callable[[Subject, str], Iterator[CheckResult]]
    of_decoder: bool = False


CHECKS: tuple[Check, ...] = (
    Check("weights", (), weights),
    Check("graphs", (), graphs),
    Check("arithmetic", (), arithmetic),
    Check("1 operators", (), numeric.operators),
    Check("2 encoder", ("texts",), numeric.encoder),
    Check("3 logits", ("texts",), numeric.logits, of_decoder=True),
    Check("3 texts", ("texts",), judged.judged),
    Check("3 range", ("texts", "lengths"), numeric.value_range),
    Check("4 cache", ("texts",), numeric.cache, of_decoder=True),
    Check("5 padding", ("texts",), numeric.padding),
    Check("6 lengths", ("texts", "lengths", "long"), numeric.lengths),
    Check("7 generation", ("texts",), generation.generation, of_decoder=True),
    Check("8 task", (), generation.task, of_decoder=True),
    Check("9 text", (), text),
)


def verify_bundle(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    target: str = "onnxruntime",
    progress: Progress | None = None,
    blocks: Blocks | None = None,
    blockwise: bool = False,
    checks: Sequence[Check] = CHECKS,
    manifest: Manifest | None = None,
    judging: Judging | None = None,
) -> ParityReport:
    """Run the ladder on a bundle of ``checkpoint``; writes ``parity.json`` and the manifest's ``parity`` entry.

    ``blocks``: the fused blocks the bundle was assembled from; None traces them again. ``blockwise``: see ``verify``.
    ``manifest``: the bundle's, where it is not written yet; it is then left to the caller to write.
    """
    opener = Opener(folder, manifest or Manifest.read(folder), target, blockwise, judging or Judging())
    report = run_ladder(opener, checkpoint, progress or Silent(), checks, blocks)
    write_json(folder / REPORT, report.to_dict())
    if manifest is None:
        hashes = {name: digest for name, digest in opener.manifest.hashes.items() if name != REPORT}
        replace(opener.manifest, parity=report.without_details()).with_files(folder, hashes).write(folder)
    return report


def verify(
    bundle: str | Path,
    checkpoint: str | Path | None = None,
    *,
    adapters: Sequence[str | Path] = (),
    prompts: Sequence[str] = (),
    target: str = "onnxruntime",
    junit: Path | None = None,
    progress: Progress | None = None,
    blockwise: bool = False,
    checks: Sequence[Check] = CHECKS,
    texts: str | Path | None = None,
    time_budget: float | None = None,
) -> ParityReport:
    """Run the ladder on a finished bundle. A damaged file fails the check ``files``.

    The bundle stays as it is, but for what was proved of its engines; where they cannot run, all is ``not run``.
    ``blockwise``: for models larger than the memory. PyTorch has one block in memory at a time, so what needs it token
    by token is ``not run``; and every part of every layer is compared. Otherwise only where a check fails.
    The report's fact ``checkpoint_touched`` says whether the checkpoint's files are other ones than at the export.
    ``checkpoint``, ``adapters``, ``prompts``: as ``export`` takes them; left out, what the bundle was made from.
    ``texts``, ``time_budget``: what the bundle is judged on, and for how many seconds; see ``parity.judged_texts``.

    Raises:
        UserError: not a bundle, no checkpoint or another model's, texts it was calibrated on, or no such target.
    """
    if blockwise:
        _refuse_engines(target)
    folder, progress = Path(bundle), progress or Silent()
    manifest, files = Manifest.read(folder), _check_files(folder)
    if files.verdict == FAIL:
        report = _not_run(manifest, target, checks, "files of the bundle are damaged", files)
    elif reason := why_not_run(target):
        report = _not_run(manifest, target, checks, reason)
    else:
        opener = Opener(folder, manifest, target, blockwise, Judging(texts, time_budget))
        source = find_checkpoint(folder, manifest, checkpoint, adapters, prompts)
        report = _verified(opener, source, files, checks, progress)
    return report if junit is None else _write_junit(report, junit)


def _check_files(folder: Path) -> CheckResult:
    damaged = damaged_files(folder)
    names = f": {', '.join(damaged)}" if damaged else ""
    return at_most(FILES, f"missing or changed files{names}", len(damaged), 0, files=damaged)


def _verified(
    opener: Opener, source: Checkpoint, files: CheckResult, checks: Sequence[Check], progress: Progress
) -> ParityReport:
    """The report of a sound bundle on a target that runs here."""
    folder, manifest = opener.folder, opener.manifest
    check_disjoint(source, opener.judging.texts, (manifest.quantization or {}).get("text_keys", ()))
    report = run_ladder(opener, source, progress, checks)
    layouts = layout_results(folder, manifest, source.architecture, opener.target, opener.mapped)
    touched = {"checkpoint_touched": source.content_key() != manifest.content_key}
    report = ParityReport([files, *report.results, *layouts], {**report.facts, **touched})
    if find_backend(opener.target).is_engine:
        record_run(folder, opener.target, report, progress)
    return report


def _not_run(
    manifest: Manifest, target: str, checks: Sequence[Check], reason: str, *known: CheckResult
) -> ParityReport:
    """A report of nothing but ``known`` results and the reason why no check was run."""
    return ParityReport([*known, *(not_run(check.name, reason) for check in checks)], _facts(manifest, target))


def _write_junit(report: ParityReport, path: Path) -> ParityReport:
    try:
        report.write_junit(path)
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror}; choose another --junit.") from error
    return report


def find_checkpoint(
    folder: Path,
    manifest: Manifest,
    variant: str | Path | None,
    adapters: Sequence[str | Path] = (),
    prompts: Sequence[str] = (),
) -> Checkpoint:
    """The checkpoint of a bundle, or ``variant`` where one is named, with its adapters merged and prompts beside it.

    Raises:
        UserError: it is not there, or its architecture is not the bundle's.
    """
    named = variant is not None
    try:
        checkpoint = open_checkpoint(
            str(variant) if variant is not None else manifest.variant,
            random_weights=None if named else manifest.random_weights,
            revision=None if named else manifest.revision,
            subfolder=None if named else manifest.subfolder,
            vocabulary=folder / VOCABULARY if manifest.vocabulary else None,
            task=manifest.task if manifest.task == "encode" else None,
            adapters=[str(name) for name in adapters] or _merged(manifest, variant),
            prompts=prompts or _learnt(manifest, variant),
        )
    except UserError as error:
        given = {"--checkpoint": True, "--adapter": manifest.adapters, "--prompt": manifest.prompts}
        places = " or ".join(flag for flag, used in given.items() if used)
        hint = "" if named else f" '{folder}' was exported from it; name another place with {places}."
        raise UserError(f"{error}{hint}") from error
    found = {**checkpoint.architecture.to_dict(), "sentence": plain(checkpoint.sentence and checkpoint.sentence.facts)}
    built = {**manifest.architecture.to_dict(), "sentence": plain(manifest.sentence)}
    other = [key for key, value in found.items() if built.get(key) != value]
    differences = [f"{key}: bundle {built.get(key)}, checkpoint {found[key]}" for key in other]
    if differences:
        raise UserError(
            f"'{folder}' is not a bundle of '{checkpoint.source}' ({'; '.join(differences)}); "
            "name its own checkpoint with --checkpoint."
        )
    return checkpoint


def _merged(manifest: Manifest, variant: str | Path | None) -> list[str]:
    """The adapters of the bundle that are not merged by opening ``variant``: an adapter there stands for the first."""
    spelled = [facts.spelled for facts in manifest.adapters or ()]
    first = variant is not None and names_adapter(str(variant)) and not is_prompt(Path(variant))
    return spelled[1:] if first else spelled


def _learnt(manifest: Manifest, variant: str | Path | None) -> list[str]:
    """The prompts of the bundle, but for one that is opened as ``variant``."""
    opened = variant is not None and is_prompt(Path(variant))
    return [] if opened else [facts.spelled for facts in manifest.prompts or ()]


def _facts(manifest: Manifest, target: str) -> dict[str, Any]:
    return {"variant": manifest.variant, "precision": manifest.precision.name, "target": target}


def run_ladder(
    opener: Opener, checkpoint: Checkpoint, progress: Progress, checks: Sequence[Check], blocks: Blocks | None = None
) -> ParityReport:
    """Prepare the subject once, then run check by check; what fails is reported to ``progress``.

    Raises:
        UserError: the bundle is opened block by block, and its target cannot run single blocks.
    """
    if opener.mapped:
        _refuse_engines(opener.target)
    begin = time.monotonic()
    with threads_for(checkpoint.architecture.parameters):
        results = _run_checks(opener, checkpoint, progress, checks, blocks)
        if opener.mapped:
            results += locate(opener, checkpoint, progress)
        elif not find_backend(opener.target).needs_gpu and any(result.verdict == FAIL for result in results):
            results += _wrong_parts(opener, checkpoint, progress)
    for result in results:
        if result.verdict == FAIL:
            progress.message(f"failed: {result.describe()}")
    facts = {**_facts(opener.manifest, opener.target), **({"blockwise": True} if opener.mapped else {})}
    return ParityReport(results, {**facts, "seconds": round(time.monotonic() - begin, 1), **_occasion()})


def _occasion() -> dict[str, str]:
    """When and where this runs: UTC, the CPU and the system, for whoever reads the report later."""
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"date": date, "cpu": cpu_name(), "system": f"{platform.system()} {platform.machine()}"}


def _refuse_engines(target: str) -> None:
    if find_backend(target).needs_gpu:
        raise UserError(f"single blocks run on onnxruntime only, not on {target}; leave out --blockwise or --target.")


def _run_checks(
    opener: Opener, checkpoint: Checkpoint, progress: Progress, checks: Sequence[Check], blocks: Blocks | None
) -> list[CheckResult]:
    if opener.mapped and not bundle_fits(checkpoint.architecture, opener.precision):
        return [
            not_run(check.name, "the bundle does not fit in the free memory; its layers are compared")
            for check in checks
        ]
    results: list[CheckResult] = []
    subject = open_subject(opener, checkpoint, progress, blocks, checks)
    with progress.stage("parity", len(checks), "checks") as stage:
        for check in checks:
            stage.note(check.name)
            results += _run_check(check, subject)
            stage.advance()
    return results


def _wrong_parts(opener: Opener, checkpoint: Checkpoint, progress: Progress) -> list[CheckResult]:
    """The parts of layers that are wrong, the first of them where there are many."""
    found = [result for result in locate(opener, checkpoint, progress) if result.verdict == FAIL]
    if not found:
        progress.message("every layer is right on its own: what fails lies between them, or in the cache")
    elif len(found) > MOST_NAMED:
        progress.message(f"{len(found)} parts are wrong, the first {MOST_NAMED} are named")
    return found[:MOST_NAMED]


def _run_check(check: Check, subject: Subject) -> list[CheckResult]:
    """The results of one check; NaN logits end it as a failure."""
    begin = time.monotonic()
    results: list[CheckResult] = []
    if check.of_decoder and subject.encoder_alone:
        return [not_applicable(check.name, "the bundle is an encoder alone")]
    try:
        results += check.run(subject, check.name)
    except FloatingPointError:
        results.append(failure(check.name, "NaN or infinity in the logits"))
    assert results, f"check {check.name} says nothing"
    seconds = round(time.monotonic() - begin, 2)
    return [replace(results[0], details={**results[0].details, "seconds": seconds}), *results[1:]]


def open_subject(
    opener: Opener, checkpoint: Checkpoint, progress: Progress, blocks: Blocks | None, checks: Sequence[Check]
) -> Subject:
    """Open the bundle, run PyTorch on what the checks need, and trace the blocks if a check needs them."""
    from t5edge.exporter.graph.trace import trace_blocks

    model, precision, workload = opener.model(), opener.precision, build_workload(checkpoint, opener.limits)
    batches = workload.batches(list(dict.fromkeys(group for check in checks for group in check.groups)))
    narrow = own_dtype(precision)
    make = StreamedReference if opener.mapped else WholeReference
    with progress.stage("PyTorch reference", len(batches) * passes(narrow), "batches") as stage:
        reference = measure_reference(checkpoint, narrow, batches, stage.advance, make)
    if blocks is None:
        needed = any(check.run is numeric.operators for check in checks)
        blocks = trace_blocks(checkpoint, progress) if needed else {}
    return Subject(opener, checkpoint, precision, model, workload, reference, blocks)
