from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open

from support.quantized_models import Model
from t5edge.bundle.precision import precision
from t5edge.calibration.plan import Settings
from t5edge.calibration.quantize import Scheme, quantize_rows, round_columns, round_up, row_scales, scheme_for

HALF = Scheme(8, scales="float16")


def weights(largest: float) -> torch.Tensor:
    """[out, in] with magnitudes up to ``largest``."""
    rows = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    return rows / rows.abs().amax(dim=1, keepdim=True) * largest


def test_rounding_up_gives_the_next_float16() -> None:
    values = np.array([1.0, 1.0001, 3e-8, 6e-6], np.float32)
    found = round_up(values, np.float16)
    assert (found >= values).all()
    assert np.array_equal(found, found.astype(np.float16).astype(np.float32))
    assert found[0] == 1.0
    assert found[2] == 2.0**-24, "never 0"


@pytest.mark.parametrize("largest", [300.0, 1.0, 1e-2, 1e-3])
def test_float16_scales_cost_next_to_nothing(largest: float) -> None:
    rows = weights(largest)
    exact, half = (float((round_columns(rows.T, scheme).T - rows).norm()) for scheme in (Scheme(8), HALF))
    assert half <= 1.05 * exact


@pytest.mark.parametrize("largest", [1e-4, 1e-5, 1e-6, 1e-7])
def test_scales_below_float16s_range_cost_no_more_than_float16_weights(largest: float) -> None:
    rows = weights(largest)
    scales = row_scales(rows, HALF)
    codes = quantize_rows(rows, scales, HALF)
    assert codes.abs().max() <= 127
    error = (codes * scales[:, None] - rows).abs().max()
    assert float(error) <= max(float((rows.half().float() - rows).abs().max()), float(scales.max()) / 2) * 1.01
    assert float(error) <= 2.0**-25 * 1.01 + largest / 254


def test_the_scheme_follows_the_compute_dtype() -> None:
    row = precision("int4-weight").computing("float16")
    assert scheme_for(row, 64, 48) == Scheme(4, 32, "float16")
    assert scheme_for(row, 50, 48) == HALF
    assert scheme_for(precision("int8"), 50, 48) == Scheme(8)


def table_shapes(model: Model, name: str) -> set[tuple[int, ...]]:
    """Of the integers of the token table, as a bundle stores them."""
    folder, _ = model.bundle(f"table-{name}", precision(name), Settings(gate=False))
    with safe_open(folder / "weights.safetensors", framework="np") as file:
        stored = file.keys()
        names = [key for key in stored if ".values(" in key and "shared.weight" in key]
        return {tuple(file.get_slice(key).get_shape()) for key in names}


@pytest.mark.parametrize("name", ["int8", "int4-weight"])
def test_a_token_table_that_nothing_multiplies_by_lies_in_rows(
    plain: Model, relu: Model, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    untied, tied = plain.checkpoint.architecture, relu.checkpoint.architecture
    assert (untied.tied, tied.tied) == (False, True)
    alone = Model(relu.checkpoint.encoder_alone(), tmp_path_factory.mktemp("alone"))
    assert table_shapes(plain, name) == {(untied.vocab_size, untied.d_model)}
    assert table_shapes(relu, name) == {(tied.d_model, tied.vocab_size)}, "stored once, for the output layer"
    assert table_shapes(alone, name) == {(tied.vocab_size, tied.d_model)}
