"""A tiny model of 24 layers with a position bias in every layer and a gated feed-forward."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from support.tiny_models import TinyModel, find_tiny_model
from t5edge.exporter.family.config import config_from_architecture

LAYERS = 24


def deep_model(name: str, layers: int = LAYERS) -> TinyModel:
    """A tiny model with ``layers`` in the decoder and one fewer in the encoder."""
    tiny = find_tiny_model(name)
    deep = replace(tiny.architecture, encoder_layers=layers - 1, decoder_layers=layers)
    return TinyModel(f"{name}-{layers}", tiny.family, config_from_architecture(deep, tiny.config["model_type"]))


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
