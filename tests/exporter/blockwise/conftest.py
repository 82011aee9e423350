"""A twin of 24 layers with a position bias in every layer and a gated feed-forward: every kind of error can be made."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from filelock import FileLock

from support.deep_models import LAYERS, Exported, deep_twin
from support.tiny_models import save_tiny_model
from t5edge.pipeline import export


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """Exports a deep twin once for each name and precision, for all of pytest's processes."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def make(name: str = "umt5-twin", precision: str = "fp32", layers: int = LAYERS) -> Exported:
        folder = shared / f"deep-{name}-{precision}-{layers}"
        made = Exported(folder / "checkpoint", folder / "bundle")
        with FileLock(f"{folder}.lock"):
            if not made.bundle.exists():
                save_tiny_model(deep_twin(name, layers), made.checkpoint, seed=3)
                export(str(made.checkpoint), precision, out=made.bundle, target=("onnxruntime",), no_verify=True)
        return made

    return make
