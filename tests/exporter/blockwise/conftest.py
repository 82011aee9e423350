"""A twin of 24 layers with a position bias in every layer and a gated feed-forward: every kind of error can be made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from exporter.api import export
from exporter.architecture import config_from_architecture
from exporter.twins import Twin, find_twin, save_twin

LAYERS = 24


def deep_twin(name: str, layers: int = LAYERS) -> Twin:
    """A twin with ``layers`` in the decoder and one fewer in the encoder."""
    twin = find_twin(name)
    deep = replace(twin.architecture, encoder_layers=layers - 1, decoder_layers=layers)
    return Twin(f"{name}-{layers}", twin.family, config_from_architecture(deep, twin.config["model_type"]))


@dataclass(frozen=True)
class Exported:
    """A checkpoint folder and the bundle made of it."""

    checkpoint: Path
    bundle: Path

    def copy(self, folder: Path) -> Exported:
        return Exported(self.checkpoint, Path(shutil.copytree(self.bundle, folder)))

    def weights(self) -> dict[str, np.ndarray]:
        """The float tensors of weights.safetensors by name, mapped for writing in place."""
        path = self.bundle / "weights.safetensors"
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
        header.pop("__metadata__")
        dtypes = {"F32": np.float32, "F16": np.float16}
        return {
            name: np.memmap(path, dtypes[entry["dtype"]], "r+", start + entry["data_offsets"][0], tuple(entry["shape"]))
            for name, entry in header.items()
            if entry["dtype"] in dtypes
        }


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """Exports a deep twin once for each name and precision, for all of pytest's processes."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def make(name: str = "umt5-twin", precision: str = "fp32") -> Exported:
        folder = shared / f"deep-{name}-{precision}"
        made = Exported(folder / "checkpoint", folder / "bundle")
        with FileLock(f"{folder}.lock"):
            if not made.bundle.exists():
                save_twin(deep_twin(name), made.checkpoint, seed=3)
                export(str(made.checkpoint), precision, out=made.bundle, target=("onnxruntime",), no_verify=True)
        return made

    return make
