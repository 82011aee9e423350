"""Bundles for the tests of the targets: every block traced once per model, then assembled in any precision."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge import pipeline
from t5edge.bundle.precision import Precision, precision
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.graph.rescale import Rescale
from t5edge.kernels.block import Block, BlockKind
from t5edge.options import ExportOptions
from t5edge.progress import Silent


@dataclass
class Workshop:
    """Makes bundles of one checkpoint in ``folder``; traces once."""

    folder: Path
    checkpoint: Checkpoint
    made: dict[tuple[str, str], Path] = field(default_factory=dict)
    traced: dict[BlockKind, Block] = field(default_factory=dict)

    def blocks(self) -> dict[BlockKind, Block]:
        if not self.traced:
            self.traced = pipeline.trace_blocks(self.checkpoint, Silent())
        return self.traced

    def bundle(self, name: str, cache: str = "both") -> Path:
        """The bundle in precision ``name``, made on first use. Tests that change it take ``fresh``."""
        if (name, cache) not in self.made:
            self.made[name, cache] = self._write(name, cache)
        return self.made[name, cache]

    def fresh(self, out: Path, name: str, cache: str = "concat") -> Path:
        """A copy of its own, to change."""
        return Path(shutil.copytree(self.bundle(name, cache), out))

    def _write(self, name: str, cache: str) -> Path:
        folder = self.folder / f"{name}-{cache}"
        folder.mkdir(parents=True)
        row = precision(name)
        options = ExportOptions(
            str(self.checkpoint.source), name, cache=cache, max_batch=4, max_source_length=64, max_target_length=144
        )
        form = options.form
        graphs = pipeline.assemble_graphs(self.checkpoint, self.blocks(), row, Rescale(), form)
        return write_bundle(
            pipeline.Parts(self.checkpoint, self.blocks(), Rescale(), graphs, None), row, options, folder
        )


def write_bundle(parts: pipeline.Parts, row: Precision, options: ExportOptions, folder: Path) -> Path:
    """Write ``parts`` as a bundle of which nothing is proven."""
    saved = pipeline.save_parts(parts, row, options, folder, Silent())
    manifest = pipeline.describe(parts, row, options, saved)
    manifest.with_files(folder, {"weights.safetensors": saved.weights_sha256}).write(folder)
    return folder


def demo_workshop(folder: Path) -> Workshop:
    """t5-demo: trained, gated GELU, d_kv 24."""
    return Workshop(folder, open_checkpoint("t5-demo", random_weights=None, revision=None))


def tiny_workshop(folder: Path, name: str) -> Workshop:
    """A tiny twin of a family, random weights."""
    saved = save_tiny_model(find_tiny_model(name), folder / "checkpoint", seed=0)
    return Workshop(folder, open_checkpoint(str(saved), random_weights=None, revision=None))
