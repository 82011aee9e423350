"""Encoder outputs against the reference's: over all tokens, token by token, and as one vector for each text.

Lengths of vectors carry little in an embedding and hide a wrong direction in a mean; so an encoder alone is judged by
cosines besides. For unit vectors at distance d the cosine is 1 - d^2 / 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from t5edge.bundle.parity_report import CheckResult, at_most
from t5edge.bundle.precision import Precision
from t5edge.exporter.reference.protocol import Outputs
from t5edge.parity.limits import Measured, OwnErrors, error_limit, judge_error
from t5edge.parity.measures import Floats, root_ratio

TOKEN_SPREAD = 4.0
"""In float32 a single token may be off by this many times the bound on all of them."""


@dataclass(frozen=True)
class HiddenErrors:
    """Outputs of an encoder against reference outputs, float64; infinite where not finite.

    Attributes:
        error, size: squared L2 norms of the difference and of the reference, [tokens].
        token: distance of a token's hidden state from the reference's, both scaled to length 1, [tokens].
        pooled: the same of the mean over a text's tokens, [texts].
        embedding: the same of sentence embeddings, [texts]; empty where the model gives none.
    """

    error: Floats
    size: Floats
    token: Floats
    pooled: Floats
    embedding: Floats

    @property
    def positions(self) -> int:
        return len(self.error)

    @property
    def relative(self) -> float:
        """Relative L2 error over all tokens."""
        return root_ratio(self.error, self.size)

    def worst(self, of: str) -> float:
        """The largest of a field; 0 where it is empty."""
        return float(getattr(self, of).max(initial=0.0))


def compare_hidden(value: Outputs, reference: Outputs, seen: np.ndarray) -> HiddenErrors:
    """The outputs of a batch; ``seen`` bool [batch, source] leaves out padding."""
    found, exact = value.hidden[seen].astype(np.float64), reference.hidden[seen].astype(np.float64)
    broken = ~np.isfinite(found).all(axis=-1)
    found = np.where(broken[:, None], 0.0, found)
    texts = np.repeat(np.arange(len(seen)), seen.sum(axis=1))
    lost = np.bincount(texts, broken, len(seen)) > 0
    difference = found - exact
    return HiddenErrors(
        error=np.where(broken, np.inf, np.sum(difference * difference, axis=-1)),
        size=np.sum(exact * exact, axis=-1),
        token=np.where(broken, np.inf, _distance(found, exact)),
        pooled=np.where(lost, np.inf, _distance(_sums(found, texts, len(seen)), _sums(exact, texts, len(seen)))),
        embedding=_embedding_distance(value.embedding, reference.embedding),
    )


def _sums(states: Floats, texts: np.ndarray, count: int) -> Floats:
    """States [tokens, d_model] added up by text: [texts, d_model]."""
    found = np.zeros((count, states.shape[1]))
    np.add.at(found, texts, states)
    return found


def _embedding_distance(value: np.ndarray | None, reference: np.ndarray | None) -> Floats:
    if reference is None:
        return np.zeros(0)
    if value is None:
        return np.full(len(reference), np.inf)
    broken = ~np.isfinite(value).all(axis=-1)
    wide = np.where(broken[:, None], 0.0, value.astype(np.float64))
    return np.where(broken, np.inf, _distance(wide, reference.astype(np.float64)))


def _distance(value: Floats, reference: Floats) -> Floats:
    """Distance of rows scaled to length 1, [rows]."""
    return np.linalg.norm(_unit(value) - _unit(reference), axis=-1)


def _unit(rows: Floats) -> Floats:
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


VECTORS: tuple[tuple[Measured, str], ...] = (
    ("pooled", "pooled encoder outputs"),
    ("embedding", "sentence embeddings"),
)
"""The vectors of a text, by the field of their errors."""


def judge_hidden(
    name: str, errors: HiddenErrors, precision: Precision, unit: OwnErrors | None, what: str = "encoder output"
) -> Iterator[CheckResult]:
    """An encoder alone on a few texts, which PyTorch's own errors are known of: the worst token and the worst text."""
    yield judge_error(name, what, errors.relative, error_limit(precision, unit, "hidden"), positions=errors.positions)
    limit = error_limit(precision, unit, "token") * (1.0 if unit else TOKEN_SPREAD)
    yield _judge_cosine(name, f"{what}, worst token", errors.worst("token"), limit)
    for of, vector in _vectors(errors):
        yield _judge_cosine(name, f"{vector}, worst text", errors.worst(of), error_limit(precision, unit, of))


def judge_many(
    name: str, errors: HiddenErrors, precision: Precision, unit: OwnErrors | None, what: str
) -> Iterator[CheckResult]:
    """The same on many texts: on average, since PyTorch's own worst token of a few says nothing of thousands."""
    facts = {"positions": errors.positions, "worst_token": errors.worst("token")}
    limit = error_limit(precision, unit, "hidden")
    yield judge_error(name, f"encoder output, {what}", errors.relative, limit, **facts)
    for of, vector in _vectors(errors):
        distance = getattr(errors, of)
        mean = float(np.sqrt(np.mean(distance * distance)))
        limit, worst = error_limit(precision, unit, of), errors.worst(of) ** 2 / 2
        yield _judge_cosine(name, f"{vector}, mean over {what}", mean, limit, worst=worst, texts=len(distance))


def _vectors(errors: HiddenErrors) -> list[tuple[Measured, str]]:
    return [(of, vector) for of, vector in VECTORS if len(getattr(errors, of))]


def _judge_cosine(name: str, what: str, distance: float, limit: float, **details: Any) -> CheckResult:
    """Unit vectors at a distance from the reference's, as 1 minus their cosine."""
    return at_most(name, f"1 - cosine of {what}", distance**2 / 2, limit**2 / 2, **details)
