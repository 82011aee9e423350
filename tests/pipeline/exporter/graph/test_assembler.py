"""What both graphs share: constants once, embeddings, masks that never overflow."""

from __future__ import annotations

import numpy as np
import pytest

from support.exports import GATED, Exports
from t5edge.exporter.graph.assemble import assemble
from t5edge.exporter.graph.assembler import MASKED
from t5edge.exporter.graph.rescale import Rescale


@pytest.mark.parametrize("compute", ["float", "float16", "bfloat16"])
def test_a_masked_score_is_finite_in_its_own_dtype(compute: str) -> None:
    largest = {"float": np.finfo(np.float32).max, "float16": 65504.0, "bfloat16": 3.3895313892515355e38}[compute]
    assert -largest <= MASKED[compute] < -1e4


def test_small_constants_are_held_once(exports: Exports) -> None:
    checkpoint = exports.checkpoint(GATED)
    made = assemble(checkpoint.architecture, exports.blocks(checkpoint), "float", Rescale())
    for _, model in made.items():
        values = list(model.graph.initializers.values())
        names = [value.name for value in values]
        assert len(names) == len(set(names))
        small = [
            (value.dtype, tuple(value.shape.numpy()), value.const_value.tobytes())
            for value in values
            if value.shape is not None and value.const_value is not None and value.const_value.size <= 4
            if type(value.const_value).__name__ != "PlannedTensor"
        ]
        assert small
        assert len(small) < 40  # not one for each layer and use
