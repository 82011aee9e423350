"""Who drafts tokens for the model to check: a lookup in the texts, or a smaller model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from t5edge.errors import UserError
from t5edge.runtime.generation.lookup import DEFAULT_NGRAM, Lookup
from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.pace import FIRST_RATE, NO_REASON, Acceptance, Pace
from t5edge.runtime.generation.processors import Rule, build_rules
from t5edge.runtime.generation.scores import draw_tokens, softmax
from t5edge.runtime.generation.step import DraftModel, Scores, Tokens


@dataclass(frozen=True)
class Draft:
    """Attributes:
    tokens: int64 [rows, n], what may come next.
    counts: int64 [rows], how many of them count; 0 for rows that have ended.
    probabilities: float32 [rows, n, vocab] that the tokens were drawn from; None if nothing was drawn.
    """

    tokens: Tokens
    counts: Tokens
    probabilities: Scores | None = None


@lru_cache
def no_draft(rows: int) -> Draft:
    """No tokens for any row."""
    return Draft(np.zeros((rows, 0), np.int64), np.zeros(rows, np.int64))


RESUMED, COLD = "resumed", "cold"
"""Kinds of drafts without a match: behind a draft that was right in part, and else."""


class Drafter(Protocol):
    """Drafts for the rows of one ``generate`` call."""

    def draft(self, output: Tokens, lengths: Tokens, most: Tokens) -> Draft:
        """``output`` int64 [rows, longest]: the first ``lengths`` tokens of every row are there; ``most`` [rows]."""
        ...

    def learn(self, accepted: Tokens, counts: Tokens, seconds: float) -> None:
        """Of the last draft ``accepted`` of ``counts`` tokens, [rows], were right; the pass took ``seconds``."""
        ...

    def pass_by(self, rows: int, seconds: float) -> None:
        """A pass of ``rows`` rows without drafted tokens took ``seconds``."""
        ...


@dataclass
class Drafting:
    """What a ``generate`` call may draft with: ``pace`` is the model's; ``assistant`` a ``StepModel``, if any.

    ``padding_scores``: whether anybody reads the scores of what follows a row's end; that takes passes of its own.
    """

    pace: Pace
    assistant: Any = None
    padding_scores: bool = True

    def drafter(
        self, model: object, input_ids: Tokens, attention_mask: Tokens, options: GenerationOptions
    ) -> Drafter | None:
        """The drafter that ``options`` ask for; None in plain search.

        Raises:
            UserError: beams, an assistant and a lookup at once, or a backend that cannot forget drafted tokens.
        """
        if self.assistant is None and not options.prompt_lookup_num_tokens:
            return None
        if self.assistant is not None and options.prompt_lookup_num_tokens:
            raise UserError("generate: an assistant and prompt_lookup_num_tokens both draft; give one of them.")
        if options.num_beams > 1:
            raise UserError(f"generate: beams take no drafted tokens; set num_beams=1, not {options.num_beams}.")
        if not isinstance(model, DraftModel):
            raise UserError("generate: this backend takes no drafted tokens; use target onnxruntime.")
        if self.assistant is None:
            sources = [ids[seen != 0].tolist() for ids, seen in zip(input_ids, attention_mask, strict=True)]
            return LookupDrafter([ids for ids in sources for _ in range(options.copies)], options, self.pace)
        return AssistantDrafter(self.assistant, input_ids, attention_mask, options, self.pace)


class LookupDrafter:
    """Prompt lookup: a ``Lookup`` per row.

    Acceptance is counted by the length of the match. A draft without a match goes on in the source: right behind a copy
    that is another thing than out of nowhere.
    """

    def __init__(self, sources: Sequence[Sequence[int]], options: GenerationOptions, pace: Pace) -> None:
        """``sources``: every row's ids, without padding."""
        self.options, self.pace = options, pace
        self.longest = options.max_matching_ngram_size or DEFAULT_NGRAM
        self.rows = [Lookup(ids, self.longest) for ids in sources]
        self.seen = [1] * len(self.rows)  # the decoder's start token is no text
        self.copying = [False] * len(self.rows)
        self.kinds: list[Acceptance | None] = []

    def restart(self, row: int, source: Sequence[int]) -> None:
        """Another source for a row, and no output yet."""
        self.rows[row], self.seen[row], self.copying[row] = Lookup(source, self.longest), 1, False

    def take(self, rows: Tokens) -> None:
        """Go on with these rows alone."""
        self.rows, self.seen = [self.rows[row] for row in rows], [self.seen[row] for row in rows]
        self.copying = [self.copying[row] for row in rows]

    def draft(self, output: Tokens, lengths: Tokens, most: Tokens) -> Draft:
        """See ``Drafter``."""
        found: list[list[int]] = []
        self.kinds = []
        for row, lookup in enumerate(self.rows):
            lookup.extend(output[row, self.seen[row] : lengths[row]].tolist())
            self.seen[row] = int(lengths[row])
            limit = min(self.options.prompt_lookup_num_tokens or 0, int(most[row]))
            tokens, size = lookup.draft(limit) if limit > 0 else ([], 0)
            found.append(tokens)
            kind = size or (RESUMED if self.copying[row] else COLD)
            self.kinds.append(self.pace.kind(kind, NO_REASON if kind is COLD else FIRST_RATE) if tokens else None)
        return self._worth(found)

    def learn(self, accepted: Tokens, counts: Tokens, seconds: float) -> None:
        """See ``Drafter``."""
        self.pace.cost(len(counts)).saw(1 + int(counts.max()), seconds)
        for row, kind in enumerate(self.kinds):
            if kind is not None:
                kind.fade()
                kind.saw(int(accepted[row]), int(counts[row]))
            if counts[row]:
                self.copying[row] = bool(accepted[row])

    def pass_by(self, rows: int, seconds: float) -> None:
        """See ``Drafter``."""
        self.pace.cost(rows).saw(1, seconds)
        for kind in self.kinds:
            if kind is not None:
                kind.fade()

    def _worth(self, found: list[list[int]]) -> Draft:
        """As much of what was found as pays."""
        slope = self.pace.cost(len(found)).slope
        if not any(kind is not None and kind.rate > slope for kind in self.kinds):
            return no_draft(len(found))
        sizes = [len(tokens) for tokens in found]
        best = self.pace.best([1.0 if kind is None else kind.rate for kind in self.kinds], sizes, len(found))
        if not best:
            return no_draft(len(found))
        counts = np.minimum(np.array(sizes, np.int64), best)
        tokens = np.zeros((len(found), int(counts.max())), np.int64)
        for row, count in enumerate(counts):
            tokens[row, :count] = found[row][:count]
        return Draft(tokens, counts)


class AssistantDrafter:
    """A smaller model of the same vocabulary drafts, by the options of the model that it drafts for."""

    def __init__(
        self, model: Any, input_ids: Tokens, attention_mask: Tokens, options: GenerationOptions, pace: Pace
    ) -> None:
        """``model``: a ``StepModel`` and ``DraftModel``."""
        self.model, self.options, self.pace = model, options, pace
        self.source, self.state = (input_ids, attention_mask), None
        self.cached = np.zeros(len(input_ids) * options.copies, np.int64)
        self.rules: tuple[Rule, ...] = build_rules(options)
        self.random = np.random.default_rng(None if options.seed is None else [options.seed, 1])

    def draft(self, output: Tokens, lengths: Tokens, most: Tokens) -> Draft:
        """See ``Drafter``; drafts of a row end with its end token."""
        least = np.minimum(most, self.options.num_assistant_tokens)
        longest = self.pace.best([self.pace.kind("assistant").rate] * len(lengths), least.tolist(), len(lengths))
        if not longest:
            return no_draft(len(lengths))
        if self.state is None:  # where no draft pays, not even the source is encoded
            self.state = self.model.encode(*self.source, self.options.copies)
        counts, started = np.minimum(least, longest), time.perf_counter()
        text = np.concatenate((output, np.zeros((len(output), longest), np.int64)), axis=1)
        going, drawn, made = counts > 0, list[Scores](), 0
        while made < longest and going.any():
            logits = self._advance(text, lengths + made)
            tokens, probabilities = self._choose(text, lengths + made, logits)
            text[np.arange(len(text)), lengths + made] = tokens
            drawn += [] if probabilities is None else [probabilities]
            made += 1
            counts[going & np.isin(tokens, self.options.eos)] = made
            going &= counts > made
        if made:
            self.pace.draft_seconds += 0.2 * ((time.perf_counter() - started) / made - self.pace.draft_seconds)
        counts = np.minimum(counts, made)
        places = lengths[:, None] + np.arange(made)
        tokens = np.take_along_axis(text, places, axis=1)
        return Draft(tokens, counts, np.stack(drawn, axis=1) if drawn else None)

    def learn(self, accepted: Tokens, counts: Tokens, seconds: float) -> None:
        """See ``Drafter``."""
        self.pace.cost(len(counts)).saw(1 + int(counts.max(initial=0)), seconds)
        kind = self.pace.kind("assistant")
        kind.fade()
        for right, drafted in zip(accepted, counts, strict=True):
            if drafted:
                kind.saw(int(right), int(drafted))

    def pass_by(self, rows: int, seconds: float) -> None:
        """See ``Drafter``."""
        self.pace.cost(rows).saw(1, seconds)
        self.pace.kind("assistant").fade()

    def _advance(self, text: Tokens, lengths: Tokens) -> Scores:
        """Logits [rows, vocab] behind the first ``lengths`` tokens of ``text``; what the cache holds of them stays."""
        held = np.minimum(self.cached, lengths - 1)
        if not self.model.rows_differ:
            held[:] = held.min()
        self.model.keep(self.state, held)
        missing = lengths - held
        places = held[:, None] + np.arange(int(missing.max()))
        fed = np.take_along_axis(text, np.minimum(places, lengths[:, None] - 1), axis=1)
        logits = self.model.step(self.state, np.ascontiguousarray(fed))[np.arange(len(text)), missing - 1]
        self.cached = lengths.copy()
        return logits

    def _choose(self, text: Tokens, lengths: Tokens, logits: Scores) -> tuple[Tokens, Scores | None]:
        """The assistant's next tokens [rows]; when sampling also what they are drawn from, [rows, vocab]."""
        scores = logits.copy()
        for row, length in enumerate(lengths):
            for rule in self.rules:
                rule(text[row : row + 1, :length], scores[row : row + 1])
        if not self.options.do_sample:
            return scores.argmax(axis=-1), None
        return draw_tokens(scores, self.random), softmax(scores)
