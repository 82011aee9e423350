"""A bundle in the layout of optimum, written by the stages of the export."""

from __future__ import annotations

from pathlib import Path

from support.bundles import Workshop
from t5edge import pipeline
from t5edge.bundle.manifest import write_manifest
from t5edge.bundle.precision import precision
from t5edge.calibration.quantize import quantize_weights
from t5edge.exporter.graph.rescale import Rescale
from t5edge.options import ExportOptions
from t5edge.progress import Silent


def write_layout(workshop: Workshop, name: str, folder: Path) -> Path:
    """A bundle of ``workshop``'s checkpoint in precision ``name`` and layout optimum; weight-only where quantized."""
    row = precision(name)
    options = ExportOptions(str(workshop.checkpoint.source), name, layout="optimum")
    graphs = pipeline.assemble_graphs(workshop.checkpoint, workshop.blocks(), row, Rescale(), options)
    if row.quantized:
        for _, model in graphs.items():
            quantize_weights(model, row)
    folder.mkdir(parents=True)
    digest = pipeline.save_graphs(graphs, workshop.checkpoint, folder, Silent())
    pipeline.copy_small_files(workshop.checkpoint, folder)
    layout = pipeline.finish_layout(folder, graphs, workshop.checkpoint, row, options, Silent())
    facts = pipeline.describe(workshop.checkpoint, options, row, Rescale(), graphs)
    write_manifest(folder, {**facts, "layout": layout}, {"weights.safetensors": digest})
    return folder
