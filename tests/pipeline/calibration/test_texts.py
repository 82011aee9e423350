from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import t5edge
from support.quantized_models import Model
from t5edge.bundle.ports import Limits
from t5edge.calibration.texts import COUNT, GATE, calibration_texts, choose_examples, examples_from
from t5edge.errors import UserError
from t5edge.exporter.reference.texts import MAX_TOKENS, Example
from t5edge.progress import Silent


class Listener(Silent):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def message(self, text: str) -> None:
        self.heard.append(text)


def one_line(error: UserError) -> str:
    assert "\n" not in str(error)
    return str(error)


def export(tmp_path: Path, **settings) -> None:  # type: ignore[no-untyped-def]
    t5edge.export("t5-demo", "int8", out=tmp_path / "out" / "bundle", target=("onnxruntime",), **settings)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        ("grüße".encode("latin-1"), "is not UTF-8"),
        ((b"spell 1 " * 6000) + b"\n", "is too long"),
    ],
)
def test_a_bad_file_is_one_line_and_nothing_is_left(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        export(tmp_path, calibration=file)
    one_line(caught.value)
    assert not list((tmp_path / "out").glob("*"))
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("texts", [[], [3], [("only one",)]])
def test_bad_texts_from_python_are_refused(texts) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="calibration"):
        examples_from(texts)


def test_python_takes_texts_pairs_and_examples(demo: Model) -> None:
    found = examples_from(iter(["spell 5", ("spell 6", "six"), Example("spell 7", "seven")]))
    assert [example.target for example in found] == ["spell 5", "six", "seven"]
    assert choose_examples(demo.checkpoint, found, Silent()) == (list(found), "given in Python")


def test_the_demo_has_prompts_of_its_own_and_others_are_warned(demo: Model, plain: Model) -> None:
    listener = Listener()
    own, origin = choose_examples(demo.checkpoint, None, listener)
    assert len(own) == 256
    assert "calibration.jsonl" in origin
    assert not listener.heard
    choose_examples(plain.checkpoint, None, listener)
    assert "--calibration FILE" in listener.heard[0]


def test_a_seeded_draw_of_many_texts_and_the_extremes(demo: Model) -> None:
    limits = Limits()
    examples, _ = choose_examples(demo.checkpoint, None, Silent())
    first, second = (calibration_texts(demo.checkpoint, examples, limits, "") for _ in range(2))
    assert first.count == COUNT
    assert sum(len(batch.input_ids) for batch in first.batches) == COUNT + 2
    lengths = [int(batch.attention_mask.sum(axis=1).min()) for batch in first.batches]
    assert min(lengths) == 1, "a bare end token"
    assert max(batch.input_ids.shape[1] for batch in first.batches) == limits.max_source_length
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(first.batches, second.batches, strict=True))


def test_long_texts_are_cut_to_the_bundles_limits_and_end(plain: Model) -> None:
    limits = Limits(max_source_length=40, max_target_length=9)
    examples = [Example("word " * (MAX_TOKENS // 2), "word " * 30), Example("a b c", "d e")]
    texts = calibration_texts(plain.checkpoint, examples, limits, "")
    longest = max(texts.batches, key=lambda batch: batch.input_ids.size)
    assert longest.input_ids.shape[1] == 40
    assert longest.input_ids[0, -1] == plain.checkpoint.architecture.eos_token_id
    assert max(batch.decoder_input_ids.shape[1] for batch in texts.batches) == 9
    assert texts.gate.input_ids.shape[1] <= GATE.source
