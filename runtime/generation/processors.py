"""Rules that change a row's scores before a token is chosen, in the order transformers applies them.

    repetition penalty -> repeated n-grams -> minimum length -> forced first token -> forced last token
    -> temperature -> top-k -> top-p                                          (the last three: sampling only)

A rule takes the tokens so far, int64 [rows, length], decoder start token first, and the scores, float32
[rows, vocab], which it changes in place: raw logits in greedy search and sampling, log-probabilities in beam
search. It forbids a token by -infinity. Semantics follow transformers 5.23, ``generation/logits_process.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t5edge.errors import UserError
from t5edge.runtime.generation.options import GenerationOptions, as_ids
from t5edge.runtime.generation.scores import kth_largest, softmax
from t5edge.runtime.generation.step import Scores, Tokens

Rule = Callable[[Tokens, Scores], None]

FORBIDDEN = np.float32(-np.inf)


@dataclass(frozen=True)
class RepetitionPenalty:
    """Divide positive, multiply negative scores of tokens seen so far, once each (Keskar et al. 2019)."""

    penalty: float

    def __call__(self, tokens: Tokens, scores: Scores) -> None:
        seen = np.take_along_axis(scores, tokens, axis=1)
        changed = np.where(seen < 0, seen * np.float32(self.penalty), seen / np.float32(self.penalty))
        np.put_along_axis(scores, tokens, changed, axis=1)


@dataclass(frozen=True)
class NoRepeatNgram:
    """Forbid every token that would complete an n-gram of ``size`` tokens the row already contains."""

    size: int

    def __call__(self, tokens: Tokens, scores: Scores) -> None:
        length = tokens.shape[1]
        if length < self.size:
            return
        windows = np.lib.stride_tricks.sliding_window_view(tokens, self.size, axis=1)
        suffix = tokens[:, None, length + 1 - self.size :]
        rows, starts = np.nonzero((windows[..., :-1] == suffix).all(axis=-1))
        scores[rows, tokens[rows, starts + self.size - 1]] = FORBIDDEN


@dataclass(frozen=True)
class MinLength:
    """Forbid the end tokens until ``length`` tokens exist, decoder start token included."""

    length: int
    eos: tuple[int, ...]

    def __call__(self, tokens: Tokens, scores: Scores) -> None:
        if tokens.shape[1] < self.length:
            scores[:, [token for token in self.eos if token < scores.shape[1]]] = FORBIDDEN


@dataclass(frozen=True)
class ForcedTokens:
    """Allow only ``allowed``, with score 0, when the row has exactly ``at_length`` tokens."""

    allowed: tuple[int, ...]
    at_length: int

    def __call__(self, tokens: Tokens, scores: Scores) -> None:
        """Raise ``UserError`` when an allowed id lies outside the vocabulary."""
        if tokens.shape[1] != self.at_length:
            return
        if max(self.allowed) >= scores.shape[1]:
            raise UserError(
                f"generate: forced token id {max(self.allowed)}, the vocabulary has {scores.shape[1]}; "
                f"take forced_bos_token_id and forced_eos_token_id from this model's tokenizer"
            )
        scores[...] = FORBIDDEN
        scores[:, list(self.allowed)] = 0


@dataclass(frozen=True)
class Temperature:
    """Divide all scores: below 1 sharpens, above 1 flattens."""

    value: float

    def __call__(self, tokens: Tokens, scores: Scores) -> None:
        np.divide(scores, np.float32(self.value), out=scores)


@dataclass(frozen=True)
class TopK:
    """Forbid all but the ``k`` best tokens; tokens equal to the k-th stay (Fan et al. 2018)."""

    k: int

    def __call__(self, tokens: Tokens, scores: Scores) -> None:
        k = min(self.k, scores.shape[1])
        for row in scores:
            np.putmask(row, row < kth_largest(row, k), FORBIDDEN)


@dataclass(frozen=True)
class TopP:
    """Keep the fewest best tokens that reach probability ``p``, at least ``keep`` (Holtzman et al. 2020)."""

    p: float
    keep: int

    def __call__(self, tokens: Tokens, scores: Scores) -> None:
        for row in scores:
            allowed = np.flatnonzero(row > FORBIDDEN)
            if allowed.size > self.keep:
                row[allowed[self._tail(row[allowed])]] = FORBIDDEN

    def _tail(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Positions in ``values`` float32 [n] whose summed probability, worst first, stays within 1 - p.

        Tokens too unlikely to matter even if all n were alike go without being sorted. The sum runs in
        float64 and is compared in float32, as torch's CPU cumsum does. Of equal tokens the lower position
        stays (transformers leaves that to torch.sort).
        """
        probabilities = softmax(values)
        unlikely = probabilities < np.float32(0.5 * (1 - self.p) / values.size)
        if values.size - int(unlikely.sum()) < self.keep:
            unlikely[:] = False
        likely = np.flatnonzero(~unlikely)[::-1]
        likely = likely[np.argsort(values[likely], kind="stable")]
        rest = probabilities[unlikely].sum(dtype=np.float64)
        cumulative = (rest + np.cumsum(probabilities[likely], dtype=np.float64)).astype(np.float32)
        removed = cumulative <= np.float32(1 - self.p)
        removed[-self.keep :] = False
        return np.concatenate((np.flatnonzero(unlikely), likely[removed]))


def build_rules(options: GenerationOptions) -> tuple[Rule, ...]:
    """Every rule the options switch on, in order; empty for plain greedy and beam search."""
    rules: list[Rule] = []
    if options.repetition_penalty != 1.0:
        rules.append(RepetitionPenalty(options.repetition_penalty))
    if options.no_repeat_ngram_size > 0:
        rules.append(NoRepeatNgram(options.no_repeat_ngram_size))
    if options.eos and options.shortest_length > 1:
        rules.append(MinLength(options.shortest_length, options.eos))
    if options.forced_bos_token_id is not None:
        rules.append(ForcedTokens((options.forced_bos_token_id,), at_length=1))
    if options.forced_eos_token_id is not None:
        rules.append(ForcedTokens(as_ids(options.forced_eos_token_id), at_length=options.total_length - 1))
    return (*rules, *_build_filters(options)) if options.do_sample else tuple(rules)


def _build_filters(options: GenerationOptions) -> tuple[Rule, ...]:
    """Sampling filters. With beams, one token more than there are end tokens stays: a beam can go on."""
    keep = 1 if options.num_beams == 1 else (len(options.eos) or 1) + 1
    filters: list[Rule] = []
    if options.temperature != 1.0:
        filters.append(Temperature(options.temperature))
    if options.top_k > 0:
        filters.append(TopK(max(options.top_k, keep)))
    if options.top_p < 1.0:
        filters.append(TopP(options.top_p, keep))
    return tuple(filters)
