"""Every invalid setting has an error that says what is wrong and what was expected."""

from __future__ import annotations

from typing import Any

import pytest

from t5edge.errors import UserError
from t5edge.runtime.generation.options import GenerationOptions, read_options


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer, not 2.5"),
        ({"max_new_tokens": True}, "max_new_tokens must be an integer, not True"),
        ({"max_length": 1}, "max_length must be at least 2, not 1"),
        ({"min_new_tokens": -1}, "min_new_tokens must be at least 0, not -1"),
        ({"min_length": -1}, "min_length must be at least 0, not -1"),
        ({"min_length": None}, "min_length must be an integer, not None"),
        ({"num_beams": 0}, "num_beams must be at least 1, not 0"),
        ({"num_beams": "4"}, "num_beams must be an integer, not '4'"),
        ({"num_return_sequences": 0}, "num_return_sequences must be at least 1, not 0"),
        ({"num_return_sequences": 2}, "greedy search has one result, not 2; set do_sample or num_beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences is 3, more than num_beams 2"),
        ({"length_penalty": float("nan")}, "length_penalty must be a finite number, not nan"),
        ({"early_stopping": "always"}, "early_stopping must be True, False or \"never\", not 'always'"),
        ({"do_sample": 1}, "do_sample must be True or False, not 1"),
        ({"temperature": 0.0}, "temperature must be between 1e-06 and 1e.06, not 0.0; 1.0 changes nothing"),
        ({"temperature": "hot"}, "temperature must be a finite number, not 'hot'"),
        ({"top_k": -1}, "top_k must be at least 0, not -1"),
        ({"top_p": 1.1}, "top_p must be between 0 and 1, not 1.1; 1.0 keeps every token"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        (
            {"repetition_penalty": -1.0},
            "repetition_penalty must be between 1e-06 and 1e.06, not -1.0",
        ),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size must be at least 0, not -2"),
        ({"forced_bos_token_id": -1}, "forced_bos_token_id must be at least 0, not -1"),
        ({"forced_eos_token_id": -1}, "forced_eos_token_id must be a token id, a tuple of .*, not -1"),
        ({"eos_token_id": ()}, r"eos_token_id must be a token id, a tuple of them or None, not \(\)"),
        ({"eos_token_id": (1, -2)}, r"eos_token_id must be a token id, .* or None, not \(1, -2\)"),
        ({"eos_token_id": [1]}, r"eos_token_id must be an integer, not \[1\]"),
        ({"pad_token_id": -1}, "pad_token_id must be at least 0, not -1"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id must be at least 0, not -1"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "at least 10 and at most 9 tokens asked for.*; lower"),
        ({"min_length": 30}, "at least 30 and at most 21 tokens asked for.*raise max_new_tokens"),
    ],
    ids=str,
)
def test_each_invalid_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        GenerationOptions(**settings)
    assert "\n" not in str(caught.value)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(UserError, match=r"num_beams must.*top_k must.*temperature must.*top_p must"):
        GenerationOptions(num_beams=0, top_k=-1, temperature=-1.0, top_p=2.0)


@pytest.mark.parametrize(
    ("settings", "longest", "shortest"),
    [
        ({}, 21, 0),
        ({"max_length": 9, "min_length": 4}, 9, 4),
        ({"max_length": 9, "max_new_tokens": 3, "min_length": 9, "min_new_tokens": 2}, 4, 3),
    ],
)
def test_new_token_limits_win_over_lengths(settings: dict[str, Any], longest: int, shortest: int) -> None:
    options = GenerationOptions(**settings)
    assert (options.total_length, options.shortest_length) == (longest, shortest)


def test_reads_a_generation_config_and_overrides_win() -> None:
    config = {
        "_from_model_config": True,
        "decoder_start_token_id": 3,
        "eos_token_id": [1, 106],
        "pad_token_id": None,
        "max_length": 64,
        "num_beams": 4,
        "transformers_version": "5.23.0",
    }
    assert read_options(config, num_beams=2, seed=5, top_k=None) == GenerationOptions(
        decoder_start_token_id=3, eos_token_id=(1, 106), max_length=64, num_beams=2, seed=5
    )


def test_an_overriding_length_replaces_the_other_spelling() -> None:
    config = {"max_new_tokens": 64, "min_length": 10}
    options = read_options(config, max_length=8, min_new_tokens=2)
    assert (options.total_length, options.shortest_length) == (8, 3)


def test_unknown_options_and_unsupported_settings_are_errors() -> None:
    with pytest.raises(UserError, match=r"num_beam is not an option; expected one of .*num_beams"):
        read_options({}, num_beam=2)
    with pytest.raises(UserError, match=r"sets suppress_tokens to \[5\].*typical_p to 0.9.*remove it"):
        read_options({"suppress_tokens": [5], "typical_p": 0.9})
