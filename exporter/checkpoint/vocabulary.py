"""Which pieces of a Unigram vocabulary a corpus needs, and the tokenizer that has only those.

Kept are the pieces that the corpus is made of, every special token, sentinel and byte, and all single characters of
the corpus's scripts, so that text beyond the corpus is spelled in smaller pieces and not lost. Unigram takes the best
way to cut a text by the sum of its pieces' scores: where every piece of that way is kept, it stays the best way, and
the ids map one to one. What an unknown character costs depends on the lowest score there is, so the piece with it is
kept too.

Where languages are named, their scripts take the place of the corpus's; without a corpus every piece is kept that has
no character of another script.

The number of pieces is rounded up with the most frequent, then the likeliest, of the others: matrix products want it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t5edge.bundle.records import VocabularyFacts
from t5edge.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ALWAYS = re.compile(r"▁?<extra_id_\d+>|<0x[0-9A-Fa-f]{2}>")
"""Sentinels, which mT5 has as plain pieces, and bytes."""
MULTIPLE = 64
"""Rows of a GPU kernel's tile. With rows in eights a CPU's products are the same to the last bit, few or many."""
TEXTS_AT_A_TIME = 1024


@dataclass(frozen=True)
class Vocabulary:
    """A part of a checkpoint's vocabulary: ``kept[new id]`` is the old id; and the tokenizer.json for it."""

    kept: tuple[int, ...]
    tokenizer: bytes
    facts: VocabularyFacts | None = None


class Pieces:
    """A whole Unigram tokenizer and what may be left out of it."""

    def __init__(self, content: bytes | None, source: str) -> None:
        """``content``: the bytes of a tokenizer.json.

        Raises:
            UserError: there is none, or it is of another kind.
        """
        from tokenizers import Tokenizer

        if content is None:
            raise UserError(f"'{source}' has no tokenizer to trim; leave out --vocabulary and --languages.")
        self.tokenizer: Tokenizer = Tokenizer.from_str(content.decode())
        self.description: dict[str, Any] = json.loads(self.tokenizer.to_str())
        kind = self.description["model"]["type"]
        if kind != "Unigram":
            raise UserError(
                f"'{source}' has a {kind} tokenizer, whose pieces are made of each other; --vocabulary and --languages "
                "trim Unigram vocabularies (T5, mT5, UMT5). Leave them out."
            )
        vocab, added = self.description["model"]["vocab"], self.description["added_tokens"]
        self.names = {index: name for index, (name, _) in enumerate(vocab)}
        self.names |= {entry["id"]: entry["content"] for entry in added}
        self._scores = {index: score for index, (_, score) in enumerate(vocab)}
        special = {index for index, name in self.names.items() if ALWAYS.fullmatch(name)}
        unknown = self.description["model"].get("unk_id")
        lowest = min(self._scores, key=lambda index: self._scores[index])
        self.always = {entry["id"] for entry in added} | special | {lowest}
        self.always |= {unknown} if unknown is not None else set()

    def ids(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The ids of each text."""
        return encoded(self.tokenizer, texts)

    def kept(
        self,
        counts: Mapping[int, int] | None,
        floor: int,
        needed: Collection[int],
        written: Callable[[str], bool] | None = None,
    ) -> tuple[int, ...]:
        """The ids to keep, ascending: see the module.

        ``counts``: how often each occurs, None without a corpus; ``needed``: others to keep; ``written``: whether a
        text is in the scripts of the languages that were named.
        """
        alone, counts = counts is None, counts or {}
        frequent = {index for index, count in counts.items() if count >= floor}
        written = written or _same_script(set("".join(self.names[index] for index in frequent - self.always)))
        spelled = {index for index, name in self.names.items() if (alone or len(name) == 1) and written(name)}
        kept = self.always | frequent | spelled | (set(needed) & self.names.keys())
        others = sorted(
            self.names.keys() - kept, key=lambda index: (-counts.get(index, 0), -self._scores.get(index, 0.0), index)
        )
        return tuple(sorted(kept | set(others[: -len(kept) % MULTIPLE])))

    def trimmed(self, kept: Sequence[int]) -> bytes:
        """The tokenizer.json with these ids only, numbered from 0.

        Raises:
            UserError: the tokenizer would number them otherwise.
        """
        from tokenizers import Tokenizer

        new = {old: index for index, old in enumerate(kept)}
        model = self.description["model"]
        vocab = [entry for index, entry in enumerate(model["vocab"]) if index in new]
        described = {
            **self.description,
            "model": {**model, "vocab": vocab, "unk_id": new.get(model.get("unk_id"))},
            "added_tokens": [{**entry, "id": new[entry["id"]]} for entry in self.description["added_tokens"]],
            "post_processor": _renumbered(self.description["post_processor"], new),
        }
        content = json.dumps(described, ensure_ascii=False).encode()
        if Tokenizer.from_str(content.decode()).get_vocab() != {self.names[old]: index for old, index in new.items()}:
            raise UserError(
                "this tokenizer's added tokens cannot be renumbered; leave out --vocabulary and --languages."
            )
        return content


def encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
    """The ids of each text, some texts at a time."""
    waiting: list[str] = []
    for text in texts:
        waiting.append(text)
        if len(waiting) == TEXTS_AT_A_TIME:
            yield from (encoding.ids for encoding in tokenizer.encode_batch(waiting))
            waiting.clear()
    yield from (encoding.ids for encoding in tokenizer.encode_batch(waiting))


def count(rows: Iterable[Sequence[int]]) -> Counter[int]:
    """How often each id occurs."""
    counts: Counter[int] = Counter()
    for row in rows:
        counts.update(row)
    return counts


def _same_script(characters: Iterable[str]) -> Callable[[str], bool]:
    """Whether a character is of a script that one of ``characters`` is of, as the tokenizers package has scripts."""
    from tokenizers.pre_tokenizers import UnicodeScripts

    split = UnicodeScripts().pre_tokenize_str
    ones: dict[str, None] = {}

    def known(character: str) -> bool:
        return any(len(split(one + character)) == 1 for one in ones)

    for character in characters:
        if not character.isspace() and not known(character):
            ones.setdefault(character)
    return known


def _renumbered(part: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with its tokens' ids replaced: lists of ``ids``, and pairs of a token and its id."""
    if isinstance(part, dict):
        return {
            key: [new[index] for index in value] if key == "ids" else _renumbered(value, new)
            for key, value in part.items()
        }
    if isinstance(part, list):
        if len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int):
            return [part[0], new[part[1]]]
        return [_renumbered(entry, new) for entry in part]
    return part
