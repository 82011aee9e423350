"""Drafted tokens and refilled rows on real bundles: the tokens of plain search, on every form of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from support.bundles import Workshop
from t5edge.errors import UserError
from t5edge.runtime.generation.pace import Pace
from t5edge.runtime.model import BundleModel, load

TEXTS = [
    "spell 1984",
    "spell de 271828",
    "read one thousand, nine hundred and eighty-four",
    "spell 7",
    "read de zwölf",
] * 3


class Eager(Pace):
    """Drafts as much as there is, whatever it costs."""

    def best(self, rates: Sequence[float], most: Sequence[int], rows: int) -> int:
        return max(most, default=0)


@pytest.fixture(scope="module", params=["fp32", "fp32, growing cache", "int8", "fp16"])
def model(request: pytest.FixtureRequest, demo: Workshop) -> BundleModel:
    precision, _, growing = str(request.param).partition(", ")
    opened = load(demo.bundle(precision), **({"buffers": False} if growing else {}))
    opened.pace = Eager()
    return opened


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eos_token_id": None, "max_new_tokens": 90},
        {"min_new_tokens": 20, "no_repeat_ngram_size": 3},
        {"do_sample": True, "temperature": 1.5, "seed": 11},
    ],
)
def test_tokens_are_those_of_plain_search(
    model: BundleModel, demo: Workshop, rows: int, settings: dict[str, Any]
) -> None:
    ids, mask = model.tokenizer.encode(TEXTS[:rows])
    settings = {"max_new_tokens": 40, **settings}
    expected = model.generate(ids, mask, **settings)
    assert np.array_equal(model.generate(ids, mask, prompt_lookup_num_tokens=5, **settings), expected)
    if "do_sample" not in settings:
        assistant = load(demo.bundle("int4-weight"))
        assert np.array_equal(
            model.generate(ids, mask, assistant=assistant, num_assistant_tokens=4, **settings), expected
        )


@pytest.mark.parametrize("buffers", [True, False])
def test_scores_are_those_of_plain_search_behind_the_end_too(demo: Workshop, buffers: bool) -> None:
    model = load(demo.bundle("fp32"), buffers=buffers)
    model.pace = Eager()
    ids, mask = model.tokenizer.encode(TEXTS[:5])
    expected = model.generate(ids, mask, return_scores=True, max_new_tokens=40)
    found = model.generate(ids, mask, return_scores=True, max_new_tokens=40, prompt_lookup_num_tokens=5)
    assert np.array_equal(found.sequences, expected.sequences)
    assert (found.sequences[:, -1] == 0).any(), "a row that ends before the others"
    np.testing.assert_allclose(found.transition_scores, expected.transition_scores, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "settings", [{}, {"prompt_lookup_num_tokens": 4}, {"no_repeat_ngram_size": 4}, {"num_beams": 2}]
)
def test_a_long_list_is_answered_in_order(model: BundleModel, settings: dict[str, Any]) -> None:
    settings = {"max_new_tokens": 40, **settings}
    expected = [model.generate_text([text], **settings) for text in TEXTS]
    assert list(model.stream_text(iter(TEXTS), batch_size=4, **settings)) == expected


def test_answers_need_no_scores_behind_their_end(demo: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(demo.bundle("fp32"))
    model.pace = Eager()
    expected = model.generate_text(TEXTS, return_scores=True)
    encoded, encode = list[int](), model.step_model.encode

    def counted(ids: np.ndarray, *rest: Any) -> Any:
        encoded.append(len(ids))
        return encode(ids, *rest)

    monkeypatch.setattr(model.step_model, "encode", counted)
    found = model.generate_text(TEXTS, return_scores=True, prompt_lookup_num_tokens=5)
    assert encoded == [len(TEXTS)]
    assert [answer.text for answer in found] == [answer.text for answer in expected]
    for answer, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(answer.token_scores, other.token_scores, atol=1e-4)


def test_several_answers_stay_together(demo: Workshop) -> None:
    model = load(demo.bundle("fp32"))
    settings = {"do_sample": True, "temperature": 3.0, "num_return_sequences": 3, "max_new_tokens": 12}
    found = list(model.stream_text(TEXTS[:5], batch_size=4, **settings))
    assert [len(answers) for answers in found] == [3] * 5
    assert len(set(found[0])) > 1
    again = list(model.stream_text(TEXTS[3:5], batch_size=2, first=3, **settings))
    assert again == found[3:]


def test_a_longer_source_finds_room(demo: Workshop) -> None:
    """The second window's sources are longer than the rows that they take over."""
    model, short, long = load(demo.bundle("fp32")), ["spell 7"] * 34, ["read two thousand, one hundred and eleven"] * 3
    answers = list(model.stream_text(short + long, batch_size=2, max_new_tokens=30))
    assert answers[33:] == [model.generate_text([text], max_new_tokens=30) for text in (short + long)[33:]]


def test_another_vocabulary_is_no_assistant(demo: Workshop, model: BundleModel) -> None:
    other = load(demo.bundle("fp32"))
    other.manifest = load(demo.bundle("fp32")).manifest
    object.__setattr__(other.manifest.architecture, "vocab_size", 99)
    with pytest.raises(UserError, match=r"has 99 ids and .* has 187; it must share the vocabulary"):
        model.generate(np.array([[5, 1]]), assistant=other)


@pytest.mark.parametrize(("given", "message"), [("spell 7", "not one string"), (["spell 7", 5], "text 2 is int")])
def test_what_is_no_list_of_texts_is_refused(model: BundleModel, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        next(model.stream_text(given))


def test_a_batch_has_a_row_at_least(model: BundleModel) -> None:
    with pytest.raises(UserError, match="batch_size must be at least 1, not 0"):
        next(model.stream_text(["spell 7"], batch_size=0))
