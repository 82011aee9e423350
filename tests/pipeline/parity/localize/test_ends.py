from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from t5edge.bundle.parity_report import FAIL, PASS
from t5edge.bundle.precision import precision
from t5edge.parity.localize.ends import EndChecks

NOTHING: Any = None


def checks(name: str) -> EndChecks:
    return EndChecks(NOTHING, precision(name), NOTHING, NOTHING)


@pytest.mark.parametrize(
    ("mask", "wrong"),
    [([0.0, 0.0, -3e38], 0), ([0.0, -5.0, -3e38], 1), ([0.0, 0.0, -5.0], 1), ([0.0, 0.0, float("nan")], 1)],
)
def test_masks_hide_what_is_to_be_hidden_and_nothing_else(mask: list[float], wrong: int) -> None:
    visible = np.array([True, True, False])
    result = checks("fp32")._mask("decoder stem", "padding", np.array(mask, np.float32), visible)
    assert result.value == wrong
    assert result.verdict == (FAIL if wrong else PASS)


def test_a_wrong_logit_scale_fails() -> None:
    exact = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    judge = checks("fp16")._judge
    assert judge("decoder head", "logits", exact.half().float().numpy(), exact).verdict == PASS
    assert judge("decoder head", "logits", (exact * 1.01).numpy(), exact).verdict == FAIL
    assert judge("decoder head", "logits", np.full((2, 50), np.nan, np.float32), exact).verdict == FAIL
