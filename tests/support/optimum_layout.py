"""A bundle in the layout of optimum, written by the stages of the export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from support.bundles import Workshop, write_bundle
from t5edge import pipeline
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.precision import precision
from t5edge.calibration.quantize import quantize_weights
from t5edge.exporter.graph.rescale import Rescale
from t5edge.exporter.graphs import assemble_graphs
from t5edge.options import ExportOptions
from t5edge.progress import Silent


def write_layout(workshop: Workshop, name: str, folder: Path) -> Path:
    """A bundle of ``workshop``'s checkpoint in precision ``name`` and layout optimum; weight-only where quantized."""
    row = precision(name)
    options = ExportOptions(str(workshop.checkpoint.source), name, layout="optimum")
    graphs = assemble_graphs(workshop.checkpoint, workshop.blocks(), row, Rescale(), options.form)
    if row.quantized:
        for _, model in graphs.items():
            quantize_weights(model, row)
    folder.mkdir(parents=True)
    write_bundle(pipeline.Parts(workshop.checkpoint, workshop.blocks(), Rescale(), graphs, None), row, options, folder)
    manifest = Manifest.read(folder)
    replace(manifest, layout=pipeline.compare_layout(folder, manifest, options, Silent())).write(folder)
    return folder
