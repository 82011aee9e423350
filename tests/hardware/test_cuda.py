"""ONNX Runtime's CUDA provider on this GPU: recorded steps are those of plain runs, a growing cache and the CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from support.bundles import Workshop
from t5edge.runtime.gpu import find_gpus
from t5edge.runtime.model import BundleModel, load
from t5edge.runtime.onnxruntime.captured import FIRST_CAPACITY, CapturedModel
from t5edge.runtime.onnxruntime.cuda import PROVIDER

pytestmark = pytest.mark.gpu
CUDA = "onnxruntime-cuda"
STEPS = 2 * FIRST_CAPACITY + 12
ROUNDING = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 2e-1, "int8-weight": 3e-2}


@pytest.fixture(scope="module", autouse=True)
def _provider() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if not find_gpus().gpus or PROVIDER not in onnxruntime.get_available_providers():
        pytest.skip("no GPU or no onnxruntime-gpu")


@pytest.fixture(scope="module", params=ROUNDING)
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(demo: Workshop, precision: str) -> BundleModel:
    return load(demo.bundle(precision), target=CUDA)


@pytest.fixture(scope="module")
def others(demo: Workshop, precision: str) -> dict[str, BundleModel]:
    forms: dict[str, dict[str, Any]] = {"one by one": {"cuda_graphs": False}, "growing": {"buffers": False}}
    return {name: load(demo.bundle(precision), target=CUDA, **form) for name, form in forms.items()}


def inputs(batch: int, source: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(batch + source)
    ids, targets = random.integers(3, 180, (batch, source)), random.integers(3, 180, (batch, STEPS))
    mask = np.ones_like(ids)
    mask[-1, source // 2 :] = 0
    return ids, mask, targets


def far(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_recorded_steps_give_what_plain_ones_give(
    model: BundleModel, others: dict[str, BundleModel], precision: str
) -> None:
    assert isinstance(model.step_model, CapturedModel)
    for _ in range(2):  # as they are, recorded and repeated
        for batch, source in ((1, 64), (4, 50), (1, 200), (4, 50)):
            arrays = inputs(batch, source)
            found = model.logits(*arrays)
            assert far(found, others["one by one"].logits(*arrays)) == 0
            assert far(found, others["growing"].logits(*arrays)) < ROUNDING[precision]


def test_logits_are_those_of_the_cpu(model: BundleModel, demo: Workshop, precision: str) -> None:
    arrays = inputs(3, 40)
    expected = load(demo.bundle(precision)).logits(*arrays)
    assert far(model.logits(*arrays), expected) < ROUNDING[precision]
    assert far(model.logits_uncached(*arrays), expected) < ROUNDING[precision]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "seed": 3, "num_return_sequences": 3},
        {"prompt_lookup_num_tokens": 5},
    ],
)
def test_tokens_are_those_of_plain_runs(
    model: BundleModel, others: dict[str, BundleModel], options: dict[str, Any]
) -> None:
    for batch, source in ((1, 20), (3, 50), (1, 20)):
        ids, mask, _ = inputs(batch, source)
        for least in ({}, {"min_new_tokens": FIRST_CAPACITY + 9}):
            settings = {"max_new_tokens": STEPS, **least, **options}
            expected = others["one by one"].generate(ids, mask, **settings)
            assert np.array_equal(model.generate(ids, mask, **settings), expected)


def test_threads_share_a_model(model: BundleModel) -> None:
    batches = [inputs(1 + number % 3, 30 + 20 * (number % 4))[:2] for number in range(24)]
    expected = [model.generate(*batch, max_new_tokens=30) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda batch: model.generate(*batch, max_new_tokens=30), batches))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_an_encoder_gives_its_outputs_to_the_host(model: BundleModel, demo: Workshop, precision: str) -> None:
    ids, mask, _ = inputs(2, 37)
    found = model.step_model.hidden_and_cross(ids, mask)
    expected = load(demo.bundle(precision)).step_model.hidden_and_cross(ids, mask)
    assert found.keys() == expected.keys()
    for _ in range(3):  # and is not recorded
        again = model.step_model.hidden_and_cross(ids, mask)
        assert all(np.array_equal(again[name], found[name]) for name in found if found[name].dtype != np.uint16)
