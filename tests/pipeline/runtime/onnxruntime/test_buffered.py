from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.bundles import Workshop
from support.searches import logits_in_steps
from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.runtime.model import BundleModel, load
from t5edge.runtime.onnxruntime.buffered import FIRST_CAPACITY, GRAPH, BufferedModel
from t5edge.runtime.onnxruntime.cpu import is_recent
from t5edge.runtime.onnxruntime.cpu import open as open_onnxruntime
from t5edge.runtime.onnxruntime.model import OnnxRuntimeModel

STEPS = 2 * FIRST_CAPACITY + 9
"""Beyond the second growth."""


@pytest.fixture(scope="module")
def folder(demo: Workshop) -> Path:
    return demo.bundle("fp32")


@pytest.fixture(scope="module")
def buffered(folder: Path) -> BundleModel:
    return load(folder)


@pytest.fixture(scope="module")
def growing(folder: Path) -> BundleModel:
    return load(folder, buffers=False)


def inputs(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random ids int64 [batch, 20] and a mask with padding on the last row's right."""
    ids = np.random.default_rng(batch).integers(3, 180, (batch, 20))
    mask = np.ones_like(ids)
    mask[-1, 13:] = 0
    return ids, mask


def test_the_runtime_takes_the_decoder_with_buffers_where_it_can(folder: Path, demo: Workshop) -> None:
    manifest = Manifest.read(folder)
    assert type(open_onnxruntime(folder, manifest)) is BufferedModel
    assert type(open_onnxruntime(folder, manifest, buffers=False)) is OnnxRuntimeModel
    older = replace(manifest, ports={name: manifest.ports[name] for name in ("encoder", "decoder")})
    assert type(open_onnxruntime(folder, older)) is OnnxRuntimeModel
    narrow = demo.bundle("fp16")
    assert GRAPH in Manifest.read(narrow).ports
    assert type(open_onnxruntime(narrow, Manifest.read(narrow))) is OnnxRuntimeModel


@pytest.mark.parametrize(("version", "expected"), [("1.26.9", False), ("1.27.0", True), ("2.0.0", True)])
def test_versions_are_compared_as_numbers(version: str, expected: bool) -> None:
    assert is_recent(version) == expected


def test_an_older_runtime_takes_the_growing_cache_and_no_quantized_bundle(
    folder: Path, demo: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.26.0")
    assert type(load(folder).step_model) is OnnxRuntimeModel
    with pytest.raises(UserError, match=r"onnxruntime 1\.26\.0 computes quantized .* pip install 'onnxruntime>=1\.27'"):
        load(demo.bundle("int8"))


def test_the_manifest_leaves_the_capacity_free(folder: Path) -> None:
    ports = Manifest.read(folder).ports[GRAPH]
    axes = {port.name: port.axes for port in (*ports.inputs, *ports.outputs)}
    assert axes["past_length"] == ("batch",)
    assert axes["past_key_values.0.decoder.key"] == ("batch", 8, "capacity", 24)
    assert axes["present.1.decoder.value"] == ("batch", 8, "capacity", 24)
    assert axes["past_key_values.0.encoder.key"] == ("batch", 8, "source", 24)


@pytest.mark.parametrize("batch", [1, 3])
def test_logits_are_those_of_the_growing_cache_while_buffers_grow(
    buffered: BundleModel, growing: BundleModel, batch: int
) -> None:
    targets = np.random.default_rng(7).integers(3, 180, (batch, STEPS))
    expected = growing.logits(*inputs(batch), targets)
    assert np.abs(buffered.logits(*inputs(batch), targets) - expected).max() < 1e-5 * np.abs(expected).max()


def test_steps_of_any_length_follow_each_other(buffered: BundleModel, growing: BundleModel) -> None:
    targets = np.random.default_rng(8).integers(3, 180, (2, STEPS))
    expected = growing.logits_uncached(*inputs(2), targets)
    found = logits_in_steps(buffered.step_model, *inputs(2), targets, (5, 1, 1, FIRST_CAPACITY, 1, 60, 5))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "seed": 3, "top_k": 20},
        {"num_beams": 3, "no_repeat_ngram_size": 2, "length_penalty": 0.3},
    ],
)
def test_tokens_are_those_of_the_growing_cache(
    buffered: BundleModel, growing: BundleModel, options: dict[str, object]
) -> None:
    ids, mask = inputs(3)
    settings = {"max_new_tokens": STEPS, "min_new_tokens": FIRST_CAPACITY + 9, **options}
    assert np.array_equal(buffered.generate(ids, mask, **settings), growing.generate(ids, mask, **settings))


def test_two_sentences_under_way_do_not_meet(buffered: BundleModel) -> None:
    model, (ids, mask) = buffered.step_model, inputs(2)
    tokens = np.random.default_rng(9).integers(3, 180, (2, 12))
    expected = buffered.logits(ids, mask, tokens)
    states = [model.encode(ids[[row]], mask[[row]]) for row in range(2)]
    for column in range(12):
        for row, state in enumerate(states):
            found = model.step(state, tokens[[row]][:, [column]].copy())
            assert np.abs(found[0, 0] - expected[row, column]).max() < 1e-5 * np.abs(expected).max()


def test_keys_are_written_into_the_buffers_and_nowhere_else(buffered: BundleModel) -> None:
    model = buffered.step_model
    state = model.encode(*inputs(2))
    model.step(state, np.full((2, 3), 5))
    for cache in state.caches.values():
        assert cache[:, :, :3].all(axis=-1).all()
        assert not cache[:, :, 3:].any()


def test_rows_that_move_are_those_of_whole_copies(buffered: BundleModel) -> None:
    """Moves with a cycle and an old row that is overwritten, rows that part late, and a draft that is forgotten."""
    model, random = buffered.step_model, np.random.default_rng(11)
    state, whole = (model.encode(*inputs(1), copies=4) for _ in range(2))
    for number in range(12):
        tokens = random.integers(3, 180, (4, 1 + number % 3))
        assert np.array_equal(model.step(state, tokens).copy(), model.step(whole, tokens))
        if number % 4 == 3:
            for each in (state, whole):
                model.keep(each, each.past_length - 1)
        rows = random.integers(0, 4, 4)
        model.reorder(state, rows)
        for cache in whole.caches.values():
            cache[...] = cache[rows]
