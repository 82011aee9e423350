from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from support.bundles import Workshop
from support.exports import GATED, RELU, Exports, checks
from t5edge.bundle.manifest import Manifest
from t5edge.exporter.reference.whole import WholeReference
from t5edge.parity.generation import (
    Pair,
    _choices,
    _cut,
    _judge_beams,
    _judge_greedy,
    _logits_behind,
    _margin,
    _pairs,
    _preference,
    _unstable_rows,
    generation,
    task,
)
from t5edge.parity.ladder import open_subject
from t5edge.parity.subject import Opener, Subject
from t5edge.progress import Silent

SETTINGS = {"max_new_tokens": 12, "do_sample": False, "num_return_sequences": 1}


@pytest.fixture(scope="module")
def subject(exports: Exports) -> Subject:
    return exports.subject(GATED, "fp32", "7")


def whole(subject: Subject) -> WholeReference:
    assert subject.whole is not None
    return subject.whole


def theirs(subject: Subject, beams: int = 1) -> list[Pair]:
    prompts = subject.workload.prompts
    tokens = whole(subject).generate(prompts.input_ids, prompts.attention_mask, num_beams=beams, **SETTINGS)
    return _pairs(subject, tokens, tokens)


def test_the_first_difference_may_be_the_end() -> None:
    assert Pair(0, [0, 5, 1], [0, 5, 1]).first_difference is None
    assert Pair(0, [0, 5, 6], [0, 5, 7]).first_difference == 2
    assert Pair(0, [0, 5], [0, 5, 7]).first_difference == 2


def test_rows_end_behind_the_end_token_even_where_they_start_with_it() -> None:
    assert _cut([1, 5, 1, 0, 0], {1}) == [1, 5, 1]
    assert _cut([0, 5, 6], {1}) == [0, 5, 6]


@pytest.mark.parametrize("tiny", [GATED, RELU])
def test_a_good_bundle_generates_the_same_tokens(exports: Exports, tiny: str) -> None:
    results = list(generation(exports.subject(tiny, "fp32", "7"), "7 generation"))
    measures = ["greedy tokens equal", "beam-4 hypotheses equal"]
    forms = ["", ", cache in buffers"]
    assert [result.measure for result in results] == [measure + form for measure in measures for form in forms]
    assert {result.verdict for result in results} == {"pass"}


def test_noise_of_no_width_changes_no_hypothesis_and_much_does(subject: Subject) -> None:
    pairs, settings = theirs(subject, 4), {"num_beams": 4, **SETTINGS}
    assert _unstable_rows(subject, pairs, settings, 0.0) == set()
    assert _unstable_rows(subject, pairs, settings, 100.0) == {pair.row for pair in pairs}


def test_one_block_at_a_time_judges_greedy_search_by_the_bundles_own_tokens(exports: Exports) -> None:
    subject = exports.subject(GATED, "fp32", "7", mapped=True)
    assert subject.whole is None
    *greedy, beams = generation(subject, "7 generation")
    assert [found.measure for found in greedy] == ["greedy tokens equal", "greedy tokens equal, cache in buffers"]
    assert {(found.verdict, found.details["ties"]) for found in greedy} == {("pass", 0)}
    assert beams.verdict == ("not run: search by 4 beams needs PyTorch token by token, with the whole model in memory")


def test_the_choices_of_the_streamed_reference_are_those_of_generate(exports: Exports, subject: Subject) -> None:
    """Whatever the bundle chose: equal up to and with the first difference."""
    streamed = exports.subject(GATED, "fp32", "7", mapped=True)
    expected = theirs(subject)
    tokens = np.array([pair.theirs + [0] * (13 - len(pair.theirs)) for pair in expected])
    tokens[1, 5] += 1
    found = _pairs(streamed, tokens, _choices(streamed, tokens, {"num_beams": 1, **SETTINGS}))
    for pair, known in zip(found, expected, strict=True):
        place = pair.first_difference
        assert (
            pair.theirs[: None if place is None else place + 1] == known.theirs[: None if place is None else place + 1]
        )
    assert found[1].first_difference == 5


def test_another_token_is_a_fault_unless_the_margin_explains_it(subject: Subject) -> None:
    pair = theirs(subject)[0]
    place = 4
    order = np.argsort(_logits_behind(subject, [(0, pair.theirs[:place])])[0][-1])[::-1]
    assert order[0] == pair.theirs[place]
    second = Pair(0, [*pair.theirs[:place], int(order[1]), 5, 6], pair.theirs)
    gap = _preference(subject, second, place)
    assert gap > 0
    found = _judge_greedy(subject, "7 generation", [second], {})
    assert found.verdict == "fail"
    assert found.details["wrong_margins"] == [pytest.approx(gap)]

    known = subject.precision
    lenient = replace(known, max_relative_error=1.01 * gap * (known.max_relative_error or 0) / _margin(subject))
    found = _judge_greedy(replace(subject, precision=lenient), "7 generation", [second], {})
    assert (found.verdict, found.details["ties"]) == ("pass", 1)


def test_a_worse_hypothesis_is_a_fault_and_an_equally_good_one_a_tie(subject: Subject) -> None:
    settings = {"num_beams": 4, **SETTINGS}
    pairs = theirs(subject, 4)
    worse = Pair(0, [*pairs[0].theirs[:3], *[7] * 9], pairs[0].theirs)
    found = _judge_beams(subject, "7 generation", [worse, *pairs[1:]], settings)
    assert found.verdict == "fail"
    assert found.value == pytest.approx(1 - 1 / len(pairs))
    lenient = replace(subject, precision=replace(subject.precision, max_relative_error=1.0))
    found = _judge_beams(lenient, "7 generation", [worse, *pairs[1:]], settings)
    assert (found.verdict, found.details["ties"]) == ("pass", 1)


def test_a_setting_that_the_runtime_lacks_fails(subject: Subject) -> None:
    manifest = replace(subject.model.manifest, generation={**subject.generation, "bad_words_ids": [[5]]})
    model = type(subject.model)(subject.model.folder, manifest, subject.model.step_model)
    (result,) = generation(replace(subject, model=model), "7 generation")
    assert result.verdict == "fail"
    assert result.measure.startswith("generate: the generation config sets bad_words_ids")


def test_a_checkpoint_without_a_task_has_none_to_fail(subject: Subject) -> None:
    (result,) = task(subject, "8 task")
    assert result.verdict == "not applicable: the checkpoint has no task (heldout.jsonl)"


def test_the_demo_loses_nothing_of_its_task(demo: Workshop) -> None:
    chosen = checks("8")
    folder = demo.bundle("fp16", "concat")
    opener = Opener(folder, Manifest.read(folder), "onnxruntime")
    found = open_subject(opener, demo.checkpoint, Silent(), demo.blocks(), chosen)
    (result,) = task(found, "8 task")
    assert result.verdict == "pass"
    assert result.details["examples"] == 200
    assert result.details["pytorch"] > 90.0
