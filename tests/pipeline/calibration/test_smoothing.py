from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from support.quantized_models import Model, run_encoder
from t5edge.bundle.precision import precision
from t5edge.calibration.collect import Sample
from t5edge.calibration.observers import minmax
from t5edge.calibration.placement import SHARE, tie_margin
from t5edge.calibration.plan import Settings
from t5edge.calibration.points import OUTPUT, find_points
from t5edge.calibration.scheme import Scheme
from t5edge.calibration.smoothing import MAX_EXPONENT, apply_smoothing, can_smooth, choose, smoothing_factors
from t5edge.exporter.graph.rescale import Rescale
from t5edge.exporter.graph.weight_expressions import Factors
from t5edge.exporter.layouts.optimum import add_optimum
from t5edge.exporter.reference.whole import WholeReference
from t5edge.parity.measures import relative_error


def random_factors(model: Model, seed: int = 0) -> dict[str, Factors]:
    random = np.random.default_rng(seed)
    shared = random.integers(-4, 5, model.checkpoint.architecture.d_model).astype(np.int8)
    return {
        site.name: Factors(
            (shared if site.role == "cross_kv" else random.integers(-4, 5, site.shape[0]).astype(np.int8)).tobytes()
        )
        for site in find_points(model.graphs(precision("fp32")))
        if site.graph == "encoder" and can_smooth(site)
    }


@pytest.mark.parametrize("name", ["plain", "relu"])
def test_smoothing_leaves_every_bit_of_the_float32_encoder(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    row, outputs = precision("fp32"), []
    for folder, factors in (("as-it-is", {}), ("smoothed", random_factors(model))):
        graphs = model.graphs(row)
        apply_smoothing(graphs.encoder, factors)
        outputs.append(run_encoder(model.write(f"{name}-{folder}", graphs, row), model.texts.gate))
    before, after = outputs
    assert before.keys() == after.keys()
    for port, value in before.items():
        assert np.array_equal(value, after[port]), port


def test_cross_keys_and_values_of_a_graph_of_their_own_keep_every_bit(plain: Model) -> None:
    """optimum's first decoder step reads the encoder's output, and no norm, in front of these matrices."""
    row = precision("fp32")
    names = ("decoder_model.onnx", "encoder.onnx")
    outputs = []
    for folder, factors in (("other-as-it-is", {}), ("other-smoothed", random_factors(plain))):
        graphs = add_optimum(plain.graphs(row), plain.checkpoint.architecture, plain.blocks(), "float", Rescale())
        for _, model in graphs.items():
            apply_smoothing(model, factors)
        written = plain.write(folder, graphs, row)
        decoder, encoder = (onnxruntime.InferenceSession(str(written / name)) for name in names)
        outputs.append(first_step(encoder, decoder))
    before, after = outputs
    for name, value in before.items():
        assert np.array_equal(value, after[name]), name


def first_step(encoder: Any, decoder: Any) -> dict[str, np.ndarray]:
    """Every output of optimum's first step for one sentence of random ids."""
    ids = np.random.default_rng(0).integers(3, 90, (1, 7))
    mask = np.ones_like(ids)
    (hidden,) = encoder.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})
    feeds = {"input_ids": ids[:, :1], "encoder_attention_mask": mask, "encoder_hidden_states": hidden}
    return dict(zip([port.name for port in decoder.get_outputs()], decoder.run(None, feeds), strict=True))


def test_every_smoothed_matrix_changes_its_expression(plain: Model) -> None:
    graphs = plain.graphs(precision("fp32"))
    factors = random_factors(plain)
    apply_smoothing(graphs.encoder, factors)
    keys = [name for name in graphs.encoder.graph.initializers if "~" in name]
    norms = [key for key in keys if "layer_norm" in key]
    encoder_layers = plain.checkpoint.architecture.encoder_layers
    assert len(norms) == 2 * encoder_layers + 1, "one norm each for qkv and wi, and a second one at the encoder's end"
    assert len(keys) - len(norms) == len(factors)
    original = "encoder.final_layer_norm.weight"
    assert original in graphs.encoder.graph.initializers, "last_hidden_state keeps the norm as it was"


def test_outliers_fail_int8_without_smoothing_and_pass_with_it(outliers: Model) -> None:
    row = precision("int8")
    assert row.max_kl is not None
    assert row.min_top1 is not None
    found = {}
    for smooth in (False, True):
        folder, plan = outliers.bundle(f"smooth-{smooth}", row, Settings(smooth=smooth, gate=False))
        assert not plan.excluded
        errors = outliers.errors(folder)
        found[smooth] = float(errors.kl.mean()), errors.top1(tie_margin(row))[0], errors.top1(0.0)[0]
    (plain_kl, plain_top1, _), (kl, top1, raw) = found[False], found[True]
    assert plain_kl > row.max_kl or plain_top1 < row.min_top1, found
    assert kl <= row.max_kl, found
    assert top1 >= row.min_top1, found
    assert kl < SHARE * plain_kl, found
    assert raw >= 0.94, found


@pytest.mark.parametrize(("name", "limit", "raw"), [("int8-weight", 0.01, 0.94), ("int4-weight", 0.2, 0.85)])
def test_weight_only_rows_are_evened_out_too(outliers: Model, name: str, limit: float, raw: float) -> None:
    """Random weights leave many tokens within a rounding of each other: the table alone in int8 changes 1 % of them."""
    found = {}
    for smooth in (False, True):
        settings = Settings(smooth=smooth, gate=False)
        folder, _ = outliers.bundle(f"{name}-{smooth}", precision(name), settings)
        errors = outliers.errors(folder)
        found[smooth] = float(errors.kl.mean()), errors.top1(0.0)[0]
    assert found[False][0] > 2 * limit
    assert found[True][0] <= limit / 3
    assert found[True][1] >= raw > 0.7 > found[False][1], found


@pytest.mark.parametrize("name", ["int8", "int8-weight"])
def test_a_trained_model_with_outliers_needs_smoothing_and_then_decides_as_before(
    trained_outliers: Model, name: str
) -> None:
    row = precision(name)
    assert row.max_kl is not None
    assert row.min_top1 is not None
    found = {}
    for smooth in (False, True):
        folder, _ = trained_outliers.bundle(f"{name}-{smooth}", row, Settings(smooth=smooth, gate=False))
        errors = trained_outliers.errors(folder)
        found[smooth] = float(errors.kl.mean()), errors.top1(0.0)[0]
    (plain_kl, plain_top1), (kl, top1) = found[False], found[True]
    assert plain_kl > 10 * row.max_kl, found
    assert plain_top1 < row.min_top1, found
    assert kl <= 0.001 * row.max_kl, found
    assert top1 == 1.0, found


def test_outliers_leave_the_trained_models_function_as_it_was(demo: Model, trained_outliers: Model) -> None:
    before, after = (
        dict(WholeReference(model.checkpoint, torch.float32).outputs({"gate": demo.texts.gate}))["gate"]
        for model in (demo, trained_outliers)
    )
    assert relative_error(after.logits, before.logits) < 1e-6


@pytest.mark.parametrize("rounded", ["float", "smoothed"])
def test_the_output_layer_is_smoothed_through_the_last_norm(plain: Model, rounded: str) -> None:
    site = next(site for site in find_points(plain.graphs(precision("fp32"))) if site.name == OUTPUT)
    assert can_smooth(site)
    graphs = plain.graphs(precision("fp32"))
    if rounded == "smoothed":
        exponents = np.random.default_rng(0).integers(-4, 5, site.shape[0]).astype(np.int8)
        apply_smoothing(graphs.decoder, {OUTPUT: Factors(exponents.tobytes())})
        assert any("lm_head" in name and "~" in name for name in graphs.decoder.graph.initializers)
    folder = plain.write(f"head-{rounded}", graphs, precision("fp32"))
    assert plain.errors(folder).relative < 1e-6


def test_a_tied_output_layer_is_the_token_table_and_stays(relu: Model) -> None:
    site = next(site for site in find_points(relu.graphs(precision("fp32"))) if site.name == OUTPUT)
    assert not can_smooth(site)


def test_factors_are_powers_of_two_around_one_and_bounded() -> None:
    channel_max = torch.tensor([1.0, 1.0, 1.0, 1e9, 0.0])
    factors = smoothing_factors(channel_max, torch.ones(5), 0.5)
    exponents = factors.array()
    assert exponents[:3].tolist() == [0, 0, 0]
    assert exponents[3] == MAX_EXPONENT
    assert exponents[4] == 0, "a channel that is never used is left alone"
    assert torch.equal(factors.values() * factors.inverse.values(), torch.ones(5))


def test_a_choice_with_an_outlier_channel_smooths_and_lowers_the_error() -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 32, generator=random)
    rows[:, 5] *= 300
    weight = torch.randn(32, 48, generator=random)
    sample = Sample(rows, rows.abs().amax(dim=0))
    choice = choose(sample, [weight], Scheme(8), minmax)
    assert choice.factors is not None
    assert choice.factors.array()[5] >= 3
    assert choice.error < 0.5 * choice.plain_error
    assert choose(sample, [weight], Scheme(8), minmax, smooth=False).error == choice.plain_error
