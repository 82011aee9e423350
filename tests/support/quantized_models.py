"""Small checkpoints for the tests of calibration, and bundles of them under any plan."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from support.bundles import write_bundle
from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge import pipeline
from t5edge.bundle.precision import Precision, precision
from t5edge.calibration.plan import QuantizationPlan, Settings, apply_plan, make_plan
from t5edge.calibration.texts import CalibrationTexts, calibration_texts
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.family.variants import DEMO_FOLDER
from t5edge.exporter.graph.assemble import Graphs
from t5edge.exporter.graph.rescale import Rescale
from t5edge.exporter.graphs import assemble_graphs
from t5edge.exporter.reference.protocol import Outputs
from t5edge.exporter.reference.texts import bundled_examples, read_examples, target_mask
from t5edge.exporter.reference.whole import WholeReference
from t5edge.kernels.block import Block, BlockKind
from t5edge.options import ExportOptions
from t5edge.parity.measures import LogitErrors, compare_logits
from t5edge.progress import Silent
from t5edge.runtime.model import load

NORMED = ("q", "k", "v", "wi", "wi_0", "wi_1", "lm_head")
"""Modules that read a norm; a decoder's cross k and v read the encoder's last one, which is left alone."""
OUTLIER = 256.0
OUTLIERS = (3, 40, 77)
"""Channels of the residual stream whose norm weights are ``OUTLIER`` times larger, the matrices behind them smaller."""


@dataclass
class Model:
    """A checkpoint with its float32 reference and texts."""

    checkpoint: Checkpoint
    folder: Path
    answers: list[Outputs] = field(default_factory=list)
    made: dict[str, tuple[Path, QuantizationPlan]] = field(default_factory=dict)
    fused: dict[BlockKind, Block] = field(default_factory=dict)

    @property
    def texts(self) -> CalibrationTexts:
        examples = read_examples(path) if (path := self.checkpoint.file("calibration.jsonl")) else bundled_examples()
        return calibration_texts(self.checkpoint, examples, ExportOptions("x").limits, "test")

    def blocks(self) -> dict[BlockKind, Block]:
        """Fused once; graphs are assembled of copies."""
        self.fused = self.fused or pipeline.trace_blocks(self.checkpoint, Silent())
        return self.fused

    def graphs(self, row: Precision) -> Graphs:
        return assemble_graphs(self.checkpoint, self.blocks(), row, Rescale(), ExportOptions("x").form)

    def bundle(
        self, name: str, row: Precision | None = None, settings: Settings | None = None
    ) -> tuple[Path, QuantizationPlan]:
        """A bundle quantized as ``row``, without the export's parity run; to be read only.

        The one that an earlier caller made with the same row and settings, under that caller's name.
        """
        row = row or precision("int8")
        key = repr((row, settings or Settings()))
        if key not in self.made:
            graphs = self.graphs(row)
            plan = make_plan(self.checkpoint, graphs, row, self.texts, Silent(), settings)
            apply_plan(plan, graphs)
            self.made[key] = self.write(name, graphs, row, plan), plan
        return self.made[key]

    def write(self, name: str, graphs: Graphs, row: Precision, plan: QuantizationPlan | None = None) -> Path:
        folder = self.folder / name
        folder.mkdir()
        parts = pipeline.Parts(self.checkpoint, self.blocks(), Rescale(), graphs, plan)
        return write_bundle(parts, row, ExportOptions("x", row.name), folder)

    def errors(self, folder: Path) -> LogitErrors:
        """Teacher-forced logits of a bundle as recorded, cached steps, against float32 PyTorch on the gate's texts."""
        batch = self.texts.gate
        if not self.answers:
            self.answers = [found for _, found in WholeReference(self.checkpoint, torch.float32).outputs({"": batch})]
        logits = load(folder, tune="off").logits(batch.input_ids, batch.attention_mask, batch.decoder_input_ids)
        mask = target_mask(batch.decoder_input_ids, self.checkpoint.architecture.pad_token_id)
        return compare_logits(logits[mask], self.answers[0].logits[mask])


def tiny_model(folder: Path, name: str = "v1.1-tiny", outliers: bool = False) -> Model:
    """A tiny model with random weights; with ``outliers``, the same function through channels that are far apart."""
    saved = save_tiny_model(find_tiny_model(name), folder / "checkpoint", seed=0)
    if outliers:
        state = load_file(saved / "model.safetensors")
        save_file(add_outliers(state), saved / "model.safetensors", metadata={"format": "pt"})
    return Model(open_checkpoint(str(saved), random_weights=None, revision=None), folder)


def outlier_demo(folder: Path) -> Model:
    """t5-demo, the same function in float32, with outlier channels in front of both stacks' matrices and of lm_head."""
    shutil.copytree(DEMO_FOLDER, folder / "checkpoint")
    weights = folder / "checkpoint" / "model.safetensors"
    state = {name: tensor.float() for name, tensor in load_file(weights).items()}
    save_file(add_outliers(state, ("encoder.block", "decoder", "lm_head")), weights, metadata={"format": "pt"})
    checkpoint = open_checkpoint(str(folder / "checkpoint"), random_weights=None, revision=None)
    return Model(checkpoint, folder)


def add_outliers(
    state: dict[str, torch.Tensor], where: tuple[str, ...] = ("encoder.block",)
) -> dict[str, torch.Tensor]:
    """Norms times ``OUTLIER`` in three channels, their readers divided: exact, since it is a power of two."""
    changed = {name: tensor.clone() for name, tensor in state.items()}
    for name, tensor in changed.items():
        if not name.startswith(where):
            continue
        if name.endswith("layer_norm.weight"):
            tensor[list(OUTLIERS)] *= OUTLIER
        elif name.split(".")[-2] in NORMED and not name.endswith(
            ("EncDecAttention.k.weight", "EncDecAttention.v.weight")
        ):
            tensor[:, list(OUTLIERS)] /= OUTLIER
    return changed


def run_encoder(folder: Path, batch: Any) -> dict[str, np.ndarray]:
    """Every output of a bundle's encoder."""
    outputs: dict[str, np.ndarray] = load(folder).step_model.hidden_and_cross(batch.input_ids, batch.attention_mask)
    return outputs


def row_with(**changes: Any) -> Precision:
    """The int8 row, changed."""
    return replace(precision("int8"), **changes)
