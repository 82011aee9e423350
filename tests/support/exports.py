"""Bundles of two tiny models that between them have every kind of block, traced once; and ways to damage one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge import pipeline
from t5edge.bundle.architecture import Architecture
from t5edge.bundle.manifest import read_manifest, write_manifest
from t5edge.bundle.parity_report import ParityReport
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.graph.rescale import Rescale
from t5edge.kernels.block import Block, BlockKind
from t5edge.parity.ladder import CHECKS, Check, open_subject, verify_bundle
from t5edge.parity.subject import Opener, Subject
from t5edge.pipeline import trace_blocks
from t5edge.progress import Silent

GATED, RELU = "v1.1-twin", "t5-tiny-twin"
"""Gated and untied; plain ReLU and tied."""


Spoil = Callable[[np.ndarray], None]


def checks(*names: str) -> tuple[Check, ...]:
    """Checks by the number or the name."""
    return tuple(check for check in CHECKS if any(check.name.startswith(name) for name in names))


@dataclass
class Exports:
    """Checkpoints and bundles of tiny_models; an architecture is traced once, and a plain bundle exported once."""

    root: Path
    traces: dict[Architecture, Mapping[BlockKind, Block]] = field(default_factory=dict)
    folders: dict[Any, Path] = field(default_factory=dict)

    def checkpoint(self, twin: str) -> Checkpoint:
        folder = self.root / twin
        if not folder.exists():
            save_tiny_model(find_tiny_model(twin), folder, seed=0)
        return open_checkpoint(str(folder))

    def blocks(self, checkpoint: Checkpoint) -> Mapping[BlockKind, Block]:
        key = checkpoint.architecture
        if key not in self.traces:
            self.traces[key] = trace_blocks(checkpoint, Silent())
        return self.traces[key]

    def export(self, source: str, precision: str, out: Path, rescale: Rescale | None = None, **options: Any) -> Path:
        """As ``t5edge.export`` for ONNX Runtime, with a trace that is at hand and, on request, a given rescale."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trace_blocks", lambda checkpoint, progress: self.blocks(checkpoint))
            if rescale is not None:
                patch.setattr(pipeline, "choose_rescale", lambda *_: rescale)
            return pipeline.export(source, precision, out=out, target=("onnxruntime",), **options).folder

    def bundle(self, twin: str, precision: str = "fp32") -> Path:
        """An unverified bundle, to be read only."""
        key = (twin, precision)
        if key not in self.folders:
            self.checkpoint(twin)
            out = self.root / f"{twin}-{precision}"
            self.folders[key] = self.export(str(self.root / twin), precision, out, no_verify=True)
        return self.folders[key]

    def spoilt(self, twin: str, precision: str, out: Path, tensor: str, spoil: Spoil) -> Path:
        """A copy with one tensor changed and the hash fixed: nothing but numbers can tell."""
        folder = Path(shutil.copytree(self.bundle(twin, precision), out))
        spoil(stored_tensor(folder, tensor))
        manifest = read_manifest(folder)
        write_manifest(folder, manifest)
        return folder

    def subject(self, twin: str, precision: str = "fp32", *names: str, mapped: bool = False) -> Subject:
        """What the named checks would work on."""
        checkpoint = self.checkpoint(twin)
        folder = self.bundle(twin, precision)
        opener = Opener(folder, read_manifest(folder), "onnxruntime", mapped)
        return open_subject(opener, checkpoint, Silent(), self.blocks(checkpoint), checks(*names))

    def verify(self, folder: Path, twin: str, *names: str, blockwise: bool = False) -> ParityReport:
        """The named checks of the ladder on a bundle of ``twin``; all of them without names."""
        checkpoint = self.checkpoint(twin)
        chosen = checks(*names) if names else CHECKS
        return verify_bundle(folder, checkpoint, blocks=self.blocks(checkpoint), checks=chosen, blockwise=blockwise)


def stored_tensor(folder: Path, name: str) -> np.ndarray:
    """The one tensor of ``weights.safetensors`` whose name holds ``name``, mapped for writing in place."""
    path = folder / "weights.safetensors"
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    (entry,) = (facts for key, facts in header.items() if name in key)
    dtype = {"F32": np.float32, "F16": np.float16}[entry["dtype"]]
    return np.memmap(path, dtype, "r+", start + entry["data_offsets"][0], tuple(entry["shape"]))
