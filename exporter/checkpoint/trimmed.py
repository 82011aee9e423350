"""A checkpoint with a part of its vocabulary: rows of the embedding and of the output layer are left out when read.

    with_vocabulary(checkpoint, choose_vocabulary(checkpoint, Wanted("texts.txt")))

Rows keep their order, and the ids of config and generation settings follow. A logit of a kept piece is the product of
the same row, so it is the same; probabilities are shared among fewer pieces.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.files import sha256_of
from t5edge.bundle.records import VocabularyFacts
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.checkpoint import Checkpoint, read_json
from t5edge.exporter.checkpoint.languages import scripts_of, written_in
from t5edge.exporter.checkpoint.names import OUTPUT_LAYER, SHARED
from t5edge.exporter.checkpoint.stores import StoredTensor
from t5edge.exporter.checkpoint.tokenizer_files import tokenizer_json
from t5edge.exporter.checkpoint.vocabulary import Pieces, Vocabulary, count, encoded
from t5edge.exporter.reference.texts import bundled_examples, judged_examples, read_examples

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

HELD_OUT = 10
"""Every so many texts one is held out."""
LISTS_OF_IDS = ("suppress_tokens", "begin_suppress_tokens")
NOT_RENUMBERED = ("constraints", "force_words_ids", "forced_decoder_ids", "sequence_bias")


@dataclass(frozen=True)
class Wanted:
    """What a vocabulary is to be kept for.

    Attributes:
        corpus: a file of texts, one a line, or JSONL with source and target; None where languages alone decide.
        floor: occurrences in it that a piece needs.
        languages: tags of those whose scripts decide, of a corpus which single characters are kept besides.
    """

    corpus: str | None
    floor: int = 1
    languages: tuple[str, ...] = ()

    @property
    def spelled(self) -> str:
        """The flags."""
        return " and ".join(["--vocabulary"] * bool(self.corpus) + ["--languages"] * bool(self.languages))


def choose_vocabulary(checkpoint: Checkpoint, wanted: Wanted) -> Vocabulary:
    """The part of the vocabulary that a corpus or some languages need.

    What it keeps of new text is measured on every tenth text with the pieces of the others; then all texts count.

    Raises:
        UserError: no Unigram tokenizer, a file that cannot be read, an unknown language, or nothing to leave out.
    """
    pieces = Pieces(tokenizer_json(checkpoint), checkpoint.source)
    needed = {*_token_ids(checkpoint.config), *_token_ids(checkpoint.generation_config), *_ids_of(checkpoint).values()}
    foreign = sorted(set(_ids_of(checkpoint).values()) - pieces.names.keys())
    if foreign:
        raise UserError(f"config.json names the id {foreign[0]}, which is no token of the tokenizer; mend it first.")
    languages = _languages_of(wanted, pieces)
    scripts = tuple(sorted({script for scripts in languages.values() for script in scripts}))
    choose = partial(pieces.kept, floor=wanted.floor, needed=needed, written=written_in(scripts) if scripts else None)
    texts = _texts(wanted)
    counts, held_out, same = _counted(pieces, texts, choose) if wanted.corpus else (None, 0, 0)
    kept, before = choose(counts), checkpoint.architecture
    if len(kept) >= before.vocab_size:
        raise UserError(f"all of '{checkpoint.source}'s vocabulary is needed; leave out {wanted.spelled}.")
    content = pieces.trimmed(kept)
    _require_same_ids(pieces, content, kept, texts)
    facts = VocabularyFacts(
        Path(wanted.corpus).name if wanted.corpus else None,
        sha256_of(Path(wanted.corpus)) if wanted.corpus else None,
        wanted.floor,
        before.vocab_size,
        len(kept),
        before.parameters,
        replace(before, vocab_size=len(kept)).parameters,
        held_out,
        same,
        tuple(languages),
        scripts,
    )
    return Vocabulary(kept, content, facts)


def _texts(wanted: Wanted) -> list[str]:
    """Sources and targets; a target that repeats its source counts once. Without a corpus those of the package."""
    examples = read_examples(wanted.corpus) if wanted.corpus else [*bundled_examples(), *judged_examples()]
    return [text for example in examples for text in dict.fromkeys((example.source, example.target))]


def _counted(
    pieces: Pieces, texts: Sequence[str], choose: Callable[[Counter[int]], tuple[int, ...]]
) -> tuple[Counter[int], int, int]:
    """How often each piece occurs; texts held out, and how many of them need no pieces but those of the others."""
    held_out, others = texts[HELD_OUT - 1 :: HELD_OUT], [text for n, text in enumerate(texts, 1) if n % HELD_OUT]
    counts = count(pieces.ids(others))
    known = set(choose(counts))
    rows = [*pieces.ids(held_out)]
    return counts + count(rows), len(held_out), sum(known.issuperset(row) for row in rows)


def _languages_of(wanted: Wanted, pieces: Pieces) -> dict[str, tuple[str, ...]]:
    """The scripts of each language.

    Raises:
        UserError: unknown languages, or those of whose scripts the tokenizer has no character.
    """
    found = scripts_of(wanted.languages) if wanted.languages else {}
    for language, scripts in found.items():
        own = written_in(scripts, common=False)
        if not any(own(name) for name in pieces.names.values() if len(name) == 1):
            raise UserError(
                f"the tokenizer has no character of {' or '.join(scripts)}, which '{language}' is written in."
            )
    return found


def _require_same_ids(pieces: Pieces, content: bytes, kept: Sequence[int], texts: Sequence[str]) -> None:
    """Raises: UserError where a text whose pieces are all kept is cut otherwise than before."""
    from tokenizers import Tokenizer

    trimmed: Tokenizer = Tokenizer.from_str(content.decode())
    new = {old: index for index, old in enumerate(kept)}
    for text, row, found in zip(texts, pieces.ids(texts), encoded(trimmed, texts), strict=True):
        if new.keys() >= set(row) and [new[old] for old in row] != found:
            raise UserError(
                f"the trimmed tokenizer cuts {text[:40]!a} otherwise; leave out --vocabulary and --languages."
            )


def stored_vocabulary(checkpoint: Checkpoint, path: Path) -> Vocabulary:
    """The part of ``checkpoint``'s vocabulary that a bundle's ``vocabulary.json`` lists.

    Raises:
        UserError: the file is damaged, or of another vocabulary.
    """
    kept = read_json(path).get("kept")
    rows = checkpoint.architecture.vocab_size
    if not (isinstance(kept, list) and kept and all(type(old) is int and 0 <= old < rows for old in kept)):
        raise UserError(f"'{path}' is no list of kept ids of '{checkpoint.source}'; export the bundle again.")
    pieces = Pieces(tokenizer_json(checkpoint), checkpoint.source)
    if kept != sorted(pieces.names.keys() & set(kept)) or not pieces.always <= set(kept):
        raise UserError(f"'{path}' lists ids of another tokenizer than '{checkpoint.source}' has.")
    return Vocabulary(tuple(kept), pieces.trimmed(kept))


class TrimmedTensors:
    """The tensors of a checkpoint under their canonical names, with only the kept rows of the vocabulary."""

    def __init__(self, base: Checkpoint, kept: Sequence[int]) -> None:
        self._base, self._kept = base, kept
        self.tensors = {name: StoredTensor(self._shape(name), base.dtype(name)) for name in base.names()}

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self._base.shape(name)
        return (len(self._kept), *shape[1:]) if name in (SHARED, OUTPUT_LAYER) else shape

    def read(self, name: str) -> torch.Tensor:
        """[out, in] on the CPU in its stored dtype."""
        import torch

        weight = self._base.read(name)
        return weight[torch.tensor(self._kept)] if name in (SHARED, OUTPUT_LAYER) else weight

    def fingerprint(self) -> Any:
        return [self._base.content_key(), hashlib.sha256(json.dumps(self._kept).encode()).hexdigest()]


def with_vocabulary(checkpoint: Checkpoint, vocabulary: Vocabulary) -> Checkpoint:
    """``checkpoint`` with a part of its vocabulary.

    Raises:
        UserError: a generation setting names ids in a way that is not known here.
    """
    new = {old: index for index, old in enumerate(vocabulary.kept)}
    config = {**_renumbered(checkpoint.config, new), "vocab_size": len(new)}
    ids: dict[str, Any] = {name: new[old] for name, old in _ids_of(checkpoint).items()}
    architecture = replace(checkpoint.architecture, vocab_size=len(new), **ids)
    return checkpoint.derived(
        TrimmedTensors(checkpoint, vocabulary.kept),
        architecture,
        config=config,
        generation_config=_renumbered(checkpoint.generation_config, new),
        vocabulary=vocabulary,
        prompts=tuple(prompt.moved(len(new) - checkpoint.architecture.vocab_size) for prompt in checkpoint.prompts),
        differences=[*checkpoint.differences, *_summary(vocabulary.facts)],
    )


def _summary(facts: VocabularyFacts | None) -> Iterator[str]:
    """For the user to read."""
    if facts is None:
        return
    if facts.languages:
        yield f"vocabulary: {', '.join(facts.languages)}: characters of {', '.join(facts.scripts)}"
    yield (
        f"vocabulary: {facts.rows} of {facts.rows_before} rows kept; "
        f"{facts.parameters / 1e6:.1f} M of {facts.parameters_before / 1e6:.1f} M parameters"
    )
    if facts.held_out_texts:
        share = facts.held_out_same / facts.held_out_texts
        yield f"vocabulary: {share:.1%} of {facts.held_out_texts} held-out texts give the same ids as before"


def _ids_of(checkpoint: Checkpoint) -> dict[str, int]:
    """The ids among the architecture's facts."""
    names = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
    return {name: getattr(checkpoint.architecture, name) for name in names}


def _token_ids(settings: Mapping[str, Any]) -> Iterator[int]:
    """The ids of start, end, padding and the like."""
    for key, value in settings.items():
        if key.endswith("token_id"):
            yield from (index for index in _listed(value) if type(index) is int)


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [value]


def _renumbered(settings: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """Settings with the new ids; ids that are no rows any more are left out of lists of unwanted ones.

    Raises:
        UserError: a setting that names ids in another way.
    """
    found = dict(settings)
    wrong = [key for key in NOT_RENUMBERED if settings.get(key)]
    if wrong:
        raise UserError(f"the setting {wrong[0]} names token ids, which --vocabulary does not follow; remove it.")
    for key, value in settings.items():
        if key.endswith("token_id") and value is not None:
            found[key] = [new[old] for old in value if old in new] if isinstance(value, list) else new.get(value)
        elif key in LISTS_OF_IDS and value is not None:
            found[key] = [new[old] for old in value if old in new]
        elif key == "bad_words_ids" and value is not None:
            found[key] = [[new[old] for old in word] for word in value if all(old in new for old in word)]
    return found
