"""A part of the vocabulary: the same ids, the same logits to the last bit, the same texts, a fraction of the size."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import t5edge
from support.exports import Exports, checks
from support.shared import once, shared_folder
from support.tiny_models import find_tiny_model, save_tiny_model
from support.unigram import ALPHABETS, ROWS, save_checkpoint, sentences
from t5edge.bundle.files import sha256_of
from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.exporter.checkpoint import vocabulary
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.checkpoint.tokenizer_files import tokenizer_json
from t5edge.exporter.checkpoint.trimmed import Wanted
from t5edge.exporter.reference.whole import build_torch_model
from t5edge.parity.ladder import verify
from t5edge.runtime.model import BundleModel

TEXTS = sentences("latin", 300, seed=1, words=200)
NEW = [*sentences("latin", 40, seed=2, words=200), "<extra_id_0> 日 <extra_id_99>", ""]


@dataclass
class Trimmed:
    """A checkpoint, its corpus, and bundles of both the whole and the trimmed vocabulary."""

    checkpoint: Path
    corpus: Path
    whole_bundle: Path
    bundle: Path

    def open(self) -> Checkpoint:
        return open_checkpoint(str(self.checkpoint), vocabulary=Wanted(str(self.corpus)))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(shared_folder(tmp_path_factory, "unigram") / "mt5", save_checkpoint)


@pytest.fixture(scope="module")
def made(checkpoint: Path, exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Trimmed:
    root = tmp_path_factory.mktemp("trimmed")
    corpus = root / "texts.txt"
    corpus.write_text("\n".join(TEXTS), encoding="utf-8")
    whole = exports.export(str(checkpoint), "fp32", root / "whole", no_verify=True)
    part = exports.export(str(checkpoint), "fp32", root / "part", no_verify=True, vocabulary=corpus)
    return Trimmed(checkpoint, corpus, whole, part)


@pytest.fixture(scope="module")
def kept(made: Trimmed) -> list[int]:
    return json.loads((made.bundle / "vocabulary.json").read_text())["kept"]


@pytest.fixture(scope="module")
def texts(made: Trimmed, kept: list[int]) -> list[str]:
    """New texts whose pieces are all kept, long and short."""
    rows = ids_of(open_checkpoint(str(made.checkpoint)), NEW)
    found = [text for text, row in zip(NEW, rows, strict=True) if set(row) <= set(kept)]
    assert len(found) >= 20
    return found[-8:]


def ids_of(checkpoint: Checkpoint, texts: list[str]) -> list[list[int]]:
    content = tokenizer_json(checkpoint)
    assert content is not None
    return [encoding.ids for encoding in Tokenizer.from_str(content.decode()).encode_batch(texts)]


def test_ids_map_one_to_one(made: Trimmed, kept: list[int], texts: list[str]) -> None:
    whole = ids_of(open_checkpoint(str(made.checkpoint)), TEXTS + texts)
    part = ids_of(made.open(), TEXTS + texts)
    assert all(set(row) <= set(kept) for row in whole)
    assert [[kept[token] for token in row] for row in part] == whole
    other = sentences("greek", 3)  # a script that the corpus has not: bytes, and nothing is lost
    trimmed = Tokenizer.from_file(str(made.bundle / "tokenizer.json"))
    assert [trimmed.decode(row) for row in ids_of(made.open(), other)] == other


def batch(model: BundleModel, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids, mask = model.tokenizer.encode(texts)
    return ids, mask, np.concatenate([np.zeros_like(ids[:, :1]), ids[:, :-1]], axis=1)


def torch_logits(checkpoint: Checkpoint, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    with torch.inference_mode():
        given = {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}
        return build_torch_model(checkpoint, torch.float32)(**given).logits.numpy()


def test_logits_of_kept_pieces_are_equal_to_the_last_bit(made: Trimmed, kept: list[int], texts: list[str]) -> None:
    whole, part = t5edge.load(made.whole_bundle), t5edge.load(made.bundle)
    before, after = batch(whole, texts), batch(part, texts)
    torch_before = torch_logits(open_checkpoint(str(made.checkpoint)), before)
    assert torch_before.shape[-1] == ROWS
    assert np.array_equal(torch_before[..., kept], torch_logits(made.open(), after))
    assert np.array_equal(whole.logits(*before)[..., kept], part.logits(*after))
    assert np.array_equal(whole.logits_uncached(*before)[..., kept], part.logits_uncached(*after))


def test_the_same_texts_are_generated(made: Trimmed, kept: list[int], texts: list[str]) -> None:
    """The whole model is kept from the pieces that are gone: with random weights they would be the likeliest."""
    whole, part = t5edge.load(made.whole_bundle), t5edge.load(made.bundle)
    model = build_torch_model(open_checkpoint(str(made.checkpoint)), torch.float32)
    without = {"suppress_tokens": sorted(set(range(ROWS)) - set(kept)), "renormalize_logits": True}
    ids, mask = (torch.from_numpy(array) for array in whole.tokenizer.encode(texts))
    for beams in (1, 3):
        found = model.generate(ids, attention_mask=mask, max_new_tokens=12, num_beams=beams, **without)
        answers = part.generate_text(texts, max_new_tokens=12, num_beams=beams)
        assert answers == whole.tokenizer.decode(found.numpy())
        assert len(set(answers)) > 2


def test_size_and_facts(made: Trimmed, kept: list[int]) -> None:
    whole, part = Manifest.read(made.whole_bundle), Manifest.read(made.bundle)
    assert part.stored_bytes <= 0.3 * whole.stored_bytes
    facts = part.vocabulary
    assert facts is not None
    assert (facts.corpus, facts.sha256, facts.floor) == ("texts.txt", sha256_of(made.corpus), 1)
    assert (facts.rows_before, facts.rows) == (ROWS, len(kept)) == (ROWS, part.architecture.vocab_size)
    assert facts.rows % 64 == 0
    assert (facts.parameters_before, facts.parameters) == (whole.architecture.parameters, part.architecture.parameters)
    assert facts.held_out_texts == 30
    assert 25 <= facts.held_out_same <= 30
    assert json.loads((made.bundle / "config.json").read_text())["vocab_size"] == len(kept)
    assert whole.vocabulary is None


def test_a_bundle_is_verified_without_its_corpus(made: Trimmed, kept: list[int]) -> None:
    text = made.corpus.read_text(encoding="utf-8")
    made.corpus.unlink()
    try:
        report = verify(made.bundle, checks=checks("2 encoder", "3 logits", "9 text"))
    finally:
        made.corpus.write_text(text, encoding="utf-8")
    assert report.passed
    assert not report.facts["checkpoint_touched"]


@pytest.fixture(scope="module")
def of_languages(made: Trimmed, exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for Greek and Cyrillic, without any texts."""
    out = tmp_path_factory.mktemp("languages") / "bundle"
    return exports.export(str(made.checkpoint), "fp32", out, no_verify=True, languages=("el", "ru"))


def test_languages_alone_keep_the_pieces_of_their_scripts(made: Trimmed, of_languages: Path) -> None:
    whole, part = t5edge.load(made.whole_bundle), t5edge.load(of_languages)
    facts = part.manifest.vocabulary
    assert facts is not None
    assert (facts.languages, facts.scripts) == (("el", "ru"), ("Cyrl", "Grek"))
    assert (facts.corpus, facts.sha256, facts.held_out_texts) == (None, None, 0)
    assert facts.rows < 0.6 * ROWS
    kept = json.loads((of_languages / "vocabulary.json").read_text())["kept"]
    texts = [*sentences("greek", 20), *sentences("cyrillic", 20), "12 + 7 = <extra_id_3>?"]
    before, after = whole.tokenizer.ids(texts), part.tokenizer.ids(texts)
    assert [[kept[token] for token in row] for row in after] == before
    short = texts[-4:]
    assert np.array_equal(whole.logits(*batch(whole, short))[..., kept], part.logits(*batch(part, short)))
    (latin,) = sentences("latin", 1)
    assert part.tokenizer.text(part.tokenizer.ids([latin])[0]) == latin, "bytes"
    assert len(part.tokenizer.ids([latin])[0]) > 2 * len(whole.tokenizer.ids([latin])[0])


def test_languages_beside_texts_say_which_single_characters_are_kept(
    made: Trimmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A floor that letters which texts are hardly spelled in do not reach."""
    monkeypatch.setattr(vocabulary, "MULTIPLE", 1)
    found = {}
    for languages in ((), ("el",), ("el", "de")):
        wanted = Wanted(str(made.corpus), floor=100, languages=languages)
        chosen = open_checkpoint(str(made.checkpoint), vocabulary=wanted).vocabulary
        assert chosen is not None
        found[languages] = set(Tokenizer.from_str(chosen.tokenizer.decode()).get_vocab())
    latin, greek = found[()] - found["el",], found["el",] - found[()]
    assert latin
    assert latin <= set(ALPHABETS["latin"])
    assert greek == set(ALPHABETS["greek"])
    assert found["el", "de"] == found[()] | greek


@pytest.mark.parametrize(
    ("languages", "said"),
    [
        (("jp",), "'jp' is no known language, did you mean 'ja'"),
        (("th",), "the tokenizer has no character of Thai, which 'th' is written in"),
    ],
)
def test_languages_that_cannot_be_kept(made: Trimmed, languages: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_checkpoint(str(made.checkpoint), vocabulary=Wanted(None, languages=languages))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int8-weight", "int4-weight"])
def test_every_precision_and_layout(made: Trimmed, exports: Exports, tmp_path: Path, precision: str) -> None:
    layout = "t5edge" if precision == "bf16" else "optimum"
    options = {"vocabulary": str(made.corpus), "calibration": str(made.corpus), "layout": layout}
    bundle = exports.export(str(made.checkpoint), precision, tmp_path / "bundle", **options)
    assert Manifest.read(bundle).passed


def refusal(variant: Path | str, corpus: Path, floor: int = 1) -> str:
    with pytest.raises(UserError) as caught:
        open_checkpoint(str(variant), vocabulary=Wanted(str(corpus), floor))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_trimmed(made: Trimmed, tmp_path: Path) -> None:
    assert "'t5-demo' has a BPE tokenizer, whose pieces are made of each other" in refusal("t5-demo", made.corpus)
    byt5 = save_tiny_model(find_tiny_model("byt5-tiny"), tmp_path / "byt5", seed=0)
    assert "has a BPE tokenizer" in refusal(byt5, made.corpus)
    bare = save_tiny_model(find_tiny_model("t5-tiny"), tmp_path / "bare", seed=0)
    assert "has no tokenizer to trim; leave out --vocabulary" in refusal(bare, made.corpus)
    assert "cannot be read" in refusal(made.checkpoint, tmp_path / "nothing.txt")


@pytest.fixture
def with_settings(made: Trimmed, tmp_path: Path) -> Callable[..., Path]:
    """The checkpoint with a generation_config.json."""

    def make(**settings: object) -> Path:
        for file in made.checkpoint.iterdir():
            (tmp_path / file.name).unlink(missing_ok=True)
            (tmp_path / file.name).symlink_to(file)
        (tmp_path / "generation_config.json").write_text(json.dumps(settings))
        return tmp_path

    return make


def test_generation_settings_follow(made: Trimmed, with_settings: Callable[..., Path]) -> None:
    plain = open_checkpoint(str(made.checkpoint))
    used = ids_of(plain, TEXTS[:1])[0][0]
    unused = next(iter(set(range(400, ROWS)) - set(made.open().vocabulary.kept)))  # type: ignore[union-attr]
    forced = 7001
    folder = with_settings(
        forced_bos_token_id=forced,
        eos_token_id=[1, used],
        suppress_tokens=[used, unused],
        bad_words_ids=[[used], [used, unused]],
        num_beams=2,
    )
    found = open_checkpoint(str(folder), vocabulary=Wanted(str(made.corpus)))
    assert found.vocabulary is not None
    new = found.vocabulary.kept.index
    assert found.generation_config == {
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": [1, new(used)],
        "forced_bos_token_id": new(forced),
        "suppress_tokens": [new(used)],
        "bad_words_ids": [[new(used)]],
        "num_beams": 2,
    }
    assert "the setting sequence_bias names token ids" in refusal(
        with_settings(sequence_bias=[[[5], 1.0]]), made.corpus
    )


def test_the_list_of_another_vocabulary(made: Trimmed, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    for content, said in (
        ({"kept": [0, ROWS]}, "is no list of kept ids of"),
        ({"kept": "all"}, "is no list of kept ids of"),
        ({"kept": [1, 0]}, "lists ids of another tokenizer"),
        ({"kept": [0, 1, 2]}, "lists ids of another tokenizer"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=said):
            open_checkpoint(str(made.checkpoint), vocabulary=path)


def test_the_content_key_says_what_was_kept(made: Trimmed, tmp_path: Path) -> None:
    keys = {open_checkpoint(str(made.checkpoint)).content_key(), made.open().content_key()}
    (tmp_path / "other.txt").write_text("\n".join(sentences("greek", 50)), encoding="utf-8")
    keys.add(open_checkpoint(str(made.checkpoint), vocabulary=Wanted(str(tmp_path / "other.txt"))).content_key())
    assert len(keys) == 3
    stored = open_checkpoint(str(made.checkpoint), vocabulary=made.bundle / "vocabulary.json")
    assert stored.content_key() == made.open().content_key()
