"""Bundles in optimum's layout: the demo, twins, quantized weights; written by the stages of the export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from exporter import api
from exporter.bundle import write_manifest
from exporter.options import ExportOptions
from exporter.precision import precision
from exporter.progress import Silent
from exporter.quantize import quantize_weights
from exporter.rescale import Rescale
from tests.exporter.targets.bundles import Workshop


def write_layout(workshop: Workshop, name: str, folder: Path) -> Path:
    """A bundle of ``workshop``'s checkpoint in precision ``name`` and layout optimum; weight-only where quantized."""
    row = precision(name)
    options = ExportOptions(str(workshop.checkpoint.source), name, layout="optimum")
    graphs = api.stamp_graphs(workshop.checkpoint, workshop.blocks(), row, Rescale(), options)
    if row.quantized:
        for _, model in graphs.items():
            quantize_weights(model, row)
    folder.mkdir(parents=True)
    digest = api.save_graphs(graphs, workshop.checkpoint, folder, Silent())
    api.copy_small_files(workshop.checkpoint, folder)
    layout = api.finish_layout(folder, graphs, workshop.checkpoint, row, options, Silent())
    facts = api.describe(workshop.checkpoint, options, row, Rescale(), graphs)
    write_manifest(folder, {**facts, "layout": layout}, {"weights.safetensors": digest})
    return folder


@pytest.fixture(scope="session")
def optimum_demo(demo: Workshop) -> Callable[[str], Path]:
    """t5-demo in a precision, made on first use. Tests that change it copy it."""
    made: dict[str, Path] = {}

    def bundle(name: str) -> Path:
        if name not in made:
            made[name] = write_layout(demo, name, demo.folder / f"{name}-optimum")
        return made[name]

    return bundle
