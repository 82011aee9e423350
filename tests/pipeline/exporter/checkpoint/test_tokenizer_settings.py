"""What the files beside a tokenizer say of it is in the bundle's tokenizer.json."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from support.tiny_models import save_tiny_model, tiny_models
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.checkpoint.tokenizer_files import tokenizer_json

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    ".",
    "do",
    "n't",
    "you",
    "think",
    "so",
    "?",
    "yes",
    ",",
    "it",
    "is",
    "!",
]
HARD = (
    "",
    "the fox",
    "the \U0001f999 fox",
    "\u4f60\u597d",
    "a {b} ~",
    "caf\u00e9",
    "e\u0301 combining",
    "tab\tand\nline",
    "  many   spaces ",
    "the quick " * 1000,
)


def sentencepiece_model(**settings: Any) -> bytes:
    draw, out = random.Random(0), io.BytesIO()
    lines = [" ".join(draw.choice(WORDS) for _ in range(8)) for _ in range(400)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        vocab_size=400 if settings.get("byte_fallback") else 150,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with 509 ids and no tokenizer."""
    tiny = next(model for model in tiny_models() if model.config["model_type"] == "mt5")
    return save_tiny_model(tiny, tmp_path / "checkpoint", seed=0)


def tokenizer(folder: Path) -> Tokenizer:
    content = tokenizer_json(open_checkpoint(str(folder)))
    assert content is not None
    return Tokenizer.from_str(content.decode())


def settings(folder: Path, **entries: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))


def test_byte_fallback_is_sentencepiece_s_own(folder: Path) -> None:
    proto = sentencepiece_model(byte_fallback=True)
    (folder / "spiece.model").write_bytes(proto)
    settings(folder, tokenizer_class="T5Tokenizer", extra_ids=0)
    ours, truth = tokenizer(folder), sentencepiece.SentencePieceProcessor(model_proto=proto)
    for text in HARD:
        ids = ours.encode(text).ids
        assert ids == [*truth.encode(text), 1], text
        assert ours.decode(ids) == truth.decode(ids[:-1]), text


def test_spaces_before_punctuation_go_where_the_checkpoint_says_so(folder: Path) -> None:
    (folder / "spiece.model").write_bytes(sentencepiece_model())
    settings(folder, tokenizer_class="T5Tokenizer", extra_ids=100, clean_up_tokenization_spaces=True)
    ours, theirs = tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("do n't you think so ? yes , it is !", "the fox . . the dog", "is it ? ?", ""):
        ids = theirs(text).input_ids
        assert ours.encode(text).ids == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_every_model_type_reads_its_sentencepiece_model(tmp_path: Path) -> None:
    """Transformers 5.23's AutoTokenizer does not for UMT5, nor where the class is called MT5Tokenizer."""
    tiny = next(model for model in tiny_models() if model.config["model_type"] == "umt5")
    folder = save_tiny_model(tiny, tmp_path / "umt5", seed=0)
    (folder / "spiece.model").write_bytes(sentencepiece_model())
    settings(folder, tokenizer_class="MT5Tokenizer", extra_ids=0)
    assert tokenizer(folder).encode("the fox").tokens == ["\u2581the", "\u2581fox", "</s>"]


def test_legacy_false_puts_no_space_behind_a_sentinel(folder: Path) -> None:
    (folder / "spiece.model").write_bytes(sentencepiece_model())
    settings(folder, tokenizer_class="T5Tokenizer", extra_ids=100, legacy=False)
    tokens = tokenizer(folder).encode("<extra_id_0>. the  fox <extra_id_1>the dog ").tokens
    assert "".join(tokens) == "<extra_id_0>.\u2581the\u2581fox<extra_id_1>the\u2581dog</s>"
    settings(folder, tokenizer_class="T5Tokenizer", extra_ids=100)
    assert tokenizer(folder).encode("<extra_id_0>. the").tokens[1] == "\u2581."


def word_tokenizer(folder: Path) -> None:
    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", "the", "fox", "and", "dog"])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer_config.json"])
def test_added_tokens_that_tokenizer_json_lacks_are_added(folder: Path, where: str) -> None:
    word_tokenizer(folder)
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    entry = {"content": "<sep>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    decoder = {"7": {**entry, "special": True}} if where == "tokenizer_config.json" else {}
    settings(folder, tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder=decoder, **names)
    (folder / "added_tokens.json").write_text(json.dumps({"<sep>": 7}))
    text = "the fox <sep> dog"
    assert tokenizer(folder).encode(text).ids == [3, 4, 7, 6, 1]
    if decoder:
        assert AutoTokenizer.from_pretrained(folder)(text).input_ids == [3, 4, 7, 6, 1]


def test_an_added_token_behind_a_gap_is_refused(folder: Path) -> None:
    word_tokenizer(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<sep>": 9}))
    with pytest.raises(UserError, match=r"'<sep>' has id 9, and the tokenizer would give it 7"):
        tokenizer_json(open_checkpoint(str(folder)))


def test_byte_level_bpe_is_converted(folder: Path) -> None:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        ["def add(a, b):\n    return a + b\n"] * 30,
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>", "<mask>"],
    )
    bpe.save_model(str(folder))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings(
        folder, tokenizer_class="RobertaTokenizer", mask_token="<mask>", sep_token="</s>", cls_token="<s>", **names
    )
    ours, theirs = tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("def add(a, b):", *HARD):
        assert ours.encode(text).ids == theirs(text).input_ids


def test_a_tokenizer_without_settings_keeps_its_bytes(folder: Path) -> None:
    word_tokenizer(folder)
    assert tokenizer_json(open_checkpoint(str(folder))) == (folder / "tokenizer.json").read_bytes()
