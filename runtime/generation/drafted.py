"""Greedy search and sampling where one pass checks several drafted tokens: what plain search gives, in fewer passes.

    pass    : the newest token and the drafted ones -> logits behind each
    check   : the token is chosen behind each as ever; the first one that is not the drafted one ends the row's pass
    keep    : the cache is cut to what was chosen

Tokens are those of plain search with the same seed, given equal logits. Where the draft was itself drawn (an assistant
that samples), a token is accepted with probability min(1, p / q) and else drawn from what p has more than q: then the
distribution is that of plain sampling, the draws are others.

Rows go on by unlike numbers of tokens where the model can (``DraftModel.rows_differ``), else by the fewest of any row.

Source: Leviathan et al. 2023 and Chen et al. 2023, "Accelerating Large Language Model Decoding with Speculative
Sampling" (the rule of acceptance).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t5edge.runtime.generation.drafts import Draft, Drafter
from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.processors import build_rules
from t5edge.runtime.generation.scores import (
    Generated,
    Pick,
    check_logits,
    invert_draws,
    softmax,
)
from t5edge.runtime.generation.step import Scores, Tokens

OnToken = Callable[[int, Tokens], None]
DRAWN_AHEAD = 64
"""Steps whose random numbers are drawn at once."""

WIDTH = 8
"""Tokens of a row that a pass of ``score_padding`` feeds."""


class DraftedSearch:
    """``rows`` rows under way.

    Attributes:
        output: int64 [rows, total length], the padding id behind the first ``lengths`` tokens of a row.
        lengths: int64 [rows], decoder start token included.
        running: bool [rows], neither at an end token nor at the longest length.
    """

    def __init__(self, model: Any, state: Any, rows: int, options: GenerationOptions, drafter: Drafter) -> None:
        """``model``: a ``StepModel`` and ``DraftModel``; ``state`` is its own, nothing stepped yet."""
        self.model, self.state, self.options, self.drafter = model, state, options, drafter
        self.output = np.full((rows, options.total_length), options.pad, np.int64)
        self.output[:, 0] = options.decoder_start_token_id
        self.transitions = np.zeros(self.output.shape, np.float32)
        self.lengths, self.running = np.ones(rows, np.int64), np.ones(rows, bool)
        self.rules = build_rules(options)
        self.random = np.random.default_rng(options.seed)
        self.uniforms = np.zeros((0, rows))

    def run(self, on_token: OnToken | None = None, pick: Pick | None = None) -> Generated:
        """Advance until all rows have ended."""
        told = 1
        while self.running.any():
            self.advance(pick)
            done = int(self.lengths[self.running].min() if self.running.any() else self.lengths.max())
            for place in range(told, done if on_token else told):
                assert on_token is not None
                on_token(place - 1, self.output[:, place].copy())
            told = max(told, done)
        longest = int(self.lengths.max())
        return Generated(self.output[:, :longest], self.transitions[:, 1:longest])

    def advance(self, pick: Pick | None = None) -> None:
        """One pass of the model; every running row gets a token at least."""
        most = (self.options.total_length - 1 - self.lengths) * self.running
        draft = self.drafter.draft(self.output, self.lengths, most)
        fed = self.output[np.arange(len(self.output)), self.lengths - 1][:, None]
        if draft.tokens.size:
            draft = self._alike(draft)
            fed = np.concatenate((fed, draft.tokens), axis=1)
        started = time.perf_counter()
        logits = self.model.step(self.state, fed)
        seconds = time.perf_counter() - started
        if not draft.tokens.size:
            everyone = bool(self.running.all())
            self._append(np.flatnonzero(self.running), logits[:, 0], draft, 0, pick)
            self.drafter.pass_by(len(fed), seconds)
            if not everyone:  # else the cache holds what was fed, and all of that stays
                self._keep()
            return
        self.drafter.learn(self._check(draft, logits, pick), draft.counts, seconds)
        self._keep()

    def _alike(self, draft: Draft) -> Draft:
        """Where rows go on together, drafts of one length."""
        if self.model.rows_differ:
            return draft
        count = int(draft.counts[self.running].min())
        drawn = draft.probabilities
        return Draft(
            draft.tokens[:, :count], np.minimum(draft.counts, count), None if drawn is None else drawn[:, :count]
        )

    def _check(self, draft: Draft, logits: Scores, pick: Pick | None) -> Tokens:
        """Choose behind the newest token of each running row, and behind each drafted one while they are right.

        Returns how many drafted ones were right, int64 [rows].
        """
        going, accepted = self.running.copy(), np.zeros_like(draft.counts)
        for place in range(logits.shape[1]):
            rows = np.flatnonzero(going)
            chosen, ended = self._append(rows, logits[:, place], draft, place, pick)
            if place >= draft.tokens.shape[1]:
                break
            right = (place < draft.counts[rows]) & (chosen == draft.tokens[rows, place])
            accepted[rows] += right
            going[rows] = right & ~ended
            if not going.any() or not (self.model.rows_differ or going[self.running].all()):
                break
        return accepted

    def _append(
        self, rows: Tokens, logits: Scores, draft: Draft, place: int, pick: Pick | None
    ) -> tuple[Tokens, NDArray[np.bool_]]:
        """Give ``rows`` the token behind place ``place`` of the draft; returns it, and which rows end with it."""
        chosen, scores = self._choose(rows, logits, draft, place)
        at = self.lengths[rows]
        self.output[rows, at] = chosen
        if pick is not None:
            self.transitions[rows, at] = pick(scores, np.arange(len(rows)), chosen)
        self.lengths[rows] = at + 1
        ended: NDArray[np.bool_] = at + 1 >= self.options.total_length
        for token in self.options.eos:
            ended |= chosen == token
        self.running[rows] = ~ended
        return chosen, ended

    def _choose(self, rows: Tokens, logits: Scores, draft: Draft, place: int) -> tuple[Tokens, Scores]:
        """The next token of ``rows``, int64, and the scores float32 [rows, vocab] that it was chosen by."""
        if not self.rules and not self.options.do_sample:
            best = logits.argmax(axis=-1)
            check_logits(logits[rows, best[rows]])
            return best[rows], logits[rows] if len(rows) < len(logits) else logits
        scores, lengths = logits[rows], self.lengths[rows]
        check_logits(scores.max(axis=-1))
        if self.rules:
            self._apply_rules(rows, scores)
        if not self.options.do_sample:
            return scores.argmax(axis=-1), scores
        if draft.probabilities is None:
            return invert_draws(scores, self._uniforms(rows, lengths - 1)), scores
        counted = place < draft.counts[rows]
        drawn = [self._draw(scores[index], draft, row, place, counted[index]) for index, row in enumerate(rows)]
        return np.array(drawn, np.int64), scores

    def _apply_rules(self, rows: Tokens, scores: Scores) -> None:
        """Change ``scores`` [rows, vocab] as the options ask; together where rows are equally long."""
        lengths = self.lengths[rows]
        same = (lengths == lengths[0]).all()
        groups = [slice(None)] if same else [slice(index, index + 1) for index in range(len(rows))]
        for group in groups:
            for rule in self.rules:
                rule(self.output[rows[group], : lengths[group][0]], scores[group])

    def _draw(self, scores: Scores, draft: Draft, row: int, place: int, counted: bool) -> int:
        """Accept the drafted token or draw another, so that either comes as often as ``scores`` [vocab] want it."""
        wanted, uniform = softmax(scores).astype(np.float64), self.random.random(2)
        if counted:
            assert draft.probabilities is not None
            offered, token = draft.probabilities[row, place], int(draft.tokens[row, place])
            if uniform[0] * offered[token] < wanted[token]:
                return token
            wanted = np.maximum(wanted - offered, 0.0)
            if not wanted.any():  # both alike but for rounding
                return token
        with np.errstate(divide="ignore"):
            return int(invert_draws(np.log(wanted)[None].astype(np.float32), uniform[1:])[0])

    def _uniforms(self, rows: Tokens, steps: Tokens) -> NDArray[np.float64]:
        """The numbers with which plain sampling of the same seed draws at these rows' steps."""
        missing = int(steps.max()) + 1 - len(self.uniforms)
        if missing > 0:
            more = self.random.random((max(missing, DRAWN_AHEAD), self.uniforms.shape[1]))
            self.uniforms = np.concatenate((self.uniforms, more))
        found: NDArray[np.float64] = self.uniforms[steps, rows]
        return found

    def _keep(self) -> None:
        """Cut the cache to what was chosen, the newest token of each row excepted: it is fed next."""
        held = self.lengths - 1
        if not self.model.rows_differ:
            held = np.full_like(held, held[self.running].max() if self.running.any() else held.max())
        self.model.keep(self.state, held)

    def score_padding(self, state: Any, found: Generated, pick: Pick) -> None:
        """What the padding behind an end scored, as in plain search, which feeds rows that have ended on.

        ``state``: another one of ``model``, nothing stepped yet; ``found``: the result of ``run``, to fill in.
        """
        tokens = found.sequences
        for start in range(0, tokens.shape[1] - 1, WIDTH):
            fed = np.ascontiguousarray(tokens[:, start : min(start + WIDTH, tokens.shape[1] - 1)])
            logits = self.model.step(state, fed)
            for place in range(fed.shape[1]):
                at = start + place + 1
                rows = np.flatnonzero(self.lengths <= at)
                scores = logits[rows, place]
                for rule in self.rules if rows.size else ():
                    rule(tokens[rows, :at], scores)
                found.transition_scores[rows, at - 1] = pick(scores, np.arange(len(rows)), tokens[rows, at])
