"""Bundles of two tiny models that between them have every kind of block; and ways to damage one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.remembered import remembered_reference
from support.shared import once
from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge import pipeline
from t5edge.bundle.manifest import STANDARD_OPSET, Manifest
from t5edge.bundle.parity_report import ParityReport
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.graph.rescale import Rescale
from t5edge.exporter.graph.trace import trace_blocks
from t5edge.kernels.block import Block, BlockKind
from t5edge.parity.ladder import CHECKS, Check, open_subject, verify_bundle
from t5edge.parity.subject import Opener, Subject
from t5edge.progress import Silent

GATED, RELU = "v1.1-tiny", "t5-tiny"
"""Gated and untied; plain ReLU and tied."""


Spoil = Callable[[np.ndarray], None]


def checks(*names: str) -> tuple[Check, ...]:
    """Checks by the number or the name."""
    return tuple(check for check in CHECKS if any(check.name.startswith(name) for name in names))


@dataclass
class Exports:
    """Checkpoints and bundles of tiny models in ``root``, made once by all processes that share it."""

    root: Path
    reports: dict[tuple[str, str], ParityReport] = field(default_factory=dict)

    def checkpoint(self, tiny: str) -> Checkpoint:
        folder = once(self.root / tiny, lambda path: save_tiny_model(find_tiny_model(tiny), path, seed=0))
        return open_checkpoint(str(folder))

    def blocks(self, checkpoint: Checkpoint) -> Mapping[BlockKind, Block]:
        return trace_blocks(checkpoint, Silent())

    def export(self, source: str, precision: str, out: Path, rescale: Rescale | None = None, **options: Any) -> Path:
        """As ``t5edge.export`` for ONNX Runtime and, on request, with a given rescale."""
        with pytest.MonkeyPatch.context() as patch:
            if rescale is not None:
                patch.setattr(pipeline, "choose_rescale", lambda *_: rescale)
            return pipeline.export(source, precision, out=out, target=("onnxruntime",), **options).folder

    def bundle(self, tiny: str, precision: str = "fp32", opset: int = STANDARD_OPSET) -> Path:
        """An unverified bundle, to be read only."""
        self.checkpoint(tiny)

        def make(out: Path) -> None:
            self.export(str(self.root / tiny), precision, out, no_verify=True, opset=opset)

        return once(self.root / f"{tiny}-{precision}-{opset}", make)

    def spoilt(self, tiny: str, precision: str, out: Path, tensor: str, spoil: Spoil) -> Path:
        """A copy with one tensor changed and the hash fixed: nothing but numbers can tell."""
        folder = Path(shutil.copytree(self.bundle(tiny, precision), out))
        spoil(stored_tensor(folder, tensor))
        fix_hashes(folder)
        return folder

    def subject(self, tiny: str, precision: str = "fp32", *names: str, mapped: bool = False) -> Subject:
        """What the named checks would work on."""
        checkpoint = self.checkpoint(tiny)
        folder = self.bundle(tiny, precision)
        opener = Opener(folder, Manifest.read(folder), "onnxruntime", mapped)
        return open_subject(opener, checkpoint, Silent(), None, checks(*names))

    def verify(self, folder: Path, tiny: str, *names: str, blockwise: bool = False) -> ParityReport:
        """The named checks of the ladder on a bundle of ``tiny``; all of them without names."""
        chosen = checks(*names) if names else CHECKS
        with remembered_reference():
            return verify_bundle(folder, self.checkpoint(tiny), checks=chosen, blockwise=blockwise)

    def report(self, tiny: str, precision: str) -> ParityReport:
        """What the whole ladder says of a bundle; it climbs once in a process."""
        if (tiny, precision) not in self.reports:
            self.reports[tiny, precision] = self.verify(self.bundle(tiny, precision), tiny)
        return self.reports[tiny, precision]


def fix_hashes(folder: Path) -> None:
    """Make the manifest's hashes those of the files as they are now."""
    Manifest.read(folder).with_files(folder).write(folder)


def stored_tensor(folder: Path, name: str) -> np.ndarray:
    """The one tensor of ``weights.safetensors`` whose name holds ``name``, mapped for writing in place."""
    path = folder / "weights.safetensors"
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    (entry,) = (facts for key, facts in header.items() if name in key)
    dtype = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8}[entry["dtype"]]
    return np.memmap(path, dtype, "r+", start + entry["data_offsets"][0], tuple(entry["shape"]))
