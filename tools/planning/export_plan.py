"""``export --dry-run``: what an export would do, before any of it is done.

What the export refuses before its first graph is refused here, by the same functions. Sizes and memory are estimates.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from t5edge.bundle.manifest import Manifest
from t5edge.bundle.precision import Precision
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.hub import Repository, to_download
from t5edge.exporter.checkpoint.open import Checkpoint, on_the_hub
from t5edge.options import ExportOptions
from t5edge.parity import memory
from t5edge.pipeline import Prepared, choose_texts, prepare
from t5edge.progress import Progress
from t5edge.runtime.tensorrt.records import DECODERS
from t5edge.tools.planning.plan import bundle_bytes

STRUCTURE_SEED = 0
"""Stands for weights that are not downloaded yet."""


@dataclass(frozen=True)
class ExportPlan:
    """One export that was not done.

    Attributes:
        source: where the checkpoint comes from; ``revision``: its commit on the hub.
        download: bytes of weights to be fetched first.
        out: the bundle's folder; ``replaces``: the bundle that is there now, in words.
        files: that would be written, engines included; ``bytes``: of all but engines, about.
        memory: at the export's peak, bytes, about, and ``free_memory``; ``free_disk``: where the bundle goes.
        verify: how it is proven: whole, block by block, or not at all.
        targets: the engines to be built; ``opset``: of the graphs.
    """

    variant: str
    source: str
    revision: str | None
    download: int
    precision: str
    parameters: int
    out: str
    replaces: str | None
    files: tuple[str, ...]
    bytes: int
    memory: int
    free_memory: int
    free_disk: int
    verify: str
    targets: tuple[str, ...]
    opset: int

    def to_dict(self) -> dict[str, Any]:
        """The object of ``--json``."""
        return {"dry_run": True, **asdict(self)}


def plan_export(options: ExportOptions, progress: Progress) -> ExportPlan:
    """What ``export_bundle`` would do with ``options``; writes no bundle, and downloads no weights.

    Raises:
        UserError: as ``export_bundle``, as far as it can be known before a graph is made.
    """
    repository = None if options.random_weights is not None else on_the_hub(*_named(options))
    fetched = 0 if repository is None else to_download(repository)
    ready = prepare(_structure(options) if fetched else options, progress)
    checkpoint, row, options = ready.checkpoint, ready.row, replace(options, opset=ready.options.opset)
    if not fetched:
        choose_texts(checkpoint, row, options, progress)
    verify = _how_verified(checkpoint, options)
    return ExportPlan(
        variant=checkpoint.source,
        source=_source(checkpoint, options, repository),
        revision=checkpoint.revision,
        download=fetched,
        precision=row.title,
        parameters=checkpoint.architecture.parameters,
        out=str(ready.out),
        replaces=_there(ready.out),
        files=tuple(_files(ready, options)),
        bytes=_bytes(checkpoint, row),
        memory=memory.peak_bytes(checkpoint.architecture, verify=verify == "whole"),
        free_memory=memory.free_bytes(),
        free_disk=shutil.disk_usage(_existing(ready.out)).free,
        verify=verify,
        targets=ready.targets,
        opset=options.form.opset,
    )


def _named(options: ExportOptions) -> tuple[str, str | None, str | None]:
    return options.variant, options.revision, options.subfolder


def _structure(options: ExportOptions) -> ExportOptions:
    """Raises: UserError where the structure alone cannot be opened."""
    if options.subfolder is not None:
        raise UserError(
            f"'{options.variant}' is not in the cache, and --dry-run downloads no weights; export it, or fetch it with "
            "'hf download' first."
        )
    return replace(options, random_weights=STRUCTURE_SEED)


def _source(checkpoint: Checkpoint, options: ExportOptions, repository: Repository | None) -> str:
    if options.random_weights is not None:
        return f"random weights from seed {options.random_weights}"
    if repository is not None:
        return f"{repository.name} on the hub"
    return "the package" if checkpoint.folder is None else str(checkpoint.folder)


def _how_verified(checkpoint: Checkpoint, options: ExportOptions) -> str:
    if options.no_verify:
        return "not at all"
    whole = not options.blockwise and memory.verification_fits(checkpoint.architecture)
    return "whole" if whole else "block by block"


def _there(out: Path) -> str | None:
    """The bundle that would be replaced; ``prepare`` has seen to it that nothing else is there."""
    if not out.is_dir() or not any(out.iterdir()):
        return None
    manifest = Manifest.read(out)
    return f"{manifest.variant} in {manifest.precision.title}, {manifest.stored_bytes / 1e6:.1f} MB"


def _files(ready: Prepared, options: ExportOptions) -> Iterator[str]:
    """Names of what a bundle holds; engines as patterns, since their GPUs may be known later only."""
    yield from ("bundle.json", "config.json", "encoder.onnx", "generation_config.json")
    graphs = ["encoder"]
    if not ready.checkpoint.architecture.encoder_alone:
        graphs += DECODERS[options.cache]
        yield "decoder.onnx"
        yield from [] if options.form.portable else ["decoder_buffered.onnx"]
        yield from ["decoder_in_place.onnx"] if options.cache != "concat" else []
    yield from [] if options.no_verify else ["parity.json"]
    yield from ("tokenizer.json", "weights.safetensors")
    yield from [] if options.layout == "t5edge" else [f"the files of layout {options.layout}"]
    for target in ready.targets:
        for capability in options.compute_capability or ("<this GPU>",):
            yield from (f"engines/{target}/{capability}/{graph}.engine" for graph in graphs)


def _bytes(checkpoint: Checkpoint, row: Precision) -> int:
    """Weights and graphs as if all of it were quantized, and a tokenizer where its size is known."""
    tokenizer = None if checkpoint.folder is None else checkpoint.folder / "tokenizer.json"
    size = tokenizer.stat().st_size if tokenizer is not None and tokenizer.is_file() else 0
    return bundle_bytes(checkpoint.architecture, row) + size


def _existing(path: Path) -> Path:
    """The nearest folder around ``path`` that is there."""
    full = Path(os.path.abspath(path))
    return next(place for place in (full, *full.parents) if place.exists())
