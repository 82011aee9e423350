"""Arithmetic on rows of vocabulary scores: log-softmax, the k largest, random draws. Numpy only, float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t5edge.errors import UserError
from t5edge.runtime.generation.step import Scores, Tokens

Pick = Callable[[Scores, Tokens, Tokens], Scores]
"""What a token scored: scores float32 [rows, vocab], rows and tokens int64 of one shape -> float32 of that shape."""

GROUPS = 64
"""Entries per group in ``_threshold``; T5: 32128 = 64 * 502."""
BLOCK = 512
"""Entries that ``_invert`` sums before it looks closer."""


@dataclass(frozen=True)
class Generated:
    """Answers and what they scored.

    Attributes:
        sequences: int64 [rows, length], decoder start token first.
        transition_scores: float32 [rows, length - 1], one for each token behind the start token, as transformers'
            ``compute_transition_scores`` gives them. Behind the end: 0 with beams, else what the padding id scored.
        sequences_scores: float32 [rows], what beam search ranks by: the sum of a row's transition scores over the
            number of its tokens to the power of ``length_penalty``; None without beams.
    """

    sequences: Tokens
    transition_scores: Scores
    sequences_scores: Scores | None = None

    def row(self, index: int) -> Generated:
        """That row as the only one."""
        part = slice(index, index + 1)
        beams = self.sequences_scores
        return Generated(self.sequences[part], self.transition_scores[part], None if beams is None else beams[part])


def check_logits(peaks: NDArray[np.float32]) -> None:
    """Stop when the largest logit of a row (``peaks``, float32, any shape) is not a finite number.

    Raises ``FloatingPointError``: a NaN anywhere in a row, an infinity, or a row of nothing but -infinity.
    """
    if not np.isfinite(peaks).all():
        raise FloatingPointError(
            "the model's logits are NaN or infinite, expected finite numbers; this precision "
            "overflows on this input: run 'verify' on the bundle, or export with --precision fp32 or bf16"
        )


def log_softmax(logits: Scores) -> Scores:
    """Natural-log probabilities of ``logits`` float32 [rows, vocab], as a new array of the same shape.

    Subtracts the maximum, then the log of the sum, in float32, as torch's CPU kernel does.
    Raises ``FloatingPointError`` for NaN and infinite logits.
    """
    peak = logits.max(axis=-1, keepdims=True)
    check_logits(peak)
    scores: Scores = logits - peak
    scores -= np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return scores


def pick_scores(scores: Scores, rows: Tokens, tokens: Tokens) -> Scores:
    """A ``Pick``: the scores as they are."""
    picked: Scores = scores[rows, tokens]
    return picked


def pick_log_probabilities(scores: Scores, rows: Tokens, tokens: Tokens) -> Scores:
    """A ``Pick``: natural-log probabilities over the vocabulary."""
    return pick_scores(log_softmax(scores), rows, tokens)


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of ``scores`` float32 [..., n], a finite entry in every row; -infinity gives 0."""
    weights: NDArray[np.float32] = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def kth_largest(row: NDArray[np.float32], k: int) -> np.float32:
    """The k-th largest of ``row`` float32 [n] without NaN, 1 <= k <= n, counting equal values separately."""
    values = row[row >= _threshold(row, k)]
    return np.float32(np.partition(values, values.size - k)[values.size - k])


def top_candidates(scores: Scores, k: int) -> tuple[Scores, Tokens]:
    """The k largest of every row, largest first: values float32 and positions int64, both [rows, k].

    ``scores``: float32 [rows, n] without NaN, n >= k. Of equal values the lower position comes first (torch's
    CPU topk leaves the order of equal values to its selection algorithm).
    """
    positions = np.stack([_largest(row, k) for row in scores])
    return np.take_along_axis(scores, positions, axis=1), positions


def draw_tokens(scores: Scores, random: np.random.Generator) -> Tokens:
    """One token per row with probability softmax(``scores``): float32 [rows, vocab] -> int64 [rows].

    With one uniform number per row and step, so a row's draws do not depend on when other rows finish.
    """
    return invert_draws(scores, random.random(len(scores)))


def invert_draws(scores: Scores, uniforms: NDArray[np.float64]) -> Tokens:
    """The tokens at ``uniforms`` [rows] of the cumulative distributions of ``scores`` float32 [rows, vocab].

    Draws differ from torch.multinomial's; the distribution does not.
    """
    return np.array([_invert(*pair) for pair in zip(scores, uniforms, strict=True)], np.int64)


def _invert(row: NDArray[np.float32], uniform: float) -> int:
    """``invert_draws`` of one row; of what filters left, where that is less than half."""
    allowed = row > -np.inf
    if 2 * np.count_nonzero(allowed) >= row.size:
        return _place(row, uniform)
    tokens = _allowed(row)
    return int(tokens[_place(row[tokens], uniform)])


def _place(values: NDArray[np.float32], uniform: float) -> int:
    """Where ``uniform`` falls: first in which block of ``values``, then where in it.

    Exponentials are float32, sums float64; what is below 1e-45 of the best is never drawn.
    """
    weights = np.exp(values - values.max())
    cumulative = np.cumsum(np.add.reduceat(weights, np.arange(0, values.size, BLOCK), dtype=np.float64))
    target = uniform * cumulative[-1]
    block = int(np.searchsorted(cumulative, target, side="right"))
    before = cumulative[block - 1] if block else 0.0
    inside = before + np.cumsum(weights[block * BLOCK : (block + 1) * BLOCK], dtype=np.float64)
    place = block * BLOCK + int(np.searchsorted(inside, target, side="right"))
    if place < values.size and weights[place]:
        return place
    return int(np.flatnonzero(weights[:place])[-1])  # between two blocks, by their sums' rounding


def draw_candidates(scores: Scores, k: int, random: np.random.Generator) -> tuple[Scores, Tokens]:
    """Draw k different candidates per row, one after another, from softmax(``scores``) float32 [rows, n].

    Adds Gumbel noise and takes the k largest, which is the same distribution (Kool et al. 2019, "Stochastic
    Beams and Where to Find Them"); values come back without the noise, in the order drawn. Candidates whose
    probability is 0 in float32 come last, best first.
    """
    positions = np.stack([_draw_positions(row, k, random) for row in scores])
    return np.take_along_axis(scores, positions, axis=1), positions


def _allowed(row: NDArray[np.float32]) -> Tokens:
    """Positions int64 [m] of ``row`` float32 [n] that can be drawn; ``UserError`` when there are none."""
    places = np.flatnonzero(row > -np.inf)
    if not places.size:
        raise UserError("generate: the options forbid every token; raise no_repeat_ngram_size")
    return places


def _draw_positions(row: NDArray[np.float32], k: int, random: np.random.Generator) -> Tokens:
    """Positions int64 [k] drawn from softmax(``row``) float32 [n]; -infinity only when all else is taken."""
    allowed = _allowed(row)
    noisy = row[allowed] - row.max()
    likely = np.exp(noisy) > 0
    noisy[~likely] -= np.float32(1e6)
    noisy[likely] -= np.log(random.standard_exponential(int(likely.sum()))).astype(np.float32)
    drawn = allowed[_largest(noisy, min(k, allowed.size))]
    if drawn.size < k:
        drawn = np.concatenate((drawn, np.flatnonzero(row == -np.inf)[: k - drawn.size]))
    return drawn


def _threshold(row: NDArray[np.float32], k: int) -> np.float32:
    """A value that k entries of ``row`` reach, and few others: the k-th largest maximum of its groups."""
    groups = row.size // GROUPS
    if groups < 2 * k:
        return np.float32(-np.inf)
    maxima = row[: groups * GROUPS].reshape(GROUPS, groups).max(axis=0)
    return np.float32(np.partition(maxima, groups - k)[groups - k])


def _largest(row: NDArray[np.float32], k: int) -> Tokens:
    """Positions int64 [k] of the largest entries of ``row`` float32 [n], largest then lowest first."""
    places = np.flatnonzero(row >= _threshold(row, k))
    values = row[places]
    if values.size > 4 * k:
        least = np.partition(values, values.size - k)[values.size - k]
        above, level = np.flatnonzero(values > least), np.flatnonzero(values == least)
        chosen = np.concatenate((above, level[: k - above.size]))
        places, values = places[chosen], values[chosen]
    return places[np.lexsort((places, -values))[:k]]
