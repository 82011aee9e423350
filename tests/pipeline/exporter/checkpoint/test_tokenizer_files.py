"""One tokenizer.json per family, equal to what transformers would tokenize."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge.errors import UserError
from t5edge.exporter.checkpoint import tokenizer_files
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.checkpoint.tokenizer_files import byte_tokenizer_json, tokenizer_json
from t5edge.exporter.family.variants import DEMO_FOLDER

TEXTS = (
    "",
    "plain text, 1984.",
    "  spaces around  ",
    "naïve façade, Straße, e\u0301",
    "Здравствуй, мир! Ελληνικά Ђ",
    "日本語のテキスト 中文 한국어",
    "नमस्ते مرحبا שלום",
    "👩‍👩‍👧 😀 \x00\t\n\xa0",
    "<extra_id_0> a <extra_id_1> b <extra_id_124>",
    "<extra_id_125> is text, <pad> and <unk> are not",
    "Ġ Ā: characters of the byte alphabet itself",
)


@pytest.fixture
def byt5_folder(tmp_path: Path) -> Path:
    return save_tiny_model(find_tiny_model("byt5-tiny"), tmp_path / "byt5", seed=0)


def with_demo_tokenizer(folder: Path, **changes: object) -> Checkpoint:
    content = json.loads((DEMO_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**content, **changes}), encoding="utf-8")
    return open_checkpoint(str(folder))


def refusal(checkpoint: Checkpoint) -> str:
    with pytest.raises(UserError) as caught:
        tokenizer_json(checkpoint)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_file_of_the_checkpoint_is_taken_over_unchanged() -> None:
    assert tokenizer_json(open_checkpoint("t5-demo")) == (DEMO_FOLDER / "tokenizer.json").read_bytes()


def test_truncation_and_padding_of_training_are_left_out(byt5_folder: Path) -> None:
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    checkpoint = with_demo_tokenizer(byt5_folder, truncation=truncation)
    saved = Tokenizer.from_file(str(checkpoint.tokenizer_file()))
    content = tokenizer_json(checkpoint)
    assert content is not None
    ours = Tokenizer.from_str(content.decode())
    demo = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json"))
    text = "spell de 123456"
    assert len(saved.encode(text).ids) == 4
    assert ours.encode(text).ids == demo.encode(text).ids


def test_random_weights_have_none() -> None:
    assert tokenizer_json(open_checkpoint("byt5-small", random_weights=0)) is None


def test_folder_without_any_has_none(tmp_path: Path) -> None:
    folder = save_tiny_model(find_tiny_model("v1.1-tiny"), tmp_path, seed=0)
    assert tokenizer_json(open_checkpoint(str(folder))) is None


def test_byte_tokenizer_equals_transformers() -> None:
    from transformers import ByT5Tokenizer

    theirs, ours = ByT5Tokenizer(), Tokenizer.from_str(byte_tokenizer_json().decode())
    assert ours.get_vocab_size() == len(theirs) == 384
    for text in TEXTS:
        ids = ours.encode(text).ids
        assert ids == theirs(text).input_ids, text
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip), text


def test_byte_tokenizer_drops_what_a_cut_answer_leaves() -> None:
    tokenizer = Tokenizer.from_str(byte_tokenizer_json().decode())
    ids = tokenizer.encode("日本").ids
    assert ids[:3] == [byte + 3 for byte in "日".encode()]
    assert tokenizer.decode(ids[:5]) == "日"
    assert tokenizer.encode("a", "b").ids == [100, 1, 101, 1]


def test_byt5_is_known_by_its_vocabulary_or_its_tokenizer_class(byt5_folder: Path, tmp_path: Path) -> None:
    assert tokenizer_json(open_checkpoint(str(byt5_folder))) == byte_tokenizer_json()
    (byt5_folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    assert tokenizer_json(open_checkpoint(str(byt5_folder))) is None
    other = save_tiny_model(find_tiny_model("mt5-tiny"), tmp_path / "other", seed=0)
    (other / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer", "extra_ids": 125}')
    assert tokenizer_json(open_checkpoint(str(other))) == byte_tokenizer_json()


def test_tokenizer_larger_than_the_model(tmp_path: Path) -> None:
    folder = save_tiny_model(find_tiny_model("efficient-kv256-tiny"), tmp_path, seed=0)
    largest = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json")).get_vocab_size() - 1
    assert refusal(with_demo_tokenizer(folder)) == (
        f"{folder}: the tokenizer knows ids up to {largest}, the model's embedding ends at 96. "
        "Use the tokenizer that the model was trained with."
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json is not a JSON object"),
        ("tokenizer.json", "{}", "tokenizer.json cannot be loaded"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json is not a JSON object"),
    ],
)
def test_damaged_files(byt5_folder: Path, name: str, content: str, message: str) -> None:
    (byt5_folder / name).write_text(content)
    assert message in refusal(open_checkpoint(str(byt5_folder)))


def test_sentencepiece_without_its_package(byt5_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (byt5_folder / "spiece.model").write_bytes(b"anything")
    monkeypatch.setattr(
        tokenizer_files, "CONVERTERS", {"sentencepiece": "no_such.module", "protobuf": "google.protobuf"}
    )
    assert refusal(open_checkpoint(str(byt5_folder))) == (
        f"{byt5_folder} has a SentencePiece tokenizer; converting it needs 'pip install sentencepiece'. "
        "Or put a tokenizer.json beside it."
    )


def test_damaged_sentencepiece(byt5_folder: Path) -> None:
    pytest.importorskip("sentencepiece")
    (byt5_folder / "spiece.model").write_bytes(b"\x00not a model")
    assert "transformers cannot convert its SentencePiece tokenizer" in refusal(open_checkpoint(str(byt5_folder)))


def test_sentencepiece_is_converted(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        input=str(DEMO_FOLDER / "calibration.txt"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=200,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder = save_tiny_model(find_tiny_model("mt5-tiny"), tmp_path / "byt5", seed=0)
    shutil.copy(tmp_path / "spiece.model", folder)
    content = tokenizer_json(open_checkpoint(str(folder)))
    assert content is not None
    ours = Tokenizer.from_str(content.decode())
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    lines = (DEMO_FOLDER / "calibration.txt").read_text(encoding="utf-8").splitlines()[:40]
    for text in [*lines, "\uff21 \ufb01  two  spaces", "ß 日本"]:
        assert ours.encode(text).ids == [*theirs.encode(text), 1], text
