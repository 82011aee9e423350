from __future__ import annotations

import pytest
from safetensors import safe_open

from support.quantized_models import Model
from t5edge.bundle.precision import precision
from t5edge.calibration.plan import Settings


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
