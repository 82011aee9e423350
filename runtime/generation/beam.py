"""Beam search and beam sampling over a batch, vectorised.

    running : the open hypotheses of every sentence, best first     tokens [batch, beams, total_length]
    finished: its best ended hypotheses, best first                 tokens [batch, beams, total_length]
    (the same shape has what each token scored when it was chosen: ``transitions``)

    one step: logits -> log-probabilities -> rules -> + score of the beam -> the best (1 + end tokens) * beams
    candidates -> the best open ones run on, the ended ones among the best ``beams`` compete with ``finished``

A slot without a hypothesis has score -1e9, and -1e9 is added to what must not be chosen. Follows transformers
5.23 ``GenerationMixin._beam_search``, float32 rounding included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from t5edge.errors import UserError
from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.processors import Rule, build_rules
from t5edge.runtime.generation.scores import (
    Generated,
    Pick,
    draw_candidates,
    log_softmax,
    pick_scores,
    top_candidates,
)
from t5edge.runtime.generation.step import Scores, StateT, StepModel, Tokens

Flags = NDArray[np.bool_]
NumberT = TypeVar("NumberT", bound=np.generic)

OUT = np.float32(-1e9)


def tail_token(options: GenerationOptions) -> int:
    """What follows the end token in the output of beam search.

    T5: its padding id is 0, which transformers 5.23 takes for "no padding id" here and fills with the first
    end id; greedy search and sampling fill with the padding id.
    """
    return options.pad_token_id or (*options.eos, options.pad)[0]


def search_beams(
    model: StepModel[StateT],
    state: StateT,
    batch: int,
    options: GenerationOptions,
    random: np.random.Generator,
    pick: Pick | None = None,
) -> Generated:
    """Search from a state with batch * num_beams rows and an empty cache; ``pick`` says what a token scored.

    Returns batch * num_return_sequences rows. Raises ``UserError`` when the vocabulary is smaller
    than the number of candidates, ``FloatingPointError`` for NaN or infinite logits.
    """
    search = BeamSearch(options, batch, random, pick or pick_scores)
    identity = np.arange(batch * options.num_beams)
    places = identity  # the model's row of every beam
    tokens = search.newest
    while True:
        tokens[places] = search.newest
        logits = model.step(state, tokens)[:, -1]
        parents = search.advance(logits if places is identity else logits[places])
        if search.done:
            return search.result()
        rows, places = place_beams(places[parents])
        if not np.array_equal(rows, identity):
            model.reorder(state, rows)
        if np.array_equal(places, identity):
            places = identity


def place_beams(old: Tokens) -> tuple[Tokens, Tokens]:
    """Where beams that continue the rows ``old`` int64 [batch * beams] lie, so that as few caches as possible move.

    The first beam that continues a row stays there; others take rows of their sentence that nobody continues.
    Returns which old row every row continues, and the row of every beam, both int64 [batch * beams].
    """
    continued, first = np.unique(old, return_index=True)
    free, later = np.ones(len(old), bool), np.ones(len(old), bool)
    free[continued], later[first] = False, False
    places = np.empty_like(old)
    places[first], places[later] = continued, np.flatnonzero(free)
    rows = np.empty_like(old)
    rows[places] = old
    return rows, places


@dataclass
class Candidates:
    """Continuations of running beams, [batch, candidates]; tokens, transitions [batch, candidates, total_length]."""

    scores: Scores
    tokens: Tokens
    transitions: Scores
    beams: Tokens
    ended: Flags


class BeamSearch:
    """The hypotheses of a batch; ``length`` counts the tokens of each running one, start token included."""

    def __init__(
        self, options: GenerationOptions, batch: int, random: np.random.Generator, pick: Pick = pick_scores
    ) -> None:
        beams = options.num_beams
        self.options, self.random, self.pick = options, random, pick
        self.rules: tuple[Rule, ...] = build_rules(options)
        self.candidates = max(2, 1 + len(options.eos)) * beams
        self.length, self.done = 1, False
        self.running = np.full((batch, beams, options.total_length), tail_token(options), np.int64)
        self.running[..., 0] = options.decoder_start_token_id
        self.running_scores = np.full((batch, beams), OUT, np.float32)
        self.running_scores[:, 0] = 0
        self.running_transitions = np.zeros(self.running.shape, np.float32)
        self.finished, self.finished_transitions = self.running.copy(), self.running_transitions.copy()
        self.finished_scores = np.full((batch, beams), OUT, np.float32)
        self.finished_sizes = np.zeros((batch, beams), np.int64)
        self.is_finished = np.zeros((batch, beams), bool)
        self.improvable = np.ones((batch, 1), bool)

    @property
    def newest(self) -> Tokens:
        """The last token of every running beam, int64 [batch * beams, 1]."""
        return self.running[..., self.length - 1].flatten()[:, None]

    def advance(self, logits: Scores) -> Tokens:
        """Take the step from ``logits`` float32 [batch * beams, vocab].

        Returns the old row that each running beam continues, int64 [batch * beams], and sets ``done``.
        """
        candidates = self._propose(self._log_probabilities(logits))
        kept = self._continue(candidates)
        self._collect(candidates)
        self.length += 1
        self._check_done(candidates)
        return self._rows(np.take_along_axis(candidates.beams, kept, axis=1)).reshape(-1)

    def result(self) -> Generated:
        """Best hypotheses, sentence-major, batch * num_return_sequences rows; length is that of the longest."""
        returned = self.options.num_return_sequences
        longest = 1 + int(self.finished_sizes[:, :returned].max())
        sequences = self.finished[:, :returned, :longest].reshape(-1, longest)
        transitions = self.finished_transitions[:, :returned, 1:longest].reshape(-1, longest - 1)
        return Generated(sequences, transitions, self.finished_scores[:, :returned].flatten())

    def _log_probabilities(self, logits: Scores) -> Scores:
        """Of every continuation of every beam, after the rules: float32 [batch * beams, vocab]."""
        scores = log_softmax(logits)
        if self.rules:
            tokens = self.running[..., : self.length].reshape(len(scores), -1)
            for rule in self.rules:
                rule(tokens, scores)
        return scores

    def _propose(self, steps: Scores) -> Candidates:
        """The best or drawn continuations, by ``steps`` float32 [batch * beams, vocab] and the beams' own scores."""
        vocab = steps.shape[1]
        scores = (steps + self.running_scores.reshape(-1, 1)).reshape(len(self.running), -1)
        if scores.shape[1] < self.candidates:
            raise UserError(
                f"generate: {self.options.num_beams} beams with {len(self.options.eos)} end tokens compare "
                f"{self.candidates} candidates, a vocabulary of {vocab} offers {scores.shape[1]}; "
                f"give fewer eos_token_id"
            )
        if self.options.do_sample:
            values, places = draw_candidates(scores, self.candidates, self.random)
        else:
            values, places = top_candidates(scores, self.candidates)
        beams, newest = np.divmod(places, vocab)
        tokens = _of_beams(self.running, beams)
        tokens[..., self.length] = newest
        transitions = _of_beams(self.running_transitions, beams)
        transitions[..., self.length] = self.pick(steps, self._rows(beams), newest)
        ended = np.full(newest.shape, self.length + 1 >= self.options.total_length)
        for token in self.options.eos:
            ended |= newest == token
        return Candidates(values, tokens, transitions, beams, ended)

    def _continue(self, candidates: Candidates) -> Tokens:
        """Let the best candidates that have not ended run on; return which ones, int64 [batch, beams]."""
        scores = candidates.scores + _penalty(candidates.ended)
        self.running_scores, kept = top_candidates(scores, self.options.num_beams)
        self.running = _of_beams(candidates.tokens, kept)
        self.running_transitions = _of_beams(candidates.transitions, kept)
        return kept

    def _collect(self, candidates: Candidates) -> None:
        """Merge the candidates that have just ended into the finished hypotheses.

        Only the first ``beams`` candidates may end; the others are there so that enough beams can run on.
        """
        beams, stops_when_full = self.options.num_beams, self.options.early_stopping is True
        ended: Flags = candidates.ended & (np.arange(self.candidates) < beams)
        if not ended.any():
            return
        full = np.logical_and(self.is_finished.all(axis=1, keepdims=True), stops_when_full)
        scores: Scores = candidates.scores / np.float32(self.length**self.options.length_penalty)
        for excluded in (full, ~self.improvable, ~ended):
            scores = scores + _penalty(excluded)
        sizes = np.full(ended.shape, self.length)
        self.finished_scores, kept = top_candidates(np.hstack((self.finished_scores, scores)), beams)
        self.finished_sizes = np.take_along_axis(np.hstack((self.finished_sizes, sizes)), kept, axis=1)
        self.is_finished = np.take_along_axis(np.hstack((self.is_finished, ended)), kept, axis=1)
        self.finished = _of_beams(np.hstack((self.finished, candidates.tokens)), kept)
        self.finished_transitions = _of_beams(np.hstack((self.finished_transitions, candidates.transitions)), kept)

    def _rows(self, beams: Tokens) -> Tokens:
        """Rows of the whole batch of ``beams`` int64 [batch, n], counted within their sentences."""
        return np.arange(len(beams))[:, None] * self.options.num_beams + beams

    def _check_done(self, candidates: Candidates) -> None:
        """Stop when no sentence can improve, when all are full and that suffices, or when nothing can run on.

        A sentence can improve while its best running beam, at the length that favours it, beats the worst
        finished hypothesis. Only ``early_stopping="never"`` looks ahead to the longest length.
        """
        options = self.options
        looks_ahead = options.early_stopping == "never" and options.length_penalty > 0
        generated = (options.total_length if looks_ahead else self.length) - 1
        hope = self.running_scores[:, :1] / np.float32(generated**options.length_penalty)
        worst = np.where(self.is_finished, self.finished_scores.min(axis=1, keepdims=True), OUT)
        self.improvable &= (hope > worst).any(axis=1, keepdims=True)
        stops_when_full = options.early_stopping is True and bool(self.is_finished.all())
        self.done = not self.improvable.any() or stops_when_full or bool(candidates.ended.all())


def _of_beams(hypotheses: NDArray[NumberT], beams: Tokens) -> NDArray[NumberT]:
    """Those of ``hypotheses`` [batch, m, total_length] that ``beams`` int64 [batch, n] names."""
    return np.take_along_axis(hypotheses, beams[..., None], axis=1)


def _penalty(barred: Flags) -> Scores:
    """What keeps ``barred`` bool [batch, n] from being chosen: float32 of the same shape."""
    return np.where(barred, OUT, np.float32(0))
