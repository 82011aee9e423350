"""Which pieces are kept, and the tokenizer of them; on a vocabulary small enough to read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from t5edge.errors import UserError
from t5edge.exporter.checkpoint import vocabulary
from t5edge.exporter.checkpoint.languages import written_in
from t5edge.exporter.checkpoint.vocabulary import Pieces, count

PLAIN = ["▁", "the", "▁the", "▁house", "house", "ß", "t", "h", "e", "o", "u", "s", "дом", *"дом", "家", "1", "!"]
SCORES = {"▁house": -3.0, "▁the": -2.0, "the": -5.0, "house": -5.0, "дом": -4.0, "м": -20.0}
BYTES = ["<0x00>", "<0xE5>"]


def tokenizer(**settings: Any) -> Tokenizer:
    special = ["<pad>", "</s>", "<unk>"]
    vocab = [(name, 0.0) for name in [*special, *BYTES]] + [(name, SCORES.get(name, -9.0)) for name in PLAIN]
    made = Tokenizer(models.Unigram([*vocab, ("▁<extra_id_0>", 0.0)], unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    made.add_special_tokens(special)
    made.add_tokens([AddedToken("<sep>")])
    return made


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Pieces:
    monkeypatch.setattr(vocabulary, "MULTIPLE", 1)
    return Pieces(tokenizer().to_str().encode(), "tiny")


def kept(pieces: Pieces, texts: list[str], floor: int = 1) -> set[str]:
    ids = pieces.kept(count(pieces.ids(texts)), floor, ())
    assert list(ids) == sorted(ids)
    return {pieces.names[index] for index in ids}


ALWAYS = {"<pad>", "</s>", "<unk>", *BYTES, "▁<extra_id_0>", "<sep>", "м"}
"""The last has the lowest score, which the cost of unknown characters follows."""
LATIN = set("ßtheous")


def test_needed_pieces_and_characters_of_the_script(pieces: Pieces) -> None:
    assert kept(pieces, ["the house"]) == ALWAYS | LATIN | {"▁the", "▁house", "▁", "1", "!"}
    assert kept(pieces, ["дом"]) == ALWAYS | set("дом") | {"▁", "дом", "1", "!"}


def test_floor(pieces: Pieces) -> None:
    texts = ["the house", "the дом", "the", "house 家"]
    assert kept(pieces, texts, 3) == ALWAYS | LATIN | {"▁the", "▁", "1", "!"}
    assert "▁house" in kept(pieces, texts, 2)


def test_scripts_alone_keep_every_piece_without_another_script(pieces: Pieces) -> None:
    def of(*scripts: str) -> set[str]:
        return {pieces.names[index] for index in pieces.kept(None, 1, (), written_in(scripts))}

    assert of("Latn") == ALWAYS | LATIN | {"the", "▁the", "house", "▁house", "▁", "1", "!"}
    assert of("Cyrl") == ALWAYS | {"дом", *"дом", "▁", "1", "!"}
    assert of("Cyrl", "Hani") == of("Cyrl") | {"家"}


def test_scripts_beside_texts_are_for_single_characters(pieces: Pieces) -> None:
    counts = count(pieces.ids(["the дом"]))
    found = {pieces.names[index] for index in pieces.kept(counts, 1, (), written_in(["Hani"]))}
    assert found == ALWAYS | {"▁the", "▁", "дом", "家", "1", "!"}


def test_the_number_is_rounded_up_with_the_likeliest(pieces: Pieces, monkeypatch: pytest.MonkeyPatch) -> None:
    few = kept(pieces, ["the"])
    monkeypatch.setattr(vocabulary, "MULTIPLE", len(few) + 2)
    assert kept(pieces, ["the"]) - few == {"▁house", "дом"}
    monkeypatch.setattr(vocabulary, "MULTIPLE", 1000)
    assert kept(pieces, ["the"]) == set(pieces.names.values())


@pytest.mark.parametrize("text", ["the house", "the 日x house!", "<pad> the <sep> house ▁<extra_id_0>", "hosue", ""])
def test_ids_map_one_to_one(pieces: Pieces, text: str) -> None:
    ids = pieces.kept(count(pieces.ids(["the house"])), 1, ())
    made = Tokenizer.from_str(pieces.trimmed(ids).decode())
    whole = pieces.tokenizer.encode(text)
    assert [ids[index] for index in made.encode(text).ids] == whole.ids
    assert made.decode(made.encode(text).ids) == pieces.tokenizer.decode(whole.ids)
    pair = made.encode(text, "the")
    assert [ids[index] for index in pair.ids] == pieces.tokenizer.encode(text, "the").ids
    scores = dict(json.loads(made.to_str())["model"]["vocab"])
    assert scores["▁house"] == -3.0


def test_post_processors_of_other_kinds(pieces: Pieces) -> None:
    made = tokenizer()
    made.post_processor = processors.Sequence(
        [processors.BertProcessing(("</s>", 1), ("<sep>", made.token_to_id("<sep>")))]
    )
    other = Pieces(made.to_str().encode(), "tiny")
    ids = other.kept(count(other.ids(["the house"])), 1, ())
    trimmed = Tokenizer.from_str(other.trimmed(ids).decode())
    assert [ids[index] for index in trimmed.encode("the").ids] == made.encode("the").ids


def test_only_unigram() -> None:
    bpe = Tokenizer(models.BPE({"a": 0}, []))
    with pytest.raises(UserError, match="has a BPE tokenizer, whose pieces are made of each other"):
        Pieces(bpe.to_str().encode(), "tiny")
    with pytest.raises(UserError, match="has no tokenizer to trim"):
        Pieces(None, "tiny")
