from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from t5edge.bundle.precision import precision
from t5edge.exporter.reference.protocol import Outputs
from t5edge.parity.hidden import HiddenErrors, compare_hidden, judge_hidden, judge_many
from t5edge.parity.limits import quantized_unit
from t5edge.parity.measures import pool

RANDOM = np.random.default_rng(0)
HIDDEN = RANDOM.normal(size=(3, 5, 8)).astype(np.float32)
SEEN = np.arange(5)[None] < np.array([[5], [2], [1]])
EXACT = Outputs(HIDDEN, {}, np.zeros((3, 0, 0)), RANDOM.normal(size=(3, 4)).astype(np.float32))


def changed(place: tuple[int, ...], value: float) -> Outputs:
    hidden = HIDDEN.copy()
    hidden[place] = value
    return replace(EXACT, hidden=hidden)


def test_padding_does_not_count_and_lengths_do_not_turn() -> None:
    found = compare_hidden(changed((1, 3), np.nan), EXACT, SEEN)
    assert found.positions == 8
    assert found.relative == found.worst("token") == found.worst("pooled") == found.worst("embedding") == 0
    longer = compare_hidden(replace(EXACT, hidden=2 * HIDDEN, embedding=3 * EXACT.embedding), EXACT, SEEN)
    assert longer.relative == pytest.approx(1)
    assert max(longer.worst(of) for of in ("token", "pooled", "embedding")) < 1e-7


def test_a_token_that_points_the_other_way_is_the_worst() -> None:
    found = compare_hidden(replace(EXACT, hidden=np.where(np.arange(5)[:, None] == 4, -HIDDEN, HIDDEN)), EXACT, SEEN)
    assert found.worst("token") == pytest.approx(2), "the only text of five tokens has a fifth"
    assert np.count_nonzero(found.token > 1e-7) == 1
    means = [(HIDDEN[0] * sign).mean(axis=0) for sign in (1, np.array([[1], [1], [1], [1], [-1]]))]
    cosine = float(means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1]))
    assert 1 - found.pooled[0] ** 2 / 2 == pytest.approx(cosine, abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_infinitely_far(bad: float) -> None:
    found = compare_hidden(changed((0, 1, 2), bad), EXACT, SEEN)
    assert found.relative == found.worst("token") == found.worst("pooled") == np.inf
    assert np.isfinite(found.pooled[1:]).all()
    lost = compare_hidden(replace(EXACT, embedding=np.full((3, 4), bad)), EXACT, SEEN)
    assert (lost.embedding == np.inf).all()
    assert (compare_hidden(replace(EXACT, embedding=None), EXACT, SEEN).embedding == np.inf).all()
    row, unit = precision("int8"), quantized_unit(precision("int8").quality)  # type: ignore[arg-type]
    assert {result.verdict for result in judge_hidden("2", found, row, unit)} == {"fail", "pass"}
    assert [result.verdict for result in judge_many("3", lost, row, unit, "texts")] == ["pass", "pass", "fail"]


def test_the_worst_is_judged_of_a_few_texts_and_the_mean_of_many() -> None:
    row = precision("int8")
    assert row.quality is not None
    unit = quantized_unit(row.quality)
    token = np.array([0.0] * 9 + [1.01 * row.quality.token])
    errors = HiddenErrors(np.full(10, 0.01), np.ones(10), token, np.array([0.25, 0.0]), np.zeros(0))
    few = {result.measure: result.verdict for result in judge_hidden("2", errors, row, unit)}
    assert few == {
        "relative error, encoder output": "pass",
        "1 - cosine of encoder output, worst token": "fail",
        "1 - cosine of pooled encoder outputs, worst text": "fail",
    }
    many = list(judge_many("3", errors, row, unit, "judged texts"))
    assert [result.verdict for result in many] == ["pass", "pass"]
    assert many[1].value == pytest.approx(0.25**2 / 4)
    assert many[1].details["worst"] == pytest.approx(0.25**2 / 2)


def test_pooling_keeps_every_token_and_text() -> None:
    half = compare_hidden(EXACT, EXACT, SEEN)
    whole = pool(HiddenErrors, [half, half])
    assert (whole.positions, len(whole.pooled), len(whole.embedding)) == (16, 6, 6)
    assert pool(HiddenErrors, []).positions == 0
