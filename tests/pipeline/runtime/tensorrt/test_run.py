from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

from support.bundles import Workshop
from support.host_device import FORMS, HostDevice, open_on_host
from support.searches import generate
from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.step import BestModel
from t5edge.runtime.model import BundleModel, load
from t5edge.runtime.tensorrt.run import EngineModel


class Hasty(HostDevice):
    """Does not wait where the runtime does so in one of its functions, as if that call were missing."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function, self.skipped = function, 0

    def synchronize(self) -> None:
        if sys._getframe(1).f_code.co_name == self.function:
            self.skipped += 1
        else:
            super().synchronize()


def batch(rows: int, source: int = 20) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(rows).integers(3, 180, (rows, source))
    mask = np.ones_like(ids)
    mask[-1, source // 2 :] = 0
    return ids, mask


@pytest.fixture(params=list(FORMS))
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("rows", [1, 3])
def test_logits_are_those_of_onnxruntime_token_by_token(demo: Workshop, form: str, rows: int) -> None:
    folder = demo.bundle("fp32")
    reference, model = load(folder), BundleModel(folder, Manifest.read(folder), open_on_host(folder, form))
    targets = np.random.default_rng(5).integers(3, 180, (rows, 30))
    ids, mask = batch(rows)
    expected = reference.logits(ids, mask, targets)
    assert np.abs(model.logits(ids, mask, targets) - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(model.logits_uncached(ids, mask, targets) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generated_tokens_are_those_of_onnxruntime(demo: Workshop, form: str, options: dict[str, int]) -> None:
    folder = demo.bundle("fp32")
    reference, model = load(folder), BundleModel(folder, Manifest.read(folder), open_on_host(folder, form))
    texts = ["spell 1984"]
    expected = reference.generate_text(texts, max_new_tokens=60, **options)
    assert model.generate_text(texts, max_new_tokens=60, **options) == expected


@pytest.mark.parametrize("rows", [1, 3])
def test_drafted_tokens_leave_the_answers_as_they_are(demo: Workshop, form: str, rows: int) -> None:
    """Also with an assistant that is itself an engine, where its cache is written in place."""
    folder = demo.bundle("fp32")
    reference, model = load(folder), BundleModel(folder, Manifest.read(folder), open_on_host(folder, form))
    ids, mask = reference.tokenizer.encode(
        ["read one thousand, nine hundred and eighty-four", "spell 1984", "spell 7"][:rows]
    )
    expected = reference.generate(ids, mask, max_new_tokens=40)
    assert np.array_equal(model.generate(ids, mask, max_new_tokens=40, prompt_lookup_num_tokens=5), expected)
    assistant = BundleModel(folder, Manifest.read(folder), open_on_host(folder, "in-place"))
    assert np.array_equal(model.generate(ids, mask, max_new_tokens=40, assistant=assistant), expected)


def test_an_engine_whose_cache_grows_goes_back_one_step_only(demo: Workshop) -> None:
    model = open_on_host(demo.bundle("fp32"), "concat")
    state = model.encode(*batch(1))
    for _ in range(3):
        model.step(state, np.array([[5]]))
    model.keep(state, np.array([2]))
    model.step(state, np.array([[5]]))
    with pytest.raises(UserError, match="export the assistant with --cache in-place"):
        model.keep(state, np.array([1]))


def test_beams_of_a_batch_keep_their_own_cross_attention(demo: Workshop, form: str) -> None:
    folder = demo.bundle("fp32")
    reference, model = load(folder), BundleModel(folder, Manifest.read(folder), open_on_host(folder, form))
    ids, mask = reference.tokenizer.encode(["spell 7", "spell 1984"])
    expected = reference.generate(ids, mask, num_beams=2, max_new_tokens=40)
    assert np.array_equal(model.generate(ids, mask, num_beams=2, max_new_tokens=40), expected)


def test_greedy_search_moves_no_logits(demo: Workshop, form: str) -> None:
    model = open_on_host(demo.bundle("fp32"), form)
    device = model.device
    assert isinstance(model, BestModel)
    assert isinstance(device, HostDevice)
    ids, mask = batch(2)
    generate(model, ids, mask, GenerationOptions(max_new_tokens=20, eos_token_id=None))
    assert device.downloaded == 20 * 2 * (8 + 4)
    assert device.copied == 0


@pytest.mark.parametrize("num_beams", [1, 3])
def test_scores_are_those_of_onnxruntime(demo: Workshop, form: str, num_beams: int) -> None:
    """Plain greedy search needs the logits then, and its tokens stay the same."""
    folder = demo.bundle("fp32")
    reference, model = load(folder), BundleModel(folder, Manifest.read(folder), open_on_host(folder, form))
    ids, mask = batch(3 // num_beams)
    options = {"max_new_tokens": 20, "num_beams": num_beams}
    expected = reference.generate(ids, mask, return_scores=True, **options)
    found = model.generate(ids, mask, return_scores=True, **options)
    assert np.array_equal(found.sequences, model.generate(ids, mask, **options))
    assert np.array_equal(found.sequences, expected.sequences)
    np.testing.assert_allclose(found.transition_scores, expected.transition_scores, rtol=1e-4, atol=1e-4)


def test_targets_are_scored_in_batches_that_engines_take(
    demo: Workshop, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than the engines' largest batch; 30 positions in runs of ten, the later ones behind a cache."""
    monkeypatch.setattr("t5edge.runtime.scoring.LOGITS", 4 * 10 * 187)
    folder = demo.bundle("fp32")
    reference, model = load(folder), BundleModel(folder, Manifest.read(folder), open_on_host(folder, form))
    assert model.manifest.limits.max_batch == 4
    ids, mask = batch(9)
    targets = np.random.default_rng(5).integers(3, 180, (9, 30))
    expected = reference.score(ids, mask, targets).token_scores
    np.testing.assert_allclose(model.score(ids, mask, targets).token_scores, expected, rtol=1e-4, atol=1e-4)
    texts, choices = ["spell 7", "spell 1984", "read de dreizehn"] * 3, [7, 9]
    expected = reference.score_first(texts, choices)
    np.testing.assert_allclose(model.score_first(texts, choices), expected, rtol=1e-4, atol=1e-4)


def test_a_best_logit_that_is_not_a_number_stops_greedy_search(demo: Workshop) -> None:
    model = open_on_host(demo.bundle("fp32"), "concat")
    model.best = lambda state, tokens: (np.zeros(1, np.int64), np.array([np.nan], np.float32))
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        generate(model, *batch(1), GenerationOptions(max_new_tokens=2))


def test_steps_copy_no_keys_and_values(demo: Workshop, form: str) -> None:
    model = open_on_host(demo.bundle("fp32"), form)
    device = model.device
    assert isinstance(device, HostDevice)
    state = model.encode(*batch(2))
    before = device.uploaded
    for _ in range(5):
        model.step(state, np.zeros((2, 1), np.int64))
    per_step = 2 * 8 + (8 if form == "in-place" else 0)
    assert device.copied == 0
    assert device.uploaded - before == 5 * per_step
    assert device.downloaded == 5 * 2 * demo.checkpoint.architecture.vocab_size * 4


def test_the_in_place_step_is_recorded_once_and_replayed(demo: Workshop) -> None:
    model = open_on_host(demo.bundle("fp32"), "in-place")
    device, context = model.device, model.decoder.context
    assert isinstance(device, HostDevice)
    state = model.encode(*batch(2))
    token = np.zeros((2, 1), np.int64)
    model.step(state, token)
    assert device.captures == 0
    model.step(state, token)
    context.shapes, context.addresses = {}, {}
    for _ in range(3):
        model.step(state, token)
    assert device.captures == 1
    assert context.runs == 5
    assert context.addresses == {}


def test_nothing_is_recorded_where_the_runtime_does_it_itself(demo: Workshop) -> None:
    model = open_on_host(demo.bundle("fp32"), "in-place", record=False)
    state = model.encode(*batch(1))
    for _ in range(4):
        model.step(state, np.zeros((1, 1), np.int64))
    assert isinstance(model.device, HostDevice)
    assert model.device.captures == 0


def test_prompts_use_the_second_profile(demo: Workshop, form: str) -> None:
    model = open_on_host(demo.bundle("fp32"), form)
    state = model.encode(*batch(1))
    for width in (1, 4, 3, 1):
        model.step(state, np.zeros((1, width), np.int64))
    assert model.decoder.context.profiles == [1, 0]


def test_two_states_do_not_disturb_each_other(demo: Workshop, form: str) -> None:
    model = open_on_host(demo.bundle("fp32"), form)
    tokens = np.random.default_rng(3).integers(3, 180, (1, 8))
    alone = model.encode(*batch(1))
    expected = [model.step(alone, tokens[:, [column]]).copy() for column in range(8)]
    first, second = model.encode(*batch(1)), model.encode(*batch(1, 11))
    for column in range(8):
        assert np.array_equal(model.step(first, tokens[:, [column]]), expected[column])
        model.step(second, tokens[:, [7 - column]])


def beam_logits(model: EngineModel) -> np.ndarray:
    """Four beams of two sentences through five steps, two of them after a reordering."""
    state, found = model.encode(*batch(2), copies=2), []
    for step, token in enumerate((5, 9, 30, 7, 11)):
        found.append(model.step(state, np.array([[token], [token + 1], [token + 2], [token]])).copy())
        if step in (1, 2):
            model.reorder(state, np.array([1, 0, 3, 3]))
    return np.concatenate(found, axis=1)


def difference(model: EngineModel, expected: np.ndarray) -> str:
    """What is wrong with a run: nothing, its logits, or the memory it works on."""
    try:
        found = beam_logits(model)
    except AssertionError as error:
        return str(error)
    return "" if np.allclose(found, expected) else "other logits"


@pytest.mark.parametrize("function", ["_run_encoder", "encode", "reorder", "_fetched"])
def test_a_missing_synchronize_is_noticed(demo: Workshop, form: str, function: str) -> None:
    """Guards the tests of this file: on a device that is never behind they would pass without any waiting."""
    folder, hasty = demo.bundle("fp32"), Hasty(function)
    expected = beam_logits(open_on_host(folder, form))
    assert difference(open_on_host(folder, form), expected) == ""
    found = difference(open_on_host(folder, form, device=hasty), expected)
    assert found == "other logits" or "outside every allocation" in found
    assert hasty.skipped > 0


def test_memory_is_given_back(demo: Workshop, form: str) -> None:
    model = open_on_host(demo.bundle("fp32"), form)
    assert isinstance(model.device, HostDevice)
    state = model.encode(*batch(2), copies=2)
    model.step(state, np.zeros((4, 1), np.int64))
    model.reorder(state, np.array([1, 0, 2, 2]))
    assert model.device.blocks
    del state
    gc.collect()
    assert model.device.blocks == {}


def test_encoder_outputs_come_as_numpy(demo: Workshop) -> None:
    folder = demo.bundle("fp16")
    model, reference = open_on_host(folder, "concat"), load(folder)
    ids, mask = batch(2)
    found = model.hidden_and_cross(ids, mask)
    expected = reference.step_model.hidden_and_cross(ids, mask)
    assert found.keys() == expected.keys()
    scale = np.abs(expected["last_hidden_state"].astype(np.float32)).max()
    error = np.abs(found["last_hidden_state"].astype(np.float32) - expected["last_hidden_state"].astype(np.float32))
    assert error.max() < 1e-2 * scale


def test_bfloat16_is_widened(demo: Workshop) -> None:
    model = open_on_host(demo.bundle("fp32"), "concat")
    values = np.array([1.0, -2.5, 3.0e38], np.float32)
    stored = (values.view(np.uint32) >> 16).astype(np.uint16)
    fetched = model._fetched(model._uploaded(stored), (3,), "bfloat16")
    assert np.array_equal(fetched, (stored.astype(np.uint32) << 16).view(np.float32))


@pytest.mark.parametrize(("rows", "source", "copies"), [(5, 20, 1), (2, 20, 3), (1, 65, 1)])
def test_more_than_the_engines_take_is_refused(demo: Workshop, form: str, rows: int, source: int, copies: int) -> None:
    model = open_on_host(demo.bundle("fp32"), form)
    with pytest.raises(UserError, match=r"these engines take up to 4 rows of 64.*--max-batch"):
        model.encode(*batch(rows, source), copies)


def test_a_target_that_is_too_long_is_refused(demo: Workshop, form: str) -> None:
    model = open_on_host(demo.bundle("fp32"), form)
    state = model.encode(*batch(1))
    model.step(state, np.zeros((1, 143), np.int64))
    model.step(state, np.zeros((1, 1), np.int64))
    with pytest.raises(UserError, match=r"would have 145 tokens; these engines take up to 144"):
        model.step(state, np.zeros((1, 1), np.int64))


def test_an_engine_that_refuses_is_a_defect_of_ours(demo: Workshop) -> None:
    model = open_on_host(demo.bundle("fp32"), "concat")
    model.encoder.context.set_input_shape = lambda name, shape: False
    with pytest.raises(RuntimeError, match="the engine refused the shape of input_ids"):
        model.encode(*batch(1))
