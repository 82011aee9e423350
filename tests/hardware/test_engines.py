"""Engines on the GPU of this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.bundles import Workshop
from t5edge.engines.build import build_engines
from t5edge.runtime.gpu import find_gpus
from t5edge.runtime.model import load
from t5edge.runtime.tensorrt.flavor import TensorRT

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu() -> None:
    if not find_gpus().gpus:
        pytest.skip(find_gpus().reason)


def test_engines_agree_with_onnxruntime_on_this_gpu(demo: Workshop, rtx: TensorRT, tmp_path: Path) -> None:
    folder = demo.fresh(tmp_path / "bundle", "fp16", "both")
    build_engines(folder, "tensorrt-rtx")
    ids = np.random.default_rng(0).integers(3, 180, (2, 20))
    targets = np.random.default_rng(1).integers(3, 180, (2, 40))
    expected = load(folder).logits(ids, None, targets)
    found = load(folder, target="tensorrt-rtx").logits(ids, None, targets)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
