"""Every rule against the transformers class with the same job."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from t5edge.errors import UserError
from t5edge.runtime.generation import processors as ours
from t5edge.runtime.generation.options import GenerationOptions

INFINITY = float("inf")


@pytest.fixture
def scores() -> np.ndarray:
    """Float32 [6, 300] of mixed sign: smooth, flat, peaked, with equal values, partly forbidden."""
    scores = np.random.default_rng(0).normal(0, 3, (6, 300)).astype(np.float32)
    scores[1] /= 100
    scores[2] *= 10
    scores[3] = np.round(scores[3])
    scores[4, 5:] = -np.inf
    scores[5] = 0
    return scores


@pytest.fixture
def tokens() -> np.ndarray:
    """Int64 [6, 12] with many repeated n-grams."""
    return np.random.default_rng(1).integers(0, 4, (6, 12))


def check_same(rule: Any, reference: Any, tokens: np.ndarray, scores: np.ndarray) -> None:
    """Same values in float32, hence the same tokens forbidden."""
    expected = reference(torch.from_numpy(tokens), torch.from_numpy(scores.copy())).numpy()
    rule(tokens, scores)
    np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_repetition_penalty(tokens: np.ndarray, scores: np.ndarray, penalty: float) -> None:
    reference = theirs.RepetitionPenaltyLogitsProcessor(penalty)
    check_same(ours.RepetitionPenalty(penalty), reference, tokens, scores)


@pytest.mark.parametrize("size", [1, 2, 3, 12, 13])
def test_no_repeat_ngram(tokens: np.ndarray, scores: np.ndarray, size: int) -> None:
    check_same(ours.NoRepeatNgram(size), theirs.NoRepeatNGramLogitsProcessor(size), tokens, scores)


@pytest.mark.parametrize("length", [1, 12, 13])
def test_min_length(tokens: np.ndarray, scores: np.ndarray, length: int) -> None:
    reference = theirs.MinLengthLogitsProcessor(length, [1, 7, 900])
    check_same(ours.MinLength(length, (1, 7, 900)), reference, tokens, scores)


@pytest.mark.parametrize("length", [1, 2])
def test_forced_first_token(tokens: np.ndarray, scores: np.ndarray, length: int) -> None:
    rule = ours.ForcedTokens((9,), at_length=1)
    check_same(rule, theirs.ForcedBOSTokenLogitsProcessor(9), tokens[:, :length], scores)


@pytest.mark.parametrize("longest", [12, 13, 14])
def test_forced_last_token(tokens: np.ndarray, scores: np.ndarray, longest: int) -> None:
    rule = ours.ForcedTokens((1, 7), at_length=longest - 1)
    check_same(rule, theirs.ForcedEOSTokenLogitsProcessor(longest, [1, 7]), tokens, scores)


def test_forcing_a_token_outside_the_vocabulary_is_the_users_error(tokens: Any, scores: Any) -> None:
    with pytest.raises(UserError, match=r"forced token id 300, the vocabulary has 300; take forced_bos"):
        ours.ForcedTokens((300,), at_length=12)(tokens, scores)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0])
def test_temperature(tokens: np.ndarray, scores: np.ndarray, temperature: float) -> None:
    check_same(ours.Temperature(temperature), theirs.TemperatureLogitsWarper(temperature), tokens, scores)


@pytest.mark.parametrize("k", [1, 2, 5, 50, 299, 300, 1000])
def test_top_k(tokens: np.ndarray, scores: np.ndarray, k: int) -> None:
    check_same(ours.TopK(k), theirs.TopKLogitsWarper(k), tokens, scores)


@pytest.mark.parametrize("keep", [1, 2, 4, 7])
@pytest.mark.parametrize("p", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_top_p(tokens: np.ndarray, scores: np.ndarray, p: float, keep: int) -> None:
    reference = theirs.TopPLogitsWarper(p, min_tokens_to_keep=keep)
    distinct, tied = [0, 1, 2, 4], [3, 5]
    check_same(ours.TopP(p, keep), reference, tokens[distinct], scores[distinct])
    expected = reference(torch.from_numpy(tokens[tied]), torch.from_numpy(scores[tied])).numpy()
    kept = scores[tied]
    ours.TopP(p, keep)(tokens[tied], kept)
    np.testing.assert_array_equal(np.sort(kept), np.sort(expected), "of equal tokens, as many stay")


def test_top_p_keeps_the_first_of_equal_tokens() -> None:
    scores = np.array([[1, 2, 2, 1, 2, 2, 1]], np.float32)
    ours.TopP(0.4, 1)(np.zeros((1, 1), np.int64), scores)
    assert np.flatnonzero(scores[0] > -np.inf).tolist() == [1, 2, 4]


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_top_p_on_a_whole_vocabulary(p: float) -> None:
    scores = np.random.default_rng(2).normal(0, 2, (4, 32128)).astype(np.float32)
    check_same(ours.TopP(p, 1), theirs.TopPLogitsWarper(p), np.zeros((4, 1), np.int64), scores)


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, []),
        ({"temperature": 0.5, "top_p": 0.5}, []),
        ({"do_sample": True}, [ours.TopK]),
        ({"do_sample": True, "top_k": 0}, []),
        ({"min_new_tokens": 0}, []),
        ({"min_length": 3, "eos_token_id": None}, []),
        (
            {
                "do_sample": True,
                "temperature": 0.5,
                "top_p": 0.5,
                "repetition_penalty": 2.0,
                "no_repeat_ngram_size": 2,
                "min_length": 3,
                "forced_bos_token_id": 2,
                "forced_eos_token_id": 1,
            },
            [
                ours.RepetitionPenalty,
                ours.NoRepeatNgram,
                ours.MinLength,
                ours.ForcedTokens,
                ours.ForcedTokens,
                ours.Temperature,
                ours.TopK,
                ours.TopP,
            ],
        ),
    ],
)
def test_only_the_rules_asked_for_in_order(settings: dict[str, Any], kinds: list[type]) -> None:
    assert [type(rule) for rule in ours.build_rules(GenerationOptions(**settings))] == kinds


@pytest.mark.parametrize(("eos", "keep"), [(None, 2), (1, 2), ((1, 5, 6), 4)])
def test_beam_sampling_keeps_a_token_besides_the_end_tokens(eos: Any, keep: int) -> None:
    options = GenerationOptions(do_sample=True, num_beams=2, eos_token_id=eos, top_k=1, top_p=0.5)
    assert ours.build_rules(options) == (ours.TopK(keep), ours.TopP(0.5, keep))
