from __future__ import annotations

import numpy as np
import pytest

from support.kernel_facts import FACTS
from support.onnx_graphs import Sketch, run
from support.projections import INNER, project
from t5edge.kernels.cross_kv.contract import cross_kv
from t5edge.kernels.cross_kv.fusion import FUSION
from t5edge.kernels.fusion import FusionError

KEY, VALUE = "layer.1.EncDecAttention.k.weight", "layer.1.EncDecAttention.v.weight"


def test_fuses_and_keeps_the_numbers() -> None:
    sketch = Sketch("cross_kv")
    hidden = sketch.input("hidden", "batch", "source", FACTS.d_model)
    block = sketch.block(project(sketch, hidden, KEY), project(sketch, hidden, VALUE))
    generator = np.random.default_rng(0)
    weights = {name: generator.standard_normal((INNER, FACTS.d_model)).astype(np.float32) for name in (KEY, VALUE)}
    data = generator.standard_normal((2, 11, FACTS.d_model)).astype(np.float32)
    before = run(block, {"hidden": data}, weights)
    assert FUSION.run(block, FACTS).matched == 1
    after = run(block, {"hidden": data}, weights)
    expected = cross_kv(data, weights[KEY].T, weights[VALUE].T, FACTS.num_heads)
    for old, new, reference in zip(before, after, expected, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(new, reference, rtol=1e-5, atol=1e-5)


def test_a_key_without_a_value_fails_the_export() -> None:
    sketch = Sketch("cross_kv")
    hidden = sketch.input("hidden", "batch", "source", FACTS.d_model)
    block = sketch.block(project(sketch, hidden, KEY))
    with pytest.raises(FusionError, match="1 projections share an input, 2 were expected"):
        FUSION.run(block, FACTS)
