"""Scores of given targets: log-probabilities of transformers, whatever the batches; on PyTorch and on bundles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

import t5edge
from support.bundles import Workshop
from support.exports import GATED, RELU, Exports
from t5edge.errors import UserError
from t5edge.exporter.reference.whole import build_torch_model
from t5edge.runtime import scoring
from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.targets import score_choices, score_targets
from t5edge.runtime.inputs import IGNORED
from t5edge.runtime.model import BundleModel

TARGETS = np.array([[5, 9, 4, 1], [8, 1, -100, -100], [90, 7, 1, -100], [6, -100, 3, 1]])
SOURCES = ["spell 7", "read de dreizehn", "spell 1984", "spell 12", "spell 1000000"]
ANSWERS = ["seven", "13", "one thousand, nine hundred and eighty-four", "thirteen", ""]


def expected_scores(model: Any, ids: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log-probabilities of transformers' model for ``labels``, float32 [rows, target]; 0 where they are -100."""
    with torch.inference_mode():
        logits = model(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), labels=torch.from_numpy(labels)
        ).logits
    places = torch.from_numpy(np.where(labels == IGNORED, 0, labels))[..., None]
    found = torch.log_softmax(logits, -1).gather(-1, places)[..., 0].numpy()
    return np.where(labels == IGNORED, np.float32(0), found)


@pytest.mark.parametrize("most", [1, 3, 100])
def test_scores_equal_transformers_however_many_positions_a_run_has(tiny: Any, torch_step: Any, most: int) -> None:
    model = torch_step(tiny)
    tiny.model.config.decoder_start_token_id, tiny.model.config.pad_token_id = 0, 0
    scores = score_targets(model, tiny.input_ids, tiny.attention_mask, TARGETS, GenerationOptions(), most)
    expected = expected_scores(tiny.model, tiny.input_ids, tiny.attention_mask, TARGETS)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    assert scores.dtype == np.float32
    assert (scores[TARGETS == IGNORED] == 0).all()
    assert model.steps == {1: 4, 3: 2, 100: 1}[most]


def test_choices_are_compared_with_each_other_alone(tiny: Any, torch_step: Any) -> None:
    choices = np.array([11, 5])
    found = score_choices(torch_step(tiny), tiny.input_ids, tiny.attention_mask, choices, GenerationOptions())
    with torch.inference_mode():
        first = tiny.model(
            input_ids=torch.from_numpy(tiny.input_ids),
            attention_mask=torch.from_numpy(tiny.attention_mask),
            decoder_input_ids=torch.zeros(4, 1, dtype=torch.int64),
        ).logits[:, 0]
    np.testing.assert_allclose(found, torch.log_softmax(first[:, [11, 5]], -1).numpy(), rtol=1e-5, atol=1e-5)


def bundle_and_reference(exports: Exports, name: str) -> tuple[BundleModel, Any, np.ndarray, np.ndarray]:
    """A bundle, transformers' model of the same weights, and a padded batch of six sources."""
    model = t5edge.load(exports.bundle(name))
    reference = build_torch_model(exports.checkpoint(name), torch.float32)
    random = np.random.default_rng(0)
    mask = (np.arange(11) < random.integers(2, 12, (6, 1))).astype(np.int64)
    return model, reference, np.where(mask, random.integers(2, model.vocab_size, mask.shape), 0), mask


@pytest.mark.parametrize("name", [GATED, RELU])
@pytest.mark.parametrize(("batch_tokens", "logits"), [(4096, 1 << 26), (22, 500), (1, 1)])
def test_a_bundles_scores_equal_transformers(
    exports: Exports, monkeypatch: pytest.MonkeyPatch, name: str, batch_tokens: int, logits: int
) -> None:
    """In one batch, in batches of two rows and few positions, and row by row, position by position."""
    monkeypatch.setattr(scoring, "BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(scoring, "LOGITS", logits)
    model, reference, ids, mask = bundle_and_reference(exports, name)
    labels = np.random.default_rng(1).integers(1, model.vocab_size, (6, 9))
    labels[np.arange(9) >= np.array([[9], [1], [4], [7], [2], [9]])] = IGNORED
    found, expected = model.score(ids, mask, labels), expected_scores(reference, ids, mask, labels)
    np.testing.assert_allclose(found.token_scores, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.sequences_scores, expected.sum(axis=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [GATED, RELU])
@pytest.mark.parametrize("normalize_logits", [False, True])
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.4}], ids=str)
def test_a_bundles_generated_scores_equal_transformers(
    exports: Exports, name: str, normalize_logits: bool, settings: dict[str, Any]
) -> None:
    model, reference, ids, mask = bundle_and_reference(exports, name)
    settings = {**settings, "max_new_tokens": 12, "eos_token_id": list(range(1, model.vocab_size, 7))}
    found = model.generate(ids, mask, return_scores=True, normalize_logits=normalize_logits, **settings)
    theirs = reference.generate(
        torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
        return_dict_in_generate=True,
        output_scores=True,
        do_sample=False,
        **settings,
    )
    indices = theirs.beam_indices if "num_beams" in settings else None
    expected = reference.compute_transition_scores(theirs.sequences, theirs.scores, indices, normalize_logits)
    np.testing.assert_array_equal(found.sequences, theirs.sequences.numpy())
    np.testing.assert_array_equal(model.generate(ids, mask, **settings), found.sequences)
    np.testing.assert_allclose(found.transition_scores, expected.numpy(), rtol=1e-5, atol=1e-5)
    if indices is not None:
        np.testing.assert_allclose(found.sequences_scores, theirs.sequences_scores.numpy(), rtol=1e-5, atol=1e-5)


def test_text_is_scored_in_its_order_whatever_the_batches(demo: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    model = t5edge.load(demo.bundle("fp32"))
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 40)
    found = model.score_text(SOURCES, ANSWERS)
    for row, (source, answer) in enumerate(zip(SOURCES, ANSWERS, strict=True)):
        alone = model.score_text([source], [answer])
        size = alone.target_ids.shape[1]
        assert alone.target_ids[0, -1] == 1, "the end token counts"
        np.testing.assert_array_equal(found.target_ids[row, :size], alone.target_ids[0])
        np.testing.assert_allclose(found.token_scores[row, :size], alone.token_scores[0], rtol=1e-4, atol=1e-5)
        assert (found.target_ids[row, size:] == IGNORED).all()
        assert (found.token_scores[row, size:] == 0).all()
    probabilities = np.exp(found.sequences_scores)
    assert (probabilities[:3] > 0.9).all(), "the right answers"
    assert (probabilities[3:] < 0.01).all(), "the wrong ones"


def test_a_generated_answer_scores_as_it_did_when_it_was_generated(demo: Workshop) -> None:
    model = t5edge.load(demo.bundle("fp32"))
    ids, mask = model.tokenizer.encode(SOURCES)
    found = model.generate(ids, mask, return_scores=True, normalize_logits=True, max_new_tokens=50)
    answers = found.sequences[:, 1:]
    labels = np.where((answers == 0) & (np.cumsum(answers == 1, axis=1) > 0), IGNORED, answers)
    scores = model.score(ids, mask, labels).token_scores
    np.testing.assert_allclose(scores, np.where(labels == IGNORED, 0, found.transition_scores), atol=1e-4)


def test_first_tokens_among_choices(demo: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    model = t5edge.load(demo.bundle("fp32"))
    ids, mask = model.tokenizer.encode(SOURCES)
    logits = model.logits(ids, mask, np.zeros((5, 1), np.int64))[:, 0]
    among = [model.tokenizer.vocabulary["seven"], 7, 1]
    expected = torch.log_softmax(torch.from_numpy(logits[:, among]), -1).numpy()
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 40)
    found = model.score_first(SOURCES, ["seven", 7, "</s>"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert found[0, 0] == found.max() > -0.01


@pytest.mark.parametrize(
    ("method", "arguments", "reason"),
    [
        ("score", ([[5, 1]], None, [[500]]), "target_ids run from 500 to 500; the vocabulary has 187 ids"),
        ("score", ([[5, 1]], None, [[5, -1]]), "target_ids run from -1 to 5"),
        ("score", ([[5, 1]], None, [[5], [6]]), "target_ids has 2 rows and input_ids 1; give both as many"),
        ("score", ([[5, 1], [5, 1]], None, [[5], [-100]]), "target_ids, row 2 of 2 is empty"),
        ("score", ([[5, 1]], None, [[]]), "target_ids is an array of float64"),
        ("score", ([[5, 1], [5, 1]], None, [[5], [5, 6]]), "target_ids is no rectangular array"),
        ("score_text", (["spell 7"], ["seven", "eight"]), "targets has 2 rows and sources 1"),
        ("score_text", ([], []), "there is no text"),
        ("score_text", ("spell 7", "seven"), "takes a list of texts"),
        ("score_first", (["spell 7"], "true"), "takes a list of texts"),
        ("score_first", (["spell 7"], []), "choices"),
        ("score_first", (["spell 7"], [500, 7]), "choices run from 7 to 500; the vocabulary has 187 ids"),
        ("score_first", (["spell 7"], ["nine hundred", 7]), "'nine hundred' has .* tokens; give one of a single token"),
    ],
)
def test_wrong_targets_end_in_one_line(demo: Workshop, method: str, arguments: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        getattr(t5edge.load(demo.bundle("fp32")), method)(*arguments)
    assert "\n" not in str(caught.value)
