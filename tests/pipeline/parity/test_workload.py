from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from support.exports import GATED, Exports
from t5edge.bundle.ports import Limits
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.reference.texts import judged_examples, target_mask
from t5edge.parity.judged_texts import judged_texts
from t5edge.parity.workload import bucket_edges, build_workload, effort, padded_left, rows_of

DEMO = open_checkpoint("t5-demo")


def test_lengths_are_exact_and_stand_at_the_bucket_edges() -> None:
    work = build_workload(DEMO, Limits())
    shapes = {name: batch.input_ids.shape for name, batch in work.groups["lengths"].items()}
    assert shapes == {f"source {n}": (1, n) for n in (1, 7, 8, 15, 16, 127, 128, 129, 512)}
    assert work.groups["long"]["long target"].decoder_input_ids.shape == (1, 140)


def test_every_length_ends_with_the_end_token_and_none_is_padding() -> None:
    for batch in build_workload(DEMO, Limits()).groups["lengths"].values():
        assert batch.input_ids[0, -1] == DEMO.architecture.eos_token_id
        assert batch.attention_mask.all()
        assert (batch.decoder_input_ids[:, 0] == DEMO.architecture.decoder_start_token_id).all()


def test_edges_follow_the_buckets() -> None:
    assert bucket_edges(DEMO.architecture) == (1, 7, 8, 15, 16, 127, 128, 129)
    other = replace(DEMO.architecture, num_buckets=8, max_distance=20)
    assert bucket_edges(other) == (1, 2, 3, 4, 19, 20, 21)


def test_nothing_is_longer_than_the_limits() -> None:
    work = build_workload(DEMO, Limits(max_source_length=12, max_target_length=9))
    for batch in work.batches(("texts", "lengths", "long")).values():
        assert batch.input_ids.shape[1] <= 12
        assert batch.decoder_input_ids.shape[1] <= 9
    assert list(work.groups["lengths"])[-1] == "source 12"


def test_t5_demo_is_asked_its_own_prompts_and_others_plain_sentences(exports: Exports) -> None:
    assert judged_texts(DEMO)[0][0].source.startswith(("spell", "read"))
    assert judged_texts(exports.checkpoint(GATED)) == (judged_examples(), "bundled texts")


def test_texts_mix_lengths_and_prompts_are_their_first_rows() -> None:
    work = build_workload(DEMO, Limits())
    lengths = work.texts.attention_mask.sum(axis=1)
    assert len(lengths) == work.effort.rows
    assert lengths.max() > 2 * lengths.min()
    prompts = work.prompts
    assert len(set(prompts.attention_mask.sum(axis=1))) > 1
    assert prompts.attention_mask.sum(axis=0).min() > 0
    np.testing.assert_array_equal(
        prompts.input_ids, work.texts.input_ids[: len(prompts.input_ids), : prompts.input_ids.shape[1]]
    )


def test_larger_models_are_checked_on_fewer_rows() -> None:
    amounts = [effort(parameters) for parameters in (800_000, 60_000_000, 11_000_000_000)]
    for field in ("rows", "target", "generated_rows", "generated"):
        values = [getattr(entry, field) for entry in amounts]
        assert values == sorted(values, reverse=True)


def test_padding_moves_to_the_left_and_text_keeps_its_order() -> None:
    batch = build_workload(DEMO, Limits()).prompts
    left = padded_left(batch)
    for row, mask in enumerate(left.attention_mask):
        assert list(mask) == sorted(mask)
        text = batch.input_ids[row][batch.attention_mask[row] == 1]
        np.testing.assert_array_equal(left.input_ids[row][mask == 1], text)


def test_a_row_alone_has_no_padding() -> None:
    batch = build_workload(DEMO, Limits()).texts
    for row in range(3):
        assert rows_of(batch, slice(row, row + 1)).attention_mask.all()


@pytest.mark.parametrize("pad", [0, 9])
def test_the_start_token_counts_as_text_even_where_it_is_the_padding_id(pad: int) -> None:
    ids = np.array([[0, 5, 6, pad], [0, 5, pad, pad]])
    np.testing.assert_array_equal(target_mask(ids, pad), [[True, True, True, False], [True, True, False, False]])
