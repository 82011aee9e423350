"""Bundles of one checkpoint in any precision, written by the stages of the export."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file

from support.shared import once
from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge import pipeline
from t5edge.bundle.manifest import PORTABLE_OPSET, STANDARD_OPSET
from t5edge.bundle.ports import Limits
from t5edge.bundle.precision import Precision, precision
from t5edge.calibration.cache import CalibrationKey
from t5edge.calibration.plan import QuantizationPlan, Settings, apply_plan, choose_scales
from t5edge.calibration.points import find_points
from t5edge.calibration.texts import choose_examples, read_texts
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.family.variants import DEMO_FOLDER
from t5edge.exporter.graph.assemble import Graphs
from t5edge.exporter.graph.rescale import Rescale
from t5edge.exporter.graphs import finish_graphs
from t5edge.kernels.block import Block, BlockKind
from t5edge.options import ExportOptions
from t5edge.progress import Silent


@dataclass
class Workshop:
    """Bundles of one checkpoint in ``folder``, made once by all processes that share it."""

    folder: Path
    checkpoint: Checkpoint
    fused: dict[BlockKind, Block] = field(default_factory=dict)

    def blocks(self) -> dict[BlockKind, Block]:
        """Fused once; graphs are assembled of copies."""
        self.fused = self.fused or pipeline.trace_blocks(self.checkpoint, Silent())
        return self.fused

    def bundle(self, name: str, cache: str = "both") -> Path:
        """The bundle in precision ``name``, made on first use by ``quick_plan``. To change it, take ``fresh``."""
        return once(self.folder / f"{name}-{cache}", lambda folder: self._write(folder, name, cache))

    def fresh(self, out: Path, name: str, cache: str = "concat") -> Path:
        """A copy of its own, to change."""
        return Path(shutil.copytree(self.bundle(name, cache), out))

    def portable(self, name: str) -> Path:
        """The same without fused operators, to be read only."""
        return once(
            self.folder / f"{name}-portable", lambda folder: self._write(folder, name, "concat", PORTABLE_OPSET)
        )

    def _write(self, folder: Path, name: str, cache: str, opset: int = STANDARD_OPSET) -> None:
        folder.mkdir(parents=True)
        row = precision(name)
        limits = {"max_batch": 4, "max_source_length": 64, "max_target_length": 144}
        options = ExportOptions(str(self.checkpoint.source), name, cache=cache, opset=opset, **limits)
        form = options.form
        graphs = pipeline.assemble_graphs(self.checkpoint, self.blocks(), row, Rescale(), form)
        plan = quick_plan(self.checkpoint, graphs, row, options.limits) if row.quantized else None
        if plan is not None:
            apply_plan(plan, graphs)
        write_bundle(pipeline.Parts(self.checkpoint, self.blocks(), Rescale(), graphs, plan), row, options, folder)


def quick_plan(checkpoint: Checkpoint, graphs: Graphs, row: Precision, limits: Limits) -> QuantizationPlan:
    """Every point rounded, inputs by scales of some of the texts; what takes an export a minute is left out.

    Nothing is smoothed, no sensitivity measured, nothing excluded.
    """
    settings = Settings(smooth=False, gate=False)
    some = choose_examples(checkpoint, None, Silent())[0][::8]
    texts, points = read_texts(checkpoint, some, limits, Silent()), find_points(graphs)
    choices = choose_scales(checkpoint, points, row, texts, Silent(), settings)
    key = CalibrationKey.of(checkpoint, points, row, texts, asdict(settings))
    return QuantizationPlan(row, points, choices, {}, frozenset(), None, key, texts.origin, texts.keys)


def write_bundle(parts: pipeline.Parts, row: Precision, options: ExportOptions, folder: Path) -> Path:
    """Write ``parts``, whose graphs are not finished yet, as a bundle of which nothing is proven."""
    finish_graphs(parts.graphs, parts.checkpoint, options.form)
    saved = pipeline.save_parts(parts, row, options, folder, Silent())
    manifest = pipeline.describe(parts, row, options, saved)
    manifest.with_files(folder, {"weights.safetensors": saved.weights_sha256}).write(folder)
    return folder


def demo_workshop(folder: Path) -> Workshop:
    """t5-demo: trained, gated GELU, d_kv 24."""
    return Workshop(folder, open_checkpoint("t5-demo", random_weights=None, revision=None))


SHALLOW = {"encoder": 2, "decoder": 1}
LAYER = re.compile(r"(encoder|decoder)\.block\.(\d+)\.")


def save_shallow_demo(folder: Path) -> Path:
    """t5-demo's first layers, ``SHALLOW``: for tests that build engines, which take their time by the layer."""
    shutil.copytree(DEMO_FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_layers": SHALLOW["encoder"], "num_decoder_layers": SHALLOW["decoder"]}
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    places = {name: LAYER.match(name) for name in state}
    kept = {name: state[name] for name, place in places.items() if not place or int(place[2]) < SHALLOW[place[1]]}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def shallow_workshop(folder: Path) -> Workshop:
    """See ``save_shallow_demo``."""
    saved = once(folder / "checkpoint", save_shallow_demo)
    return Workshop(folder, open_checkpoint(str(saved), random_weights=None, revision=None))


def tiny_workshop(folder: Path, name: str) -> Workshop:
    """A tiny model of a family, random weights."""
    saved = once(folder / "checkpoint", lambda path: save_tiny_model(find_tiny_model(name), path, seed=0))
    return Workshop(folder, open_checkpoint(str(saved), random_weights=None, revision=None))
