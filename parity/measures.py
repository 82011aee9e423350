"""How far numbers lie from their reference. NaN and infinity come first: they make every measure infinite.

Arg-max alone hides a wrong logit scale, a relative error alone hides where it falls; so logits are judged by four
measures at once, kept per position so that batches can be pooled and ties be left out afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Errors = TypeVar("Errors", bound=Any)
"""A dataclass whose fields are ``Floats`` over the same positions."""

NORMAL_95 = 1.96
DRAWS = 400
"""Samples of the bootstrap."""
CHUNK = 1 << 22
"""Logits compared at a time, so that a vocabulary of 250,000 does not need its float64 copy at once."""


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """L2 norm of the difference over L2 norm of ``reference``, any equal shapes; infinite where not finite."""
    if value.shape != reference.shape:
        raise ValueError(f"shapes differ: {value.shape} and reference {reference.shape}")
    wide, exact = value.astype(np.float64), reference.astype(np.float64)
    if not np.isfinite(wide).all():
        return float("inf")
    return root_ratio((wide - exact) ** 2, exact**2)


def log_softmax(logits: np.ndarray) -> Floats:
    """Natural-log probabilities over the last axis, float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


@dataclass(frozen=True)
class LogitErrors:
    """Logits against reference logits, each field [positions] float64.

    Attributes:
        error: squared L2 norm of the difference of the logits.
        size: squared L2 norm of the reference logits.
        worst: largest absolute difference of a logit.
        kl: KL divergence of the distributions, reference first, in nats.
        log_prob_error: squared L2 norm of the difference of the log-probabilities.
        log_prob_size: squared L2 norm of the reference log-probabilities.
        margin: by how much the reference prefers its own best token to the one chosen instead; 0 where they agree.
        vocab: entries of each row.
    """

    error: Floats
    size: Floats
    worst: Floats
    kl: Floats
    log_prob_error: Floats
    log_prob_size: Floats
    margin: Floats
    vocab: Floats

    @property
    def positions(self) -> int:
        return len(self.error)

    @property
    def not_finite(self) -> int:
        """Positions with NaN or infinity among the logits."""
        return int(np.count_nonzero(~np.isfinite(self.error)))

    @property
    def relative(self) -> float:
        """Relative L2 error of the logits."""
        return root_ratio(self.error, self.size)

    @property
    def worst_position(self) -> float:
        """Error of the worst position, relative to the average size of a position's logits."""
        return float(np.sqrt(self.error.max() / self.size.mean())) if self.size.mean() else float("inf")

    @property
    def log_prob_relative(self) -> float:
        """Relative L2 error of the log-probabilities."""
        return root_ratio(self.log_prob_error, self.log_prob_size)

    @property
    def rms_logit(self) -> float:
        """Root mean square of the reference logits: turns a relative error into one in logits."""
        return float(np.sqrt(self.size.sum() / self.vocab.sum()))

    @property
    def agreeing(self) -> int:
        """Positions with the same best token, ties or not."""
        return int(np.count_nonzero(self.margin == 0))

    def top1(self, explained: float) -> tuple[float, int, int]:
        """Share of positions with the same best token, how many disagree, and how many ties were left out.

        A tie is a disagreement whose margin is at most ``explained``, the logit error that is granted.
        """
        ties = int(np.count_nonzero((self.margin > 0) & (self.margin <= explained)))
        wrong = int(np.count_nonzero(self.margin > explained))
        judged = self.positions - ties
        return (1.0 - wrong / judged if judged else 1.0), wrong, ties


def root_ratio(error: Floats, size: Floats) -> float:
    """Root of the sum of squared errors over that of squared sizes; infinite where nothing has a size."""
    total = float(error.sum())
    if total == 0.0:
        return 0.0
    return float(np.sqrt(total / size.sum())) if size.sum() else float("inf")


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % confidence interval of a rate, ``right`` of ``total`` (Wilson, 1927); [0, 1] where total is 0."""
    if not total:
        return 0.0, 1.0
    rate, part = right / total, NORMAL_95**2 / total
    middle, half = rate + part / 2, NORMAL_95 * float(np.sqrt(rate * (1 - rate) / total + (part / total) / 4))
    return max(0.0, (middle - half) / (1 + part)), min(1.0, (middle + half) / (1 + part))


def mean_interval(values: Floats) -> tuple[float, float]:
    """95 % confidence interval of the mean of ``values`` [n], by the bootstrap's percentiles (seeded)."""
    random, count = np.random.default_rng(0), len(values)
    means = [values[random.integers(0, count, count)].mean() for _ in range(DRAWS)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def pool(kind: type[Errors], parts: Iterable[Errors]) -> Errors:
    """Several comparisons as one: each field, [n] float64, joined; of no comparison they are empty."""
    known = list(parts)
    names = [entry.name for entry in fields(kind)]
    return kind(*(np.concatenate([np.zeros(0), *(getattr(part, name) for part in known)]) for name in names))


def compare_logits(value: np.ndarray, reference: np.ndarray) -> LogitErrors:
    """Compare ``value`` with ``reference``, both [positions, vocab]; all infinite where either is not finite."""
    if value.shape != reference.shape or value.ndim != 2:
        raise ValueError(f"shapes are {value.shape} and reference {reference.shape}, not [positions, vocab] twice")
    return pool(LogitErrors, (_compare(value[rows], reference[rows]) for rows in _chunks(value.shape)))


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, CHUNK // shape[1])
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def _compare(value: np.ndarray, reference: np.ndarray) -> LogitErrors:
    broken = ~(np.isfinite(value).all(axis=-1) & np.isfinite(reference).all(axis=-1))
    exact = np.where(broken[:, None], 0.0, reference.astype(np.float64))
    wide = np.where(broken[:, None], 0.0, value.astype(np.float64))
    expected, found = log_softmax(exact), log_softmax(wide)
    difference, drift = wide - exact, found - expected
    rows = np.arange(len(exact))
    margin = exact[rows, exact.argmax(axis=-1)] - exact[rows, wide.argmax(axis=-1)]
    errors = (
        np.sum(difference * difference, axis=-1),
        np.abs(difference).max(axis=-1),
        np.maximum(0.0, -np.sum(np.exp(expected) * drift, axis=-1)),
        np.sum(drift * drift, axis=-1),
        margin,
    )
    error, worst, kl, log_prob_error, margin = (np.where(broken, np.inf, entry) for entry in errors)
    return LogitErrors(
        error=error,
        size=np.sum(exact * exact, axis=-1),
        worst=worst,
        kl=kl,
        log_prob_error=log_prob_error,
        log_prob_size=np.sum(expected * expected, axis=-1),
        margin=margin,
        vocab=np.full(len(exact), float(exact.shape[1])),
    )
