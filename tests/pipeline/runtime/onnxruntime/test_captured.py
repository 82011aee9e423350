"""The device is the CPU here, which ignores the numbers of CUDA graphs; memory, shapes and moves are the same."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.bundles import Workshop
from support.searches import logits_in_steps
from t5edge.bundle.manifest import Manifest
from t5edge.runtime.model import BundleModel, load
from t5edge.runtime.onnxruntime.captured import FIRST_CAPACITY, IDLE, RECORDED, CapturedModel, Run, rounded
from t5edge.runtime.onnxruntime.memory import Memory

STEPS = 2 * FIRST_CAPACITY + 9


def start(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def growing(demo: Workshop) -> BundleModel:
    return load(demo.bundle("fp32"), buffers=False)


@pytest.fixture(scope="module")
def model(demo: Workshop) -> BundleModel:
    return opened(demo.bundle("fp32"))


def opened(folder: Path) -> BundleModel:
    manifest = Manifest.read(folder)
    sessions = [start(folder / f"{name}.onnx") for name in ("encoder", "decoder_buffered")]
    return BundleModel(folder, manifest, CapturedModel(*sessions, manifest.ports["decoder"], "cpu", start))


def inputs(batch: int, source: int = 21) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(batch).integers(3, 180, (batch, source))
    mask = np.ones_like(ids)
    mask[-1, 13:] = 0
    return ids, mask


def test_lengths_are_rounded_up_to_few() -> None:
    lengths = [rounded(source) for source in range(1, 2049)]
    assert all(length >= source and length - source < max(16, source / 4) for source, length in enumerate(lengths, 1))
    assert len(set(lengths)) == 24
    assert (rounded(1), rounded(64), rounded(65), rounded(257)) == (16, 64, 80, 320)


@pytest.mark.parametrize("batch", [1, 3])
def test_logits_are_those_of_the_growing_cache(model: BundleModel, growing: BundleModel, batch: int) -> None:
    targets = np.random.default_rng(7).integers(3, 180, (batch, STEPS))
    expected = growing.logits(*inputs(batch), targets)
    for found in (model.logits(*inputs(batch), targets), model.logits_uncached(*inputs(batch), targets)):
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_float16_is_held_as_such(demo: Workshop) -> None:
    folder, targets = demo.bundle("fp16"), np.random.default_rng(7).integers(3, 180, (3, STEPS))
    expected = load(folder).logits(*inputs(3), targets)
    assert np.abs(opened(folder).logits(*inputs(3), targets) - expected).max() < 1e-3 * np.abs(expected).max()


def test_steps_of_any_length_follow_each_other(model: BundleModel, growing: BundleModel) -> None:
    targets = np.random.default_rng(8).integers(3, 180, (2, STEPS))
    expected = growing.logits_uncached(*inputs(2), targets)
    found = logits_in_steps(model.step_model, *inputs(2), targets, (5, 1, 1, FIRST_CAPACITY, 1, 60, 5))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "seed": 3, "top_k": 20},
        {"prompt_lookup_num_tokens": 5},
    ],
)
def test_tokens_are_those_of_the_growing_cache(
    model: BundleModel, growing: BundleModel, options: dict[str, Any]
) -> None:
    ids, mask = inputs(3)
    settings = {"max_new_tokens": STEPS, "min_new_tokens": FIRST_CAPACITY + 9, **options}
    assert np.array_equal(model.generate(ids, mask, **settings), growing.generate(ids, mask, **settings))


def test_batches_under_way_do_not_meet(model: BundleModel) -> None:
    steps, (ids, mask) = model.step_model, inputs(2)
    tokens = np.random.default_rng(9).integers(3, 180, (2, 12))
    expected = model.logits(ids, mask, tokens)
    states = [steps.encode(ids[[row]], mask[[row]]) for row in range(2)]
    for column in range(12):
        for row, state in enumerate(states):
            found = steps.step(state, tokens[[row], column : column + 1])
            assert np.abs(found[:, 0] - expected[[row], column]).max() < 1e-5 * np.abs(expected).max()


def test_threads_share_a_model(model: BundleModel) -> None:
    batches = [inputs(1 + number % 3, 20 + 16 * (number % 2)) for number in range(24)]
    expected = [model.generate(*batch, max_new_tokens=6) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: model.generate(*batch, max_new_tokens=6), batches))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_memory_that_another_thread_took_is_not_taken(model: BundleModel) -> None:
    steps = model.step_model
    assert isinstance(steps, CapturedModel)
    steps.encode(*inputs(2))
    steps._idle = Taken(steps._idle)
    assert steps._sentences((2, 1, 32)) not in list(steps._idle)
    steps._idle = list(steps._idle)


class Taken(list[Any]):
    """Another thread is always first."""

    def remove(self, value: object) -> None:
        raise ValueError


def test_the_next_batch_of_a_shape_takes_its_memory(model: BundleModel) -> None:
    steps = model.step_model
    assert isinstance(steps, CapturedModel)
    gc.collect()
    steps._idle.clear()
    memory = [id(steps.encode(*inputs(2, source)).sentences) for source in (20, 32, 33, 17)]
    assert memory[0] == memory[1] == memory[3] != memory[2]
    for batch in range(1, IDLE + 4):
        steps.encode(*inputs(batch))
    assert [kept.shape[0] for kept in steps._idle] == list(range(4, IDLE + 4))


def test_memory_that_may_hold_what_is_not_finite_is_dropped(model: BundleModel) -> None:
    steps = model.step_model
    assert isinstance(steps, CapturedModel)
    state = steps.encode(*inputs(2))
    steps.step(state, np.zeros((2, 1), np.int64))
    sentences = state.sentences
    sentences.last = np.full((2, 1, 4), np.nan, np.float32)
    del state
    assert sentences not in steps._idle


def test_the_encoder_gives_all_to_the_host(model: BundleModel, growing: BundleModel) -> None:
    ids, mask = inputs(2)
    expected = growing.step_model.hidden_and_cross(ids, mask)
    found = model.step_model.hidden_and_cross(ids, mask)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_little_memory_is_kept(model: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = model.step_model
    assert isinstance(steps, CapturedModel)
    steps._idle.clear()
    each = steps.encode(*inputs(2)).sentences.bytes
    assert each > 2 * 2 * 8 * 24 * 4 * (32 + FIRST_CAPACITY)
    monkeypatch.setattr("t5edge.runtime.onnxruntime.captured.IDLE_BYTES", 2 * each)
    held = [steps.encode(*inputs(2)) for _ in range(3)]
    del held
    assert len(steps._idle) == 2


def test_memory_is_taken_from_what_is_idle(model: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, tried = model.step_model, []
    assert isinstance(steps, CapturedModel)
    steps.encode(*inputs(2))
    assert steps._idle

    def full(*arguments: Any) -> Memory:
        tried.append(arguments)
        if steps._idle:
            raise RuntimeError("out of memory")
        return Memory(*arguments)

    monkeypatch.setattr("t5edge.runtime.onnxruntime.captured.Memory", full)
    steps.encode(*inputs(7))
    assert tried[0] == tried[1]


class Session:
    """Stands for a session; keeps the numbers of its runs."""

    def __init__(self) -> None:
        self.numbers: list[str] = []

    def io_binding(self) -> None:
        return None

    def run_with_iobinding(self, binding: object, options: Any) -> None:
        self.numbers.append(options.get_run_config_entry("gpu_graph_id"))


def test_a_shape_is_recorded_when_it_comes_again() -> None:
    session, numbers = Session(), iter(range(1, 3))
    runs = [Run(session, numbers) for _ in range(3)]
    for run in runs:
        run()
    for run in runs:
        run()
        run()
    assert session.numbers == ["-1", "-1", "-1", "1", "1", "2", "2", "-1", "-1"]
    assert RECORDED > 2
