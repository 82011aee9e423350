"""What a precision's row allows, in numbers: one rule for every row, by its facts.

    max_relative_error   a bound as it stands
    max_error_ratio      so many times the error that PyTorch itself makes at the compute dtype
    max_kl, min_top1     bounds on the next-token distributions
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from exporter.parity.measures import LogitErrors
from exporter.parity.report import RungResult, at_least, at_most, failure
from exporter.precision import Precision

FLOAT32_ERROR = 1e-5
"""Relative error that two correct float32 implementations may differ by."""
TIE_SPREAD = 4.0
"""Two logits are tied when they lie within this many times the root mean square error that is granted."""
QUANTIZED_HIDDEN = 0.5
"""Rows without a bound on errors gate the logits; a hidden state further off than this is another one (unrelated: 1.4)."""
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
BROKEN_DOWN = 64.0
"""PyTorch's own error never counts as more roundings than this: beyond, PyTorch itself overflowed or clamped."""


@dataclass(frozen=True)
class OwnErrors:
    """The relative errors that PyTorch makes at a compute dtype, and the KL divergence (nats) they cause."""

    hidden: float
    cross: float
    logits: float
    log_probs: float
    kl: float


def ceiling(compute: str) -> float:
    """The largest own error that is believed, relative."""
    return BROKEN_DOWN * ROUNDING[compute]


def error_limit(row: Precision, own: float | None) -> float | None:
    """Bound on a relative error, ``own`` being PyTorch's; None where the row sets none."""
    if row.max_relative_error is not None:
        return row.max_relative_error
    if row.max_error_ratio is not None:
        assert own is not None, f"{row.name} is judged by PyTorch's own error"
        return row.max_error_ratio * own
    return None


def hidden_limit(row: Precision, own: float | None) -> float:
    """Bound on the relative error of hidden states, keys and values."""
    limit = error_limit(row, own)
    return QUANTIZED_HIDDEN if limit is None else limit


def granted(row: Precision, own: OwnErrors | None) -> float:
    """Relative logit error that rounding explains, whatever the row quantizes: what ties are judged by."""
    if own is None:
        return row.max_relative_error or FLOAT32_ERROR
    return (row.max_error_ratio or 2.0) * own.logits


def tie_margin(row: Precision, own: OwnErrors | None, rms_logit: float) -> float:
    """Logits closer than this may swap places."""
    return TIE_SPREAD * granted(row, own) * rms_logit


def kl_limit(row: Precision, own: OwnErrors | None) -> float | None:
    """Bound on the mean KL divergence. It grows with the square of the error that is allowed."""
    if row.max_kl is None or row.max_error_ratio is None or own is None:
        return row.max_kl
    return max(row.max_kl, row.max_error_ratio**2 * own.kl)


def judge_logits(
    name: str, errors: LogitErrors, row: Precision, own: OwnErrors | None, where: str = ""
) -> Iterator[RungResult]:
    """All gates of a row on one comparison of logits. ``where`` is appended to the measures' names."""
    if errors.not_finite:
        yield failure(name, f"NaN or infinity at {errors.not_finite} of {errors.positions} positions{where}")
        return
    facts = {"positions": errors.positions, "own": None if own is None else own.logits}
    limit = error_limit(row, None if own is None else own.logits)
    if limit is not None:
        yield at_most(
            name, f"relative error{where}", errors.relative, limit, **facts, largest=errors.largest_relative
        )
    bound = kl_limit(row, own)
    if bound is not None:
        kl = float(errors.kl.mean())
        yield at_most(name, f"mean KL (nats){where}", kl, bound, **facts, largest=float(errors.kl.max()))
    if row.min_top1 is not None:
        margin = tie_margin(row, own, errors.rms_logit)
        share, wrong, ties = errors.top1(margin)
        yield at_least(
            name, f"top-1 agreement{where}", share, row.min_top1, **facts, wrong=wrong, ties=ties, margin=margin
        )
    limit = error_limit(row, None if own is None else own.log_probs)
    if limit is not None:
        yield at_most(name, f"log-probability error{where}", errors.log_prob_relative, limit, **facts)
