from __future__ import annotations

import numpy as np
import pytest

from support.kernel_facts import FACTS
from support.onnx_graphs import Sketch
from t5edge.kernels.block import Block
from t5edge.kernels.fusion import Fusion, FusionError, FusionResult, near
from t5edge.kernels.values import constant_value


def sketch() -> Block:
    drawn = Sketch("encoder")
    return drawn.block(drawn.op("Relu", drawn.input("x", "batch", 4)))


def fusion(matched: int, expected: int, *refusals: str) -> Fusion:
    """One that reports ``matched``."""
    return Fusion("test", lambda *_: FusionResult(matched, list(refusals)), lambda *_: expected, "it stands alone")


def test_the_right_count_passes() -> None:
    assert fusion(2, 2).run(sketch(), FACTS).matched == 2


@pytest.mark.parametrize(("matched", "expected"), [(1, 2), (3, 2), (0, 1)])
def test_any_other_count_is_an_error_with_the_reasons(matched: int, expected: int) -> None:
    message = f"fusion test matched {matched} times in the encoder block, expected {expected}: one; another"
    with pytest.raises(FusionError, match=message):
        fusion(matched, expected, "one", "another").run(sketch(), FACTS)
    with pytest.raises(FusionError, match="nothing of that shape was found"):
        fusion(matched, expected).run(sketch(), FACTS)


def test_where_nothing_is_expected_nothing_is_done() -> None:
    def refuse(*_: object) -> FusionResult:
        raise AssertionError("applied")

    assert Fusion("test", refuse, lambda *_: 0, "").run(sketch(), FACTS).matched == 0


def test_a_constant_is_near_within_float32_spelling() -> None:
    tenth = constant_value(np.array(0.1, np.float32), "tenth")
    assert near(tenth, 0.1)
    assert not near(tenth, 0.1001)
    assert not near(constant_value(np.array([0.1, 0.1], np.float32), "two"), 0.1)
    assert not near(None, 0.1)
