from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from t5edge.bundle.parity_report import FAIL
from t5edge.bundle.precision import precision
from t5edge.parity.localize.layers import KINDS, LayerChecks


def test_a_layer_with_a_sublayer_too_few_fails_by_name() -> None:
    run: Any = SimpleNamespace(steps=[SimpleNamespace(hidden=torch.zeros(1, 6, 4))])
    graphs: Any = {"decoder": SimpleNamespace(sublayers={17: [None, None]})}
    (result,) = LayerChecks(precision("fp32"), graphs, "decoder", 17, run).results()
    assert (result.name, result.verdict) == ("decoder block 17", FAIL)
    assert result.measure == "2 additions to the residual stream instead of 3"


def test_the_decoder_is_asked_for_the_second_half_of_the_target() -> None:
    run: Any = SimpleNamespace(steps=[SimpleNamespace(hidden=torch.zeros(1, 7, 4))])
    graphs: Any = dict.fromkeys(KINDS)
    assert LayerChecks(precision("fp32"), graphs, "decoder", 0, run).queries == slice(3, 7)
    assert LayerChecks(precision("fp32"), graphs, "encoder", 0, run).queries == slice(0, 7)
