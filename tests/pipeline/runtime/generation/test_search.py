"""Token for token and score for score what transformers generates, for the same weights and options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from support.searches import generate, generate_with_scores
from t5edge.errors import UserError
from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.scores import draw_candidates, draw_tokens

MANY_ENDS = tuple(range(1, 97, 9))
"""Eleven end tokens: sentences end early and at different times."""
MODELS = ("deep-decoder", "tied-relu", "untied-gated")


def on_models_in_turn(points: dict[str, dict[str, Any]]) -> pytest.MarkDecorator:
    """Each point on one model, the next point on the next; on the others when slow tests are run.

    A search sees a model's logits alone, so the models are no more than three sources of them.
    """
    pairs = [(place, point, number) for place, point in enumerate(points) for number in range(len(MODELS))]
    return pytest.mark.parametrize(
        ("name", "settings"),
        [
            pytest.param(
                MODELS[number],
                points[point],
                id=f"{point}-{MODELS[number]}",
                marks=[] if number == place % len(MODELS) else [pytest.mark.slow],
            )
            for place, point, number in pairs
        ],
    )


GREEDY: dict[str, dict[str, Any]] = {
    "plain": {},
    "default length": {"max_new_tokens": None},
    "max_length": {"max_new_tokens": None, "max_length": 6},
    "one token": {"max_new_tokens": 1},
    "many ends": {"eos_token_id": MANY_ENDS},
    "no end": {"eos_token_id": None},
    "pad 5": {"eos_token_id": MANY_ENDS, "pad_token_id": 5},
    "no pad": {"eos_token_id": MANY_ENDS, "pad_token_id": None},
    "start 7": {"decoder_start_token_id": 7},
    "repetition": {"repetition_penalty": 1.7},
    "reward": {"repetition_penalty": 0.6},
    "1-gram": {"no_repeat_ngram_size": 1, "max_new_tokens": 30},
    "2-gram": {"no_repeat_ngram_size": 2, "max_new_tokens": 30},
    "min_new_tokens": {"eos_token_id": MANY_ENDS, "min_new_tokens": 6},
    "min_length": {"eos_token_id": MANY_ENDS, "min_length": 6},
    "end beyond vocabulary": {"eos_token_id": (1, 200), "min_length": 4},
    "forced_bos": {"forced_bos_token_id": 11},
    "forced_eos": {"forced_eos_token_id": 1},
    "forced both, one token": {"forced_bos_token_id": 11, "forced_eos_token_id": 1, "max_new_tokens": 1},
}

GREEDY_ONLY: dict[str, dict[str, Any]] = {"several forced_eos": {"forced_eos_token_id": (1, 12)}}
"""Equal scores on purpose: in beam search torch.topk's order decides in transformers, the id in ours."""

BEAMS: dict[str, dict[str, Any]] = {
    **GREEDY,
    "one forced token": {"forced_bos_token_id": 11, "max_new_tokens": 1},
    "two": {"num_beams": 2, "eos_token_id": (1, 12)},
    "five": {"num_beams": 5},
    "all returned": {"num_return_sequences": 3},
    "all returned, many ends": {"num_return_sequences": 3, "eos_token_id": MANY_ENDS},
    "two of five": {"num_beams": 5, "num_return_sequences": 2},
    "stop when full": {"early_stopping": True, "eos_token_id": (1, 12), "num_return_sequences": 2},
    "look ahead": {"early_stopping": "never", "eos_token_id": MANY_ENDS, "max_new_tokens": 30},
    "look ahead, short": {"early_stopping": "never", "length_penalty": -0.5, "eos_token_id": MANY_ENDS},
    "short wins": {"length_penalty": -1.5, "eos_token_id": MANY_ENDS, "num_return_sequences": 3},
    "no length penalty": {"length_penalty": 0.0, "eos_token_id": (1, 12)},
    "long wins": {"length_penalty": 2.0, "eos_token_id": MANY_ENDS, "num_return_sequences": 2},
    "long wins, full": {"length_penalty": 2.0, "eos_token_id": (1, 12), "early_stopping": True},
}


@on_models_in_turn(GREEDY | GREEDY_ONLY)
def test_greedy_equals_transformers(tiny_model_of: Any, torch_step: Any, name: str, settings: dict[str, Any]) -> None:
    tiny = tiny_model_of(name)
    check_equal(tiny, torch_step(tiny), GenerationOptions(**{"max_new_tokens": 14, **settings}))


@on_models_in_turn(BEAMS)
def test_beam_search_equals_transformers(
    tiny_model_of: Any, torch_step: Any, name: str, settings: dict[str, Any]
) -> None:
    tiny = tiny_model_of(name)
    defaults = {"max_new_tokens": 14, "num_beams": 3}
    check_equal(tiny, torch_step(tiny), GenerationOptions(**{**defaults, **settings}))


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.7, "min_new_tokens": 6, "eos_token_id": MANY_ENDS}])
def test_normalized_scores_equal_transformers(
    tiny: Any, torch_step: Any, num_beams: int, settings: dict[str, Any]
) -> None:
    options = GenerationOptions(max_new_tokens=14, num_beams=num_beams, **settings)
    check_equal(tiny, torch_step(tiny), options, normalize_logits=True)


def test_beam_scores_are_sums_over_penalized_lengths(tiny: Any, torch_step: Any) -> None:
    options = GenerationOptions(
        num_beams=4, num_return_sequences=4, length_penalty=-1.5, max_new_tokens=14, eos_token_id=MANY_ENDS
    )
    found = generate_with_scores(torch_step(tiny), tiny.input_ids, tiny.attention_mask, options)
    lengths = (found.transition_scores != 0).sum(axis=1)
    assert len(set(lengths.tolist())) > 1
    check_close(found.sequences_scores, (found.transition_scores.sum(axis=1) * lengths**1.5).astype(np.float32))


@pytest.mark.parametrize("number", [pytest.param(n, marks=[pytest.mark.slow] if n >= 60 else []) for n in range(300)])
def test_random_options_equal_transformers(tiny_model_of: Any, torch_step: Any, number: int) -> None:
    random = np.random.default_rng(number)
    tiny = tiny_model_of(str(random.choice(["tied-relu", "untied-gated", "deep-decoder"])), seed=number % 8)
    check_equal(tiny, torch_step(tiny), random_options(random))


def test_the_models_end_at_different_times(tiny_model_of: Any) -> None:
    """Guards the tests above: they would prove little on models that never end, or always at once."""
    sizes = [
        int((row != 0).sum())
        for name in ("tied-relu", "untied-gated", "deep-decoder")
        for seed in range(8)
        for row in tiny_model_of(name, seed=seed)
        .expected(GenerationOptions(max_new_tokens=14, eos_token_id=(1, 12), no_repeat_ngram_size=1))[0]
        .sequences
    ]
    assert len(set(sizes)) >= 8
    assert 0.1 < np.mean(np.array(sizes) == 14) < 0.9


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 4},
        {"top_k": 0, "top_p": 0.8},
        {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"top_k": 1, "top_p": 0.0},
        {"num_return_sequences": 3, "eos_token_id": MANY_ENDS, "min_new_tokens": 3},
    ],
    ids=str,
)
def test_sampling_equals_transformers_given_its_draws(
    tiny: Any, torch_step: Any, monkeypatch: pytest.MonkeyPatch, num_beams: int, settings: dict[str, Any]
) -> None:
    """Only the source of randomness in transformers is replaced by ours; the distributions are its own."""
    options = GenerationOptions(do_sample=True, num_beams=num_beams, max_new_tokens=14, seed=3, **settings)
    random = np.random.default_rng(3)

    def draw(probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        scores = torch.log(probabilities).numpy()
        if num_samples == 1:
            return torch.from_numpy(draw_tokens(scores, random)[:, None])
        return torch.from_numpy(draw_candidates(scores, num_samples, random)[1])

    monkeypatch.setattr(torch, "multinomial", draw)
    check_equal(tiny, torch_step(tiny), options)


def test_sampling_repeats_with_its_seed_and_varies_with_another(tiny_model_of: Any, torch_step: Any) -> None:
    tiny = tiny_model_of("untied-gated")
    options = GenerationOptions(do_sample=True, temperature=3.0, top_k=0, num_return_sequences=2, seed=1)
    outputs = [
        generate(torch_step(tiny), tiny.input_ids, tiny.attention_mask, replace(options, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert len(outputs[0]) == 8
    assert np.array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])
    assert not np.array_equal(outputs[0][0::2], outputs[0][1::2]), "samples of one sentence are all alike"


def test_stops_with_the_last_row_and_streams_every_step(tiny_model_of: Any, torch_step: Any) -> None:
    tiny, streamed = tiny_model_of("untied-gated", seed=3), []
    model = torch_step(tiny)
    output = generate(
        model,
        tiny.input_ids,
        tiny.attention_mask,
        GenerationOptions(max_new_tokens=50, eos_token_id=MANY_ENDS),
        on_token=lambda step, tokens: streamed.append((step, tokens.copy())),
    )
    assert output.shape[1] < 51
    assert model.steps == output.shape[1] - 1
    assert [step for step, _ in streamed] == list(range(model.steps))
    assert np.array_equal(np.stack([tokens for _, tokens in streamed], axis=1), output[:, 1:])


def test_beam_search_moves_caches_only_when_beams_move(tiny_model_of: Any, torch_step: Any) -> None:
    tiny = tiny_model_of("deep-decoder")
    model = torch_step(tiny)
    generate(model, tiny.input_ids, tiny.attention_mask, GenerationOptions(num_beams=3))
    assert 0 < model.reorders < model.steps


def test_padding_and_batch_do_not_change_a_sentence(tiny: Any, torch_step: Any) -> None:
    options = GenerationOptions(max_new_tokens=10, num_beams=2)
    together = generate(torch_step(tiny), tiny.input_ids, tiny.attention_mask, options)
    for row, length in enumerate(tiny.attention_mask.sum(axis=1)):
        alone = generate(
            torch_step(tiny), tiny.input_ids[row : row + 1, :length], np.ones((1, length), np.int64), options
        )
        assert np.array_equal(alone[0], together[row, : alone.shape[1]])
        assert (together[row, alone.shape[1] :] == 1).all()


@pytest.mark.parametrize("logit", [np.nan, np.inf])
@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"num_beams": 2}, {"repetition_penalty": 2.0}])
def test_broken_logits_stop(logit: float, settings: dict[str, Any]) -> None:
    """The real models never overflow, so a stub does: its second step returns one bad number in row 1."""
    ids = np.ones((2, 3), np.int64)
    with pytest.raises(FloatingPointError, match=r"NaN or infinite.*--precision"):
        generate(Overflowing(logit), ids, ids, options(**settings))


@pytest.mark.parametrize(
    ("input_ids", "attention_mask", "message"),
    [
        (np.ones(3, np.int64), np.ones(3, np.int64), r"input_ids is int64 \[3\], expected int64 \[batch"),
        (np.ones((1, 3), np.int32), np.ones((1, 3), np.int64), r"input_ids is int32 \[1, 3\]"),
        (np.ones((1, 3), np.int64), np.ones((1, 3)), r"attention_mask is float64 \[1, 3\]"),
        (np.ones((1, 0), np.int64), np.ones((1, 0), np.int64), r"input_ids is int64 \[1, 0\]"),
        (np.ones((2, 3), np.int64), np.ones((2, 4), np.int64), r"\[2, 4\] but input_ids is \[2, 3\]"),
    ],
)
def test_wrong_inputs_are_named(input_ids: Any, attention_mask: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(Overflowing(0), input_ids, attention_mask, options())


def test_streaming_beams_is_refused() -> None:
    ids = np.ones((1, 3), np.int64)
    with pytest.raises(UserError, match=r"on_token cannot stream beams.*set num_beams=1"):
        generate(Overflowing(0), ids, ids, options(num_beams=2), on_token=lambda step, tokens: None)


class Overflowing:
    """``StepModel`` over ten tokens whose second step returns ``logit`` once; its state counts steps."""

    def __init__(self, logit: float) -> None:
        self.logit = np.float32(logit)

    def encode(self, input_ids: Any, attention_mask: Any, copies: int = 1) -> list[int]:
        return []

    def step(self, state: list[int], tokens: Any) -> Any:
        state.append(1)
        logits = np.zeros((len(tokens), 1, 10), np.float32)
        logits[1, 0, 4] = self.logit if len(state) == 2 else 1
        return logits

    def reorder(self, state: list[int], rows: Any) -> None:
        pass


def options(**settings: Any) -> GenerationOptions:
    """Four new tokens at most."""
    return GenerationOptions(max_new_tokens=4, **settings)


def random_options(random: np.random.Generator) -> GenerationOptions:
    """A random valid combination without sampling; about half of the settings stay at their default.

    Not drawn: a forced first token that ends the sentence or is one of only two. All results but the first
    then score -1e9, and which of them transformers returns depends on torch.topk's order of equal values.
    """
    settings: dict[str, Callable[[], Any]] = {
        "max_new_tokens": lambda: int(random.integers(2, 18)),
        "eos_token_id": lambda: tuple(random.choice(97, random.integers(1, 9), False).tolist()),
        "pad_token_id": lambda: (0, 5, None)[random.integers(3)],
        "decoder_start_token_id": lambda: int(random.integers(0, 97)),
        "repetition_penalty": lambda: float(random.uniform(0.5, 2.5)),
        "no_repeat_ngram_size": lambda: int(random.integers(1, 4)),
        "min_length": lambda: int(random.integers(0, 3)),
        "min_new_tokens": lambda: int(random.integers(0, 3)),
        "forced_bos_token_id": lambda: int(random.integers(2, 97)),
        "forced_eos_token_id": lambda: int(random.integers(1, 97)),
        "num_beams": lambda: int(random.integers(2, 6)),
        "length_penalty": lambda: float(random.uniform(-2, 3)),
        "early_stopping": lambda: (True, "never")[random.integers(2)],
        "num_return_sequences": lambda: int(random.integers(1, 6)),
    }
    chosen = {name: draw() for name, draw in settings.items() if random.random() < 0.5}
    chosen["num_return_sequences"] = min(chosen.get("num_return_sequences", 1), chosen.get("num_beams", 1))
    ends = chosen.get("eos_token_id", (1,))
    if chosen.get("max_new_tokens") == 2 or chosen.get("forced_bos_token_id") in ends:
        chosen.pop("forced_bos_token_id", None)
    return GenerationOptions(**chosen)


def check_equal(tiny: Any, model: Any, options: GenerationOptions, normalize_logits: bool = False) -> None:
    """Ours against transformers': tokens exactly, scores within 1e-5, and stopping as soon as it does."""
    expected, steps = tiny.expected(options, normalize_logits)
    actual = generate_with_scores(
        model, tiny.input_ids, tiny.attention_mask, options, normalize_logits=normalize_logits
    )
    np.testing.assert_array_equal(actual.sequences, expected.sequences)
    assert actual.sequences.dtype == np.int64
    assert model.steps == steps
    check_close(actual.transition_scores, expected.transition_scores)
    assert (actual.sequences_scores is None) == (options.num_beams == 1)
    if options.num_beams > 1:
        check_close(actual.sequences_scores, expected.sequences_scores)


def check_close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    assert actual.dtype == np.float32
