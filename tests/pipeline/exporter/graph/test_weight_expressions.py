"""The numbers behind weight expressions."""

from __future__ import annotations

import numpy as np
import torch

from t5edge.exporter.graph.weight_expressions import DistanceTable, Factors, Smoothed, evaluate
from t5edge.kernels.weights import stack_of

CHECKPOINT = {
    "q": torch.arange(12.0).reshape(3, 4),
    "k": -torch.arange(12.0).reshape(3, 4),
    "bias": torch.arange(6.0).reshape(3, 2),
}
QK = stack_of("q", (3, 4)).join(stack_of("k", (3, 4))).transpose()


def test_expressions_stack_transpose_and_scale() -> None:
    scaled = QK.scaled({"k": 0.25})
    built = evaluate(scaled, CHECKPOINT.__getitem__)
    assert tuple(built.shape) == scaled.shape == (4, 6)
    torch.testing.assert_close(built, torch.cat([CHECKPOINT["q"], CHECKPOINT["k"] * 0.25]).T)
    assert scaled.key == "T(q+k*0.25)"


def test_distance_tables_look_buckets_up_once() -> None:
    table = DistanceTable("bias", (2, 2, 1, 0), heads=2, masked=-9.0)
    built = evaluate(table, CHECKPOINT.__getitem__)
    assert built.tolist() == [[4, 4, 2, 0, -9], [5, 5, 3, 1, -9]]


def test_smoothing_multiplies_rows_and_columns_by_powers_of_two() -> None:
    rows, columns = (Factors(np.array(values, np.int8).tobytes()) for values in ([0, 1, -2, 0], [0, 0, 3, 0, 0, -1]))
    built = evaluate(Smoothed(QK, rows, columns), CHECKPOINT.__getitem__)
    factors = torch.tensor([1, 2, 0.25, 1])[:, None] * torch.tensor([1, 1, 8, 1, 1, 0.5])
    assert torch.equal(built, evaluate(QK, CHECKPOINT.__getitem__) * factors)
    assert torch.equal(
        evaluate(Smoothed(QK, rows).transpose(), CHECKPOINT.__getitem__).T / factors[:, :1], built / factors
    )


def test_the_inverse_of_smoothing_changes_no_bit() -> None:
    factors = Factors(np.array([0, 1, -2, 7], np.int8).tobytes())
    assert torch.equal(factors.values() * factors.inverse.values(), torch.ones(4))
    assert factors.key != factors.inverse.key
