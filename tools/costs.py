"""What the graphs of a bundle cost: as its manifest says, or counted now for bundles of older versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from t5edge.bundle.costs import GraphCosts
from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError

MISSING = "costs: this bundle was exported before they were recorded, and counting them needs: pip install onnx-ir"


def bundle_costs(folder: Path, manifest: Manifest) -> Mapping[str, GraphCosts] | None:
    """The costs of encoder and decoder by name; None where they would have to be counted and onnx-ir is missing."""
    if manifest.costs is not None:
        return manifest.costs
    try:
        from t5edge.exporter.graph.costs import read_costs
    except ImportError:
        return None
    files = {name: folder / f"{name}.onnx" for name in manifest.architecture.stacks}
    try:
        return {name: read_costs(path) for name, path in files.items() if path.is_file()}
    except Exception as error:  # what onnx raises for a file that is no graph has no class of its own
        raise UserError(
            f"a graph of '{folder}' cannot be read ({str(error)[:200]}); export the bundle again."
        ) from error
