"""Generated ids as texts, or as texts with what each of their tokens scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from t5edge.runtime.generation.options import GenerationOptions
    from t5edge.runtime.generation.scores import Generated
    from t5edge.runtime.generation.step import Scores, Tokens
    from t5edge.runtime.tokenizer import BundleTokenizer


@dataclass(frozen=True)
class Answer:
    """A text and its scores.

    Attributes:
        text: as ``generate_text`` gives it without scores.
        tokens: the pieces that it was made of, the end token included, neither start token nor padding.
        token_scores: float32 [tokens], natural-log probabilities among the tokens that the options left.
        beam_score: what beam search ranks by; None without beams.
    """

    text: str
    tokens: tuple[str, ...]
    token_scores: Scores
    beam_score: float | None = None

    @property
    def score(self) -> float:
        """Natural-log probability of the whole answer: the sum of its tokens'."""
        return float(self.token_scores.sum(dtype=np.float64))


def reader(
    tokenizer: BundleTokenizer, options: GenerationOptions, skip_special_tokens: bool, scored: bool
) -> Callable[[Generated], list[Any]]:
    """What makes a list of ``Answer``, or of str unless ``scored``, of generated rows."""

    def texts(found: Generated) -> list[str]:
        return tokenizer.decode(found.sequences, skip_special_tokens)

    def answers(found: Generated) -> Iterator[Answer]:
        for row, text in enumerate(texts(found)):
            size = answer_length(found.sequences[row, 1:], options.eos)
            pieces, beams = tokenizer.pieces(found.sequences[row, 1 : size + 1].tolist()), found.sequences_scores
            yield Answer(
                text, pieces, found.transition_scores[row, :size], None if beams is None else float(beams[row])
            )

    return (lambda found: list(answers(found))) if scored else texts


def answer_length(tokens: Tokens, ends: tuple[int, ...]) -> int:
    """Tokens of ``tokens`` int64 [length] up to the first of ``ends``, that one included; all without any."""
    places = np.flatnonzero(np.isin(tokens, ends))
    return int(places[0]) + 1 if places.size else len(tokens)
