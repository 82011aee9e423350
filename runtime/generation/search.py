"""Generate token ids with any backend that can step a decoder: greedy, sampling, beam search, beam sampling.

Output is token-for-token that of transformers 5.23 ``T5ForConditionalGeneration.generate`` for the same
options, given equal logits. Differences: sampling draws from our own seeded generator (the filtered
distributions are the same); equal beam scores are ordered by position; NaN logits raise instead of being
chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from t5edge.errors import UserError
from t5edge.runtime.generation.beam import search_beams
from t5edge.runtime.generation.drafted import DraftedSearch
from t5edge.runtime.generation.drafts import Drafting
from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.processors import Rule, build_rules
from t5edge.runtime.generation.scores import Generated, Pick, check_logits, draw_tokens
from t5edge.runtime.generation.step import BestModel, Scores, StateT, StepModel, Tokens

OnToken = Callable[[int, Tokens], None]
Choice = Callable[[Tokens, Scores], tuple[Tokens, Scores]]
"""Tokens so far and logits -> the next token per row, and the scores float32 [rows, vocab] that it was chosen by."""


def run_search(
    model: StepModel[StateT],
    input_ids: Tokens,
    attention_mask: Tokens,
    options: GenerationOptions,
    on_token: OnToken | None = None,
    pick: Pick | None = None,
    drafting: Drafting | None = None,
) -> Generated:
    """Generate from ``input_ids`` and ``attention_mask``, both int64 [batch, source].

    ``sequences`` are int64 [batch * num_return_sequences, length], sentence-major, decoder start token first; length is
    that of the longest row. What follows the end token is ``pad_token_id`` (beam search: see ``beam.tail_token``).

    ``on_token(step, tokens)`` streams greedy search and sampling: step counts from 0, tokens are int64
    [rows], the padding id for rows that are finished.

    ``pick`` says what every token scored, after all rules, as transformers' ``output_scores`` has it; without it all
    scores are 0. ``drafting``: with what tokens may be drafted, see ``drafted``.

    Raises ``UserError`` for inputs of the wrong shape or type and for streaming with beams,
    ``FloatingPointError`` when the model's logits are NaN or infinite.
    """
    _check_inputs(input_ids, attention_mask)
    if on_token is not None and options.num_beams > 1:
        raise UserError("generate: on_token cannot stream beams, they change until the end; set num_beams=1")
    drafter = drafting and drafting.drafter(model, input_ids, attention_mask, options)
    state = model.encode(input_ids, attention_mask, options.copies)
    if drafting and drafter:
        drafted = DraftedSearch(model, state, len(input_ids) * options.copies, options, drafter)
        found = drafted.run(on_token, pick)
        if pick is not None and drafting.padding_scores and drafted.lengths.min() < drafted.lengths.max():
            drafted.score_padding(model.encode(input_ids, attention_mask, options.copies), found, pick)
        return found
    random = np.random.default_rng(options.seed)
    if options.num_beams > 1:
        return search_beams(model, state, len(input_ids), options, random, pick)
    choose = _chooser(build_rules(options), options, random)
    return _extend(model, state, len(input_ids) * options.copies, options, choose, on_token, pick)


def _extend(
    model: StepModel[StateT],
    state: StateT,
    rows: int,
    options: GenerationOptions,
    choose: Choice,
    on_token: OnToken | None,
    pick: Pick | None,
) -> Generated:
    """Append a token per row until all have ended or the longest length is reached: ``rows`` rows."""
    output = np.full((rows, options.total_length), options.pad, np.int64)
    output[:, 0] = options.decoder_start_token_id
    transitions, every = np.zeros(output.shape, np.float32), np.arange(rows)
    newest, running, length = output[:, 0].copy(), np.ones(rows, bool), 1
    while length < options.total_length and running.any():
        newest, scores = _next(model, state, newest, choose, output[:, :length], pick is not None)
        if not running.all():
            newest[~running] = options.pad
        output[:, length] = newest
        if pick is not None:
            transitions[:, length] = pick(scores, every, newest)
        for token in options.eos:
            running &= newest != token
        if on_token is not None:
            on_token(length - 1, newest)
        length += 1
    return Generated(output[:, :length], transitions[:, 1:length])


def _next(
    model: StepModel[StateT], state: StateT, newest: Tokens, choose: Choice, tokens: Tokens, scored: bool
) -> tuple[Tokens, Scores]:
    """The next token per row, int64 [rows], and the scores it was chosen by, float32 [rows, vocab] if ``scored``.

    A backend that takes the arg-max itself does so in plain greedy search without scores.
    """
    if choose is _best and not scored and isinstance(model, BestModel):
        best, scores = model.best(state, newest[:, None])
        check_logits(scores)
        return best, scores
    return choose(tokens, model.step(state, newest[:, None])[:, -1])


def _chooser(rules: tuple[Rule, ...], options: GenerationOptions, random: np.random.Generator) -> Choice:
    """How the next token follows from the tokens so far and the logits."""
    if not rules and not options.do_sample:
        return _best

    def choose(tokens: Tokens, logits: Scores) -> tuple[Tokens, Scores]:
        check_logits(logits.max(axis=-1))
        scores = logits.copy()
        for rule in rules:
            rule(tokens, scores)
        return draw_tokens(scores, random) if options.do_sample else scores.argmax(axis=-1), scores

    return choose


def _best(tokens: Tokens, logits: Scores) -> tuple[Tokens, Scores]:
    """The best token per row, int64 [rows], of ``logits`` float32 [rows, vocab]; the first one of equals."""
    best: Tokens = logits.argmax(axis=-1)
    check_logits(logits[np.arange(len(best)), best])
    return best, logits


def _check_inputs(input_ids: Tokens, attention_mask: Tokens) -> None:
    for name, array in (("input_ids", input_ids), ("attention_mask", attention_mask)):
        if array.ndim != 2 or array.dtype != np.int64 or array.size == 0:
            raise UserError(
                f"generate: {name} is {array.dtype} {list(array.shape)}, expected int64 [batch, source], "
                f"at least one by one; convert it with np.asarray(..., np.int64) and add the batch axis"
            )
    if input_ids.shape != attention_mask.shape:
        raise UserError(
            f"generate: attention_mask is {list(attention_mask.shape)} but input_ids is "
            f"{list(input_ids.shape)}; give every token a mask entry, 1 for text and 0 for padding"
        )
