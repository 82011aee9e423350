"""The cases of the check ``graphs`` on a model of numpy: its logits say which tokens a row has seen, in order."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from t5edge.exporter.reference.texts import Batch
from t5edge.parity.exact.cases import BEAM_STEPS, BEAMS, LONG_TARGET, Case, decoder_cases, encoder_batches
from t5edge.parity.workload import EFFORTS, Workload

VOCABULARY = 50


@dataclass
class History:
    rows: int
    tokens: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))


class HistoryModel:
    """A step model whose logit at each place is a hash of everything that the row was fed up to there."""

    def encode(self, input_ids: np.ndarray, attention_mask: np.ndarray, copies: int = 1) -> History:
        rows = len(input_ids) * copies
        return History(rows, np.zeros((rows, 0), np.int64))

    def step(self, state: History, tokens: np.ndarray) -> np.ndarray:
        before = state.tokens.shape[1]
        state.tokens = np.concatenate([state.tokens, tokens], axis=1)
        return fingerprints(state.tokens)[:, before:]

    def reorder(self, state: History, rows: np.ndarray) -> None:
        state.tokens = state.tokens[rows]


def fingerprints(tokens: np.ndarray) -> np.ndarray:
    """[rows, length] -> [rows, length, 1]."""
    found = np.zeros(tokens.shape, np.float64)
    for place in range(tokens.shape[1]):
        found[:, place] = (found[:, place - 1] * 31 + tokens[:, place]) % 1e9 if place else tokens[:, 0]
    return found[..., None]


def workload() -> Workload:
    ids = np.arange(12).reshape(3, 4) + 1
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    texts = Batch(ids, mask, np.array([[0, 5, 6, 7, 8]] * 3))
    one = Batch(ids[:1], mask[:1], texts.decoder_input_ids[:1])
    return Workload({"texts": {"texts": texts}, "lengths": {"source 4": one}, "long": {"long": one}}, EFFORTS[0][1])


def test_every_case_asks_the_reference_for_the_paths_that_are_left() -> None:
    cases = decoder_cases(workload(), 0, VOCABULARY)
    assert [sum(case.steps) for case in cases] == [5, 5, LONG_TARGET, sum(BEAM_STEPS)]
    for case in cases:
        found = case.run(HistoryModel())
        np.testing.assert_array_equal(found, fingerprints(case.paths().decoder_input_ids))
        assert len(case.paths().input_ids) == len(found)


def test_beams_change_places_within_their_sentence_and_take_their_padding_along() -> None:
    case = decoder_cases(workload(), 0, VOCABULARY)[-1]
    orders = [np.array(order) for order in case.orders if order]
    assert len(orders) > 3
    assert all((order // BEAMS == np.arange(len(order)) // BEAMS).all() for order in orders)
    assert any((order != np.arange(len(order))).any() for order in orders)
    np.testing.assert_array_equal(
        case.paths().attention_mask, np.repeat(workload().texts.attention_mask, BEAMS, axis=0)
    )


def test_a_case_is_cut_to_a_fixed_capacity() -> None:
    case = decoder_cases(workload(), 0, VOCABULARY)[2]
    cut = case.within(70)
    assert sum(cut.steps) == 70
    assert cut.batch.decoder_input_ids.shape == (1, 70)
    assert case.within(None) is case
    assert case.within(LONG_TARGET) is case
    assert isinstance(cut, Case)


def test_the_encoder_runs_beyond_the_longest_source() -> None:
    batches = encoder_batches(workload())
    assert sorted(batch.input_ids.shape[1] for batch in batches.values()) == [4, 4, 92]
