"""What the generation loop needs from a backend: encode once, then one cached decoder step per token.

    encode : input_ids, attention_mask [batch, source] -> state of batch * copies rows, empty self-attention
    step   : tokens [rows, target]                     -> logits [rows, target, vocab], cache longer by target
    reorder: row r continues as old row rows[r]        -> beams that win replace beams that lose
    keep   : lengths per row                           -> drafted tokens that were wrong are forgotten

Rows are sentence-major: row ``r`` belongs to sentence ``r // copies`` from ``encode`` to the end, because
``reorder`` never moves a row to another sentence. A backend may therefore hold cross keys and values once per
sentence.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
Scores = NDArray[np.float32]

StateT = TypeVar("StateT")


class StepModel(Protocol[StateT]):
    """A T5 model that advances token by token. ``StateT`` belongs to the backend; the loop hands it back."""

    def encode(self, input_ids: Tokens, attention_mask: Tokens, copies: int = 1) -> StateT:
        """Run the encoder once and start ``copies`` rows (beams or samples) per sentence.

        ``input_ids``, ``attention_mask``: int64 [batch, source]; 0 in the mask is padding, which may stand on
        either side. The state holds cross keys and values and an empty self-attention cache.
        """
        ...

    def step(self, state: StateT, tokens: Tokens) -> Scores:
        """Feed ``tokens`` int64 [rows, target] behind the cache; return logits float32 [rows, target, vocab].

        ``tokens`` is contiguous; ``target`` is 1 in generation and longer for prompts and teacher forcing.
        The result may be a view of a buffer that the next step overwrites: the loop neither keeps nor changes
        it. Rows that are finished are stepped with the padding token; their logits are ignored as long as
        they are finite.
        """
        ...

    def reorder(self, state: StateT, rows: Tokens) -> None:
        """Make row ``r`` continue the self-attention cache of the old row ``rows[r]``.

        ``rows``: int64 [batch * copies], with ``rows[r] // copies == r // copies``; ``rows[r] == r`` did not
        move and needs no copy; an old row may appear several times or never. Never called when no row moved.
        """
        ...


@runtime_checkable
class BestModel(Protocol):
    """A ``StepModel`` that can also take the arg-max itself, so that greedy search moves no logits to the host."""

    def best(self, state: object, tokens: Tokens) -> tuple[Tokens, Scores]:
        """As ``step`` for ``tokens`` int64 [rows, 1]; returns the likeliest next tokens int64 and their logits, [rows].

        A logit that is NaN or infinite tells the loop that the row's logits are.
        """
        ...


@runtime_checkable
class DraftModel(Protocol):
    """A ``StepModel`` that can forget the end of its self-attention cache.

    Attributes:
        rows_differ: rows may go on from unlike lengths.
    """

    rows_differ: bool

    def keep(self, state: object, lengths: Tokens) -> None:
        """Go on behind the first ``lengths[r]`` positions of row ``r``, int64 [rows]; equal unless ``rows_differ``.

        Called between steps; a length lies between that of the cache before the last step and that behind it. Where
        the keys lie in buffers a shorter length of any kind will do.
        """
        ...
