"""Bundles for the tests of the targets: every block traced once per model, then stamped in any precision."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from exporter import api
from exporter.bundle import write_manifest
from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.options import ExportOptions
from exporter.precision import precision
from exporter.progress import Silent
from exporter.rescale import Rescale
from exporter.trace import Block, BlockKind
from exporter.twins import find_twin, save_twin


@dataclass
class Workshop:
    """Makes bundles of one checkpoint in ``folder``; traces once."""

    folder: Path
    checkpoint: Checkpoint
    made: dict[tuple[str, str], Path] = field(default_factory=dict)
    traced: dict[BlockKind, Block] = field(default_factory=dict)

    def blocks(self) -> dict[BlockKind, Block]:
        if not self.traced:
            self.traced = api.trace_blocks(self.checkpoint, Silent())
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
        graphs = api.stamp_graphs(self.checkpoint, self.blocks(), row, Rescale(), options)
        digest = api.save_graphs(graphs, self.checkpoint, folder, Silent())
        api.copy_small_files(self.checkpoint, folder)
        manifest = api.describe(self.checkpoint, options, row, Rescale(), graphs)
        write_manifest(folder, manifest, {"weights.safetensors": digest})
        return folder


def demo_workshop(folder: Path) -> Workshop:
    """t5-demo: trained, gated GELU, d_kv 24."""
    return Workshop(folder, open_checkpoint("t5-demo", random_weights=None, revision=None))


def twin_workshop(folder: Path, name: str) -> Workshop:
    """A tiny twin of a family, random weights."""
    saved = save_twin(find_twin(name), folder / "checkpoint", seed=0)
    return Workshop(folder, open_checkpoint(str(saved), random_weights=None, revision=None))
